package edgeq.demo

import edgeq.store.LoadedModel
import edgeq.store.Loader
import edgeq.store.Manifest
import edgeq.store.RuntimeSupport

// the versions in gradle/libs.versions.toml; a test holds them together
internal const val EXECUTORCH_VERSION = "1.5.1"
internal const val PYTORCH_LITE_VERSION = "2.1.0"
internal const val ONNXRUNTIME_VERSION = "1.23.2"

// ExecuTorch's MemoryAllocationFailed, OutOfResources and DelegateMemoryAllocationFailed (runtime/core/error.h), and what
// the allocators of PyTorch (c10/core/impl/alloc_cpu.cpp) and of ONNX Runtime (core/framework/bfc_arena.cc) say
private val NO_MEMORY = Regex(
    """Error 0x(21|25|31)\b|DefaultCPUAllocator: (can't allocate|not enough) memory""" +
        """|Failed to allocate memory for requested buffer""",
)

/** Runs what calls into a runtime; its want of memory is not the model's fault, and has a type of its own. */
internal fun <T> native(act: () -> T): T = try {
    act()
} catch (err: Exception) { // ONNX Runtime's are no RuntimeException
    if (NO_MEMORY.containsMatchIn(err.message.orEmpty())) throw OutOfMemoryError(err.message).initCause(err)
    throw err
}

/** The runtimes that this app carries. */
object Runtimes : Loader {
    val support = listOf(
        RuntimeSupport("executorch", EXECUTORCH_VERSION, setOf("xnnpack")),
        // kMinSupportedBytecodeVersion and kMaxSupportedBytecodeVersion of torch 2.1's caffe2/serialize/versions.h
        RuntimeSupport("torchscript", PYTORCH_LITE_VERSION, setOf("qnnpack"), bytecodes = 4L..9L),
        // the opsets that this release loads as finished (ONNX_OPSETS in edgeq/check/runtime.py)
        RuntimeSupport("onnx", ONNXRUNTIME_VERSION, setOf("ort"), bytecodes = 7L..22L),
    )

    override fun load(manifest: Manifest, location: String): LoadedModel = when (manifest.runtime.name) {
        "executorch" -> ExecuTorchModel(location, manifest.threads)
        "torchscript" -> TorchLiteModel(location, manifest.threads)
        "onnx" -> OrtModel(location, manifest.threads)
        else -> throw IllegalArgumentException("no runtime ${manifest.runtime.name} in this app")
    }
}
