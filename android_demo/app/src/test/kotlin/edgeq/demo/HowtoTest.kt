package edgeq.demo

import android.app.Application
import android.graphics.Bitmap
import com.example.app.Classifier
import com.example.app.Score
import edgeq.store.Device
import edgeq.store.DiskFiles
import edgeq.store.Image
import edgeq.store.Library
import org.junit.Assert.assertEquals
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import java.io.File
import java.util.concurrent.CompletableFuture
import java.util.concurrent.TimeUnit
import kotlin.math.exp
import kotlin.random.Random

/** The code of docs/howto/add-to-app.md, as it stands there, on the bundle of digits in ONNX Runtime. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [34], application = Application::class)
class HowtoTest {
    private val app get() = RuntimeEnvironment.getApplication()

    private fun answer(picture: Bitmap): Result<List<Score>> {
        val came = CompletableFuture<Result<List<Score>>>()
        Classifier.classify(app, picture) { came.complete(it) }
        return came.get(60, TimeUnit.SECONDS)
    }

    @Test
    fun `it gives the store's answer for a picture`() {
        val noise = Image(24, 20, 3, Random(0).nextBytes(24 * 20 * 3))
        val seven = DRAWN.getValue("7").image(8, 8)
        val drawn = Image(8, 8, 3, ByteArray(3 * 64) { seven.pixels[it / 3] })
        assertEquals("7", answer(bitmap(drawn)).getOrThrow().first().label)
        val device = Device("android", setOf("arm64"), listOf(OnnxRuntime.support))
        val library = Library(DiskFiles(File(app.cacheDir, "models")), device)
        val key = library.offer(AssetSource(app.assets, "models/digits/android-arm64-ort"))
        library.store(key).open(OnnxRuntime).use { model ->
            for (image in listOf(noise, drawn)) {
                val weights = model.run(image).first().toDoubles().map(::exp)
                val scores = answer(bitmap(image)).getOrThrow()
                assertEquals(List(10) { "$it" }, scores.map { it.label }.sorted())
                for (score in scores) assertEquals(weights[score.label.toInt()] / weights.sum(), score.probability, 1e-6)
                assertEquals(scores.sortedByDescending { it.probability }, scores)
            }
        }
    }

    private fun bitmap(image: Image): Bitmap {
        val pixels = IntArray(image.height * image.width) {
            val (red, green, blue) = List(3) { channel -> image.pixels[3 * it + channel].toInt() and 0xff }
            0xff shl 24 or (red shl 16) or (green shl 8) or blue
        }
        return Bitmap.createBitmap(pixels, image.width, image.height, Bitmap.Config.ARGB_8888)
    }
}
