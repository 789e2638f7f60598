package edgeq.demo

import edgeq.store.DiskFiles
import edgeq.store.Device
import edgeq.store.FolderSource
import edgeq.store.Image
import edgeq.store.Library
import edgeq.store.ModelKey
import edgeq.store.REPOSITORY
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.RuntimeSupport
import edgeq.store.Tensor
import edgeq.store.arrays
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertInstanceOf
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

private val BUNDLE = File(REPOSITORY, "android_demo/app/src/test/resources/bundles/digits/android-arm64-ort")

private val PHONE = Device("android", setOf("arm64"), Runtimes.support)

/**
 * The app without a stand-in: its own loader, and ONNX Runtime's Java package, whose classes are those of
 * onnxruntime-android and whose kernels are this machine's. The bundle is what `edgeq package digits --target
 * android-arm64-ort` wrote.
 */
class OrtModelTest {
    @TempDir
    lateinit var folder: File

    private val key = ModelKey("digits", "android-arm64-ort")

    private fun session() =
        Session(Library(DiskFiles(folder), PHONE), Runtimes, background = { it.run() }, main = { it.run() })

    @Test
    fun `a bundle is installed, tested, drawn on and opened again`() {
        val session = session()
        session.start(listOf({ FolderSource(BUNDLE) }), null)
        assertEquals(key, session.screen.selected)
        val first = assertInstanceOf(Event.Checked::class.java, session.screen.event).report!!
        assertTrue(first.passed) { "$first" }
        for (digit in DRAWN.keys) {
            session.recognise(DRAWN.getValue(digit))
            assertEquals(digit, session.screen.prediction!!.best.first().label)
        }
        assertEquals(DRAWN.size, session.screen.timing!!.count)
        session.selfTest()
        assertTrue(assertInstanceOf(Event.Tested::class.java, session.screen.event).report.passed)
        // the next process: the model is healthy and is not tested again
        val next = session().also { it.start(listOf({ FolderSource(BUNDLE) }), key) }
        assertNull((next.screen.event as Event.Checked).report)
    }

    @Test
    fun `its outputs are the golden ones`() {
        val library = Library(DiskFiles(folder), PHONE)
        library.store(library.offer(FolderSource(BUNDLE))).open(Runtimes).use { model ->
            val golden = arrays(File(BUNDLE, "golden.npz"))
            val images = golden.getValue("input_image")
            for (i in 0 until images.shape[0]) {
                val expected = golden.getValue("output_0")[i].toFloats()
                val came = model.run(image(images[i])).single().toFloats()
                assertEquals(expected.size, came.size)
                expected.indices.forEach { assertEquals(expected[it], came[it], 1e-5f, "sample $i, class $it") }
            }
        }
    }

    @Test
    fun `a hundred digits get the right labels`() {
        val vectors = arrays(File(REPOSITORY, "android_demo/store/src/test/resources/vectors/digits.npz"))
        val labels = vectors.getValue("label").toDoubles().map { it.toInt() }
        val library = Library(DiskFiles(folder), PHONE)
        val right = library.store(library.offer(FolderSource(BUNDLE))).open(Runtimes).use { model ->
            labels.indices.count { i ->
                val scores = model.run(image(vectors.getValue("image")[i])).single().toFloats()
                scores.indices.maxBy { scores[it] } == labels[i]
            }
        }
        assertTrue(right >= 98) { "only $right of ${labels.size} are right" }
    }

    @Test
    fun `a damaged artifact is the model's fault, and an unknown opset the app's`() {
        val file = File(folder, "model.ort").apply { writeBytes(ByteArray(64)) }
        assertThrows(Exception::class.java) { OrtModel(file.path, 1) }
        val old = Device("android", setOf("arm64"), listOf(RuntimeSupport("onnx", "1.10.0", setOf("ort"), 7L..15L)))
        val refused = assertThrows(Refusal::class.java) { Library(DiskFiles(folder), old).offer(FolderSource(BUNDLE)) }
        assertEquals(Reason.RUNTIME_TOO_OLD, refused.reason)
        assertTrue("which loads opset 7 to 15" in refused.message.orEmpty()) { refused.message.orEmpty() }
    }

    private fun image(tensor: Tensor): Image {
        val (height, width) = tensor.shape
        val channels = tensor.shape.getOrElse(2) { 1 }
        return Image(height, width, channels, ByteArray(tensor.size) { tensor.data.get(it) })
    }
}
