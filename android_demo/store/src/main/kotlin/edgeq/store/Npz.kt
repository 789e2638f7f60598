package edgeq.store

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipEntry
import java.util.zip.ZipInputStream

private val MAGIC = byteArrayOf(0x93.toByte()) + "NUMPY".toByteArray()
private val HEADER =
    Regex("""\{'descr': '[<|]([a-z]\d)', 'fortran_order': False, 'shape': \(((?:\d{1,10},? ?)*)\),? ?\}\s*""")
private val DTYPES = mapOf(
    "f2" to Dtype.FLOAT16, "f4" to Dtype.FLOAT32, "f8" to Dtype.FLOAT64,
    "i1" to Dtype.INT8, "i2" to Dtype.INT16, "i4" to Dtype.INT32, "i8" to Dtype.INT64,
    "u1" to Dtype.UINT8, "b1" to Dtype.BOOL,
)

/** The bytes are not arrays as edgeq writes them. */
internal class NpzProblem(message: String, cause: Throwable? = null) : Exception(message, cause)

/**
 * Reads an .npz file: a ZIP of .npy arrays, stored as edgeq writes them. Deflated entries are refused, so that nothing
 * can grow beyond the file's own size.
 *
 * The format: numpy.lib.format, versions 1.0 and 2.0; little-endian, row-major, no objects.
 */
internal fun parseNpz(bytes: ByteArray): Map<String, Tensor> = try {
    buildMap {
        ZipInputStream(bytes.inputStream()).use { zip ->
            generateSequence { zip.nextEntry }.forEach { entry ->
                if (entry.method != ZipEntry.STORED) throw NpzProblem("${entry.name} is compressed")
                if (!entry.name.endsWith(".npy")) throw NpzProblem("${entry.name} is not an .npy")
                val tensor = parseNpy(zip.readBytes())
                if (put(entry.name.removeSuffix(".npy"), tensor) != null) {
                    throw NpzProblem("${entry.name} stands twice")
                }
            }
        }
        if (isEmpty()) throw NpzProblem("it holds no array")
    }
} catch (err: IOException) {
    throw NpzProblem(err.message ?: "it cannot be read", err)
} catch (err: IllegalArgumentException) { // a name that is not UTF-8
    throw NpzProblem(err.message ?: "it cannot be read", err)
}

internal fun parseNpy(bytes: ByteArray): Tensor {
    if (bytes.size < 12 || !bytes.copyOf(MAGIC.size).contentEquals(MAGIC)) throw NpzProblem("no .npy array")
    val buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
    val (length, start) = when (bytes[6].toInt()) {
        1 -> (buffer.getShort(8).toInt() and 0xffff) to 10
        2 -> buffer.getInt(8) to 12
        else -> throw NpzProblem("unknown .npy version ${bytes[6]}")
    }
    if (length < 0 || length > bytes.size - start) throw NpzProblem("the .npy header ends too early")
    val header = String(bytes, start, length, Charsets.ISO_8859_1)
    val (code, sides) = (HEADER.matchEntire(header) ?: throw NpzProblem("unknown .npy header")).destructured
    val dtype = DTYPES[code] ?: throw NpzProblem("unknown .npy dtype $code")
    val shape = sides.split(',').map { it.trim() }.filter { it.isNotEmpty() }.map { it.toLong() }
    val data = bytes.size - start - length
    if (elements(shape)?.times(dtype.sizeBytes) != data.toLong()) {
        throw NpzProblem("shape $shape of ${dtype.text} does not fit $data bytes")
    }
    return Tensor(dtype, shape.map { it.toInt() }, ByteBuffer.wrap(bytes, start + length, data))
}
