package edgeq.store

import com.fasterxml.jackson.core.JsonFactory
import com.fasterxml.jackson.core.JsonGenerator
import java.io.StringWriter

/** How far the current model got: [NEW] was never loaded, [TRYING] was being loaded when the process last ended. */
enum class Health { NEW, TRYING, HEALTHY }

/** A model that was taken out of use on this device, and why. */
data class Rejected(val digest: String, val version: String, val reason: Reason, val detail: String)

/**
 * What the store remembers between starts, in one small file that is replaced whole.
 *
 * @property current the digest of the model in use, or on trial.
 * @property starts how often the current one was started without getting through its self-test.
 * @property previous the last one that was healthy, to go back to.
 * @property offered the digest of what the app itself last brought along, so that an update is not undone by it.
 * @property rejected oldest first.
 */
data class State(
    val current: String? = null,
    val health: Health = Health.NEW,
    val starts: Int = 0,
    val previous: String? = null,
    val offered: String? = null,
    val rejected: List<Rejected> = emptyList(),
)

private const val STATE_VERSION = 1L
private val DIGEST = Regex("[0-9a-f]{64}")

internal fun stateBytes(state: State): ByteArray {
    val text = StringWriter()
    JsonFactory().createGenerator(text).use { out ->
        out.writeStartObject()
        out.writeNumberField("state_version", STATE_VERSION)
        out.writeStringField("current", state.current)
        out.writeStringField("health", state.health.name)
        out.writeNumberField("starts", state.starts)
        out.writeStringField("previous", state.previous)
        out.writeStringField("offered", state.offered)
        out.writeArrayFieldStart("rejected")
        state.rejected.forEach { writeRejected(out, it) }
        out.writeEndArray()
        out.writeEndObject()
    }
    return text.toString().toByteArray()
}

private fun writeRejected(out: JsonGenerator, rejected: Rejected) {
    out.writeStartObject()
    out.writeStringField("digest", rejected.digest)
    out.writeStringField("version", rejected.version)
    out.writeStringField("reason", rejected.reason.name)
    out.writeStringField("detail", rejected.detail)
    out.writeEndObject()
}

/** The state in [bytes]; null where they are none, or a newer app wrote them. */
internal fun parseState(bytes: ByteArray): State? = try {
    val root = JsonObject(parseJson(bytes) as? Map<*, *> ?: throw JsonProblem("no object"), "")
    if (root.count("state_version") != STATE_VERSION) throw JsonProblem("another version")
    State(
        current = digest(root, "current"),
        health = Health.valueOf(root.text("health")),
        starts = root.count("starts", most = Int.MAX_VALUE.toLong()).toInt(),
        previous = digest(root, "previous"),
        offered = digest(root, "offered"),
        rejected = root.children("rejected").map {
            Rejected(it.text("digest", DIGEST), it.text("version"), Reason.valueOf(it.text("reason")), it.text("detail"))
        },
    )
} catch (_: JsonProblem) {
    null
} catch (_: IllegalArgumentException) { // an unknown name in an enum
    null
}

private fun digest(root: JsonObject, key: String): String? =
    root.textOrNull(key)?.also { if (!DIGEST.matches(it)) throw JsonProblem("$key is no digest") }
