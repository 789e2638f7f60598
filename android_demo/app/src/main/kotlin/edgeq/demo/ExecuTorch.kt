package edgeq.demo

import edgeq.store.Dtype
import edgeq.store.LoadedModel
import edgeq.store.Manifest
import edgeq.store.NativeRuntime
import edgeq.store.RuntimeSupport
import edgeq.store.Tensor
import edgeq.store.Writer
import edgeq.store.native
import edgeq.store.primitives
import edgeq.store.sides
import edgeq.store.tensorOf
import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmModule
import org.pytorch.executorch.Tensor as NativeTensor

// the version in gradle/libs.versions.toml; a test holds them together
internal const val EXECUTORCH_VERSION = "1.5.1"

/** ExecuTorch, for `.pte` files. */
object ExecuTorch : NativeRuntime {
    override val support = RuntimeSupport("executorch", EXECUTORCH_VERSION, setOf("xnnpack"))

    override fun load(manifest: Manifest, location: String): LoadedModel = ExecuTorchModel(location, manifest.threads)

    override fun writer(manifest: Manifest, location: String, tokenizer: String): Writer =
        ExecuTorchWriter(native { LlmModule(location, tokenizer, GREEDY) })
}

private const val GREEDY = 0f // the temperature: always the likeliest token

/** A `.pte` with its tokenizer in ExecuTorch's own runner of language models. */
internal class ExecuTorchWriter(private val module: LlmModule) : Writer {
    override fun write(prompt: String, contextLength: Int, each: (String) -> Unit) {
        var problem: String? = null
        module.generate(
            prompt,
            contextLength,
            object : LlmCallback {
                override fun onResult(result: String) = each(result)

                override fun onError(errorCode: Int, message: String) {
                    problem = "$message (code $errorCode)"
                }
            },
            false, // without the prompt
        )
        problem?.let { throw IllegalStateException(it) }
    }

    override fun stop() = module.stop()

    override fun close() = module.close()
}

/** A `.pte` in ExecuTorch. */
internal class ExecuTorchModel(location: String, threads: Int) : LoadedModel {
    private val module = native { Module.load(location, Module.LOAD_MODE_FILE, threads) }

    override fun run(inputs: List<Tensor>): List<Tensor> {
        val values = inputs.map { EValue.from(native(it)) }.toTypedArray()
        return native { module.forward(*values) }.map { ours(it.toTensor()) }
    }

    override fun close() = module.destroy()

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
        DType.FLOAT -> tensorOf(tensor.dataAsFloatArray, tensor.shape())
        DType.DOUBLE -> tensorOf(tensor.dataAsDoubleArray, tensor.shape())
        DType.INT64 -> tensorOf(tensor.dataAsLongArray, tensor.shape())
        DType.INT32 -> tensorOf(tensor.dataAsIntArray, tensor.shape())
        DType.INT8 -> tensorOf(tensor.dataAsByteArray, tensor.shape())
        DType.UINT8 -> tensorOf(tensor.dataAsUnsignedByteArray, tensor.shape(), unsigned = true)
        else -> throw IllegalArgumentException("outputs of $dtype are not supported by this app")
    }
}
