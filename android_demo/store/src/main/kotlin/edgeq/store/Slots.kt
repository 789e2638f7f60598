package edgeq.store

import java.io.FileNotFoundException
import java.io.IOException
import java.security.MessageDigest

/** The limits of a store. */
data class Rules(
    /** A model that did not get through its first start this many times is taken out of use. */
    val maxStarts: Int = 2,
    val maxBundleBytes: Long = 2_000_000_000,
    val maxRejected: Int = 16,
    val chunkBytes: Int = 1 shl 16,
)

/** The bundles of one model and target on disk: `slots/<digest>/`, each whole or not there. */
internal class Slots(private val files: Files, private val folder: String, private val rules: Rules) {
    private val slots = "$folder/slots"
    private val staging = "$folder/staging"

    fun path(digest: String, name: String): String = "$slots/$digest/$name"

    /** Copies a bundle in, written and synced; [place] gives it its slot. What does not fit its manifest is refused. */
    fun stage(source: BundleSource, bytes: ByteArray, manifest: Manifest) {
        checkNames(source, manifest)
        files.makeFolders(slots)
        files.deleteFolder(staging)
        try {
            files.makeFolder(staging)
            for (entry in manifest.files) copy(source, entry)
            files.create("$staging/$MANIFEST_NAME").use {
                it.write(bytes, bytes.size)
                it.sync()
            }
            files.syncFolder(staging)
        } catch (err: Exception) { // on a full disk there must be room again, to say so
            files.deleteFolder(staging)
            throw err
        }
    }

    /** Gives what was staged its slot, by one rename. */
    fun place(digest: String) {
        files.rename(staging, "$slots/$digest")
        files.syncFolder(slots)
        files.syncFolder(folder)
    }

    /** Removes what was staged and got no slot. */
    fun unstage() = files.deleteFolder(staging)

    private fun checkNames(source: BundleSource, manifest: Manifest) {
        if (manifest.sizeBytes > rules.maxBundleBytes) {
            val what = "the bundle has ${manifest.sizeBytes} bytes, at most ${rules.maxBundleBytes} are taken"
            throw Refusal(Reason.TOO_LARGE, what)
        }
        val left = source.names().toMutableList()
        (manifest.files.map { it.path } + MANIFEST_NAME).forEach(left::remove)
        // the reports of a packaging run may lie beside a bundle; they are not taken along
        left.find { it !in setOf("report.json", "report.html") }?.let {
            throw Refusal(Reason.FILE_NOT_LISTED, "${it.take(80)} is not listed in the bundle's manifest")
        }
    }

    private fun copy(source: BundleSource, entry: FileEntry) {
        val stream = try {
            source.open(entry.path)
        } catch (err: FileNotFoundException) {
            throw Refusal(Reason.FILE_MISSING, "${entry.path} is missing, the manifest lists it", err)
        }
        stream.use { input ->
            files.create("$staging/${entry.path}").use { sink ->
                verify(input, entry) { chunk, count -> sink.write(chunk, count) }
                sink.sync()
            }
        }
    }

    /** Reads a slot again, every byte of it. */
    fun check(digest: String): Manifest {
        val bytes = readFile(digest, MANIFEST_NAME, MAX_MANIFEST_BYTES + 1L)
        val manifest = parseManifest(bytes)
        if (manifest.digest != digest) throw Refusal(Reason.FILE_HASH, "the installed manifest is another one")
        for (entry in manifest.files) {
            open(digest, entry.path).use { verify(it, entry) { _, _ -> } }
        }
        return manifest
    }

    /** A slot's files as they lie there, unchecked. */
    fun source(digest: String): BundleSource = object : BundleSource {
        override fun names(): List<String> = files.list("$slots/$digest")

        override fun open(name: String): java.io.InputStream = files.read(path(digest, name))
    }

    fun readFile(digest: String, name: String, most: Long): ByteArray = open(digest, name).use { readAtMost(it, most) }

    private fun open(digest: String, name: String) = try {
        files.read(path(digest, name))
    } catch (err: IOException) {
        throw Refusal(Reason.FILE_MISSING, "the installed $name cannot be read: ${err.message}", err)
    }

    /** Removes all slots but those in [keep]. */
    fun prune(keep: Set<String?>) {
        files.list(slots).filter { it !in keep }.forEach { files.deleteFolder("$slots/$it") }
    }

    private fun verify(input: java.io.InputStream, entry: FileEntry, each: (ByteArray, Int) -> Unit) {
        val sha = MessageDigest.getInstance("SHA-256")
        val buffer = ByteArray(rules.chunkBytes)
        var size = 0L
        while (true) {
            val count = input.read(buffer)
            if (count < 0) break
            size += count
            if (size > entry.sizeBytes) break
            sha.update(buffer, 0, count)
            each(buffer, count)
        }
        if (size != entry.sizeBytes) {
            val came = if (size > entry.sizeBytes) "more" else "$size"
            throw Refusal(Reason.FILE_SIZE, "${entry.path} has $came bytes, the manifest says ${entry.sizeBytes}")
        }
        if (sha.digest().toHex() != entry.sha256) {
            throw Refusal(Reason.FILE_HASH, "${entry.path} is not the file that the manifest lists: its SHA-256 differs")
        }
    }
}

/** Reads a stream to its end, or to [most] bytes; InputStream.readNBytes came with Android 13. */
internal fun readAtMost(stream: java.io.InputStream, most: Long): ByteArray {
    val out = java.io.ByteArrayOutputStream()
    val buffer = ByteArray(1 shl 14)
    while (out.size() < most) {
        val count = stream.read(buffer, 0, minOf(buffer.size.toLong(), most - out.size()).toInt())
        if (count < 0) break
        out.write(buffer, 0, count)
    }
    return out.toByteArray()
}
