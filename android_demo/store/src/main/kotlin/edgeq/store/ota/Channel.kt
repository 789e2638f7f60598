package edgeq.store.ota

import edgeq.store.Reason
import edgeq.store.Refusal
import java.io.ByteArrayOutputStream
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.io.InterruptedIOException
import java.net.HttpURLConnection
import java.net.SocketTimeoutException
import java.net.URL
import java.time.Duration
import java.time.Instant
import java.time.ZonedDateTime
import java.time.format.DateTimeFormatter
import java.time.format.DateTimeParseException
import java.util.concurrent.Callable
import java.util.concurrent.ExecutionException
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import java.util.concurrent.TimeoutException
import kotlin.concurrent.thread

private const val MAX_ANSWERS = 4
private val REDIRECTS = setOf(301, 302, 303, 307, 308)
private val BUSY = setOf(429, 503)
private val SECONDS = Regex("[0-9]+")

/** A file of a channel: [stream] begins at its byte [start]. */
class Opened(val start: Long, val stream: InputStream)

/** Where an update channel is read. */
interface Channel {
    /** Its place, for messages. */
    val place: String

    /**
     * Opens a file of the channel at byte [start], or at its beginning where that is all that can be had.
     *
     * @throws FileNotFoundException there is no such file.
     * @throws SocketTimeoutException no answer, or no byte of the stream, came in time.
     * @throws IOException the channel cannot be reached.
     */
    fun open(path: String, start: Long): Opened
}

/**
 * A channel on a web server.
 *
 * A socket's own timeout starts anew with each byte, so that a server could drip headers, chunk sizes or trailers for
 * ever. Each request has a thread of its own here, and the caller waits for it as long as these say and no longer:
 *
 * @param answerMs until the headers of an answer have come, with redirects and the waits that the server asks for.
 * @param gapMs the longest wait for the next byte of a file; [Limits.leastBytesPerS] is the least average.
 * @param mostWaitMs how long to wait where the server asks for it (Retry-After).
 */
class HttpChannel(
    url: String,
    private val answerMs: Long = 30_000,
    private val gapMs: Long = 15_000,
    private val mostWaitMs: Long = 10_000,
) : Channel {
    override val place = url.trimEnd('/')

    override fun open(path: String, start: Long): Opened {
        val request = Request()
        try {
            val opened = request.within(answerMs) { answered(request, path, start) }
            return Opened(opened.start, Body(request, opened.stream))
        } catch (err: Exception) {
            request.close()
            throw err
        }
    }

    /** The answer with a file's bytes, after redirects and the waits that the server asks for. */
    private fun answered(request: Request, path: String, start: Long): Opened {
        val deadline = System.nanoTime() + answerMs * 1_000_000
        // names of a channel are letters, digits, and any of . _ + -: nothing to quote
        var url = URL("$place/$path")
        repeat(MAX_ANSWERS) {
            val connection = request.connect(url)
            connection.instanceFollowRedirects = false
            connection.connectTimeout = gapMs.toInt()
            connection.readTimeout = gapMs.toInt()
            connection.setRequestProperty("Accept-Encoding", "identity") // what is deflated on the way has another length
            if (start > 0) connection.setRequestProperty("Range", "bytes=$start-")
            val status = connection.responseCode
            val location = connection.getHeaderField("Location").takeIf { status in REDIRECTS }
            val waitMs = connection.getHeaderField("Retry-After").takeIf { status in BUSY }?.let { retryAfterMs(it, Instant.now()) }
            when {
                status == HttpURLConnection.HTTP_OK -> return Opened(0, connection.inputStream) // without ranges
                status == HttpURLConnection.HTTP_PARTIAL -> return Opened(start, connection.inputStream)
                status == HttpURLConnection.HTTP_FORBIDDEN || status == HttpURLConnection.HTTP_NOT_FOUND ->
                    throw FileNotFoundException(path)
                location != null -> url = redirected(url, location)
                waitMs != null -> {
                    if (waitMs > minOf(mostWaitMs, (deadline - System.nanoTime()) / 1_000_000)) {
                        throw IOException("the server answered $status for $path, and asks to wait ${waitMs / 1000} s")
                    }
                    Thread.sleep(waitMs)
                }
                else -> throw IOException("the server answered $status for $path")
            }
            connection.disconnect()
        }
        throw IOException("the server gave no $path after $MAX_ANSWERS redirects or requests to wait")
    }

    /** Where a redirect leads: to https, or to the channel's own host by the channel's own scheme. */
    private fun redirected(from: URL, location: String): URL {
        val to = URL(from, location)
        val own = URL(place)
        val isOwn = to.protocol == own.protocol && to.host.equals(own.host, ignoreCase = true)
        // what one parser takes for a user's name another one takes for a host
        val isPlain = to.userInfo == null && '\\' !in location
        if (isPlain && (isOwn || to.protocol == "https")) return to
        val shown = location.filter { it in ' '..'~' }.take(160)
        val what = "$place redirects to $shown, which is neither https nor its own host; tell whoever runs the channel"
        throw Refusal(Reason.WRONG_REDIRECT, what)
    }

    /** The bytes of an answer, each of which may be waited for [gapMs]. */
    private inner class Body(private val request: Request, private val stream: InputStream) : InputStream() {
        private var ended = false

        override fun read(): Int {
            val one = ByteArray(1)
            return if (read(one) < 0) -1 else one[0].toInt() and 0xff
        }

        override fun read(buffer: ByteArray, offset: Int, length: Int): Int =
            request.within(gapMs) { stream.read(buffer, offset, length) }.also { ended = it < 0 }

        override fun close() = if (ended) request.end() else request.close() // the next one may use its connection
    }
}

/** The milliseconds that a Retry-After header asks to wait (RFC 9110, section 10.2.3); null where it says nothing. */
internal fun retryAfterMs(text: String, now: Instant): Long? = try {
    if (SECONDS.matches(text.trim())) {
        text.trim().take(9).toLong() * 1000
    } else {
        val at = ZonedDateTime.parse(text.trim(), DateTimeFormatter.RFC_1123_DATE_TIME).toInstant()
        maxOf(0, Duration.between(now, at).toMillis())
    }
} catch (_: DateTimeParseException) {
    null
}

/** The thread of one request, and its connection. */
private class Request : AutoCloseable {
    private val worker = Executors.newSingleThreadExecutor { thread(start = false, isDaemon = true, name = "channel", block = it::run) }

    @Volatile
    private var connection: HttpURLConnection? = null

    fun connect(url: URL): HttpURLConnection = (url.openConnection() as? HttpURLConnection)?.also { connection = it }
        ?: throw IOException("the channel's place must begin with http:// or https://")

    /** Lets the worker [act], and waits for it no longer than [ms]. */
    fun <T> within(ms: Long, act: () -> T): T = try {
        worker.submit(Callable(act)).get(ms, TimeUnit.MILLISECONDS)
    } catch (err: ExecutionException) {
        val cause = err.cause
        // a library throws what it likes on a hostile answer; a stack that 100-continues overflow is among it
        throw cause as? IOException ?: cause as? Refusal ?: IOException("the answer cannot be read: $cause", cause)
    } catch (err: TimeoutException) {
        throw SocketTimeoutException("nothing came within $ms ms").initCause(err)
    } catch (err: InterruptedException) {
        throw InterruptedIOException("the update was interrupted").initCause(err)
    }

    /** Lets the thread go, and leaves the connection open. */
    fun end() {
        worker.shutdownNow()
    }

    override fun close() {
        end()
        // in a thread of its own: the connection's lock may be held by a read that waits
        connection?.let { thread(isDaemon = true, name = "channel end") { it.disconnect() } }
    }
}

/** Reads a channel's files, as many bytes as they may have, as fast as they must come. */
internal class Reader(private val channel: Channel, private val limits: Limits, private val nanoTime: () -> Long) {
    val place: String get() = channel.place

    /** Reads a small file whole; null where the channel has none. */
    fun whole(path: String, most: Int): ByteArray? {
        val out = ByteArrayOutputStream()
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

    /**
     * Gives a file's bytes from [start] on to [act], whose own failures pass through.
     *
     * What counts is how long the bytes were waited for: a slow disk does not make a slow channel.
     */
    fun each(path: String, start: Long, act: (ByteArray, Int) -> Unit) {
        val opened = asked(path) { channel.open(path, start) }
        opened.stream.use { stream ->
            val buffer = ByteArray(limits.chunkBytes)
            var skip = start - opened.start
            var came = 0L
            var waitedNs = 0L
            while (true) {
                val began = nanoTime()
                val count = asked(path) { stream.read(buffer) }
                waitedNs += nanoTime() - began
                if (count < 0) return
                came += count
                val tookMs = waitedNs / 1_000_000
                if (tookMs > limits.graceMs && came * 1000 < tookMs * limits.leastBytesPerS) {
                    throw Refusal(Reason.SLOW_DATA, "$path: $came bytes in ${tookMs / 1000} s; what came is kept")
                }
                val known = minOf(skip, count.toLong()).toInt()
                skip -= known
                buffer.copyInto(buffer, 0, known, count)
                if (count > known) act(buffer, count - known)
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
