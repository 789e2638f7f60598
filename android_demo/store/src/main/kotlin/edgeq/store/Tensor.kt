package edgeq.store

import java.nio.Buffer
import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val MAX_ELEMENTS = 1L shl 28

/** What a tensor holds; [text] is NumPy's and PyTorch's name. */
enum class Dtype(val text: String, val sizeBytes: Int) {
    FLOAT16("float16", 2),
    FLOAT32("float32", 4),
    FLOAT64("float64", 8),
    INT8("int8", 1),
    INT16("int16", 2),
    INT32("int32", 4),
    INT64("int64", 8),
    UINT8("uint8", 1),
    BOOL("bool", 1),
}

/** How many elements a shape has; null where it is more than a device could hold. */
internal fun elements(shape: List<Long>): Long? =
    shape.fold(1L as Long?) { product, side ->
        // at each step, before a product could overflow
        product?.takeIf { side <= MAX_ELEMENTS }?.let { (it * side).takeIf { count -> count <= MAX_ELEMENTS } }
    }

/**
 * An array of numbers in row-major order.
 *
 * @property data little-endian, from position 0 to its limit; shared, so do not move its position.
 */
class Tensor(val dtype: Dtype, val shape: List<Int>, data: ByteBuffer) {
    val data: ByteBuffer = data.slice().order(ByteOrder.LITTLE_ENDIAN)
    val size: Int = shape.fold(1, Int::times)

    init {
        require(this.data.limit() == size * dtype.sizeBytes) {
            "a ${dtype.text} tensor of shape $shape takes ${size * dtype.sizeBytes} bytes, got ${this.data.limit()}"
        }
    }

    /** The same numbers in another shape. */
    fun reshape(shape: List<Int>) = Tensor(dtype, shape, data)

    /** Element [index] along the first axis, which goes away. */
    operator fun get(index: Int): Tensor {
        val rest = shape.drop(1)
        val bytes = rest.fold(dtype.sizeBytes, Int::times)
        val part = data.duplicate()
        val bounds: Buffer = part // Android 8 has not Java 9's own limit and position of ByteBuffer
        bounds.limit((index + 1) * bytes)
        bounds.position(index * bytes)
        return Tensor(dtype, rest, part)
    }

    /** All elements as float64, which holds each but the largest int64 exactly. */
    fun toDoubles(): DoubleArray = DoubleArray(size, reader())

    /** All elements of a float32 tensor. */
    fun toFloats(): FloatArray {
        require(dtype == Dtype.FLOAT32) { "expected float32, got ${dtype.text}" }
        return FloatArray(size) { data.getFloat(4 * it) }
    }

    private fun reader(): (Int) -> Double = when (dtype) {
        Dtype.FLOAT16 -> { i -> half(data.getShort(2 * i).toInt() and 0xffff) }
        Dtype.FLOAT32 -> { i -> data.getFloat(4 * i).toDouble() }
        Dtype.FLOAT64 -> { i -> data.getDouble(8 * i) }
        Dtype.INT8 -> { i -> data.get(i).toDouble() }
        Dtype.INT16 -> { i -> data.getShort(2 * i).toDouble() }
        Dtype.INT32 -> { i -> data.getInt(4 * i).toDouble() }
        Dtype.INT64 -> { i -> data.getLong(8 * i).toDouble() }
        Dtype.UINT8, Dtype.BOOL -> { i -> (data.get(i).toInt() and 0xff).toDouble() }
    }

    companion object {
        /** A float32 tensor. */
        fun of(values: FloatArray, shape: List<Int>): Tensor {
            val data = ByteBuffer.allocate(4 * values.size).order(ByteOrder.LITTLE_ENDIAN)
            data.asFloatBuffer().put(values)
            return Tensor(Dtype.FLOAT32, shape, data)
        }

        /** A uint8 tensor. */
        fun of(values: ByteArray, shape: List<Int>) = Tensor(Dtype.UINT8, shape, ByteBuffer.wrap(values))
    }
}

/** IEEE 754 binary16 as a double. */
private fun half(bits: Int): Double {
    val sign = if (bits and 0x8000 == 0) 1.0 else -1.0
    val exponent = (bits shr 10) and 0x1f
    val fraction = bits and 0x3ff
    return when {
        exponent == 0 -> sign * Math.scalb(fraction.toDouble(), -24)
        exponent < 31 -> sign * Math.scalb((fraction + 1024).toDouble(), exponent - 25)
        fraction == 0 -> sign * Double.POSITIVE_INFINITY
        else -> Double.NaN
    }
}
