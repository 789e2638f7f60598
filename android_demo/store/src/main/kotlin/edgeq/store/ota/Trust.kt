package edgeq.store.ota

import edgeq.store.Reason
import edgeq.store.Refusal
import java.time.Duration
import java.time.Instant

private const val MAX_ROOTS = 256
private const val MAX_ROOT_BYTES = 512_000
private const val MAX_TIMESTAMP_BYTES = 16_384
private const val MAX_SNAPSHOT_BYTES = 2_000_000
private const val MAX_TARGETS_BYTES = 5_000_000
private const val ISSUED = "x-edgeq-issued"

// a clock that is further behind the index's own time of signing is wrong, not slow
private val SKEW = Duration.ofDays(1)

/**
 * The newest that this device has verified.
 *
 * @property issued when the newest index was signed: the clock of a device that has none.
 * @property repeats how often in a row the same index came to a device without a clock.
 */
data class Seen(
    val root: Long = 0,
    val timestamp: Long = 0,
    val snapshot: Long = 0,
    val targets: Long = 0,
    val issued: Instant = Instant.EPOCH,
    val repeats: Int = 0,
)

/**
 * A verified index.
 *
 * @property root the newest root's bytes, from which the next check begins.
 * @property byClock whether expiry was judged by the device's clock.
 */
internal class Trusted(val index: Index, val seen: Seen, val root: ByteArray, val byClock: Boolean)

/**
 * Reads a channel's index and verifies it: The Update Framework's client workflow (specification 1.0, section 5), as
 * edgeq/deliver/ota/trusted.py has it. Signatures first, then versions, then expiry.
 *
 * @param clock the device's time; null where it has none. Then, or where the clock stands before the time at which the
 *   last index was signed, expiry is judged by that time, and the same index is taken [Limits.maxRepeats] times.
 */
internal class Trust(
    private val reader: Reader,
    private val seen: Seen,
    private val clock: Instant?,
    private val limits: Limits,
) {
    private val byClock = clock != null && clock >= seen.issued - SKEW
    private val now: Instant = if (byClock && clock != null) clock else seen.issued

    fun refresh(trustedRoot: ByteArray): Trusted {
        val (root, bytes) = newestRoot(trustedRoot)
        val timestamp = parsed(needed(TIMESTAMP, MAX_TIMESTAMP_BYTES), TIMESTAMP, root, "timestamp")
        checkVersion(TIMESTAMP, timestamp.version, seen.timestamp)
        val snapshotPin = pinned(timestamp, "snapshot.json")
        checkVersion("the snapshot", snapshotPin.version, seen.snapshot)
        timestamp.checkNotExpired(now)
        val snapshot = follow(snapshotPin, root, "snapshot", MAX_SNAPSHOT_BYTES)
        val targetsPin = pinned(snapshot, "targets.json")
        checkVersion("the list of targets", targetsPin.version, seen.targets)
        val targets = follow(targetsPin, root, "targets", MAX_TARGETS_BYTES)
        val issued = broken(TIMESTAMP) { timestamp.body.textOrNull(ISSUED)?.let(Metadata::time) ?: Instant.EPOCH }
        val next = Seen(
            root = root.version,
            timestamp = timestamp.version,
            snapshot = snapshot.version,
            targets = targets.version,
            issued = maxOf(issued, seen.issued),
            repeats = repeats(timestamp.version),
        )
        return Trusted(parseIndex(targets), next, bytes, byClock)
    }

    /** Follows the chain of roots, each signed by the keys of the one before and by its own. */
    private fun newestRoot(trusted: ByteArray): Pair<Root, ByteArray> {
        var bytes = trusted
        var root = Root(Metadata.parse(bytes, "the trusted root", "root")).also { it.metadata.checkSigned(it, "root") }
        for (step in 1..MAX_ROOTS) {
            val name = "metadata/${root.version + 1}.root.json"
            val found = reader.whole(name, MAX_ROOT_BYTES) ?: break
            val next = Root(Metadata.parse(found, name, "root"))
            next.metadata.checkSigned(root, "root")
            next.metadata.checkSigned(next, "root")
            if (next.version != root.version + 1) {
                throw Refusal(Reason.ROLLBACK, "$name is version ${next.version}, expected ${root.version + 1}")
            }
            root = next
            bytes = found
        }
        checkVersion("the root", root.version, seen.root)
        root.metadata.checkNotExpired(now)
        return root to bytes
    }

    /** Reads the file that the one before names, by version, length and hash. */
    private fun follow(pin: Pinned, root: Root, role: String, most: Int): Metadata {
        val name = "metadata/${pin.version}.$role.json"
        val bytes = needed(name, pin.most(most)).also { pin.check(it, name) }
        val metadata = parsed(bytes, name, root, role)
        if (metadata.version != pin.version) {
            val what = "$name is version ${metadata.version}, the index names ${pin.version}"
            throw Refusal(Reason.MIX_AND_MATCH, what)
        }
        metadata.checkNotExpired(now)
        return metadata
    }

    private fun parsed(bytes: ByteArray, name: String, root: Root, role: String): Metadata =
        Metadata.parse(bytes, name, role).also { it.checkSigned(root, role) }

    private fun pinned(metadata: Metadata, file: String): Pinned =
        broken(metadata.name) { Pinned(metadata.body.child("meta").child(file)) }

    private fun needed(name: String, most: Int): ByteArray = reader.whole(name, most)
        ?: throw Refusal(Reason.CHANNEL_INCOMPLETE, "the channel ${reader.place} has no $name; try again later")

    private fun checkVersion(what: String, version: Long, before: Long) {
        if (version < before) {
            throw Refusal(Reason.ROLLBACK, "$what of the channel is version $version, this device has seen $before")
        }
    }

    private fun repeats(version: Long): Int {
        val repeats = if (byClock || version != seen.timestamp) 0 else seen.repeats + 1
        if (repeats > limits.maxRepeats) {
            val what = "the channel has shown the same index $repeats times, and this device has no clock; set it"
            throw Refusal(Reason.FREEZE, what)
        }
        return repeats
    }

    private companion object {
        const val TIMESTAMP = "metadata/timestamp.json"
    }
}
