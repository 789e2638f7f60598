package edgeq.store

/** A model in a runtime's memory. Not safe for several threads at once. */
interface LoadedModel : AutoCloseable {
    /** Runs it once. Failures of the runtime are its own exceptions, want of memory is an OutOfMemoryError. */
    fun run(inputs: List<Tensor>): List<Tensor>
}

/** Loads artifacts into the runtime that their manifest names. */
fun interface Loader {
    /**
     * @param location the artifact's path on this device.
     * @throws LinkageError the runtime's own library is not there; that is not the model's fault.
     * @throws OutOfMemoryError there is not enough memory, natively or in Java; nor is that.
     */
    fun load(manifest: Manifest, location: String): LoadedModel
}

/** A runtime that the app carries, and how a model is loaded into it. */
interface NativeRuntime : Loader {
    val support: RuntimeSupport
}
