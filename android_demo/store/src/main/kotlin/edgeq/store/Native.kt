package edgeq.store

import java.nio.ByteBuffer
import java.nio.ByteOrder

// ExecuTorch's MemoryAllocationFailed, OutOfResources and DelegateMemoryAllocationFailed (runtime/core/error.h), and what
// the allocators of PyTorch (c10/core/impl/alloc_cpu.cpp) and of ONNX Runtime (core/framework/bfc_arena.cc) say
private val NO_MEMORY = Regex(
    """Error 0x(21|25|31)\b|DefaultCPUAllocator: (can't allocate|not enough) memory""" +
        """|Failed to allocate memory for requested buffer""",
)

/** Runs what calls into a runtime; its want of memory is not the model's fault, and has a type of its own. */
fun <T> native(act: () -> T): T = try {
    act()
} catch (err: Exception) { // ONNX Runtime's are no RuntimeException
    if (NO_MEMORY.containsMatchIn(err.message.orEmpty())) throw OutOfMemoryError(err.message).initCause(err)
    throw err
}

/** The elements of a tensor as the Java array that the runtimes' APIs take; int8 and uint8 share one kind. */
fun primitives(tensor: Tensor): Any = when (tensor.dtype) {
    Dtype.FLOAT32 -> tensor.toFloats()
    Dtype.FLOAT64 -> tensor.toDoubles()
    Dtype.INT64 -> LongArray(tensor.size) { tensor.data.getLong(8 * it) }
    Dtype.INT32 -> IntArray(tensor.size) { tensor.data.getInt(4 * it) }
    Dtype.INT8, Dtype.UINT8 -> ByteArray(tensor.size) { tensor.data.get(it) }
    else -> throw IllegalArgumentException("the runtimes' Java APIs take no ${tensor.dtype.text}")
}

/** A tensor of the Java array that a runtime gave; bytes are uint8 where [unsigned]. */
fun tensorOf(values: Any, shape: LongArray, unsigned: Boolean = false): Tensor {
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
fun sides(tensor: Tensor): LongArray = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }

private fun buffer(size: Int): ByteBuffer = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)
