package edgeq.store.ota

import edgeq.store.Died
import edgeq.store.Reason
import edgeq.store.Refusal
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.Arguments
import org.junit.jupiter.params.provider.MethodSource
import java.io.File
import java.io.FilterInputStream
import java.net.SocketTimeoutException
import kotlin.random.Random

/** Channels that edgeq signed and must be refused, and good ones that somebody changed on the way. */
class HostileChannelTest {
    private val second get() = channel("good/second")
    private val phone by lazy { Phone().also { it.follow(channel("good/first")) } }

    @ParameterizedTest(name = "{0} {1}")
    @MethodSource("hostile")
    fun `a hostile channel is refused for its own reason`(reason: String, name: String) {
        val refusal = phone.refuses(Reason.valueOf(reason), channel("hostile/$reason/$name"))
        assertTrue(refusal.message!!.length in 20..900) { refusal.message }
        assertEquals("1", phone.open())
        // and the next good one is followed all the same
        if (reason != "WRONG_KEY") assertEquals("2", phone.follow(channel("good/again")))
    }

    @Test
    fun `an older state of the channel is a rollback`() {
        phone.follow(second)
        phone.refuses(Reason.ROLLBACK, channel("good/first"))
        // nor where only the timestamp is old
        val old = channel("good/first").files.getValue("metadata/timestamp.json")
        phone.refuses(Reason.ROLLBACK, second.changed("metadata/timestamp.json") { old })
    }

    @Test
    fun `parts of two states are mix and match`() {
        val old = channel("good/first").files
        val targets = second.changed("metadata/2.targets.json") { old.getValue("metadata/1.targets.json") }
        phone.refuses(Reason.MIX_AND_MATCH, targets)
        val snapshot = second.changed("metadata/2.snapshot.json") { old.getValue("metadata/1.snapshot.json") }
        phone.refuses(Reason.MIX_AND_MATCH, snapshot)
    }

    @Test
    fun `tampered downloads are not the files that were signed`() {
        val patch = second.path(".patch")
        phone.refuses(Reason.DOWNLOAD_HASH, second.changed(patch) { it.also { it[0] = (it[0].toInt() xor 1).toByte() } })
        phone.refuses(Reason.ENDLESS_DATA, second.changed(patch) { it + 1 })
        phone.refuses(Reason.CHANNEL_INCOMPLETE, second.without(patch))
        val zip = second.path(".2.zip")
        val fresh = Phone()
        fresh.refuses(Reason.DOWNLOAD_HASH, second.changed(zip) { it.also { it[it.size - 1] = 7 } })
        fresh.refuses(Reason.ENDLESS_DATA, second.changed(zip) { it + ByteArray(1_000_000) })
        assertEquals(emptyList<String>(), fresh.updates.list("download"))
        assertEquals(Via.PATCH, phone.update(second).via)
    }

    @Test
    fun `metadata may not be endless, and may not lack`() {
        for (name in second.metadata.filter { it != "metadata/1.root.json" }) {
            if (name.startsWith("metadata/1.")) continue // of the state before
            phone.refuses(Reason.ENDLESS_DATA, second.changed(name) { it + ByteArray(20_000) { 32 } })
            phone.refuses(Reason.CHANNEL_INCOMPLETE, second.without(name))
        }
        val root = second.files + ("metadata/2.root.json" to ByteArray(600_000))
        phone.refuses(Reason.ENDLESS_DATA, TestChannel(root))
    }

    @Test
    fun `an endless stream is read no further than it may`() {
        var given = 0
        val endless = second.reading { stream ->
            object : FilterInputStream(stream) {
                override fun read(buffer: ByteArray, offset: Int, length: Int) = length.also {
                    given += it
                    if (given > 2_000_000) throw Died()
                }
            }
        }
        phone.refuses(Reason.ENDLESS_DATA, endless)
    }

    @Test
    fun `slow data is given up, and gone on with`() {
        var now = 0L
        val slow = { channel: TestChannel, ms: Long ->
            channel.reading { stream ->
                object : FilterInputStream(stream) {
                    override fun read(buffer: ByteArray, offset: Int, length: Int): Int {
                        now += ms * 1_000_000
                        return super.read(buffer, offset, minOf(length, 1000))
                    }
                }
            }
        }
        val patient = Phone(nanoTime = { now })
        patient.refuses(Reason.SLOW_DATA, slow(channel("good/first"), 1000))
        val waiting = channel("good/first").reading { Cut(it, 10_000) { throw SocketTimeoutException() } }
        patient.refuses(Reason.SLOW_DATA, waiting)
        assertTrue(patient.updates.size(patient.updates.list("download").single().let { "download/$it" }) > 0)
        // 1 kB in 900 ms is fast enough
        patient.update(slow(channel("good/first"), 900))
        assertEquals("1", patient.open())
    }

    @Test
    fun `every flipped bit is refused, and what is intact is not`() {
        val random = Random(7)
        val first = phone
        val good = second
        val needed = good.metadata.filter { it.startsWith("metadata/2.") || it.endsWith("timestamp.json") } + good.path(".patch")
        assertEquals(4, needed.size)
        repeat(400) { round ->
            val device = Phone(MemoryFiles(first))
            val path = needed[round % needed.size]
            val bad = good.changed(path) { data ->
                data.copyOf().also { random.nextInt(it.size).let { at -> it[at] = (it[at].toInt() xor (1 shl random.nextInt(8))).toByte() } }
            }
            assertThrows(Refusal::class.java, { device.update(bad) }) { "$path in round $round" }
            assertEquals("1", device.version)
        }
        repeat(20) { assertEquals(Via.PATCH, Phone(MemoryFiles(first)).update(good).via) }
    }

    private fun MemoryFiles(phone: Phone) = edgeq.store.MemoryFiles(phone.disk.after(edgeq.store.After.KILL))

    private companion object {
        @JvmStatic
        fun hostile(): List<Arguments> = File(CHANNELS, "hostile").listFiles()!!.sorted().flatMap { reason ->
            reason.list()!!.sorted().map { Arguments.of(reason.name, it) }
        }.also { check(it.size > 60) { "only ${it.size} hostile channels" } }
    }
}
