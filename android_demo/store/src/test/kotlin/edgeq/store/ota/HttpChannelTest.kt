package edgeq.store.ota

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import edgeq.store.Reason
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.net.InetAddress
import java.net.InetSocketAddress
import java.util.concurrent.Executors

/** The channel of a real web server, on this machine. */
class HttpChannelTest {
    private val files = channel("good/first").files
    private val ranges = mutableListOf<String?>()
    private val threads = Executors.newCachedThreadPool()
    private val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
    private val place get() = "http://${server.address.hostString}:${server.address.port}/channel/"

    private fun serve(handle: (HttpExchange, ByteArray) -> Unit) {
        server.executor = threads
        server.createContext("/channel/") { exchange ->
            val data = files[exchange.requestURI.path.removePrefix("/channel/")]
            if (data == null) exchange.sendResponseHeaders(404, -1) else handle(exchange, data)
            exchange.close()
        }
        server.start()
    }

    private fun whole(exchange: HttpExchange, data: ByteArray) {
        exchange.sendResponseHeaders(200, data.size.toLong())
        exchange.responseBody.write(data)
    }

    private fun ranged(exchange: HttpExchange, data: ByteArray) {
        val range = exchange.requestHeaders.getFirst("Range") ?: return whole(exchange, data)
        val start = range.removePrefix("bytes=").removeSuffix("-").toInt()
        exchange.sendResponseHeaders(206, (data.size - start).toLong())
        exchange.responseBody.write(data, start, data.size - start)
    }

    @AfterEach
    fun stop() {
        server.stop(0)
        threads.shutdownNow()
    }

    /** A phone on which the first 20,000 bytes of the download have come already. */
    private fun halfway() = Phone().also { phone ->
        val zip = channel("good/first").let { it.changed(it.path(".zip")) { data -> data.copyOf(20_000) } }
        phone.refuses(Reason.CHANNEL_UNREACHABLE, zip)
    }

    @Test
    fun `a release is fetched, and a broken download is gone on with by a range`() {
        serve { exchange, data -> ranges += exchange.requestHeaders.getFirst("Range"); ranged(exchange, data) }
        assertEquals("1", halfway().follow(HttpChannel(place)))
        assertEquals(listOf("bytes=20000-"), ranges.filterNotNull())
    }

    @Test
    fun `a server without ranges sends all of it again`() {
        serve(::whole)
        assertEquals("1", halfway().follow(HttpChannel(place)))
    }

    @Test
    fun `a server that fails, and one that is not there, are named`() {
        serve { exchange, _ -> exchange.sendResponseHeaders(503, -1) }
        val refusal = Phone().refuses(Reason.CHANNEL_UNREACHABLE, HttpChannel(place))
        assertTrue("503" in refusal.message!!, refusal.message)
        val gone = place.also { server.stop(0) }
        Phone().refuses(Reason.CHANNEL_UNREACHABLE, HttpChannel(gone))
        Phone().refuses(Reason.CHANNEL_UNREACHABLE, HttpChannel("file:///channel"))
    }

    @Test
    fun `a server that falls silent is given up`() {
        serve { exchange, data ->
            if (!exchange.requestURI.path.endsWith(".zip")) return@serve whole(exchange, data)
            exchange.sendResponseHeaders(200, data.size.toLong())
            exchange.responseBody.write(data, 0, 1000)
            exchange.responseBody.flush()
            Thread.sleep(3000)
        }
        Phone().refuses(Reason.SLOW_DATA, HttpChannel(place, gapMs = 300))
    }
}
