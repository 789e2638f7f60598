package edgeq.store

import java.io.File
import java.util.concurrent.TimeUnit

/** The CPU that is emulated, with the runtime in the field; null where this host's runtime runs the artifacts. */
private val CPU: String? = System.getProperty("edgeq.cpu")?.ifEmpty { null }

/** The same in words, for the names of tests. */
val RUN_ON: String = CPU?.let { "an emulated $it" } ?: "this host"

/**
 * A model in its real runtime, in another process. All its inputs are known beforehand, so that one process runs them
 * all: the bundle's golden samples, and [images].
 */
class HostModel(folder: File, model: File, manifest: Manifest, images: List<Image>) : LoadedModel {
    private val answers: Map<List<Float>, Tensor>

    init {
        folder.mkdirs()
        val spec = manifest.inputs.single()
        val golden = parseGolden(manifest, File(model.parentFile, manifest.goldenFile.path).readBytes())
        val inputs = golden.samples.map { (inputs, _) -> inputs.single().toFloats() } +
            images.map { preprocess(spec.preprocess!!, it).toFloats() }
        val shape = listOf(inputs.size) + spec.shape.drop(1)
        val stacked = Tensor.of(inputs.flatMap { it.asIterable() }.toFloatArray(), shape)
        File(folder, "inputs.npz").writeBytes(npzOf(mapOf("input_0" to stacked)))
        run(model.path, File(folder, "inputs.npz").path, File(folder, "outputs.npz").path, log = File(folder, "log"))
        val outputs = parseNpz(File(folder, "outputs.npz").readBytes()).getValue("output_0")
        answers = inputs.indices.associate { inputs[it].asList() to outputs[it] }
    }

    private fun run(vararg arguments: String, log: File) {
        val python = checkNotNull(System.getProperty("edgeq.python")) { "run by Maven: edgeq.python is not set" }
        val on = CPU?.let { listOf("--on", it) }.orEmpty()
        val command = listOf(python, File(REPOSITORY, "scripts/run_model.py").path) + arguments + on
        val process = ProcessBuilder(command).redirectErrorStream(true).redirectOutput(log).start()
        check(process.waitFor(5, TimeUnit.MINUTES)) { process.destroyForcibly(); "no answer within five minutes" }
        check(process.exitValue() == 0) { log.readText() }
        println(log.readLines().last())
    }

    override fun run(inputs: List<Tensor>): List<Tensor> =
        listOf(answers.getValue(inputs.single().toFloats().asList()).let { it.reshape(listOf(1) + it.shape) })

    override fun close() = Unit
}
