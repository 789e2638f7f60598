package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.io.File
import java.util.concurrent.TimeUnit

/**
 * The digits bundle, from install to answer: the store's own install, checks and preprocessing here, the artifact in its
 * real runtime in another process, and the answers of edgeq's Python path to compare with.
 */
class EndToEndTest {
    @ParameterizedTest
    @ValueSource(strings = ["android-arm64-xnnpack", "android-arm64-qnnpack"])
    fun `a hundred digits get the labels that edgeq's Python path gives`(target: String, @TempDir folder: File) {
        val library = Library(DiskFiles(File(folder, "models")), PHONE)
        val key = library.offer(FolderSource(File(REPOSITORY, "tests/golden/0.1.0/digits/$target")))
        val vectors = parseNpz(vector("digits.npz"))
        val images = vectors.getValue("image")
        val answers = library.store(key).open { manifest, location ->
            Recorded(File(folder, "run"), File(location), manifest, images)
        }.use { model ->
            val report = checkNotNull(model.firstTest)
            assertTrue(report.passed) { "$report" }
            (0 until images.shape[0]).map { argmax(model.run(image(images[it])).single()) }
        }
        assertEquals(100, answers.size)
        assertEquals(vectors.getValue(target).toDoubles().map { it.toInt() }, answers)
        val right = answers.zip(vectors.getValue("label").toDoubles().map { it.toInt() }).count { (came, label) -> came == label }
        assertTrue(right >= 98) { "only $right of 100 are right" }
    }

    private fun argmax(output: Tensor): Int = output.toFloats().let { scores -> scores.indices.maxBy { scores[it] } }
}

private fun image(tensor: Tensor): Image {
    val (height, width, channels) = tensor.shape
    return Image(height, width, channels, ByteArray(tensor.size) { tensor.data.get(it) })
}

/**
 * A model that ran in another process: all its inputs are known beforehand, so that one process runs them all.
 *
 * The command is `RUNNER MODEL INPUTS.npz OUTPUTS.npz`, scripts/run_model.py on this host.
 */
private class Recorded(folder: File, model: File, manifest: Manifest, images: Tensor) : LoadedModel {
    private val answers: Map<List<Float>, Tensor>

    init {
        folder.mkdirs()
        val spec = manifest.inputs.single()
        val golden = parseGolden(manifest, File(model.parentFile, manifest.goldenFile.path).readBytes())
        val inputs = golden.samples.map { (inputs, _) -> inputs.single().toFloats() } +
            (0 until images.shape[0]).map { preprocess(spec.preprocess!!, image(images[it])).toFloats() }
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
