package edgeq.store.ota

import edgeq.store.Files
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.deleteFolder
import edgeq.store.makeFolders
import edgeq.store.toHex
import java.security.MessageDigest

/** Files on their way: `<sha256>.part` in a folder of their own, named by nothing that a channel says. */
internal class Downloads(private val files: Files, private val reader: Reader, private val chunkBytes: Int) {
    /**
     * Fetches a whole, verified file, and goes on where an earlier try broke off.
     *
     * @return where it lies.
     */
    fun fetch(entry: Entry): String {
        files.makeFolders(FOLDER)
        clear(keep = entry)
        val path = path(entry)
        val resumed = have(path, entry.sizeBytes)
        if (resumed < entry.sizeBytes || resumed == 0L) append(entry, path, resumed)
        val size = files.size(path)
        if (size < entry.sizeBytes) {
            val what = "${entry.path} broke off after $size of ${entry.sizeBytes} bytes; what came is kept"
            throw Refusal(Reason.CHANNEL_UNREACHABLE, what)
        }
        if (hash(path) == entry.sha256) return path
        files.delete(path)
        if (resumed > 0) return fetch(entry) // the part may have been damaged on this disk: once more, from the start
        throw Refusal(Reason.DOWNLOAD_HASH, "${entry.path} is not the file that was signed: its SHA-256 differs")
    }

    /** Removes what earlier tries left, all but a part of [keep]. */
    fun clear(keep: Entry? = null) {
        val kept = keep?.let(::path)
        files.list(FOLDER).map { "$FOLDER/$it" }.filter { it != kept }.forEach(files::deleteFolder)
    }

    private fun path(entry: Entry) = "$FOLDER/${entry.sha256}.part"

    private fun have(path: String, most: Long): Long {
        if (!files.exists(path)) return 0
        val size = files.size(path)
        if (size <= most) return size
        files.delete(path)
        return 0
    }

    private fun append(entry: Entry, path: String, start: Long) {
        var size = start
        files.append(path).use { sink ->
            reader.each(entry.path, start) { chunk, count ->
                size += count
                if (size > entry.sizeBytes) throw endless(entry.path, entry.sizeBytes).also { files.delete(path) }
                sink.write(chunk, count)
            }
            sink.sync()
        }
    }

    private fun hash(path: String): String {
        val sha = MessageDigest.getInstance("SHA-256")
        files.read(path).use { stream ->
            val buffer = ByteArray(chunkBytes)
            while (true) {
                val count = stream.read(buffer)
                if (count < 0) break
                sha.update(buffer, 0, count)
            }
        }
        return sha.digest().toHex()
    }

    private companion object {
        const val FOLDER = "download"
    }
}
