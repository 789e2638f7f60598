package edgeq.store

import java.security.MessageDigest

const val MANIFEST_NAME = "manifest.json"
const val SCHEMA_VERSION = 1L
internal const val MAX_MANIFEST_BYTES = 4_000_000

/** Names that become folders and files; nothing in them can leave the store's folder. */
internal val SLUG = Regex("[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9_+-])?")
private val TENSOR_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
internal val SHA256 = Regex("[0-9a-f]{64}")
private val BESIDE = setOf(MANIFEST_NAME, "report.json", "report.html")
private const val MAX_RANK = 16
private const val MAX_OUTPUTS = 10_000L
private const val MAX_TOKENS = 100_000_000L

/** A file that the manifest lists, as it must be. */
data class FileEntry(val path: String, val sha256: String, val sizeBytes: Long, val role: String)

/** A size that varies from call to call, a multiple of [step]; sizes of one [name] are equal in each call. */
data class SizeRange(val axis: Int, val name: String, val least: Int, val most: Int, val step: Int) {
    fun takes(size: Int): Boolean = size in least..most && size % step == 0
}

/**
 * An input or output; the batch comes first in [shape], which has the largest of the sizes that are [varying].
 *
 * @property fedFrom of an input that is a state, the index of the output whose last value it takes; null for others.
 */
data class TensorSpec(
    val name: String,
    val dtype: Dtype,
    val shape: List<Int>,
    val preprocess: Preprocess?,
    val varying: List<SizeRange> = emptyList(),
    val fedFrom: Int? = null,
) {
    /** Whether a tensor of this shape may be fed: runtimes themselves need not refuse another. */
    fun takes(sides: List<Int>): Boolean = sides.size == shape.size && sides.indices.all { axis ->
        varying.find { it.axis == axis }?.takes(sides[axis]) ?: (sides[axis] == shape[axis])
    }
}

/** Where a bundle runs. */
data class TargetFacts(
    val name: String,
    val platform: String,
    val arch: String,
    val runtime: String,
    val backend: String,
)

/** What wrote the artifact; [bytecodeVersion] is of a TorchScript archive, else null. */
data class RuntimeFacts(val name: String, val exportedWith: String, val bytecodeVersion: Long?)

/** A language model: how many tokens its cache keeps, and those that end a text. */
data class LanguageFacts(val contextLength: Int, val vocabulary: Int, val eosIds: List<Long>)

/** How the device tests itself; inputs are raw unless [preprocessed]. */
data class GoldenFacts(val samples: Int, val preprocessed: Boolean, val sqnrFloorDb: Double)

/**
 * What this device needs of manifest.json.
 *
 * Where a value is acted on, an unknown key beside it is refused: a preprocessing step that was skipped would give wrong
 * answers silently. Sections that only describe (accuracy, gates, provenance) are not looked at; the digest covers them.
 *
 * @property digest SHA-256 over the manifest's bytes and the files that it lists, as edgeq computes it.
 * @property labels by output index; empty where there are none.
 */
class Manifest internal constructor(
    val digest: String,
    val modelName: String,
    val modelVersion: String,
    val weights: String,
    val target: TargetFacts,
    val runtime: RuntimeFacts,
    val scheme: String,
    val threads: Int,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val labels: List<String>,
    val files: List<FileEntry>,
    val accepted: Boolean,
    val golden: GoldenFacts,
    val language: LanguageFacts? = null,
) {
    val artifact: FileEntry = files.single { it.role == "artifact" }
    val goldenFile: FileEntry = files.single { it.role == "golden" }
    /** Of a language model, the file that makes tokens of a text; null for others. */
    val tokenizer: FileEntry? = files.find { it.role == "tokenizer" }
    val sizeBytes: Long get() = files.sumOf { it.sizeBytes }
}

/**
 * Reads manifest.json; any bytes give a manifest or a [Refusal].
 *
 * @throws Refusal MANIFEST_BROKEN or SCHEMA_TOO_NEW.
 */
fun parseManifest(bytes: ByteArray): Manifest = try {
    if (bytes.size > MAX_MANIFEST_BYTES) throw JsonProblem("more than $MAX_MANIFEST_BYTES bytes")
    val root = JsonObject(parseJson(bytes) as? Map<*, *> ?: throw JsonProblem("it is not an object"), "")
    val version = root.count("schema_version")
    if (version > SCHEMA_VERSION) {
        val what = "the manifest has schema version $version, this app reads $SCHEMA_VERSION: update the app"
        throw Refusal(Reason.SCHEMA_TOO_NEW, what)
    }
    if (version != SCHEMA_VERSION) throw JsonProblem("schema_version must be $SCHEMA_VERSION")
    manifest(root, bytes)
} catch (err: JsonProblem) {
    throw Refusal(Reason.MANIFEST_BROKEN, "$MANIFEST_NAME is not what edgeq wrote: ${err.message?.take(300)}", err)
}

private fun manifest(root: JsonObject, bytes: ByteArray): Manifest {
    val model = root.child("model").only("name", "version", "weights")
    val files = files(root)
    val inputs = root.children("inputs").map(::tensor).ifEmpty { throw JsonProblem("inputs is empty") }
    val outputs = root.children("outputs").map(::tensor)
    for (state in inputs.filter { it.fedFrom != null }) {
        val source = outputs.getOrNull(checkNotNull(state.fedFrom))
        if (source?.dtype != state.dtype || source.shape != state.shape) {
            throw JsonProblem("the state ${state.name} does not fit the output that it is fed from")
        }
    }
    return Manifest(
        digest = digest(bytes, files),
        modelName = model.text("name", SLUG),
        modelVersion = model.text("version", SLUG),
        weights = model.text("weights"),
        target = target(root.child("target")),
        runtime = runtime(root.child("runtime")),
        scheme = root.text("scheme", SLUG),
        threads = root.count("threads", least = 1, most = 64).toInt(),
        inputs = inputs,
        outputs = outputs,
        labels = root.texts("labels"),
        files = files,
        accepted = root.flag("accepted"),
        golden = golden(root.child("golden")),
        language = root.childOrNull("language")?.let(::language),
    )
}

private fun language(node: JsonObject): LanguageFacts {
    node.only("context_length", "most_tokens", "vocabulary", "bos_id", "eos_ids")
    return LanguageFacts(
        contextLength = node.count("context_length", least = 1, most = MAX_TOKENS).toInt(),
        vocabulary = node.count("vocabulary", least = 1, most = MAX_TOKENS).toInt(),
        eosIds = node.counts("eos_ids"),
    )
}

private fun target(node: JsonObject): TargetFacts {
    node.only("name", "platform", "arch", "runtime", "backend")
    return TargetFacts(
        name = node.text("name", SLUG),
        platform = node.text("platform", SLUG),
        arch = node.text("arch", SLUG),
        runtime = node.text("runtime", SLUG),
        backend = node.text("backend", SLUG),
    )
}

private fun runtime(node: JsonObject): RuntimeFacts {
    node.only("name", "exported_with", "oldest_in_field", "bytecode_version", "build")
    return RuntimeFacts(node.text("name", SLUG), node.text("exported_with"), node.countOrNull("bytecode_version"))
}

private fun golden(node: JsonObject): GoldenFacts {
    node.only("samples", "preprocessed", "sqnr_floor_db", "made_on", "made_by")
    val floor = node.measure("sqnr_floor_db")
    if (floor.isNaN()) throw JsonProblem("golden.sqnr_floor_db must be a number")
    return GoldenFacts(node.count("samples", most = 10_000).toInt(), node.flag("preprocessed"), floor)
}

private fun tensor(node: JsonObject): TensorSpec {
    node.only("name", "dtype", "shape", "preprocessing", "varying", "fed_from")
    val dtype = node.text("dtype")
    val shape = node.counts("shape")
    if (shape.size > MAX_RANK || elements(shape) == null) throw JsonProblem("shape $shape is too large")
    return TensorSpec(
        name = node.text("name", TENSOR_NAME),
        dtype = Dtype.entries.find { it.text == dtype } ?: throw JsonProblem("unknown dtype '${dtype.take(40)}'"),
        shape = shape.map { it.toInt() },
        preprocess = node.childOrNull("preprocessing")?.let(::preprocess),
        varying = node.childrenOrEmpty("varying").map { sizeRange(it, shape) },
        fedFrom = node.countOrNull("fed_from", most = MAX_OUTPUTS)?.toInt(),
    )
}

private fun sizeRange(node: JsonObject, shape: List<Long>): SizeRange {
    node.only("axis", "name", "least", "most", "step")
    val axis = node.count("axis", most = MAX_RANK.toLong()).toInt()
    val most = node.count("most", least = 1)
    val least = node.count("least", least = 1)
    val step = node.countOrNull("step") ?: 1
    if (shape.getOrNull(axis) != most || least >= most || step < 1 || step > most) {
        throw JsonProblem("the range $least..$most does not fit the shape $shape")
    }
    return SizeRange(axis, node.text("name", TENSOR_NAME), least.toInt(), most.toInt(), step.toInt())
}

private fun preprocess(node: JsonObject): Preprocess {
    node.only("color", "resize", "crop", "scale", "mean", "std", "layout", "dtype")
    val spec = Preprocess(
        gray = when (node.text("color")) { "gray" -> true; "rgb" -> false; else -> throw JsonProblem("unknown color") },
        resize = node.sides("resize"),
        crop = node.sides("crop"),
        scale = node.number("scale").toFloat(),
        mean = node.numbers("mean").map { it.toFloat() },
        std = node.numbers("std").map { it.toFloat() },
        channelsFirst = when (node.text("layout")) {
            "NCHW" -> true
            "NHWC" -> false
            else -> throw JsonProblem("unknown layout")
        },
        bytes = when (node.textOrNull("dtype")) {
            null, "float32" -> false
            "uint8" -> true
            else -> throw JsonProblem("unknown dtype of the preprocessing")
        },
    )
    val counts = setOf(1, spec.channels)
    if (spec.mean.size !in counts || spec.std.size !in counts) throw JsonProblem("mean and std must be one a channel")
    if (spec.std.any { it <= 0 } || spec.scale <= 0) throw JsonProblem("std and scale must be positive")
    if (spec.bytes && (spec.scale != 1f || spec.mean.any { it != 0f } || spec.std.any { it != 1f })) {
        throw JsonProblem("bytes are fed as they are: scale 1, mean 0, std 1")
    }
    if (spec.resize?.size !in setOf(null, 1, 2) || spec.crop?.size !in setOf(null, 2)) {
        throw JsonProblem("resize and crop must be [height, width]")
    }
    return spec
}

private fun files(root: JsonObject): List<FileEntry> {
    val files = root.children("files").map { node ->
        node.only("path", "sha256", "size_bytes", "role")
        FileEntry(node.text("path", SLUG), node.text("sha256", SHA256), node.count("size_bytes"), node.text("role"))
    }
    if (files.map { it.role }.sorted() - "tokenizer" != listOf("artifact", "golden") || files.size > 3) {
        throw JsonProblem("files must list one artifact and one golden file")
    }
    // disks may take two spellings for one name
    val names = (files.map { it.path } + BESIDE).map { it.lowercase() }
    if (names.toSet().size != names.size) throw JsonProblem("two files share a name, or take the manifest's")
    return files
}

private fun digest(bytes: ByteArray, files: List<FileEntry>): String {
    val sha = MessageDigest.getInstance("SHA-256")
    sha.update(bytes)
    // sorted by code point, as Python does; slugs are ASCII
    files.sortedBy { it.path }.forEach { sha.update("${it.path}\u0000${it.sha256}\n".toByteArray()) }
    return sha.digest().toHex()
}

internal fun ByteArray.toHex(): String = joinToString("") { "%02x".format(it) }
