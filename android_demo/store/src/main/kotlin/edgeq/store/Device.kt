package edgeq.store

/**
 * A runtime that the app carries.
 *
 * @property name the manifest's word: executorch, torchscript or onnx.
 * @property version of the library in this app.
 * @property backends that it was built with.
 * @property bytecodes versions of TorchScript archives, or opsets of ONNX files, that it loads; null for runtimes that go
 *   by [version].
 */
data class RuntimeSupport(
    val name: String,
    val version: String,
    val backends: Set<String>,
    val bytecodes: LongRange? = null,
)

/**
 * What this device and app can run.
 *
 * @property app tells builds of the app apart: a new one is a new chance for a model whose test did not run to its end.
 */
class Device(val platform: String, val archs: Set<String>, val runtimes: List<RuntimeSupport>, val app: String = "") {
    /**
     * Refuses a bundle that was not made for this device, or that its own gates refused.
     *
     * An ExecuTorch artifact runs on the runtime that wrote it or a newer one, by major and minor version; a TorchScript
     * archive by its bytecode version, an ONNX file by its opset. It is edgeq's own rule (edgeq/check/runtime.py).
     */
    fun check(manifest: Manifest) {
        val target = manifest.target
        if (!manifest.accepted) refuse(Reason.NOT_ACCEPTED, "the bundle did not pass its gates")
        if (manifest.weights == "random") refuse(Reason.RANDOM_WEIGHTS, "the model has random weights")
        checkPlace(target.platform, target.arch)
        val runtime = runtimes.find { it.name == manifest.runtime.name && target.backend in it.backends }
            ?: refuse(Reason.RUNTIME_MISSING, "this app has no ${manifest.runtime.name} with ${target.backend}")
        check(manifest.runtime, runtime)
    }

    /** Refuses a release by what a channel's index says of it, before it is fetched; its manifest is judged later. */
    internal fun checkRelease(neededPlatform: String, neededArch: String, runtime: String, exportedWith: String) {
        checkPlace(neededPlatform, neededArch)
        val own = runtimes.find { it.name == runtime } ?: refuse(Reason.RUNTIME_MISSING, "this app has no $runtime")
        // an index does not tell the bytecode's version
        if (own.bytecodes == null) checkVersion(runtime, exportedWith, own)
    }

    private fun checkPlace(neededPlatform: String, neededArch: String) {
        if (neededPlatform != platform) {
            refuse(Reason.WRONG_PLATFORM, "the bundle is for $neededPlatform, this is $platform")
        }
        if (neededArch !in archs) {
            refuse(Reason.WRONG_ARCH, "the bundle is for $neededArch, this device runs ${archs.joinToString()}")
        }
    }

    private fun check(needed: RuntimeFacts, runtime: RuntimeSupport) {
        val bytecodes = runtime.bytecodes ?: return checkVersion(needed.name, needed.exportedWith, runtime)
        val bytecode = needed.bytecodeVersion
        if (bytecode == null || bytecode !in bytecodes) {
            val noun = if (runtime.name == "onnx") "opset" else "bytecode version"
            val loads = "${app(runtime)}, which loads $noun ${bytecodes.first} to ${bytecodes.last}"
            refuse(Reason.RUNTIME_TOO_OLD, "the artifact has $noun $bytecode; $loads")
        }
    }

    private fun checkVersion(name: String, exportedWith: String, runtime: RuntimeSupport) {
        val (major, minor) = version(exportedWith) ?: (Int.MAX_VALUE to 0)
        val (ownMajor, ownMinor) = version(runtime.version) ?: (-1 to 0)
        if (major > ownMajor || (major == ownMajor && minor > ownMinor)) {
            refuse(Reason.RUNTIME_TOO_OLD, "written by $name ${exportedWith.take(40)}; ${app(runtime)}: update it")
        }
    }

    private fun app(runtime: RuntimeSupport) = "this app carries ${runtime.name} ${runtime.version}"
}

private fun refuse(reason: Reason, what: String): Nothing = throw Refusal(reason, what)

private fun version(text: String): Pair<Int, Int>? {
    val (major, minor) = Regex("(\\d{1,6})\\.(\\d{1,6}).*").matchEntire(text)?.destructured ?: return null
    return major.toInt() to minor.toInt()
}
