package edgeq.store

import java.io.ByteArrayInputStream
import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream
import java.security.MessageDigest

/** The repository's root; the build says where it is. */
val REPOSITORY = File(checkNotNull(System.getProperty("edgeq.root")) { "run by Maven: edgeq.root is not set" })

val GOLDEN_FOLDERS: List<File> = File(REPOSITORY, "tests/golden").walk().filter { File(it, MANIFEST_NAME).exists() }
    .sorted().toList()

val XNNPACK = golden("android-arm64-xnnpack")
val QNNPACK = golden("android-arm64-qnnpack")

val PHONE = Device(
    platform = "android",
    archs = setOf("arm64"),
    runtimes = listOf(
        RuntimeSupport("executorch", "1.5.0", setOf("xnnpack")),
        RuntimeSupport("torchscript", "2.1.0", setOf("qnnpack"), bytecodes = 4L..9L),
    ),
)

/** The arrays of an .npz by name, for the app's tests, which do not see what is internal here. */
fun arrays(file: File): Map<String, Tensor> = parseNpz(file.readBytes())

private fun golden(target: String) =
    TestBundle(File(REPOSITORY, "tests/golden/0.1.0/digits/$target").listFiles()!!.associate { it.name to it.readBytes() })

/** A bundle in memory, of which tests change what they like. */
class TestBundle(val files: Map<String, ByteArray>) : BundleSource {
    val manifestText get() = files.getValue(MANIFEST_NAME).decodeToString()
    val manifest get() = parseManifest(files.getValue(MANIFEST_NAME))
    val digest get() = manifest.digest

    override fun names(): List<String> = files.keys.sorted()

    override fun open(name: String): InputStream =
        ByteArrayInputStream(files[name] ?: throw FileNotFoundException(name))

    fun with(name: String, data: ByteArray) = TestBundle(files + (name to data))

    fun without(name: String) = TestBundle(files - name)

    fun edited(old: String, new: String): TestBundle {
        check(old in manifestText) { "the manifest has no $old" }
        return with(MANIFEST_NAME, manifestText.replace(old, new).toByteArray())
    }

    /** The same model under another version, and so with another digest. */
    fun version(version: String) = edited("\"version\": \"1\"", "\"version\": \"$version\"")

    /** Another file, with a manifest that says so. */
    fun replaced(name: String, data: ByteArray): TestBundle {
        val entry = manifest.files.single { it.path == name }
        return edited(entry.sha256, data.sha256()).edited("\"size_bytes\": ${entry.sizeBytes}", "\"size_bytes\": ${data.size}")
            .with(name, data)
    }
}

fun ByteArray.sha256(): String = MessageDigest.getInstance("SHA-256").digest(this).toHex()

/** How a model behaves that stands in for a runtime: the golden samples' answers, times [gain], or what goes wrong. */
class Behaviour(val gain: Float = 1f, val whenLoaded: () -> Unit = {}, val whenRun: () -> Unit = {})

class Died : Error("the process was killed")

/**
 * Stands in for the phone's runtime, which the JVM has not: answers with the golden outputs for the golden inputs.
 * What the real runtimes answer is EndToEndTest's business.
 */
class StandIn(bundle: TestBundle, private val behaviour: (version: String) -> Behaviour = { Behaviour() }) : Loader {
    private val golden = parseGolden(bundle.manifest, bundle.files.getValue("golden.npz"))
    val loaded = mutableListOf<String>()
    var open = 0

    override fun load(manifest: Manifest, location: String): LoadedModel {
        loaded += manifest.modelVersion
        val behaves = behaviour(manifest.modelVersion)
        behaves.whenLoaded()
        open++
        return object : LoadedModel {
            override fun run(inputs: List<Tensor>): List<Tensor> {
                behaves.whenRun()
                val (_, outputs) = golden.samples.first { (known, _) -> known[0].toFloats().contentEquals(inputs[0].toFloats()) }
                return outputs.map { output ->
                    Tensor.of(FloatArray(output.size) { i -> output.toFloats()[i] * behaves.gain }, listOf(1) + output.shape)
                }
            }

            override fun close() {
                open--
            }
        }
    }
}
