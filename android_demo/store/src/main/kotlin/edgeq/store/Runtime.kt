package edgeq.store

/** A model in a runtime's memory. Not safe for several threads at once. */
interface LoadedModel : AutoCloseable {
    /** Runs it once. Failures of the runtime are its own exceptions, want of memory is an OutOfMemoryError. */
    fun run(inputs: List<Tensor>): List<Tensor>
}

/** A language model with its tokenizer, which continues texts. One text at a time. */
interface Writer : AutoCloseable {
    /**
     * Continues [prompt] until the model ends the text or its context of [contextLength] tokens is full.
     *
     * @param each gets each piece of the text as it comes, in the thread of the call.
     */
    fun write(prompt: String, contextLength: Int, each: (String) -> Unit)

    /** Ends [write] after the next piece; from any thread. */
    fun stop()
}

/** Loads artifacts into the runtime that their manifest names. */
fun interface Loader {
    /**
     * @param location the artifact's path on this device.
     * @throws LinkageError the runtime's own library is not there; that is not the model's fault.
     * @throws OutOfMemoryError there is not enough memory, natively or in Java; nor is that.
     */
    fun load(manifest: Manifest, location: String): LoadedModel

    /**
     * Loads a language model to write with; throws what [load] does.
     *
     * @param location the artifact's path on this device.
     * @param tokenizer the path of its tokenizer.
     */
    fun writer(manifest: Manifest, location: String, tokenizer: String): Writer =
        throw Refusal(Reason.RUNTIME_MISSING, "this app has no runner of language models for ${manifest.runtime.name}")
}

/** A runtime that the app carries, and how a model is loaded into it. */
interface NativeRuntime : Loader {
    val support: RuntimeSupport
}
