package edgeq.demo

import edgeq.store.Dtype
import edgeq.store.LoadedModel
import edgeq.store.Manifest
import edgeq.store.NativeRuntime
import edgeq.store.RuntimeSupport
import edgeq.store.Tensor
import edgeq.store.native
import edgeq.store.primitives
import edgeq.store.sides
import edgeq.store.tensorOf
import org.pytorch.DType
import org.pytorch.IValue
import org.pytorch.LiteModuleLoader
import org.pytorch.PyTorchAndroid
import org.pytorch.Tensor as NativeTensor

// the version in gradle/libs.versions.toml; a test holds them together
internal const val PYTORCH_LITE_VERSION = "2.1.0"

/** PyTorch's lite interpreter, for `.ptl` files. */
object TorchLite : NativeRuntime {
    // kMinSupportedBytecodeVersion and kMaxSupportedBytecodeVersion of torch 2.1's caffe2/serialize/versions.h
    override val support = RuntimeSupport("torchscript", PYTORCH_LITE_VERSION, setOf("qnnpack"), bytecodes = 4L..9L)

    override fun load(manifest: Manifest, location: String): LoadedModel = TorchLiteModel(location, manifest.threads)
}

/** A `.ptl` in PyTorch's lite interpreter. */
internal class TorchLiteModel(location: String, threads: Int) : LoadedModel {
    private val module = native { LiteModuleLoader.load(location) }

    init {
        PyTorchAndroid.setNumThreads(threads) // one pool for all models
    }

    override fun run(inputs: List<Tensor>): List<Tensor> {
        val values = inputs.map { IValue.from(native(it)) }.toTypedArray()
        return tensors(native { module.forward(*values) }).map(::ours)
    }

    override fun close() = module.destroy()

    private fun tensors(value: IValue): List<NativeTensor> = when {
        value.isTensor -> listOf(value.toTensor())
        value.isTensorList -> value.toTensorList().toList()
        value.isTuple -> value.toTuple().flatMap(::tensors)
        else -> throw IllegalArgumentException("the model returned something that is not a tensor")
    }

    private fun native(tensor: Tensor): NativeTensor = when (val values = primitives(tensor)) {
        is FloatArray -> NativeTensor.fromBlob(values, sides(tensor))
        is DoubleArray -> NativeTensor.fromBlob(values, sides(tensor))
        is LongArray -> NativeTensor.fromBlob(values, sides(tensor))
        is IntArray -> NativeTensor.fromBlob(values, sides(tensor))
        else -> {
            val bytes = values as ByteArray
            val isUnsigned = tensor.dtype == Dtype.UINT8
            if (isUnsigned) NativeTensor.fromBlobUnsigned(bytes, sides(tensor)) else NativeTensor.fromBlob(bytes, sides(tensor))
        }
    }

    private fun ours(tensor: NativeTensor): Tensor = when (val dtype = tensor.dtype()) {
        DType.FLOAT32 -> tensorOf(tensor.dataAsFloatArray, tensor.shape())
        DType.FLOAT64 -> tensorOf(tensor.dataAsDoubleArray, tensor.shape())
        DType.INT64 -> tensorOf(tensor.dataAsLongArray, tensor.shape())
        DType.INT32 -> tensorOf(tensor.dataAsIntArray, tensor.shape())
        DType.INT8 -> tensorOf(tensor.dataAsByteArray, tensor.shape())
        DType.UINT8 -> tensorOf(tensor.dataAsUnsignedByteArray, tensor.shape(), unsigned = true)
        else -> throw IllegalArgumentException("outputs of $dtype are not supported by this app")
    }
}
