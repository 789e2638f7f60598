package edgeq.demo

import edgeq.store.Dtype
import edgeq.store.Tensor
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The elements of a tensor as the Java array that both runtimes' APIs take; int8 and uint8 share one kind. */
internal fun primitives(tensor: Tensor): Any = when (tensor.dtype) {
    Dtype.FLOAT32 -> tensor.toFloats()
    Dtype.FLOAT64 -> tensor.toDoubles()
    Dtype.INT64 -> LongArray(tensor.size) { tensor.data.getLong(8 * it) }
    Dtype.INT32 -> IntArray(tensor.size) { tensor.data.getInt(4 * it) }
    Dtype.INT8, Dtype.UINT8 -> ByteArray(tensor.size) { tensor.data.get(it) }
    else -> throw IllegalArgumentException("the runtimes' Java APIs take no ${tensor.dtype.text}")
}

/** A tensor of the Java array that a runtime gave; bytes are uint8 where [unsigned]. */
internal fun tensorOf(values: Any, shape: LongArray, unsigned: Boolean = false): Tensor {
    val sides = shape.map { it.toInt() }
    return when (values) {
        is FloatArray -> Tensor.of(values, sides)
        is DoubleArray -> Tensor(Dtype.FLOAT64, sides, buffer(8 * values.size).apply { asDoubleBuffer().put(values) })
        is LongArray -> Tensor(Dtype.INT64, sides, buffer(8 * values.size).apply { asLongBuffer().put(values) })
        is IntArray -> Tensor(Dtype.INT32, sides, buffer(4 * values.size).apply { asIntBuffer().put(values) })
        is ByteArray -> Tensor(if (unsigned) Dtype.UINT8 else Dtype.INT8, sides, ByteBuffer.wrap(values))
        else -> throw IllegalArgumentException("no tensor of ${values.javaClass.simpleName}")
    }
}

/** A shape as the runtimes' APIs take it. */
internal fun sides(tensor: Tensor): LongArray = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }

private fun buffer(size: Int): ByteBuffer = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)
