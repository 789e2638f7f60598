package edgeq.store.ota

import edgeq.store.Files
import edgeq.store.REPOSITORY
import java.io.ByteArrayInputStream
import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream
import java.time.Instant
import java.util.concurrent.TimeUnit

/** When scripts/ota_channels.py signs. */
val NOW: Instant = Instant.parse("2026-11-21T12:00:00Z")

/** Channels that edgeq wrote, good and hostile: scripts/ota_channels.py says which. Made once in a run of the tests. */
val CHANNELS: File by lazy {
    val folder = java.nio.file.Files.createTempDirectory("edgeq-channels").toFile()
    Runtime.getRuntime().addShutdownHook(Thread { folder.deleteRecursively() })
    val python = checkNotNull(System.getProperty("edgeq.python")) { "run by Maven: edgeq.python is not set" }
    val log = File(folder, "log")
    val command = listOf(python, File(REPOSITORY, "scripts/ota_channels.py").path, folder.path)
    val process = ProcessBuilder(command).redirectErrorStream(true).redirectOutput(log).start()
    check(process.waitFor(5, TimeUnit.MINUTES)) { process.destroyForcibly(); "no channels within five minutes" }
    check(process.exitValue() == 0) { log.readText() }
    folder
}

/** A channel in memory, of which tests change what they like; it remembers what it was asked for. */
class TestChannel(val files: Map<String, ByteArray>, private val read: (InputStream) -> InputStream = { it }) : Channel {
    override val place = "the channel of the test"
    val asked = mutableListOf<Pair<String, Long>>()

    val metadata get() = files.keys.filter { it.startsWith("metadata/") }.sorted()

    val downloads get() = asked.map { it.first }.filter { it.startsWith("targets/") }

    override fun open(path: String, start: Long): Opened {
        asked += path to start
        val data = files[path] ?: throw FileNotFoundException(path)
        return Opened(start, read(ByteArrayInputStream(data, start.toInt(), data.size - start.toInt())))
    }

    /** The one file whose name ends so. */
    fun path(end: String): String = files.keys.single { it.endsWith(end) }

    fun changed(path: String, change: (ByteArray) -> ByteArray) = TestChannel(files + (path to change(files.getValue(path))))

    fun without(path: String) = TestChannel(files - path)

    fun reading(read: (InputStream) -> InputStream) = TestChannel(files, read)
}

fun channel(name: String): TestChannel = File(CHANNELS, name).let { folder ->
    check(folder.isDirectory) { "no channel $name" }
    val files = folder.walk().filter { it.isFile }
    TestChannel(files.associate { it.relativeTo(folder).invariantSeparatorsPath to it.readBytes() })
}

/** A folder of another file system, as one of its own. */
class Under(private val files: Files, private val folder: String) : Files by files {
    init {
        if (!files.exists(folder)) files.makeFolder(folder).also { files.syncFolder("") }
    }

    private fun at(path: String) = if (path.isEmpty()) folder else "$folder/$path"

    override fun list(folder: String) = files.list(at(folder))

    override fun exists(path: String) = files.exists(at(path))

    override fun isFolder(path: String) = files.isFolder(at(path))

    override fun read(path: String) = files.read(at(path))

    override fun seekable(path: String) = files.seekable(at(path))

    override fun size(path: String) = files.size(at(path))

    override fun makeFolder(path: String) = files.makeFolder(at(path))

    override fun create(path: String) = files.create(at(path))

    override fun append(path: String) = files.append(at(path))

    override fun rename(from: String, to: String) = files.rename(at(from), at(to))

    override fun delete(path: String) = files.delete(at(path))

    override fun syncFolder(path: String) = files.syncFolder(at(path))

    override fun location(path: String) = files.location(at(path))
}

/** Breaks off, or dies, after so many bytes. */
class Cut(stream: InputStream, private var left: Int, private val end: () -> Int) : java.io.FilterInputStream(stream) {
    override fun read(buffer: ByteArray, offset: Int, length: Int): Int {
        if (left == 0) return end()
        return super.read(buffer, offset, minOf(length, left)).also { left -= maxOf(it, 0) }
    }
}
