package edgeq.store

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource
import org.junit.jupiter.params.provider.ValueSource
import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Random
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

class NpzTest {
    private fun npy(header: String, data: ByteArray): ByteArray {
        val length = ByteBuffer.allocate(2).order(ByteOrder.LITTLE_ENDIAN).putShort(header.length.toShort()).array()
        return byteArrayOf(0x93.toByte()) + "NUMPY".toByteArray() + byteArrayOf(1, 0) + length + header.toByteArray() + data
    }

    private fun npy(descr: String, shape: String, data: ByteArray) =
        npy("{'descr': '$descr', 'fortran_order': False, 'shape': $shape, }   \n", data)

    @Test
    fun `golden samples are read`() {
        val arrays = parseNpz(XNNPACK.files.getValue("golden.npz"))
        assertEquals(setOf("input_image", "output_0"), arrays.keys)
        assertEquals(listOf(4, 8, 8, 1), arrays.getValue("input_image").shape)
        assertEquals(Dtype.UINT8, arrays.getValue("input_image").dtype)
        assertEquals(listOf(4, 10), arrays.getValue("output_0").shape)
        assertEquals(Dtype.FLOAT32, arrays.getValue("output_0").dtype)
    }

    @ParameterizedTest
    @CsvSource(
        "<f2,003c00bc", "<f4,0000803f000080bf", "<f8,000000000000f03f000000000000f0bf", "|i1,01ff", "<i2,0100ffff",
        "<i4,01000000ffffffff", "<i8,0100000000000000ffffffffffffffff",
    )
    fun `every signed dtype holds one and minus one`(descr: String, hex: String) {
        val data = hex.chunked(2).map { it.toInt(16).toByte() }.toByteArray()
        assertArrayEquals(doubleArrayOf(1.0, -1.0), parseNpy(npy(descr, "(2,)", data)).toDoubles())
    }

    @Test
    fun `bytes and truth values are unsigned`() {
        assertArrayEquals(doubleArrayOf(255.0, 1.0), parseNpy(npy("|u1", "(2,)", byteArrayOf(-1, 1))).toDoubles())
        assertArrayEquals(doubleArrayOf(0.0, 1.0), parseNpy(npy("|b1", "(2,)", byteArrayOf(0, 1))).toDoubles())
    }

    @Test
    fun `half floats keep their small, large and odd values`() {
        val bits = shortArrayOf(0x0001, 0x03ff, 0x0400, 0x7bff, 0x7c00, -0x8000, 0x7e00)
        val data = ByteBuffer.allocate(14).order(ByteOrder.LITTLE_ENDIAN).apply { bits.forEach(::putShort) }.array()
        val expected = doubleArrayOf(
            5.9604644775390625e-8, 6.097555160522461e-5, 6.103515625e-5, 65504.0, Double.POSITIVE_INFINITY, -0.0, Double.NaN,
        )
        assertArrayEquals(expected, parseNpy(npy("<f2", "(7,)", data)).toDoubles())
    }

    @Test
    fun `a scalar and an empty array have shapes`() {
        assertEquals(emptyList<Int>(), parseNpy(npy("<f4", "()", ByteArray(4))).shape)
        assertEquals(listOf(0, 3), parseNpy(npy("<f4", "(0, 3)", ByteArray(0))).shape)
    }

    @ParameterizedTest
    @ValueSource(
        strings = [
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }",
            "",
            "{}",
        ],
    )
    fun `other arrays are refused`(header: String) {
        assertThrows(NpzProblem::class.java) { parseNpy(npy(header, ByteArray(4))) }
    }

    @Test
    fun `a shape whose product overflows is refused`() {
        val sides = "(268435456, 268435456, 268435456)" // 2^84, which is 0 in 64 bits
        assertThrows(NpzProblem::class.java) { parseNpy(npy("<f4", sides, ByteArray(0))) }
    }

    @Test
    fun `a compressed entry is refused, so that nothing grows`() {
        val out = ByteArrayOutputStream()
        ZipOutputStream(out).use { zip ->
            zip.putNextEntry(ZipEntry("a.npy"))
            zip.write(npy("|u1", "(1000000,)", ByteArray(1_000_000)))
        }
        assertTrue("compressed" in assertThrows(NpzProblem::class.java) { parseNpz(out.toByteArray()) }.message!!)
    }

    @Test
    fun `random damage never escapes`() {
        val bytes = XNNPACK.files.getValue("golden.npz")
        val random = Random(0)
        repeat(3000) {
            val damaged = bytes.copyOf(if (it % 3 == 0) random.nextInt(bytes.size) else bytes.size)
            if (damaged.isNotEmpty()) damaged[random.nextInt(damaged.size)] = random.nextInt(256).toByte()
            try {
                parseNpz(damaged)
            } catch (_: NpzProblem) {
                // as it should
            }
        }
    }

    @Test
    fun `what is written for a runner is read again`() {
        val tensor = Tensor.of(floatArrayOf(1f, -2f, 3f, 4f), listOf(2, 2))
        val again = parseNpz(npzOf(mapOf("input_0" to tensor))).getValue("input_0")
        assertEquals(tensor.shape, again.shape)
        assertArrayEquals(tensor.toFloats(), again.toFloats())
    }
}

/** An .npz of float32 arrays, for a process that runs models. */
fun npzOf(arrays: Map<String, Tensor>): ByteArray {
    val out = ByteArrayOutputStream()
    ZipOutputStream(out).use { zip ->
        for ((name, tensor) in arrays) {
            val shape = tensor.shape.joinToString(", ", "(", if (tensor.shape.size == 1) ",)" else ")")
            val header = "{'descr': '<f4', 'fortran_order': False, 'shape': $shape, }"
                .let { it.padEnd((it.length / 64 + 2) * 64 - 11) + "\n" }
            val length = ByteBuffer.allocate(2).order(ByteOrder.LITTLE_ENDIAN).putShort(header.length.toShort()).array()
            val values = ByteArray(4 * tensor.size).also { tensor.data.duplicate().get(it) }
            val magic = byteArrayOf(0x93.toByte()) + "NUMPY".toByteArray() + byteArrayOf(1, 0)
            val data = magic + length + header.toByteArray() + values
            val entry = ZipEntry("$name.npy")
            entry.method = ZipEntry.STORED
            entry.size = data.size.toLong()
            entry.crc = CRC32().apply { update(data) }.value
            zip.putNextEntry(entry)
            zip.write(data)
        }
    }
    return out.toByteArray()
}
