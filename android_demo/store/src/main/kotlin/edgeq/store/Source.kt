package edgeq.store

import java.io.Closeable
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.StandardOpenOption
import java.util.zip.ZipFile

/** Where a bundle comes from: the app's assets, a file that the user picked, an update server. */
interface BundleSource {
    /** The names of all files that it holds. */
    fun names(): List<String>

    /** @throws FileNotFoundException there is no such file. */
    fun open(name: String): InputStream
}

/** A bundle as `edgeq package` leaves it in a folder; links are not followed. */
class FolderSource(private val folder: File) : BundleSource {
    override fun names(): List<String> = folder.list()?.sorted().orEmpty()

    override fun open(name: String): InputStream {
        val path = File(folder, name).toPath()
        if (!Files.isRegularFile(path, NOFOLLOW_LINKS)) throw FileNotFoundException("$name is not a plain file in $folder")
        return Files.newInputStream(path, NOFOLLOW_LINKS)
    }
}

/** A bundle as one file, the ZIP that a release publishes. Only the names that a manifest lists are ever opened. */
class ZipSource(file: File) : BundleSource, Closeable {
    private val zip = try {
        ZipFile(file)
    } catch (err: IOException) {
        throw Refusal(Reason.NO_MODEL, "this file is not a bundle: ${err.message}", err)
    }

    // names that stand twice stay in the list, and are refused as not listed
    override fun names(): List<String> = zip.entries().toList().map { it.name }

    override fun open(name: String): InputStream =
        zip.getInputStream(zip.getEntry(name) ?: throw FileNotFoundException("$name is not in the file"))

    override fun close() = zip.close()
}

/** Copies what cannot be read twice, such as a picked document, into a file, up to [maxBytes]; a link goes. */
fun spool(stream: InputStream, file: File, maxBytes: Long) {
    Files.deleteIfExists(file.toPath())
    Files.newOutputStream(file.toPath(), StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE).use { out ->
        val buffer = ByteArray(1 shl 16)
        var left = maxBytes
        while (true) {
            val count = stream.read(buffer)
            if (count < 0) return
            left -= count
            if (left < 0) throw Refusal(Reason.TOO_LARGE, "the file has more than $maxBytes bytes")
            out.write(buffer, 0, count)
        }
    }
}
