package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import kotlin.math.abs

/** Against what edgeq computed: scripts/store_vectors.py wrote the vectors, and a Python test keeps them true. */
class PreprocessTest {
    @ParameterizedTest
    @MethodSource("cases")
    fun `equals edgeq's to 1e-6`(index: Int) {
        val image = arrays.getValue("image_$index")
        val expected = arrays.getValue("expected_$index")
        val (height, width, channels) = image.shape
        val came = preprocess(specs[index], Image(height, width, channels, ByteArray(image.size) { image.data.get(it) }))
        assertEquals(expected.shape, came.shape)
        assertEquals(expected.dtype, came.dtype)
        val difference = expected.toDoubles().zip(came.toDoubles().asIterable()) { left, right -> abs(left - right) }.max()
        assertTrue(difference <= 1e-6) { "case $index differs by $difference" }
    }

    @Test
    fun `a crop that is larger than the image is an error`() {
        val spec = specs[9]
        assertThrows(IllegalArgumentException::class.java) { preprocess(spec, Image(3, 3, 3, ByteArray(27))) }
    }

    @Test
    fun `an image must have the pixels that it says`() {
        assertThrows(IllegalArgumentException::class.java) { Image(2, 2, 3, ByteArray(11)) }
        assertThrows(IllegalArgumentException::class.java) { Image(2, 2, 4, ByteArray(16)) }
        assertThrows(IllegalArgumentException::class.java) { Image(0, 2, 1, ByteArray(0)) }
    }

    companion object {
        private val arrays = parseNpz(vector("preprocess.npz"))
        // a manifest's own reader takes the specifications, each in the place of the digits' one
        private val specs = (parseJson(vector("preprocess.json")) as List<*>).indices.map { index ->
            val text = Regex("\\{[^{}]*\\}").findAll(vector("preprocess.json").decodeToString()).toList()[index].value
            val own = Regex("\"preprocessing\": \\{[^{}]*\\}").find(XNNPACK.manifestText)!!.value
            XNNPACK.edited(own, "\"preprocessing\": $text").manifest.inputs[0].preprocess!!
        }

        @JvmStatic
        fun cases() = specs.indices
    }
}

fun vector(name: String): ByteArray =
    checkNotNull(PreprocessTest::class.java.getResourceAsStream("/vectors/$name")) { name }.use { it.readBytes() }
