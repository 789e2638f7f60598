package edgeq.store

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.nio.channels.SeekableByteChannel
import org.apache.commons.compress.utils.SeekableInMemoryByteChannel

/** What a device that lost its power may come back with. */
enum class After {
    /** The process was killed: the system still has all that was written. */
    KILL,

    /** The power failed, and only what was synced is there. */
    POWER_CUT,

    /** The power failed after the names reached the disk, but not the content that was not synced. */
    POWER_CUT_NAMES_FIRST,
}

/**
 * A file system in memory that ends the process ([Died]) before its [dieBefore]-th change, and knows what is durable.
 *
 * A folder's names are durable once the folder was synced, a file's content once the file was.
 */
class MemoryFiles(private val root: Folder = Folder(), private val dieBefore: Int = Int.MAX_VALUE) : Files {
    sealed interface Node

    class Content(var data: ByteArray = ByteArray(0), var durable: ByteArray = ByteArray(0)) : Node

    class Folder(
        val names: MutableMap<String, Node> = sortedMapOf(),
        var durable: Map<String, Node> = emptyMap(),
    ) : Node

    var changes = 0
        private set

    /** Bytes that are left on the disk. */
    var left = Long.MAX_VALUE

    /** The disk as a device finds it afterwards. */
    fun after(what: After): Folder = copy(root, what) as Folder

    private fun copy(node: Node, what: After): Node = when (node) {
        is Content -> (if (what == After.KILL) node.data else node.durable).let { Content(it, it) }
        is Folder -> {
            val names = (if (what == After.POWER_CUT) node.durable else node.names).mapValues { copy(it.value, what) }
            Folder(names.toSortedMap(), names)
        }
    }

    override fun list(folder: String) = (find(folder) as? Folder)?.names?.keys?.toList().orEmpty()

    override fun exists(path: String) = find(path) != null

    override fun isFolder(path: String) = find(path) is Folder

    override fun read(path: String): InputStream =
        ByteArrayInputStream((find(path) as? Content ?: throw FileNotFoundException(path)).data)

    override fun seekable(path: String): SeekableByteChannel = SeekableInMemoryByteChannel(read(path).readBytes())

    override fun size(path: String): Long = (find(path) as? Content ?: throw FileNotFoundException(path)).data.size.toLong()

    override fun free(): Long = left

    override fun makeFolder(path: String) = change {
        if (exists(path)) throw IOException("$path exists")
        parent(path).names[name(path)] = Folder()
    }

    override fun create(path: String): Sink = Content().let { file ->
        change {
            freed(path)
            parent(path).names[name(path)] = file
        }
        sink(file)
    }

    override fun append(path: String): Sink = (find(path) as? Content)?.let(::sink) ?: create(path)

    private fun sink(file: Content): Sink {
        return object : Sink {
            override fun write(data: ByteArray, count: Int) = change {
                if (count > left) throw IOException("No space left on device")
                left -= count
                file.data = ByteArrayOutputStream().apply { write(file.data); write(data, 0, count) }.toByteArray()
            }

            override fun sync() = change { file.durable = file.data }

            override fun close() = Unit
        }
    }

    override fun rename(from: String, to: String) = change {
        val node = find(from) ?: throw FileNotFoundException(from)
        if (node is Folder && exists(to)) throw IOException("$to exists")
        freed(to)
        parent(from).names.remove(name(from))
        parent(to).names[name(to)] = node
    }

    override fun delete(path: String) = change {
        val node = find(path) ?: throw FileNotFoundException(path)
        if (node is Folder && node.names.isNotEmpty()) throw IOException("$path is not empty")
        freed(path)
        parent(path).names.remove(name(path))
    }

    override fun syncFolder(path: String) = change {
        val folder = find(path) as? Folder ?: throw FileNotFoundException(path)
        folder.durable = folder.names.toMap()
    }

    override fun location(path: String) = path

    private fun freed(path: String) {
        val size = (find(path) as? Content)?.data?.size ?: 0
        if (left < Long.MAX_VALUE / 2) left += size
    }

    private fun change(act: () -> Unit) {
        if (changes >= dieBefore) throw Died()
        changes++
        act()
    }

    private fun find(path: String): Node? {
        var node: Node? = root
        for (part in path.split('/').filter { it.isNotEmpty() }) node = (node as? Folder)?.names?.get(part)
        return node
    }

    private fun parent(path: String) =
        find(path.substringBeforeLast('/', "")) as? Folder ?: throw FileNotFoundException(path)

    private fun name(path: String) = path.substringAfterLast('/')
}
