package edgeq.store

import com.fasterxml.jackson.core.JsonFactory
import com.fasterxml.jackson.core.JsonGenerator
import java.io.StringWriter
import kotlin.math.abs

/** How far the current model got: [NEW] was never loaded, [TRYING] was being loaded when the process last ended. */
enum class Health { NEW, TRYING, HEALTHY }

/**
 * A model that was taken out of use on this device, and why.
 *
 * @property sinceS when, in seconds of the device's clock.
 * @property app the build of the app that it was in ([Device.app]).
 */
data class Rejected(
    val digest: String,
    val version: String,
    val reason: Reason,
    val detail: String,
    val sinceS: Long = 0,
    val app: String = "",
) {
    /** Whether its test did not run to its end: that the process was killed says nothing against the model. */
    val untested: Boolean get() = reason == Reason.CRASHED || reason == Reason.NO_MEMORY

    /** Whether it is refused still: for ever where it failed; for a day, and by the same app, where it is [untested]. */
    fun holds(nowS: Long, app: String): Boolean = !untested || waits(sinceS, this.app, nowS, app)
}

private const val RETRY_AFTER_S = 86_400L

/** Whether to wait still with another try; a clock that was set back must not put it off for long. */
internal fun waits(sinceS: Long, app: String, nowS: Long, nowApp: String): Boolean =
    app == nowApp && abs(nowS - sinceS) < RETRY_AFTER_S

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
    out.writeNumberField("since_s", rejected.sinceS)
    out.writeStringField("app", rejected.app)
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
            Rejected(
                digest = it.text("digest", DIGEST),
                version = it.text("version"),
                reason = Reason.valueOf(it.text("reason")),
                detail = it.text("detail"),
                // an app before 2026-12 wrote neither
                sinceS = it.countOrNull("since_s") ?: 0,
                app = it.textOrNull("app").orEmpty(),
            )
        },
    )
} catch (_: JsonProblem) {
    null
} catch (_: IllegalArgumentException) { // an unknown name in an enum
    null
}

private fun digest(root: JsonObject, key: String): String? =
    root.textOrNull(key)?.also { if (!DIGEST.matches(it)) throw JsonProblem("$key is not a digest") }
