package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.Arguments
import org.junit.jupiter.params.provider.MethodSource
import java.io.File

/**
 * The digits bundle, from install to answer: the store's own install, checks and preprocessing here, the artifact in its
 * real runtime in another process, on the device's own kernels where they can be emulated, and the answers of edgeq's
 * Python path to compare with.
 */
class EndToEndTest {
    @ParameterizedTest(name = "{0} on {1}")
    @MethodSource("runs")
    fun `a hundred digits get the labels that edgeq's Python path gives`(
        target: String,
        on: String,
        @TempDir folder: File,
    ) {
        val library = Library(DiskFiles(File(folder, "models")), PHONE)
        val key = library.offer(FolderSource(File(REPOSITORY, "tests/golden/0.1.0/digits/$target")))
        val vectors = parseNpz(vector("digits.npz"))
        val images = vectors.getValue("image")
        val answers = library.store(key).open { manifest, location ->
            val all = (0 until images.shape[0]).map { image(images[it]) }
            HostModel(File(folder, "run"), File(location), manifest, all)
        }.use { model ->
            val report = checkNotNull(model.firstTest)
            assertTrue(report.passed) { "$report" }
            (0 until images.shape[0]).map { argmax(model.run(image(images[it])).single()) }
        }
        assertEquals(100, answers.size)
        assertEquals(vectors.getValue(target).toDoubles().map { it.toInt() }, answers, "on $on")
        val labels = vectors.getValue("label").toDoubles().map { it.toInt() }
        val right = answers.zip(labels).count { (came, label) -> came == label }
        assertTrue(right >= 98) { "only $right of 100 are right on $on" }
    }

    private fun image(tensor: Tensor): Image {
        val (height, width, channels) = tensor.shape
        return Image(height, width, channels, ByteArray(tensor.size) { tensor.data.get(it) })
    }

    private fun argmax(output: Tensor): Int = output.toFloats().let { scores -> scores.indices.maxBy { scores[it] } }

    private companion object {
        @JvmStatic
        fun runs() = listOf("android-arm64-xnnpack", "android-arm64-qnnpack").map { Arguments.of(it, RUN_ON) }
    }
}
