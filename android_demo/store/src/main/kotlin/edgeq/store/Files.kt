package edgeq.store

import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.channels.SeekableByteChannel
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.Path
import java.nio.file.StandardCopyOption
import java.nio.file.StandardOpenOption.APPEND
import java.nio.file.StandardOpenOption.CREATE
import java.nio.file.StandardOpenOption.READ
import java.nio.file.StandardOpenOption.TRUNCATE_EXISTING
import java.nio.file.StandardOpenOption.WRITE
import java.nio.file.Files as Disk

/** A file that is being written; nothing of it is durable before [sync]. */
interface Sink : AutoCloseable {
    fun write(data: ByteArray, count: Int)

    fun sync()
}

/**
 * The few file operations that the store is made of, so that tests can end it between any two of them.
 *
 * Paths are relative, with `/`. Failures are IOExceptions. A link is never followed: on the way to a file, or where a file
 * or folder is to be read or written, it is a [Refusal] for [Reason.LINK]; [rename] and [delete] take it as what it is.
 */
interface Files {
    /** Names in a folder, sorted; none where there is no folder. */
    fun list(folder: String): List<String>

    /** Whether there is anything of that name, be it a link. */
    fun exists(path: String): Boolean

    fun isFolder(path: String): Boolean

    fun read(path: String): InputStream

    /** Opens a file for reading at any place. */
    fun seekable(path: String): SeekableByteChannel

    fun size(path: String): Long

    /** Bytes that the disk still takes. */
    fun free(): Long

    /** Makes a folder whose parent exists. */
    fun makeFolder(path: String)

    /** Begins a new, empty file. */
    fun create(path: String): Sink

    /** Goes on at a file's end; a new one where there is none. */
    fun append(path: String): Sink

    /** Renames at once: over a file, or a folder to where nothing is. */
    fun rename(from: String, to: String)

    /** Removes a file, an empty folder, or a link. */
    fun delete(path: String)

    /** Makes the names in a folder durable: what was created, renamed and deleted in it. */
    fun syncFolder(path: String)

    /** Where a runtime finds a file: a path of the operating system. */
    fun location(path: String): String
}

/**
 * A folder on the device's disk, such as `noBackupFilesDir/models`.
 *
 * Java has no mkdirat and no fsync below a folder's descriptor, so that each name on the way is looked at before it is
 * used, and files are opened with NOFOLLOW_LINKS. Who could put a link between the two runs as the app itself.
 */
class DiskFiles(private val root: File) : Files {
    init {
        root.mkdirs()
        if (!root.isDirectory) throw IOException("$root cannot be made a folder")
    }

    override fun list(folder: String): List<String> = at(folder).toFile().list()?.sorted().orEmpty()

    override fun exists(path: String): Boolean = Disk.exists(below(path), NOFOLLOW_LINKS)

    override fun isFolder(path: String): Boolean = Disk.isDirectory(below(path), NOFOLLOW_LINKS)

    override fun read(path: String): InputStream {
        val place = at(path)
        if (!Disk.exists(place)) throw FileNotFoundException("there is no $path")
        return Disk.newInputStream(file(place), NOFOLLOW_LINKS)
    }

    override fun seekable(path: String): SeekableByteChannel = Disk.newByteChannel(file(at(path)), READ, NOFOLLOW_LINKS)

    override fun size(path: String): Long = Disk.size(at(path))

    override fun free(): Long = root.usableSpace

    override fun makeFolder(path: String) {
        Disk.createDirectory(at(path))
    }

    override fun create(path: String): Sink =
        DiskSink(FileChannel.open(file(at(path)), WRITE, CREATE, TRUNCATE_EXISTING, NOFOLLOW_LINKS))

    override fun append(path: String): Sink = DiskSink(FileChannel.open(file(at(path)), CREATE, APPEND, NOFOLLOW_LINKS))

    override fun rename(from: String, to: String) {
        Disk.move(below(from), below(to), StandardCopyOption.ATOMIC_MOVE)
    }

    override fun delete(path: String) = Disk.delete(below(path))

    override fun syncFolder(path: String) {
        FileChannel.open(at(path), READ).use { it.force(true) }
    }

    override fun location(path: String): String = at(path).toAbsolutePath().toString()

    /** A place that is not a link itself. */
    private fun at(path: String): Path = below(path).also(::checkNoLink)

    /** A plain file, or what is not there yet: a pipe would be waited for. */
    private fun file(place: Path): Path {
        if (Disk.exists(place) && !Disk.isRegularFile(place)) throw IOException("$place is not a plain file")
        return place
    }

    /** A place below plain folders. */
    private fun below(path: String): Path {
        var place = root.toPath()
        for (name in path.split('/').filter { it.isNotEmpty() }) {
            checkNoLink(place)
            place = place.resolve(name)
        }
        return place
    }

    private fun checkNoLink(place: Path) {
        if (!Disk.isSymbolicLink(place)) return
        val what = "$place is a link; a store holds plain files and folders only: remove the link, or clear the app's data"
        throw Refusal(Reason.LINK, what)
    }
}

private class DiskSink(private val channel: FileChannel) : Sink {
    override fun write(data: ByteArray, count: Int) {
        val left = ByteBuffer.wrap(data, 0, count)
        while (left.hasRemaining()) channel.write(left)
    }

    override fun sync() = channel.force(true)

    override fun close() = channel.close()
}

/** Makes a folder with those above it, durably. */
internal fun Files.makeFolders(path: String) {
    if (path.isEmpty() || exists(path)) return
    val parent = path.substringBeforeLast('/', "")
    makeFolders(parent)
    makeFolder(path)
    syncFolder(parent)
}

/** Writes a file so that after a kill or a power cut either all of it is there or the old one. */
internal fun Files.writeAtomic(path: String, data: ByteArray) {
    create("$path$UNFINISHED").use {
        it.write(data, data.size)
        it.sync()
    }
    rename("$path$UNFINISHED", path)
    syncFolder(path.substringBeforeLast('/', ""))
}

/** Removes a folder with all that is in it, a file or a link; nothing where there is none. */
internal fun Files.deleteFolder(path: String) {
    if (!exists(path)) return
    if (isFolder(path)) list(path).forEach { deleteFolder("$path/$it") }
    delete(path)
}

internal const val UNFINISHED = ".new"
