package edgeq.store.ota

import edgeq.store.BundleSource
import edgeq.store.Device
import edgeq.store.Files
import edgeq.store.Library
import edgeq.store.MANIFEST_NAME
import edgeq.store.MAX_MANIFEST_BYTES
import edgeq.store.ModelKey
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.parseManifest
import edgeq.store.readAtMost
import edgeq.store.toHex
import edgeq.store.waits
import java.io.Closeable
import java.io.IOException
import java.security.MessageDigest
import java.time.Instant

/** How a release came. */
enum class Via { NOTHING, PATCH, FULL_DOWNLOAD }

/**
 * What an update did.
 *
 * @property via [Via.NOTHING] where the newest release was there already.
 * @property byClock whether the index's expiry was judged by the device's clock, and not by when the last was signed.
 */
data class Update(
    val release: Long,
    val modelVersion: String,
    val via: Via,
    val downloadedBytes: Long,
    val byClock: Boolean,
)

/**
 * Follows an update channel that `edgeq ota release` wrote; the workflow is that of `edgeq ota update`
 * (edgeq/deliver/ota/client.py), each step trusting only those before it:
 *
 * signature → version, expiry, device → sizes and free space → patch → SHA-256 → [Library.deliver], after which the next
 * [edgeq.store.ModelStore.open] loads it, runs its golden samples, and goes back to the model before where it fails. That
 * first start, too, is counted before it is begun.
 *
 * Below [files]: `root.json`, the newest root that was verified; `state.json`, the newest versions that were seen;
 * `download/`, what is on its way. A kill between any two file operations loses nothing that the next run cannot get.
 *
 * Safe for several threads; keep one object for a folder in one process.
 *
 * @param root the channel's `metadata/1.root.json`, or a newer one, that the app ships with; the first run begins there.
 * @param deviceId by which a release is addressed to some devices only.
 * @param clock the device's time; gives null where it has none.
 */
class Updater(
    private val files: Files,
    private val library: Library,
    private val device: Device,
    channel: Channel,
    private val root: ByteArray?,
    private val deviceId: String,
    private val limits: Limits = Limits(),
    private val clock: () -> Instant? = Instant::now,
    nanoTime: () -> Long = System::nanoTime,
) {
    private val reader = Reader(channel, limits, nanoTime)
    private val memory = Memory(files)
    private val downloads = Downloads(files, reader, limits.chunkBytes)

    /**
     * Brings a model to the channel's newest release for this device, whole or not at all.
     *
     * @throws Refusal why not; the model that was there stays. What could not be fetched to its end is gone on with the
     *   next time.
     */
    @Synchronized
    fun update(key: ModelKey): Update = try {
        val state = memory.state()
        val begin = memory.root() ?: root
            ?: throw Refusal(Reason.NO_TRUST, "the app brought no root to trust the channel by")
        val trusted = Trust(reader, state.seen, clock(), limits).refresh(begin)
        memory.writeRoot(trusted.root)
        followed(key, memory.write(state.copy(seen = trusted.seen)), trusted)
    } catch (err: IOException) {
        throw Refusal(Reason.DISK, "the update cannot be written: ${err.message}; free some space", err)
    }

    private fun followed(key: ModelKey, before: UpdateState, trusted: Trusted): Update {
        val nowS = maxOf(0, (clock() ?: trusted.seen.issued).epochSecond)
        val chosen = trusted.index.choose(key, device, deviceId)
        val current = library.store(key).state.current
        val known = maxOf(before.releases[key] ?: 0, trusted.index.releaseOf(key, current))
        if (chosen.release < known) {
            throw Refusal(Reason.ROLLBACK, "the channel's newest release is ${chosen.release}, this device has $known")
        }
        if (chosen.digest == current) {
            downloads.clear() // of a run that was killed after the switch
            memory.write(before.installed(key, chosen.release))
            return Update(chosen.release, chosen.modelVersion, Via.NOTHING, 0, trusted.byClock)
        }
        val state = checkNotBad(key, before, chosen, nowS)
        // a patch that did not work is not tried again
        val patch = if (state.tries(chosen.digest) == 0) patch(key, chosen, trusted.index) else null
        val file = patch?.first?.file ?: chosen.file
        checkSizes(chosen, file)
        val path = downloads.fetch(file)
        placed(state, chosen, nowS) { if (patch == null) archive(path, chosen) else patched(path, patch) }
        downloads.clear()
        val via = if (patch == null) Via.FULL_DOWNLOAD else Via.PATCH
        return Update(chosen.release, chosen.modelVersion, via, file.sizeBytes, trusted.byClock)
    }

    /**
     * Refuses what failed on this device before, so that it is not even fetched, and what has to wait.
     *
     * @return the state, in which a release that was begun too often, by runs that were killed in it, is put off.
     */
    private fun checkNotBad(key: ModelKey, before: UpdateState, chosen: BundleFacts, nowS: Long): UpdateState {
        val name = "release ${chosen.release}"
        library.store(key).rejection(chosen.digest)?.let { throw Refusal(it.reason, "$name: ${it.message}", it) }
        if (chosen.digest in before.bad) {
            throw Refusal(Reason.REJECTED_BEFORE, "$name could not be unpacked here, and is not tried again")
        }
        val state = if (before.tries(chosen.digest) < limits.maxTries) before else memory.write(deferred(before, chosen, nowS))
        val kept = state.deferred?.takeIf { it.digest == chosen.digest && waits(it.sinceS, it.app, nowS, device.app) }
        kept ?: return state
        val what = "$name was not unpacked to its end ${limits.maxTries} times; it is tried again after a day, or with a new app"
        throw Refusal(Reason.TRY_LATER, what)
    }

    private fun deferred(state: UpdateState, chosen: BundleFacts, nowS: Long) =
        state.copy(trying = null, deferred = Deferred(chosen.digest, nowS, device.app))

    /** The patch from what the device has, and that in its plain form; null where a patch saves nothing. */
    private fun patch(key: ModelKey, chosen: BundleFacts, index: Index): Pair<DeltaFacts, ByteArray>? {
        val fitting = index.deltas.filter {
            it.outputSha256 == chosen.plainSha256 && it.outputBytes <= limits.maxPatchedBytes &&
                it.file.sizeBytes < chosen.file.sizeBytes
        }
        if (fitting.isEmpty()) return null
        val base = try {
            library.store(key).current()?.let { plainOf(it, limits.maxPatchedBytes, limits.chunkBytes) } ?: return null
        } catch (_: Refusal) { // damaged: a full download mends it
            return null
        } catch (_: IOException) {
            return null
        } catch (_: OutOfMemoryError) { // a full download is streamed
            return null
        }
        val sha256 = sha256(base)
        return fitting.find { it.baseSha256 == sha256 }?.let { it to base }
    }

    /** Refuses what is too large before anything is fetched. */
    private fun checkSizes(chosen: BundleFacts, file: Entry) {
        if (maxOf(chosen.plainBytes, file.sizeBytes) > limits.maxBytes) {
            val what = "release ${chosen.release} has ${chosen.plainBytes} bytes, this device takes ${limits.maxBytes}"
            throw Refusal(Reason.TOO_LARGE, what)
        }
        val needed = chosen.plainBytes + file.sizeBytes + limits.spareBytes
        val free = files.free()
        if (free < needed) throw Refusal(Reason.DISK, "the update needs $needed bytes, $free are free; free some space")
    }

    /** Unpacks a release into its place; that it was begun is written first, so that a crash counts. */
    private fun placed(state: UpdateState, chosen: BundleFacts, nowS: Long, opened: () -> BundleSource) {
        val tries = state.tries(chosen.digest) + 1
        val tried = memory.write(state.copy(trying = Trying(chosen.digest, tries)))
        try {
            val source = opened()
            try {
                checkSame(source, chosen)
                library.deliver(source)
            } finally {
                (source as? Closeable)?.close()
            }
        } catch (err: OutOfMemoryError) {
            if (tries >= limits.maxTries) memory.write(deferred(tried, chosen, nowS))
            throw Refusal(Reason.NO_MEMORY, "there is not enough memory to unpack the update; close other apps", err)
        } catch (err: Refusal) {
            when {
                // a full disk or a damaged store says nothing against the release
                err.reason == Reason.DISK || err.reason == Reason.LINK -> memory.write(state)
                tries >= limits.maxTries -> memory.write(tried.givenUp(chosen.digest))
            }
            throw err
        }
        memory.write(tried.installed(chosen.key, chosen.release))
    }

    private fun archive(path: String, chosen: BundleFacts) = ArchiveSource(files.seekable(path), chosen.plainBytes)

    private fun patched(path: String, patch: Pair<DeltaFacts, ByteArray>): BundleSource {
        val (facts, base) = patch
        val data = files.read(path).use { readAtMost(it, facts.file.sizeBytes) }
        return PlainSource(applyPatch(facts, base, data))
    }

    /** Refuses another bundle than the index says, down to its last byte. */
    private fun checkSame(source: BundleSource, chosen: BundleFacts) {
        val manifest = parseManifest(source.open(MANIFEST_NAME).use { readAtMost(it, MAX_MANIFEST_BYTES + 1L) })
        chosen.check(manifest)
        val (held, listed) = source.names().toSet() to manifest.files.map { it.path }.toSet() + MANIFEST_NAME
        if (held != listed) {
            val what = "the archive holds ${held.joinToString()}, its manifest lists ${listed.joinToString()}"
            throw Refusal(Reason.ARCHIVE_REFUSED, what)
        }
        val sha = MessageDigest.getInstance("SHA-256")
        var size = 0L
        writePlain(source, limits.chunkBytes) { chunk, count ->
            size += count
            if (size > chosen.plainBytes) throw endless("release ${chosen.release}", chosen.plainBytes)
            sha.update(chunk, 0, count)
        }
        if (sha.digest().toHex() != chosen.plainSha256) {
            val what = "release ${chosen.release} holds another bundle than the index says"
            throw Refusal(Reason.MIX_AND_MATCH, what)
        }
    }
}
