package edgeq.store

import java.io.File
import java.util.concurrent.TimeUnit

/**
 * A model in its real runtime, in another process on this host. All its inputs are known beforehand, so that one process
 * runs them all: the bundle's golden samples, and [images].
 *
 * The command is `scripts/run_model.py MODEL INPUTS.npz OUTPUTS.npz`; another runner takes the same arguments.
 */
class HostModel(folder: File, model: File, manifest: Manifest, images: List<Image>) : LoadedModel {
    private val answers: Map<List<Float>, Tensor>

    init {
        folder.mkdirs()
        val spec = manifest.inputs.single()
        val golden = parseGolden(manifest, File(model.parentFile, manifest.goldenFile.path).readBytes())
        val inputs = golden.samples.map { (inputs, _) -> inputs.single().toFloats() } +
            images.map { preprocess(spec.preprocess!!, it).toFloats() }
        val stacked = Tensor.of(inputs.flatMap { it.asIterable() }.toFloatArray(), listOf(inputs.size) + spec.shape.drop(1))
        File(folder, "inputs.npz").writeBytes(npzOf(mapOf("input_0" to stacked)))
        run(model.path, File(folder, "inputs.npz").path, File(folder, "outputs.npz").path, log = File(folder, "log"))
        val outputs = parseNpz(File(folder, "outputs.npz").readBytes()).getValue("output_0")
        answers = inputs.indices.associate { inputs[it].asList() to outputs[it] }
    }

    private fun run(vararg arguments: String, log: File) {
        val python = checkNotNull(System.getProperty("edgeq.python")) { "run by Maven: edgeq.python is not set" }
        val command = listOf(python, File(REPOSITORY, "scripts/run_model.py").path) + arguments
        val process = ProcessBuilder(command).redirectErrorStream(true).redirectOutput(log).start()
        check(process.waitFor(5, TimeUnit.MINUTES)) { process.destroyForcibly(); "no answer within five minutes" }
        check(process.exitValue() == 0) { log.readText() }
    }

    override fun run(inputs: List<Tensor>): List<Tensor> =
        listOf(answers.getValue(inputs.single().toFloats().asList()).let { it.reshape(listOf(1) + it.shape) })

    override fun close() = Unit
}
