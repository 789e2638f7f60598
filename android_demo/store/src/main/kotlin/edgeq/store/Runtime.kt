package edgeq.store

/** A model in a runtime's memory. Not safe for several threads at once. */
interface LoadedModel : AutoCloseable {
    /** Runs it once. Failures of the runtime are its own exceptions. */
    fun run(inputs: List<Tensor>): List<Tensor>
}

/** Loads artifacts into the runtime that their manifest names. */
fun interface Loader {
    /**
     * @param location the artifact's path on this device.
     * @throws LinkageError the runtime's own library is not there; that is no fault of the model.
     */
    fun load(manifest: Manifest, location: String): LoadedModel
}
