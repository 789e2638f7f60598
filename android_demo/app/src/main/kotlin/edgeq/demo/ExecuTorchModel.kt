package edgeq.demo

import edgeq.store.Dtype
import edgeq.store.LoadedModel
import edgeq.store.Tensor
import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.pytorch.executorch.Tensor as NativeTensor

/** A `.pte` in ExecuTorch. */
internal class ExecuTorchModel(location: String, threads: Int) : LoadedModel {
    private val module = Module.load(location, Module.LOAD_MODE_FILE, threads)

    override fun run(inputs: List<Tensor>): List<Tensor> {
        val values = inputs.map { EValue.from(native(it)) }.toTypedArray()
        return module.forward(*values).map { ours(it.toTensor()) }
    }

    override fun close() = module.destroy()

    private fun native(tensor: Tensor): NativeTensor {
        val shape = tensor.shape.map { it.toLong() }.toLongArray()
        return when (tensor.dtype) {
            Dtype.FLOAT32 -> NativeTensor.fromBlob(tensor.toFloats(), shape)
            Dtype.FLOAT64 -> NativeTensor.fromBlob(tensor.toDoubles(), shape)
            Dtype.INT64 -> NativeTensor.fromBlob(LongArray(tensor.size) { tensor.data.getLong(8 * it) }, shape)
            Dtype.INT32 -> NativeTensor.fromBlob(IntArray(tensor.size) { tensor.data.getInt(4 * it) }, shape)
            Dtype.INT8 -> NativeTensor.fromBlob(bytes(tensor), shape)
            Dtype.UINT8 -> NativeTensor.fromBlobUnsigned(bytes(tensor), shape)
            else -> throw IllegalArgumentException("inputs of ${tensor.dtype.text} are not supported by ExecuTorch's Java API")
        }
    }

    private fun ours(tensor: NativeTensor): Tensor {
        val shape = tensor.shape().map { it.toInt() }
        return when (val dtype = tensor.dtype()) {
            DType.FLOAT -> Tensor.of(tensor.dataAsFloatArray, shape)
            DType.DOUBLE -> tensor.dataAsDoubleArray.let { values ->
                Tensor(Dtype.FLOAT64, shape, buffer(8 * values.size).apply { asDoubleBuffer().put(values) })
            }
            DType.INT64 -> tensor.dataAsLongArray.let { values ->
                Tensor(Dtype.INT64, shape, buffer(8 * values.size).apply { asLongBuffer().put(values) })
            }
            DType.INT32 -> tensor.dataAsIntArray.let { values ->
                Tensor(Dtype.INT32, shape, buffer(4 * values.size).apply { asIntBuffer().put(values) })
            }
            DType.INT8 -> Tensor(Dtype.INT8, shape, ByteBuffer.wrap(tensor.dataAsByteArray))
            DType.UINT8 -> Tensor(Dtype.UINT8, shape, ByteBuffer.wrap(tensor.dataAsUnsignedByteArray))
            else -> throw IllegalArgumentException("outputs of $dtype are not supported by this app")
        }
    }
}

internal fun bytes(tensor: Tensor) = ByteArray(tensor.size) { tensor.data.get(it) }

internal fun buffer(size: Int): ByteBuffer = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)
