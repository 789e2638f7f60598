package edgeq.demo

import edgeq.store.LoadedModel
import edgeq.store.Loader
import edgeq.store.Manifest
import edgeq.store.Writer

/** The runtimes that this app carries; an app with one of them needs its file alone, and passes it in place of this. */
object Runtimes : Loader {
    private val all = listOf(ExecuTorch, TorchLite, OnnxRuntime)

    val support = all.map { it.support }

    // the device refuses a bundle of a runtime that is not among these before it is loaded
    override fun load(manifest: Manifest, location: String): LoadedModel =
        of(manifest).load(manifest, location)

    override fun writer(manifest: Manifest, location: String, tokenizer: String): Writer =
        of(manifest).writer(manifest, location, tokenizer)

    private fun of(manifest: Manifest) = all.first { it.support.name == manifest.runtime.name }
}
