package edgeq.store.ota

import com.fasterxml.jackson.core.JsonFactory
import com.fasterxml.jackson.core.JsonGenerator
import edgeq.store.Files
import edgeq.store.JsonObject
import edgeq.store.JsonProblem
import edgeq.store.ModelKey
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.SHA256
import edgeq.store.SLUG
import edgeq.store.parseJson
import edgeq.store.readAtMost
import edgeq.store.writeAtomic
import java.io.FileNotFoundException
import java.io.StringWriter
import java.time.Instant

private const val STATE_VERSION = 1L
private const val MAX_BAD = 100
private const val MAX_STATE_BYTES = 1_000_000L

/** A release that is being unpacked, by the bundle's digest, and how often that was begun. */
internal data class Trying(val digest: String, val tries: Int)

/**
 * A release whose unpacking did not come to its end: the process was killed, or there was no memory.
 *
 * @property sinceS when, in seconds of the device's clock, or else when the newest index was signed.
 * @property app the build of the app ([edgeq.store.Device.app]).
 */
internal data class Deferred(val digest: String, val sinceS: Long, val app: String)

/**
 * What this device remembers of a channel.
 *
 * @property releases the newest that was installed of each model.
 * @property bad digests of releases that could not be unpacked; the oldest first.
 * @property deferred what is to be tried again after a day, or with a new app.
 */
internal data class UpdateState(
    val seen: Seen = Seen(),
    val releases: Map<ModelKey, Long> = emptyMap(),
    val trying: Trying? = null,
    val bad: List<String> = emptyList(),
    val deferred: Deferred? = null,
) {
    fun tries(digest: String): Int = trying?.takeIf { it.digest == digest }?.tries ?: 0

    fun installed(key: ModelKey, release: Long) =
        copy(releases = releases + (key to maxOf(release, releases[key] ?: 0)), trying = null, deferred = null)

    fun givenUp(digest: String) = copy(trying = null, bad = (bad - digest + digest).takeLast(MAX_BAD))
}

/** `state.json` and `root.json`, each replaced by one rename. */
internal class Memory(private val files: Files) {
    /** @throws Refusal UPDATES_BROKEN: without it an old index would pass for a new one. */
    fun state(): UpdateState {
        val bytes = read(STATE) ?: return UpdateState()
        return try {
            parse(bytes)
        } catch (err: JsonProblem) {
            val why = err.message?.take(160)
            val what = "what this device remembers of the channel is damaged: $why; clear the app's data"
            throw Refusal(Reason.UPDATES_BROKEN, what, err)
        }
    }

    fun write(state: UpdateState): UpdateState = state.also { files.writeAtomic(STATE, bytes(state)) }

    /** The newest root that was verified; null before the first. */
    fun root(): ByteArray? = read(ROOT)

    fun writeRoot(root: ByteArray) {
        if (read(ROOT)?.contentEquals(root) != true) files.writeAtomic(ROOT, root)
    }

    private fun read(path: String): ByteArray? = try {
        files.read(path).use { readAtMost(it, MAX_STATE_BYTES) }
    } catch (_: FileNotFoundException) {
        null
    }

    private companion object {
        const val STATE = "state.json"
        const val ROOT = "root.json"
    }
}

private fun bytes(state: UpdateState): ByteArray {
    val text = StringWriter()
    JsonFactory().createGenerator(text).use { out ->
        out.writeStartObject()
        out.writeNumberField("state_version", STATE_VERSION)
        writeSeen(out, state.seen)
        out.writeArrayFieldStart("releases")
        for ((key, release) in state.releases) {
            out.writeStartObject()
            out.writeStringField("model", key.model)
            out.writeStringField("target", key.target)
            out.writeNumberField("release", release)
            out.writeEndObject()
        }
        out.writeEndArray()
        state.trying?.let {
            out.writeObjectFieldStart("trying")
            out.writeStringField("digest", it.digest)
            out.writeNumberField("tries", it.tries)
            out.writeEndObject()
        }
        out.writeArrayFieldStart("bad")
        state.bad.forEach(out::writeString)
        out.writeEndArray()
        state.deferred?.let {
            out.writeObjectFieldStart("deferred")
            out.writeStringField("digest", it.digest)
            out.writeNumberField("since_s", it.sinceS)
            out.writeStringField("app", it.app)
            out.writeEndObject()
        }
        out.writeEndObject()
    }
    return text.toString().toByteArray()
}

private fun writeSeen(out: JsonGenerator, seen: Seen) {
    out.writeObjectFieldStart("seen")
    out.writeNumberField("root", seen.root)
    out.writeNumberField("timestamp", seen.timestamp)
    out.writeNumberField("snapshot", seen.snapshot)
    out.writeNumberField("targets", seen.targets)
    out.writeStringField("issued", seen.issued.toString())
    out.writeNumberField("repeats", seen.repeats)
    out.writeEndObject()
}

private fun parse(bytes: ByteArray): UpdateState {
    val root = JsonObject(parseJson(bytes) as? Map<*, *> ?: throw JsonProblem("it is not an object"), "")
        .only("state_version", "seen", "releases", "trying", "bad", "deferred")
    if (root.count("state_version") != STATE_VERSION) throw JsonProblem("another version")
    val seen = root.child("seen")
    return UpdateState(
        seen = Seen(
            root = seen.count("root"),
            timestamp = seen.count("timestamp"),
            snapshot = seen.count("snapshot"),
            targets = seen.count("targets"),
            issued = Metadata.time(seen.text("issued")),
            repeats = seen.count("repeats", most = Int.MAX_VALUE.toLong()).toInt(),
        ),
        releases = root.children("releases")
            .associate { ModelKey(it.text("model", SLUG), it.text("target", SLUG)) to it.count("release", least = 1) },
        trying = root.childOrNull("trying")?.let {
            Trying(it.text("digest", SHA256), it.count("tries", most = Int.MAX_VALUE.toLong()).toInt())
        },
        bad = root.texts("bad"),
        deferred = root.childOrNull("deferred")?.let {
            Deferred(it.text("digest", SHA256), it.count("since_s"), it.text("app"))
        },
    )
}
