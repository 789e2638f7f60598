package edgeq.store.ota

import edgeq.store.BundleSource
import edgeq.store.MANIFEST_NAME
import edgeq.store.MAX_MANIFEST_BYTES
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.parseManifest
import edgeq.store.readAtMost
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.FileNotFoundException
import java.io.InputStream
import java.nio.ByteBuffer

private val MAGIC = "edgeq-plain-1\n".toByteArray()
private const val LENGTH_BYTES = 8
private val HEAD_BYTES = MAGIC.size + LENGTH_BYTES

/**
 * Writes a bundle's plain form, which patches are made between (edgeq/deliver/ota/patch.py): the magic, the manifest's
 * length (8 bytes, big-endian), the manifest, then the files that it lists, sorted by name.
 *
 * Hashes are not checked: one over the whole tells whether it is the one that is wanted.
 *
 * @throws Refusal ENDLESS_DATA: a file has more bytes than the manifest says.
 */
internal fun writePlain(source: BundleSource, chunkBytes: Int, write: (ByteArray, Int) -> Unit) {
    val bytes = source.open(MANIFEST_NAME).use { readAtMost(it, MAX_MANIFEST_BYTES + 1L) }
    val head = ByteBuffer.allocate(HEAD_BYTES).put(MAGIC).putLong(bytes.size.toLong()).array()
    write(head, head.size)
    write(bytes, bytes.size)
    val buffer = ByteArray(chunkBytes)
    for (entry in parseManifest(bytes).files.sortedBy { it.path }) {
        var size = 0L
        source.open(entry.path).use { stream ->
            while (true) {
                val count = stream.read(buffer)
                if (count < 0) break
                size += count
                if (size > entry.sizeBytes) throw endless(entry.path, entry.sizeBytes)
                write(buffer, count)
            }
        }
    }
}

/** A bundle's plain form in memory; null where it has more than [most] bytes. */
internal fun plainOf(source: BundleSource, most: Long, chunkBytes: Int): ByteArray? {
    val manifest = source.open(MANIFEST_NAME).use { parseManifest(readAtMost(it, MAX_MANIFEST_BYTES + 1L)) }
    if (manifest.sizeBytes > most) return null
    val out = ByteArrayOutputStream()
    writePlain(source, chunkBytes) { chunk, count -> if (out.size() <= most) out.write(chunk, 0, count) }
    return out.toByteArray().takeIf { it.size <= most }
}

/**
 * A plain form as a bundle.
 *
 * @throws Refusal PATCH_REFUSED: it is none.
 */
internal class PlainSource(private val data: ByteArray) : BundleSource {
    /** Where each file begins, and how long it is. */
    private val places: Map<String, IntRange>

    init {
        val length = if (data.size < HEAD_BYTES) -1 else ByteBuffer.wrap(data).getLong(MAGIC.size)
        val fits = length in 0..minOf(MAX_MANIFEST_BYTES, data.size - HEAD_BYTES).toLong()
        if (!fits || !data.copyOf(MAGIC.size).contentEquals(MAGIC)) refuse("it does not begin with a manifest")
        var start = HEAD_BYTES + length.toInt()
        val found = linkedMapOf(MANIFEST_NAME to (HEAD_BYTES until start))
        for (entry in parseManifest(data.copyOfRange(HEAD_BYTES, start)).files.sortedBy { it.path }) {
            if (entry.sizeBytes > data.size - start) refuse("its files are longer than it is")
            found[entry.path] = start until start + entry.sizeBytes.toInt()
            start += entry.sizeBytes.toInt()
        }
        if (start != data.size) refuse("something follows its files")
        places = found
    }

    override fun names(): List<String> = places.keys.toList()

    override fun open(name: String): InputStream {
        val place = places[name] ?: throw FileNotFoundException("$name is not in the bundle")
        return ByteArrayInputStream(data, place.first, place.last - place.first + 1)
    }

    private fun refuse(why: String): Nothing =
        throw Refusal(Reason.PATCH_REFUSED, "the patched bytes are not a bundle: $why; the full download comes next time")
}
