package edgeq.store.ota

import com.github.luben.zstd.ZstdDecompressCtx
import edgeq.store.Reason
import edgeq.store.Refusal
import org.apache.commons.compress.compressors.bzip2.BZip2CompressorInputStream
import java.io.ByteArrayInputStream
import java.io.DataInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder

private val BSDIFF_MAGIC = "BSDIFF40".toByteArray()
private const val BSDIFF_HEAD_BYTES = 32

/**
 * Applies a patch: the very bytes that the signed index names, or a refusal, never others (edgeq/deliver/ota/patch.py).
 *
 * Neither format knows its base, and with a wrong one both give wrong bytes without an error; so base and output are held
 * to the index's hashes here.
 */
internal fun applyPatch(facts: DeltaFacts, base: ByteArray, patch: ByteArray): ByteArray {
    if (sha256(base) != facts.baseSha256) refuse("it was made for another base")
    val size = facts.outputBytes.toInt()
    val output = try {
        if (facts.algorithm == "zstd") zstd(base, patch, size) else Bsdiff(base, patch, size).output()
    } catch (err: IOException) {
        refuse("it is damaged: ${err.message?.take(160)}", err)
    } catch (err: RuntimeException) { // zstd's own, and what damaged numbers lead to
        refuse("it is damaged: ${err.message?.take(160)}", err)
    } catch (err: OutOfMemoryError) {
        refuse("it takes more memory than this app has", err)
    } catch (err: LinkageError) {
        refuse("this app lacks the library of ${facts.algorithm}", err)
    }
    if (sha256(output) != facts.outputSha256) refuse("its output is not what the signed index names")
    return output
}

/** `zstd --patch-from`: the base is the dictionary. At once, so that the window takes no memory beside the output. */
private fun zstd(base: ByteArray, patch: ByteArray, size: Int): ByteArray = ZstdDecompressCtx().use { context ->
    context.loadDict(base)
    val output = ByteArray(size)
    val came = context.decompressByteArray(output, 0, size, patch, 0, patch.size)
    if (came != size) refuse("it gives $came bytes, the index names $size")
    output
}

/**
 * bsdiff's format, version 4: three bzip2 streams, of control triples (add, copy, seek), of differences to the base, and
 * of new bytes (Percival, "Naive differences of executable code", 2003).
 */
private class Bsdiff(private val base: ByteArray, patch: ByteArray, private val size: Int) {
    private val control: DataInputStream
    private val difference: DataInputStream
    private val extra: DataInputStream

    init {
        if (patch.size < BSDIFF_HEAD_BYTES || !patch.copyOf(BSDIFF_MAGIC.size).contentEquals(BSDIFF_MAGIC)) {
            refuse("it is not a bsdiff4 patch")
        }
        val head = ByteBuffer.wrap(patch).order(ByteOrder.LITTLE_ENDIAN)
        val (controlBytes, differenceBytes, says) = listOf(8, 16, 24).map { signed(head.getLong(it)) }
        val left = patch.size.toLong() - BSDIFF_HEAD_BYTES
        if (says != size.toLong()) refuse("it gives $says bytes, the index names $size")
        if (controlBytes !in 0..left || differenceBytes !in 0..left - controlBytes) refuse("it is cut off")
        val second = BSDIFF_HEAD_BYTES + controlBytes.toInt()
        val third = second + differenceBytes.toInt()
        control = inflated(patch, BSDIFF_HEAD_BYTES, second)
        difference = inflated(patch, second, third)
        extra = inflated(patch, third, patch.size)
    }

    /** Never more than [size] bytes, whatever the streams would inflate to. */
    fun output(): ByteArray {
        val output = ByteArray(size)
        var at = 0
        var from = 0L
        var empty = 0
        while (at < size) {
            val add = next(size - at)
            val copy = next(size - at - add)
            // one that yields nothing is of no use, so there are never more than bytes
            if (add + copy == 0 && ++empty > size) refuse("it goes nowhere")
            difference.readFully(output, at, add)
            for (i in 0 until add) {
                val old = from + i
                if (old in base.indices) output[at + i] = (output[at + i] + base[old.toInt()]).toByte()
            }
            extra.readFully(output, at + add, copy)
            at += add + copy
            from = Math.addExact(from + add, signed(java.lang.Long.reverseBytes(control.readLong())))
        }
        return output
    }

    private fun next(most: Int): Int {
        val value = signed(java.lang.Long.reverseBytes(control.readLong()))
        if (value !in 0..most) refuse("it writes past its own end")
        return value.toInt()
    }

    private fun inflated(data: ByteArray, start: Int, end: Int) =
        DataInputStream(BZip2CompressorInputStream(ByteArrayInputStream(data, start, end - start)).buffered())
}

/** bsdiff's numbers: the sign in the highest bit, the magnitude in the rest. */
private fun signed(bits: Long): Long = if (bits < 0) -(bits and Long.MAX_VALUE) else bits

private fun refuse(why: String, cause: Throwable? = null): Nothing =
    throw Refusal(Reason.PATCH_REFUSED, "the patch is refused: $why; the full download comes next time", cause)
