package edgeq.store.ota

import edgeq.store.Behaviour
import edgeq.store.BundleSource
import edgeq.store.DiskFiles
import edgeq.store.Library
import edgeq.store.PHONE
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.StandIn
import edgeq.store.XNNPACK
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import org.junit.jupiter.params.provider.ValueSource
import java.io.File
import java.io.IOException
import java.net.InetAddress
import java.net.ServerSocket
import java.net.Socket
import java.time.Instant
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicReference
import kotlin.concurrent.thread

/** Servers that keep a device waiting or send it elsewhere, on real sockets; an app's start beside an update. */
@Timeout(60, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class HostileServerTest {
    @TempDir
    lateinit var folder: File

    private val listeners = mutableListOf<ServerSocket>()
    private val limits = Limits(graceMs = 600, leastBytesPerS = 1000)

    /** Serves connections, each with its number and the lines that were asked. */
    private fun serving(answer: (Socket, Int, List<String>) -> Unit): String {
        val listener = ServerSocket(0, 50, InetAddress.getLoopbackAddress()).also { listeners += it }
        thread(isDaemon = true) {
            try {
                for (number in 0..1000) {
                    val socket = listener.accept()
                    thread(isDaemon = true) { answered(socket, number, answer) }
                }
            } catch (_: IOException) {
                // closed: the test is over
            }
        }
        return "http://127.0.0.1:${listener.localPort}"
    }

    private fun answered(socket: Socket, number: Int, answer: (Socket, Int, List<String>) -> Unit) = try {
        socket.use {
            val lines = it.getInputStream().bufferedReader()
            answer(it, number, generateSequence { lines.readLine()?.ifEmpty { null } }.toList())
        }
    } catch (_: IOException) {
        // the device hung up
    }

    @AfterEach
    fun stop() = listeners.forEach { it.close() }

    private fun Socket.say(text: String) = getOutputStream().run { write(text.toByteArray()); flush() }

    private fun said(status: String, header: String, body: String = "") =
        "HTTP/1.1 $status\r\n$header\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n$body"

    private fun impatient(url: String) = HttpChannel(url, answerMs = 1000, gapMs = 800, mostWaitMs = 1500)

    private fun fetched(channel: Channel, start: Long = 0): ByteArray {
        val out = java.io.ByteArrayOutputStream()
        Reader(channel, limits, System::nanoTime).each("f", start) { chunk, count -> out.write(chunk, 0, count) }
        return out.toByteArray()
    }

    private fun refused(vararg reasons: Reason, withinMs: Long = 4000, act: () -> Unit): Refusal {
        val began = System.nanoTime()
        val refusal = assertThrows(Refusal::class.java) { act() }
        val tookMs = (System.nanoTime() - began) / 1_000_000
        assertTrue(refusal.reason in reasons) { "${refusal.reason}: ${refusal.message}" }
        assertTrue(tookMs < withinMs) { "$tookMs ms: ${refusal.message}" }
        return refusal
    }

    @ParameterizedTest
    @MethodSource("drips")
    fun `a server that drips is given up`(first: String, drop: String) {
        val url = serving { socket, _, _ ->
            socket.say(first)
            while (true) {
                socket.say(drop)
                Thread.sleep(50)
            }
        }
        refused(Reason.SLOW_DATA) { fetched(impatient(url)) }
    }

    @ParameterizedTest
    @ValueSource(strings = ["HTTP/1.1 100 Continue\r\n\r\n", "X: y\r\n", "a"])
    fun `a server that floods a device with headers is given up`(drop: String) {
        val url = serving { socket, _, _ ->
            if (!drop.startsWith("HTTP")) socket.say("HTTP/1.1 200 OK\r\n")
            val drops = drop.repeat(100)
            while (true) socket.say(drops)
        }
        refused(Reason.SLOW_DATA, Reason.CHANNEL_UNREACHABLE) { fetched(impatient(url)) }
    }

    @Test
    fun `a server without ranges may not drip what is there already`() {
        val url = serving { socket, _, _ ->
            socket.say("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while (true) socket.say("x".repeat(10)).also { Thread.sleep(50) }
        }
        refused(Reason.SLOW_DATA) { fetched(impatient(url), start = 500_000) }
    }

    @Test
    fun `what is there already is left out where a server has no ranges`() {
        val url = serving { socket, _, _ -> socket.say(said("200 OK", "X: y", "0123456789".repeat(20_000))) }
        assertArrayEquals("56789".toByteArray(), fetched(HttpChannel(url), start = 199_995))
    }

    @Test
    fun `a device that is slow itself is not taken for a slow server`() {
        val url = serving { socket, _, _ -> socket.say(said("200 OK", "X: y", "x".repeat(400_000))) }
        var came = 0
        Reader(impatient(url), limits, System::nanoTime).each("f", 0) { _, count ->
            if (came == 0) Thread.sleep(3000)
            came += count
        }
        assertEquals(400_000, came)
    }

    @Test
    fun `a redirect on the same host is followed`() {
        val asked = mutableListOf<String>()
        val url = serving { socket, number, lines ->
            asked += lines.first()
            socket.say(if (number == 0) said("302 Found", "Location: /elsewhere") else said("200 OK", "X: y", "ok"))
        }
        assertEquals("ok", fetched(impatient(url)).decodeToString())
        assertEquals(listOf("GET /f HTTP/1.1", "GET /elsewhere HTTP/1.1"), asked)
    }

    @ParameterizedTest
    @ValueSource(
        strings = [
            "http://localhost:1/f", "http://169.254.169.254/latest", "//other/f", "file:///etc/passwd",
            "jar:file:///etc/passwd!/x", "http://127.0.0.1@other/f", "http://other\\@127.0.0.1/f", "https://other\\@127.0.0.1/f",
            "ftp://127.0.0.1/f",
        ],
    )
    fun `a redirect to another host is refused`(to: String) {
        for (status in listOf(301, 302, 303, 307, 308)) {
            val url = serving { socket, _, _ -> socket.say(said("$status Found", "Location: $to")) }
            val refusal = refused(Reason.WRONG_REDIRECT) { fetched(impatient(url)) }
            assertTrue("redirects to" in refusal.message!!, refusal.message)
        }
    }

    @Test
    fun `redirects in a circle end`() {
        val numbers = mutableSetOf<Int>()
        val url = serving { socket, number, _ ->
            numbers += number
            socket.say(said("302 Found", "Location: /f"))
        }
        val refusal = refused(Reason.CHANNEL_UNREACHABLE) { fetched(impatient(url)) }
        assertTrue("4 redirects" in refusal.message!!, refusal.message)
        assertEquals(4, numbers.size)
    }

    @Test
    fun `a redirect that leads nowhere is refused`() {
        for (header in listOf("X: y", "Location: ", "Location: ht!tp://[", "Location: http://[::1")) {
            val url = serving { socket, _, _ -> socket.say(said("302 Found", header)) }
            refused(Reason.CHANNEL_UNREACHABLE, Reason.WRONG_REDIRECT) { fetched(impatient(url)) }
        }
    }

    @Test
    fun `a server that asks to wait a little is waited for`() {
        val url = serving { socket, number, _ ->
            socket.say(if (number == 0) said("503 Busy", "Retry-After: 1") else said("200 OK", "X: y", "ok"))
        }
        val began = System.nanoTime()
        assertEquals("ok", fetched(HttpChannel(url, answerMs = 10_000, mostWaitMs = 1500)).decodeToString())
        assertTrue(System.nanoTime() - began >= 1_000_000_000)
    }

    @ParameterizedTest
    @ValueSource(strings = ["3600", "99999999999999999999", "Fri, 31 Dec 2100 23:59:59 GMT"])
    fun `a server that asks to wait long is left`(wait: String) {
        val url = serving { socket, _, _ -> socket.say(said("429 Too Many", "Retry-After: $wait")) }
        val refusal = refused(Reason.CHANNEL_UNREACHABLE, withinMs = 900) { fetched(impatient(url)) }
        assertTrue("asks to wait" in refusal.message!!, refusal.message)
    }

    @Test
    fun `a server that asks to wait again and again is left`() {
        val url = serving { socket, _, _ -> socket.say(said("503 Busy", "Retry-After: 0")) }
        refused(Reason.CHANNEL_UNREACHABLE) { fetched(impatient(url)) }
    }

    @Test
    fun `Retry-After is seconds or a date`() {
        val now = Instant.parse("2026-11-29T12:00:00Z")
        assertEquals(120_000, retryAfterMs(" 120 ", now))
        assertEquals(30_000, retryAfterMs("Sun, 29 Nov 2026 12:00:30 GMT", now))
        assertEquals(0, retryAfterMs("Sun, 29 Nov 2026 11:00:00 GMT", now))
        for (nothing in listOf("", "-1", "1.5", "soon", "Sun, 31 Feb 2026 12:00:30 GMT")) assertNull(retryAfterMs(nothing, now))
    }

    /** A channel that a real server sends, whose answer to some files is another one. */
    private fun channelServer(name: String, other: (Socket, String) -> Boolean): String {
        val files = channel(name).files
        return serving { socket, _, lines ->
            val path = lines.first().split(' ')[1].removePrefix("/")
            if (other(socket, path)) return@serving
            val all = files[path] ?: return@serving socket.say(said("404 Not Found", "X: y"))
            val start = lines.find { it.startsWith("Range: bytes=") }?.substringAfter('=')?.removeSuffix("-")?.toInt() ?: 0
            val status = if (start > 0) "206 Partial Content" else "200 OK"
            val out = socket.getOutputStream()
            out.write("HTTP/1.1 $status\r\nContent-Length: ${all.size - start}\r\nConnection: close\r\n\r\n".toByteArray())
            out.write(all, start, all.size - start)
            out.flush()
        }
    }

    private fun library() = Library(DiskFiles(File(folder, "models")), PHONE)

    private fun updater(url: String, library: Library = library(), answerMs: Long = 1000): Updater {
        val root = channel("good/first").files.getValue("metadata/1.root.json")
        val channel = HttpChannel(url, answerMs = answerMs, gapMs = 800)
        return Updater(DiskFiles(File(folder, "updates")), library, PHONE, channel, root, "phone-1", clock = { NOW })
    }

    private fun opened(library: Library) = library.store(KEY).open(StandIn(XNNPACK) { Behaviour() }).use { it.manifest.modelVersion }

    @ParameterizedTest
    @ValueSource(strings = ["metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json", ".zip"])
    fun `an update past a dripping server ends, and the next one gets there`(end: String) {
        val bad = channelServer("good/first") { socket, path ->
            path.endsWith(end).also { drips ->
                if (drips) socket.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
                while (drips) socket.say("x").also { Thread.sleep(50) }
            }
        }
        refused(Reason.SLOW_DATA) { updater(bad).update(KEY) }
        assertEquals(Via.FULL_DOWNLOAD, updater(channelServer("good/first") { _, _ -> false }).update(KEY).via)
        assertEquals("1", opened(library()))
    }

    /** What an app's start takes while an update waits. */
    private fun startMs(library: Library, waits: CountDownLatch): Long {
        assertTrue(waits.await(30, TimeUnit.SECONDS))
        val began = System.nanoTime()
        library.offer(XNNPACK)
        assertEquals("1", opened(library))
        assertEquals(listOf(KEY), library.models())
        return (System.nanoTime() - began) / 1_000_000
    }

    @Test
    fun `an app starts while an update waits for the network`() {
        val library = library().also { it.offer(XNNPACK) }
        opened(library)
        val waits = CountDownLatch(1)
        val go = CountDownLatch(1)
        val url = channelServer("good/second") { _, path ->
            if (path.endsWith(".patch")) waits.countDown().also { go.await() }
            false
        }
        val came = AtomicReference<Any>()
        val update = thread { came.set(runCatching { updater(url, library, answerMs = 30_000).update(KEY) }) }
        assertTrue(startMs(library, waits) < 1000)
        go.countDown()
        update.join()
        assertEquals("2", opened(library)) { "${came.get()}" }
    }

    @Test
    fun `an app starts while an update is copied into its place`() {
        val library = library().also { it.offer(XNNPACK) }
        opened(library)
        val waits = CountDownLatch(1)
        val go = CountDownLatch(1)
        val slow = object : BundleSource by XNNPACK.version("2") {
            override fun open(name: String) = XNNPACK.version("2").open(name).also {
                if (name == "model.pte") waits.countDown().also { go.await() }
            }
        }
        val update = thread { library.deliver(slow) }
        assertTrue(startMs(library, waits) < 1000)
        go.countDown()
        update.join()
        assertEquals("2", opened(library))
    }

    private companion object {
        const val OK = "HTTP/1.1 200 OK\r\n"
        const val CHUNKED = "${OK}Transfer-Encoding: chunked\r\n\r\n"

        @JvmStatic
        fun drips() = listOf(
            arrayOf("", ""),
            arrayOf("HTTP/1.1 200 ", "O"),
            arrayOf("${OK}X-Long: ", "a"),
            arrayOf(OK, "X: y\r\n"),
            arrayOf("", "HTTP/1.1 100 Continue\r\n\r\n"),
            arrayOf(CHUNKED, "0"),
            arrayOf("${CHUNKED}1;", "x"),
            arrayOf("${CHUNKED}5\r\nhello\r\n0\r\n", "X-Trailer: y\r\n"),
            arrayOf("${CHUNKED}5\r\nhello\r\n0\r\nX: ", "y"),
            arrayOf(CHUNKED, "1\r\nx\r\n"),
            arrayOf("${OK}Content-Length: 1000000\r\n\r\n", "x"),
        )
    }
}
