package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.io.File

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
            HostModel(File(folder, "run"), File(location), manifest, (0 until images.shape[0]).map { image(images[it]) })
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

    private fun image(tensor: Tensor): Image {
        val (height, width, channels) = tensor.shape
        return Image(height, width, channels, ByteArray(tensor.size) { tensor.data.get(it) })
    }

    private fun argmax(output: Tensor): Int = output.toFloats().let { scores -> scores.indices.maxBy { scores[it] } }
}
