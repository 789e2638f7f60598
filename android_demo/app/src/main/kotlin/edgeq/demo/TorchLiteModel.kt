package edgeq.demo

import edgeq.store.Dtype
import edgeq.store.LoadedModel
import edgeq.store.Tensor
import org.pytorch.DType
import org.pytorch.IValue
import org.pytorch.LiteModuleLoader
import org.pytorch.PyTorchAndroid
import java.nio.ByteBuffer
import org.pytorch.Tensor as NativeTensor

/** A `.ptl` in PyTorch's lite interpreter. */
internal class TorchLiteModel(location: String, threads: Int) : LoadedModel {
    private val module = LiteModuleLoader.load(location)

    init {
        PyTorchAndroid.setNumThreads(threads) // one pool for all models
    }

    override fun run(inputs: List<Tensor>): List<Tensor> {
        val values = inputs.map { IValue.from(native(it)) }.toTypedArray()
        return tensors(module.forward(*values)).map(::ours)
    }

    override fun close() = module.destroy()

    private fun tensors(value: IValue): List<NativeTensor> = when {
        value.isTensor -> listOf(value.toTensor())
        value.isTensorList -> value.toTensorList().toList()
        value.isTuple -> value.toTuple().flatMap(::tensors)
        else -> throw IllegalArgumentException("the model returned something that is no tensor")
    }

    private fun native(tensor: Tensor): NativeTensor {
        val shape = tensor.shape.map { it.toLong() }.toLongArray()
        return when (tensor.dtype) {
            Dtype.FLOAT32 -> NativeTensor.fromBlob(tensor.toFloats(), shape)
            Dtype.FLOAT64 -> NativeTensor.fromBlob(tensor.toDoubles(), shape)
            Dtype.INT64 -> NativeTensor.fromBlob(LongArray(tensor.size) { tensor.data.getLong(8 * it) }, shape)
            Dtype.INT32 -> NativeTensor.fromBlob(IntArray(tensor.size) { tensor.data.getInt(4 * it) }, shape)
            Dtype.INT8 -> NativeTensor.fromBlob(bytes(tensor), shape)
            Dtype.UINT8 -> NativeTensor.fromBlobUnsigned(bytes(tensor), shape)
            else -> throw IllegalArgumentException("inputs of ${tensor.dtype.text} are not supported by PyTorch's Java API")
        }
    }

    private fun ours(tensor: NativeTensor): Tensor {
        val shape = tensor.shape().map { it.toInt() }
        return when (val dtype = tensor.dtype()) {
            DType.FLOAT32 -> Tensor.of(tensor.dataAsFloatArray, shape)
            DType.FLOAT64 -> tensor.dataAsDoubleArray.let { values ->
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
