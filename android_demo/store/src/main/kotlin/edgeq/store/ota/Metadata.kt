package edgeq.store.ota

import com.google.crypto.tink.subtle.Ed25519Verify
import edgeq.store.JsonObject
import edgeq.store.JsonProblem
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.SHA256
import edgeq.store.parseJson
import edgeq.store.toHex
import java.security.GeneralSecurityException
import java.security.MessageDigest
import java.time.Instant

private val TIME = Regex("""\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ""")
private val KEY_ID = Regex("[0-9a-f]{64}")
private val SIGNATURE = Regex("[0-9a-f]{128}")
private val PUBLIC_KEY = Regex("[0-9a-f]{64}")

/**
 * A signed file of a channel's index, in The Update Framework's format.
 *
 * @property name of the file, for messages.
 * @property body its `signed` part.
 */
internal class Metadata private constructor(
    val name: String,
    val body: JsonObject,
    private val signedBytes: ByteArray,
    private val signatures: Map<String, ByteArray>,
) {
    val version: Long = body.count("version", least = 1)
    private val expires: Instant = time(body.text("expires"))

    /** Refuses what is not signed by enough of a role's keys. */
    fun checkSigned(root: Root, role: String) {
        val (keyIds, threshold) = root.role(role)
        val good = keyIds.count { id ->
            val key = root.keys[id]
            val signature = signatures[id]
            key != null && signature != null && verifies(key, signedBytes, signature)
        }
        if (good < threshold) {
            val what = "$name is not signed by the keys that this device trusts: $good of $threshold signatures"
            throw Refusal(Reason.WRONG_KEY, what)
        }
    }

    fun checkNotExpired(now: Instant) {
        if (expires <= now) {
            throw Refusal(Reason.FREEZE, "$name has expired ($expires); check this device's clock, or sign it again")
        }
    }

    companion object {
        /**
         * Reads a file that must be what edgeq wrote, byte for byte, and of one kind.
         *
         * @throws Refusal INDEX_BROKEN.
         */
        fun parse(bytes: ByteArray, name: String, type: String): Metadata = broken(name) {
            val value = parseJson(bytes) as? Map<*, *> ?: throw JsonProblem("it is not an object")
            if (!written(value).contentEquals(bytes)) throw JsonProblem("it is not as it was written")
            val root = JsonObject(value, "").only("signatures", "signed")
            val signed = root.child("signed")
            if (signed.text("_type") != type) throw JsonProblem("its _type is not $type")
            if (!signed.text("spec_version").startsWith("1.")) throw JsonProblem("unknown spec_version")
            val signatures = root.children("signatures").map { it.text("keyid", KEY_ID) to it.text("sig", SIGNATURE) }
            if (signatures.map { it.first }.toSet().size != signatures.size) throw JsonProblem("a key signed twice")
            Metadata(name, signed, canonical(value["signed"]), signatures.associate { (id, text) -> id to unhex(text) })
        }

        fun time(text: String): Instant =
            if (TIME.matches(text)) instant(text) else throw JsonProblem("'${text.take(40)}' is not a time")

        private fun instant(text: String) = try {
            Instant.parse(text)
        } catch (err: java.time.format.DateTimeParseException) {
            throw JsonProblem("'$text' is not a time", err)
        }
    }
}

/** The keys that a channel's other files are signed with. */
internal class Root(val metadata: Metadata) {
    val version: Long get() = metadata.version

    /** Public keys by their id; other kinds than Ed25519 are left out, and so never count. */
    val keys: Map<String, ByteArray> = broken(metadata.name) {
        val named = metadata.body.child("keys")
        named.keys.map { it to named.child(it) }
            .filter { (_, key) -> key.text("keytype") == "ed25519" && key.text("scheme") == "ed25519" }
            .associate { (id, key) -> id to unhex(key.child("keyval").text("public", PUBLIC_KEY)) }
    }

    /** The ids of each role's keys, and how many of them must sign. */
    private val roles: Map<String, Pair<Set<String>, Long>> = broken(metadata.name) {
        if (!metadata.body.flag("consistent_snapshot")) throw JsonProblem("consistent_snapshot must be true")
        val named = metadata.body.child("roles")
        named.keys.associateWith { role ->
            named.child(role).let { it.texts("keyids").toSet() to it.count("threshold", least = 1) }
        }
    }

    fun role(name: String): Pair<Set<String>, Long> =
        roles[name] ?: throw Refusal(Reason.INDEX_BROKEN, "${metadata.name} names no keys for $name")
}

/** What a file of the index says of the next one. */
internal class Pinned(node: JsonObject) {
    val version: Long = node.count("version", least = 1)
    private val length: Long = node.count("length")
    private val sha256: String = node.child("hashes").text("sha256", SHA256)

    /** How many bytes it may have. */
    fun most(most: Int): Int = minOf(length, most.toLong()).toInt()

    fun check(bytes: ByteArray, name: String) {
        if (bytes.size.toLong() != length || sha256(bytes) != sha256) {
            throw Refusal(Reason.MIX_AND_MATCH, "$name is another one than the rest of the index names")
        }
    }
}

/** Runs what reads an index; whatever is wrong with it is refused as INDEX_BROKEN. */
internal fun <T> broken(name: String, act: () -> T): T = try {
    act()
} catch (err: JsonProblem) {
    val what = "$name is damaged or was tampered with: ${err.message?.take(300)}"
    throw Refusal(Reason.INDEX_BROKEN, what, err)
}

internal fun sha256(bytes: ByteArray): String = MessageDigest.getInstance("SHA-256").digest(bytes).toHex()

/**
 * RFC 8032's check. java.security has Ed25519 from Android 13 on (API 33) and the app runs from Android 8 on, so it is
 * Tink's own code, which is the same on every device.
 */
private fun verifies(key: ByteArray, message: ByteArray, signature: ByteArray): Boolean = try {
    Ed25519Verify(key).verify(signature, message)
    true
} catch (_: GeneralSecurityException) {
    false
}

private fun unhex(text: String) = ByteArray(text.length / 2) { text.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
