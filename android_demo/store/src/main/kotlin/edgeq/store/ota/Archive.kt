package edgeq.store.ota

import edgeq.store.BundleSource
import edgeq.store.MANIFEST_NAME
import edgeq.store.Reason
import edgeq.store.Refusal
import org.apache.commons.compress.archivers.zip.ZipArchiveEntry
import org.apache.commons.compress.archivers.zip.ZipFile
import java.io.Closeable
import java.io.FileNotFoundException
import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.SeekableByteChannel
import java.util.zip.ZipEntry

private const val MAX_ENTRIES = 16
private const val MAX_DIRECTORY_BYTES = MAX_ENTRIES * 512
private const val END_BYTES = 22 // of the end record; edgeq writes no comment after it
private const val LOCATOR_BYTES = 20 // of ZIP64's locator before it
private const val FILE_KIND = 0xf000
private const val PLAIN_FILE = 0x8000
private const val LINK = 0xa000
private val PLAIN = Regex("[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
private val DRIVE = Regex("[A-Za-z]:.*")

/**
 * A downloaded ZIP as a bundle; what it says of itself is not believed (edgeq/deliver/ota/patch.py). Entries are read as
 * far as the manifest's sizes go, so that none inflates to more.
 *
 * @param mostBytes the most that its files together may have.
 * @throws Refusal ARCHIVE_REFUSED: not a bundle's ZIP; a name that leads out, is absolute or stands twice; a link; too much.
 */
internal class ArchiveSource(channel: SeekableByteChannel, mostBytes: Long) : BundleSource, Closeable {
    private val zip: ZipFile
    private val entries: Map<String, ZipArchiveEntry>

    init {
        try {
            zip = guarded {
                checkDirectory(channel)
                // a second name in an extra field would take the place of the one that is checked
                ZipFile.builder().setSeekableByteChannel(channel).setUseUnicodeExtraFields(false).get()
            }
            entries = guarded { checked(zip.entries.toList(), mostBytes) }
        } catch (err: Refusal) {
            channel.close()
            throw err
        }
    }

    override fun names(): List<String> = entries.keys.toList()

    override fun open(name: String): InputStream {
        val entry = entries[name] ?: throw FileNotFoundException("$name is not in the archive")
        return Guarded(guarded { zip.getInputStream(entry) })
    }

    override fun close() = zip.close()
}

/** Bounds the directory before all of it is read. */
private fun checkDirectory(channel: SeekableByteChannel) {
    val size = channel.size()
    val last = minOf(size, (END_BYTES + LOCATOR_BYTES).toLong()).toInt()
    val tail = ByteBuffer.allocate(last).order(ByteOrder.LITTLE_ENDIAN)
    channel.position(size - tail.capacity())
    do { val count = channel.read(tail) } while (count >= 0 && tail.hasRemaining())
    val end = tail.capacity() - END_BYTES
    if (end < 0 || tail.getInt(end) != 0x06054b50 || tail.getShort(end + 20) != 0.toShort()) {
        refuse("it is not a ZIP, or something follows it")
    }
    if (end >= LOCATOR_BYTES && tail.getInt(end - LOCATOR_BYTES) == 0x07064b50) refuse("it is in the ZIP64 format")
    val count = tail.getShort(end + 10).toInt() and 0xffff
    val bytes = tail.getInt(end + 12).toLong() and 0xffffffffL
    if (count > MAX_ENTRIES || bytes > MAX_DIRECTORY_BYTES) {
        refuse("it has $count entries in $bytes bytes of directory, a bundle has at most $MAX_ENTRIES")
    }
}

private fun checked(entries: List<ZipArchiveEntry>, mostBytes: Long): Map<String, ZipArchiveEntry> {
    val found = linkedMapOf<String, ZipArchiveEntry>()
    val spelt = mutableSetOf<String>()
    var total = 0L
    for (entry in entries) {
        // before anything turns its slashes
        val name = String(entry.rawName, Charsets.ISO_8859_1)
        checkName(name)
        checkKind(name, entry)
        if (!spelt.add(name.lowercase())) refuse("two of its entries are named $name, or differ in case only")
        if (entry.size < 0) refuse("the entry $name does not say its size")
        total += entry.size
        if (total > mostBytes) refuse("it would inflate to $total bytes, the signed index names $mostBytes")
        found[name] = entry
    }
    if (MANIFEST_NAME !in found) refuse("it has no $MANIFEST_NAME")
    return found
}

private fun checkName(name: String) {
    val shown = name.take(80)
    val absolute = name.startsWith("/") || name.startsWith("\\") || DRIVE.matches(name)
    if (absolute) refuse("the entry $shown has an absolute path")
    if (".." in name.split('/', '\\')) refuse("the entry $shown leads out of the folder")
    if (!PLAIN.matches(name)) refuse("the entry $shown is not a plain file name")
}

private fun checkKind(name: String, entry: ZipArchiveEntry) {
    val mode = (entry.externalAttributes ushr 16).toInt() and 0xffff
    if (mode and FILE_KIND == LINK) refuse("the entry $name is a symbolic link")
    if (mode != 0 && mode and FILE_KIND != PLAIN_FILE) refuse("the entry $name is not a plain file")
    val method = entry.method
    if (entry.generalPurposeBit.usesEncryption() || method != ZipEntry.STORED && method != ZipEntry.DEFLATED) {
        refuse("the entry $name is encrypted, or compressed in another way than edgeq does")
    }
}

/** A damaged entry is the archive's fault, and not the disk's. */
private class Guarded(stream: InputStream) : FilterInputStream(stream) {
    override fun read(): Int = guarded { super.read() }

    override fun read(buffer: ByteArray, offset: Int, length: Int): Int = guarded { `in`.read(buffer, offset, length) }
}

private fun <T> guarded(act: () -> T): T = try {
    act()
} catch (err: IOException) {
    refuse("it is damaged: ${err.message?.take(160)}", err)
} catch (err: RuntimeException) { // the library throws several kinds on hostile bytes
    refuse("it is damaged: ${err.message?.take(160)}", err)
}

private fun refuse(why: String, cause: Throwable? = null): Nothing =
    throw Refusal(Reason.ARCHIVE_REFUSED, "the archive is refused: $why", cause)
