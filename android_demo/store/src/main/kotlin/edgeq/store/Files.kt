package edgeq.store

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.nio.channels.FileChannel
import java.nio.channels.SeekableByteChannel
import java.nio.file.Path
import java.nio.file.StandardCopyOption
import java.nio.file.StandardOpenOption

/** A file that is being written; nothing of it is durable before [sync]. */
interface Sink : AutoCloseable {
    fun write(data: ByteArray, count: Int)

    fun sync()
}

/**
 * The few file operations that the store is made of, so that tests can end it between any two of them.
 *
 * Paths are relative, with `/`. Failures are IOExceptions.
 */
interface Files {
    /** Names in a folder, sorted; none where there is no folder. */
    fun list(folder: String): List<String>

    fun exists(path: String): Boolean

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

    /** Removes a file or an empty folder. */
    fun delete(path: String)

    /** Makes the names in a folder durable: what was created, renamed and deleted in it. */
    fun syncFolder(path: String)

    /** Where a runtime finds a file: a path of the operating system. */
    fun location(path: String): String
}

/** A folder on the device's disk, such as `noBackupFilesDir/models`. */
class DiskFiles(private val root: File) : Files {
    init {
        root.mkdirs()
        if (!root.isDirectory) throw IOException("$root is no folder")
    }

    override fun list(folder: String): List<String> = at(folder).list()?.sorted().orEmpty()

    override fun exists(path: String): Boolean = at(path).exists()

    override fun read(path: String): InputStream = at(path).inputStream()

    override fun seekable(path: String): SeekableByteChannel = FileChannel.open(path(path), StandardOpenOption.READ)

    override fun size(path: String): Long = java.nio.file.Files.size(path(path))

    override fun free(): Long = root.usableSpace

    override fun makeFolder(path: String) {
        java.nio.file.Files.createDirectory(path(path))
    }

    override fun create(path: String): Sink = DiskSink(FileOutputStream(at(path)))

    override fun append(path: String): Sink = DiskSink(FileOutputStream(at(path), true))

    override fun rename(from: String, to: String) {
        java.nio.file.Files.move(path(from), path(to), StandardCopyOption.ATOMIC_MOVE)
    }

    override fun delete(path: String) = java.nio.file.Files.delete(path(path))

    override fun syncFolder(path: String) {
        FileChannel.open(path(path), StandardOpenOption.READ).use { it.force(true) }
    }

    override fun location(path: String): String = at(path).absolutePath

    private fun at(path: String) = if (path.isEmpty()) root else File(root, path)

    private fun path(path: String): Path = at(path).toPath()
}

private class DiskSink(private val stream: FileOutputStream) : Sink {
    override fun write(data: ByteArray, count: Int) = stream.write(data, 0, count)

    override fun sync() = stream.fd.sync()

    override fun close() = stream.close()
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

/** Removes a flat folder of the store's own, or nothing where there is none. */
internal fun Files.deleteFolder(path: String) {
    if (!exists(path)) return
    list(path).forEach { delete("$path/$it") }
    delete(path)
}

internal const val UNFINISHED = ".new"
