package edgeq.store.ota

import edgeq.store.Device
import edgeq.store.JsonObject
import edgeq.store.JsonProblem
import edgeq.store.Manifest
import edgeq.store.ModelKey
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.SHA256
import edgeq.store.SLUG

private const val FACTS_VERSION = 1L
private const val MAX_RELEASE = (1L shl 31) - 1
private val NAME = Regex("[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,180}[A-Za-z0-9])")
private val DEVICE_ID = Regex("[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")

/** A file of a channel, as the signed index has it. */
internal data class Entry(val name: String, val sha256: String, val sizeBytes: Long) {
    /** Where it lies in the channel. */
    val path: String get() = "targets/$sha256.$name"
}

/**
 * A release as a full download (edgeq/deliver/ota/index.py).
 *
 * @property release counts up in a channel, whatever the models' own versions are.
 * @property plainSha256 of the bundle's plain form, which patches start from and lead to.
 * @property devices the only ones that it is for; none: all.
 */
internal data class BundleFacts(
    val file: Entry,
    val key: ModelKey,
    val release: Long,
    val modelVersion: String,
    val platform: String,
    val arch: String,
    val runtime: String,
    val exportedWith: String,
    val digest: String,
    val plainSha256: String,
    val plainBytes: Long,
    val withdrawn: Boolean,
    val devices: List<String>,
) {
    /** Refuses a bundle that is another one than the index says. */
    fun check(manifest: Manifest) {
        val pairs = listOf(
            Triple("model", key.model, manifest.modelName),
            Triple("target", key.target, manifest.target.name),
            Triple("ABI", arch, manifest.target.arch),
            Triple("platform", platform, manifest.target.platform),
            Triple("runtime", runtime, manifest.target.runtime),
            Triple("runtime version", exportedWith, manifest.runtime.exportedWith),
            Triple("model version", modelVersion, manifest.modelVersion),
            Triple("digest", digest, manifest.digest),
        )
        val (what, said, came) = pairs.find { it.second != it.third } ?: return
        throw Refusal(Reason.MIX_AND_MATCH, "the bundle of release $release has $what $came, the index says $said")
    }
}

/** A patch between two plain forms. */
internal data class DeltaFacts(
    val file: Entry,
    val algorithm: String,
    val baseSha256: String,
    val outputSha256: String,
    val outputBytes: Long,
)

/** All files of a channel that a device may ask for. */
internal class Index(val bundles: List<BundleFacts>, val deltas: List<DeltaFacts>) {
    /** The release of a bundle; 0 where the channel has it not. */
    fun releaseOf(key: ModelKey, digest: String?): Long =
        bundles.filter { it.key == key && it.digest == digest }.maxOfOrNull { it.release } ?: 0

    /** The newest release for a device; what it is not for is said. */
    fun choose(key: ModelKey, device: Device, deviceId: String): BundleFacts {
        val fitting = bundles.filter { it.key == key }.ifEmpty {
            val known = bundles.map { "${it.key.model} for ${it.key.target}" }.toSortedSet().joinToString()
            val what = "the channel has no ${key.model} for ${key.target}, but: ${known.take(300).ifEmpty { "nothing" }}"
            throw Refusal(Reason.NO_RELEASE, what)
        }
        val newest = fitting.filter { !it.withdrawn && (it.devices.isEmpty() || deviceId in it.devices) }
            .maxByOrNull { it.release }
            ?: throw Refusal(Reason.WRONG_DEVICE, "no release of ${key.model} for ${key.target} is for $deviceId")
        device.checkRelease(newest.platform, newest.arch, newest.runtime, newest.exportedWith)
        return newest
    }
}

/**
 * Reads the index that the signed targets hold.
 *
 * @throws Refusal INDEX_BROKEN: a name that would become a path, two that differ in case only, or facts that are none;
 *   INDEX_TOO_NEW.
 */
internal fun parseIndex(metadata: Metadata): Index = broken(metadata.name) {
    val targets = metadata.body.child("targets")
    val names = targets.keys.sorted()
    names.find { !NAME.matches(it) || ".." in it }?.let {
        throw JsonProblem("the name '${it.take(80)}' would become a path")
    }
    // some servers and disks take them for one
    if (names.map { it.lowercase() }.toSet().size != names.size) throw JsonProblem("two names differ in case only")
    val bundles = mutableListOf<BundleFacts>()
    val deltas = mutableListOf<DeltaFacts>()
    for (name in names) {
        val target = targets.child(name)
        val file = Entry(name, target.child("hashes").text("sha256", SHA256), target.count("length"))
        val facts = target.child("custom").child("edgeq")
        checkVersion(facts)
        when (val kind = facts.text("kind")) {
            "bundle" -> bundles += bundle(facts, file)
            "delta" -> deltas += delta(facts, file)
            "bom" -> facts.only("schema_version", "model", "target", "release", "kind")
            else -> throw JsonProblem("$name is of the unknown kind '${kind.take(40)}'")
        }
    }
    if (bundles.map { it.key to it.release }.toSet().size != bundles.size) throw JsonProblem("one release stands twice")
    Index(bundles, deltas)
}

private fun checkVersion(facts: JsonObject) {
    val version = facts.count("schema_version")
    if (version > FACTS_VERSION) {
        val what = "the channel's index has facts of version $version, this app knows $FACTS_VERSION: update the app"
        throw Refusal(Reason.INDEX_TOO_NEW, what)
    }
    if (version != FACTS_VERSION) throw JsonProblem("schema_version must be $FACTS_VERSION")
}

private fun bundle(facts: JsonObject, file: Entry): BundleFacts {
    facts.only(
        "schema_version", "model", "target", "release", "kind", "model_version", "platform", "arch", "runtime",
        "exported_with", "runtimes", "digest", "plain_sha256", "plain_bytes", "withdrawn", "devices",
    )
    facts.texts("runtimes")
    return BundleFacts(
        file = file,
        key = ModelKey(facts.text("model", SLUG), facts.text("target", SLUG)),
        release = facts.count("release", least = 1, most = MAX_RELEASE),
        modelVersion = facts.text("model_version", SLUG),
        platform = facts.text("platform", SLUG),
        arch = facts.text("arch", SLUG),
        runtime = facts.text("runtime", SLUG),
        exportedWith = facts.text("exported_with"),
        digest = facts.text("digest", SHA256),
        plainSha256 = facts.text("plain_sha256", SHA256),
        plainBytes = facts.count("plain_bytes"),
        withdrawn = facts.flag("withdrawn"),
        devices = facts.texts("devices").onEach {
            if (!DEVICE_ID.matches(it)) throw JsonProblem("'${it.take(80)}' is not a device's id")
        },
    )
}

private fun delta(facts: JsonObject, file: Entry): DeltaFacts {
    facts.only(
        "schema_version", "model", "target", "release", "kind", "algorithm", "base_sha256", "output_sha256",
        "output_bytes",
    )
    return DeltaFacts(
        file = file,
        algorithm = facts.text("algorithm", Regex("zstd|bsdiff4")),
        baseSha256 = facts.text("base_sha256", SHA256),
        outputSha256 = facts.text("output_sha256", SHA256),
        outputBytes = facts.count("output_bytes"),
    )
}
