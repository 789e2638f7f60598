package edgeq.demo

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
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
import java.nio.ByteBuffer
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer

// the version in gradle/libs.versions.toml; a test holds them together
internal const val ONNXRUNTIME_VERSION = "1.23.2"

/** ONNX Runtime, for `.ort` and `.onnx` files. */
object OnnxRuntime : NativeRuntime {
    // the opsets that this release loads as finished (ONNX_OPSETS in edgeq/check/runtime.py)
    override val support = RuntimeSupport("onnx", ONNXRUNTIME_VERSION, setOf("ort"), bytecodes = 7L..22L)

    override fun load(manifest: Manifest, location: String): LoadedModel = OrtModel(location, manifest.threads)
}

/** An `.ort` or `.onnx` file in ONNX Runtime. */
internal class OrtModel(location: String, threads: Int) : LoadedModel {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = OrtSession.SessionOptions().use { options ->
        options.setIntraOpNumThreads(threads)
        native { environment.createSession(location, options) }
    }

    override fun run(inputs: List<Tensor>): List<Tensor> {
        val values = LinkedHashMap<String, OnnxTensor>()
        try {
            session.inputNames.zip(inputs).forEach { (name, tensor) -> values[name] = native(tensor) }
            return native { session.run(values) }.use { outputs -> outputs.map { ours(it.value as OnnxTensor) } }
        } finally {
            values.values.forEach { it.close() }
        }
    }

    override fun close() = session.close()

    private fun native(tensor: Tensor): OnnxTensor = when (val values = primitives(tensor)) {
        is FloatArray -> OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), sides(tensor))
        is DoubleArray -> OnnxTensor.createTensor(environment, DoubleBuffer.wrap(values), sides(tensor))
        is LongArray -> OnnxTensor.createTensor(environment, LongBuffer.wrap(values), sides(tensor))
        is IntArray -> OnnxTensor.createTensor(environment, IntBuffer.wrap(values), sides(tensor))
        else -> {
            val type = if (tensor.dtype == Dtype.UINT8) OnnxJavaType.UINT8 else OnnxJavaType.INT8
            OnnxTensor.createTensor(environment, ByteBuffer.wrap(values as ByteArray), sides(tensor), type)
        }
    }

    private fun ours(tensor: OnnxTensor): Tensor {
        val shape = tensor.info.shape
        return when (val type = tensor.info.type) {
            OnnxJavaType.FLOAT -> tensorOf(tensor.floatBuffer.let { FloatArray(it.remaining()).also(it::get) }, shape)
            OnnxJavaType.DOUBLE -> tensorOf(tensor.doubleBuffer.let { DoubleArray(it.remaining()).also(it::get) }, shape)
            OnnxJavaType.INT64 -> tensorOf(tensor.longBuffer.let { LongArray(it.remaining()).also(it::get) }, shape)
            OnnxJavaType.INT32 -> tensorOf(tensor.intBuffer.let { IntArray(it.remaining()).also(it::get) }, shape)
            OnnxJavaType.INT8, OnnxJavaType.UINT8 -> {
                val bytes = tensor.byteBuffer.let { ByteArray(it.remaining()).also(it::get) }
                tensorOf(bytes, shape, unsigned = type == OnnxJavaType.UINT8)
            }
            else -> throw IllegalArgumentException("outputs of $type are not supported by this app")
        }
    }
}
