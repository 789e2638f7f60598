package edgeq.store.ota

import edgeq.store.Reason
import edgeq.store.Refusal
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.SocketTimeoutException
import java.net.URL

/** Where an update channel is read. */
interface Channel {
    /** Its place, for messages. */
    val place: String

    /**
     * Opens a file of the channel at byte [start].
     *
     * @throws FileNotFoundException there is no such file.
     * @throws IOException the channel cannot be reached.
     */
    fun open(path: String, start: Long): InputStream
}

/**
 * A channel on a web server.
 *
 * @param gapMs the longest wait for a connection, and for the next byte.
 */
class HttpChannel(url: String, private val gapMs: Int = 15_000) : Channel {
    override val place = url.trimEnd('/')

    override fun open(path: String, start: Long): InputStream {
        // names of a channel are letters, digits, and any of . _ + -: nothing to quote
        val connection = URL("$place/$path").openConnection() as? HttpURLConnection
            ?: throw IOException("$place is no web address")
        try {
            return body(connection, path, start)
        } catch (err: IOException) {
            connection.disconnect()
            throw err
        }
    }

    private fun body(connection: HttpURLConnection, path: String, start: Long): InputStream {
        connection.connectTimeout = gapMs
        connection.readTimeout = gapMs
        connection.setRequestProperty("Accept-Encoding", "identity") // what is deflated on the way has another length
        if (start > 0) connection.setRequestProperty("Range", "bytes=$start-")
        return when (val status = connection.responseCode) {
            HttpURLConnection.HTTP_PARTIAL -> connection.inputStream
            HttpURLConnection.HTTP_OK -> connection.inputStream.also { it.skipAll(start) } // a server without ranges
            HttpURLConnection.HTTP_FORBIDDEN, HttpURLConnection.HTTP_NOT_FOUND -> throw FileNotFoundException(path)
            else -> throw IOException("the server answered $status for $path")
        }
    }
}

private fun InputStream.skipAll(count: Long) {
    val buffer = ByteArray(1 shl 14)
    var left = count
    while (left > 0) {
        val came = read(buffer, 0, minOf(left, buffer.size.toLong()).toInt())
        if (came < 0) return
        left -= came
    }
}

/** Reads a channel's files, as many bytes as they may have, as fast as they must come. */
internal class Reader(private val channel: Channel, private val limits: Limits, private val nanoTime: () -> Long) {
    val place: String get() = channel.place

    /** Reads a small file whole; null where the channel has none. */
    fun whole(path: String, most: Int): ByteArray? {
        val out = java.io.ByteArrayOutputStream()
        try {
            each(path, 0) { chunk, count ->
                if (out.size() + count > most) throw endless(path, most.toLong())
                out.write(chunk, 0, count)
            }
        } catch (err: Refusal) {
            if (err.reason == Reason.CHANNEL_INCOMPLETE) return null
            throw err
        }
        return out.toByteArray()
    }

    /** Gives a file's bytes from [start] on to [act], whose own failures pass through. */
    fun each(path: String, start: Long, act: (ByteArray, Int) -> Unit) {
        val began = nanoTime()
        var came = 0L
        asked(path) { channel.open(path, start) }.use { stream ->
            val buffer = ByteArray(limits.chunkBytes)
            while (true) {
                val count = asked(path) { stream.read(buffer) }
                if (count < 0) return
                came += count
                val tookMs = (nanoTime() - began) / 1_000_000
                if (tookMs > limits.graceMs && came * 1000 < tookMs * limits.leastBytesPerS) {
                    throw Refusal(Reason.SLOW_DATA, "$path: $came bytes in ${tookMs / 1000} s; what came is kept")
                }
                act(buffer, count)
            }
        }
    }

    private fun <T> asked(path: String, act: () -> T): T = try {
        act()
    } catch (err: FileNotFoundException) {
        throw Refusal(Reason.CHANNEL_INCOMPLETE, "the channel has no $path; try again later", err)
    } catch (err: SocketTimeoutException) {
        throw Refusal(Reason.SLOW_DATA, "$path: the server does not answer; what came is kept", err)
    } catch (err: IOException) {
        val what = "$place cannot be read: ${err.message?.take(160) ?: err.javaClass.simpleName}; what came is kept"
        throw Refusal(Reason.CHANNEL_UNREACHABLE, what, err)
    }
}

internal fun endless(path: String, most: Long) =
    Refusal(Reason.ENDLESS_DATA, "$path has more than the $most bytes that it may have")
