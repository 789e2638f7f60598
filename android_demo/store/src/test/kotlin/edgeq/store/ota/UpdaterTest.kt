package edgeq.store.ota

import edgeq.store.Behaviour
import edgeq.store.Device
import edgeq.store.Died
import edgeq.store.Files
import edgeq.store.MemoryFiles
import edgeq.store.ModelKey
import edgeq.store.PHONE
import edgeq.store.Reason
import edgeq.store.XNNPACK
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.io.IOException
import java.time.Duration

private val MONTH: Duration = Duration.ofDays(31)

/** An app's model follows a channel: what comes, how it comes, and what is done with a release that is bad. */
class UpdaterTest {
    private val first get() = channel("good/first")
    private val second get() = channel("good/second")

    @ParameterizedTest
    @ValueSource(strings = ["good/second", "good/zstd", "good/bsdiff4"])
    fun `the first release comes whole, the next one as a patch`(name: String) {
        val phone = Phone()
        val whole = phone.update(first)
        assertEquals(Update(1, "1", Via.FULL_DOWNLOAD, first.files.getValue(first.path(".zip")).size.toLong(), true), whole)
        assertEquals("1", phone.open())
        val next = channel(name)
        val patched = phone.update(next)
        assertEquals(Via.PATCH, patched.via)
        assertTrue(patched.downloadedBytes < whole.downloadedBytes / 5) { "$patched" }
        assertEquals("2", phone.open())
        assertEquals(2, phone.models.list("${Phone.FOLDER}/slots").size)
        assertEquals(emptyList<String>(), phone.updates.list("download"))
        assertEquals(Via.NOTHING, phone.update(next).via)
        assertEquals(1, next.downloads.size)
    }

    @Test
    fun `what the app brought along is patched, and an equal release is not fetched`() {
        val phone = Phone()
        phone.library.offer(XNNPACK)
        phone.open()
        assertEquals(Via.NOTHING, phone.update(first).via)
        assertEquals(Via.PATCH, phone.update(second).via)
        // the app's own bundle stays offered, and does not come back
        phone.library.offer(XNNPACK)
        assertEquals("2", phone.open())
    }

    @Test
    fun `a damaged base is mended by a full download`() {
        val phone = Phone()
        phone.follow(first)
        val artifact = phone.library.store(KEY).state.current.let { "${Phone.FOLDER}/slots/$it/model.pte" }
        phone.models.create(artifact).use { it.write(ByteArray(9), 9) }
        assertEquals(Via.FULL_DOWNLOAD, phone.update(second).via)
        assertEquals("2", phone.open())
    }

    @Test
    fun `a withdrawn release gives way to the one before`() {
        val phone = Phone()
        phone.follow(second)
        val update = phone.update(channel("good/withdrawn"))
        assertEquals(3L to "1", update.release to update.modelVersion)
        assertEquals("1", phone.open())
    }

    @Test
    fun `rotated keys are followed, from the first root and from a later one`() {
        val phone = Phone()
        phone.follow(first)
        val rotated = channel("good/rotated")
        assertEquals("2", phone.follow(rotated))
        val roots = rotated.metadata.filter { it.endsWith("root.json") }
        assertEquals(5, roots.size)
        assertArrayEquals(rotated.files.getValue(roots.last()), phone.updates.read("root.json").readBytes())
        // the next check begins at the newest root, and an old one is not asked for again
        val again = channel("good/rotated")
        phone.update(again)
        assertEquals("metadata/6.root.json", again.asked.first().first)
        // whoever has the old keys signs nothing any more, even where he hides the new roots
        phone.refuses(Reason.WRONG_KEY, channel("hostile/WRONG_KEY/revoked"))
        phone.refuses(Reason.WRONG_KEY, second)
    }

    @Test
    fun `two keys have to sign where the root says so`() {
        val root = channel("threshold/both").files.getValue("metadata/1.root.json")
        assertEquals("1", Phone(root = root).follow(channel("threshold/both")))
        val refusal = Phone(root = root).refuses(Reason.WRONG_KEY, channel("threshold/one"))
        assertTrue("1 of 2 signatures" in refusal.message!!, refusal.message)
    }

    @Test
    fun `a release for one device is for no other`() {
        Phone().refuses(Reason.WRONG_DEVICE, channel("good/addressed"))
        assertEquals("1", Phone(deviceId = "tester-7").follow(channel("good/addressed")))
    }

    @Test
    fun `a model that the channel lacks is refused with those that it has`() {
        val refusal = Phone().refuses(Reason.NO_RELEASE, first, key = ModelKey("digits", "android-x86_64-xnnpack"))
        assertTrue("digits for android-arm64-xnnpack" in refusal.message!!, refusal.message)
    }

    @Test
    fun `an app without a root trusts nobody, and another's root no stranger`() {
        Phone(root = null).refuses(Reason.NO_TRUST, first)
        Phone(root = "{}".toByteArray()).refuses(Reason.INDEX_BROKEN, first)
        val strange = channel("hostile/WRONG_KEY/strange").files.getValue("metadata/1.root.json")
        Phone(root = strange).refuses(Reason.WRONG_KEY, first)
    }

    @Test
    fun `a device with a clock refuses an index that expired`() {
        val phone = Phone()
        phone.follow(second)
        phone.refuses(Reason.FREEZE, second, now = NOW + MONTH)
        assertEquals(Via.NOTHING, phone.update(channel("good/again"), now = NOW + MONTH).via)
    }

    @Test
    fun `a device without a clock refuses an index that never changes`() {
        val phone = Phone()
        assertFalse(phone.update(second, now = null).byClock)
        repeat(30) { phone.update(second, now = null) }
        phone.refuses(Reason.FREEZE, second, now = null)
        assertFalse(phone.update(channel("good/again"), now = null).byClock)
        // what had expired when that was signed stays refused, whatever the clock says
        phone.refuses(Reason.ROLLBACK, second, now = null)
    }

    @Test
    fun `a clock that stands before the index was signed is none`() {
        val phone = Phone()
        phone.update(second)
        assertFalse(phone.update(second, now = NOW - Duration.ofDays(9000)).byClock)
        assertTrue(phone.update(second, now = NOW - Duration.ofHours(20)).byClock)
    }

    @Test
    fun `a release that fails its self-test gives way, and is not fetched again`() {
        val phone = Phone(behaviour = { version -> Behaviour(gain = if (version == "2") Float.NaN else 1f) })
        phone.follow(first)
        assertEquals("1", phone.follow(second))
        assertEquals(Reason.NOT_FINITE, phone.library.store(KEY).state.rejected.single().reason)
        val again = channel("good/second")
        phone.refuses(Reason.REJECTED_BEFORE, again)
        assertEquals(emptyList<String>(), again.downloads)
    }

    @Test
    fun `a release that ends the process is put off after three starts`() {
        val phone = Phone(behaviour = { version -> Behaviour(whenLoaded = { if (version == "2") throw Died() }) })
        phone.follow(first)
        phone.update(second)
        repeat(3) { assertThrows(Died::class.java) { phone.open() } }
        assertEquals("1", phone.open())
        assertEquals(Reason.CRASHED, phone.library.store(KEY).state.rejected.single().reason)
        val again = channel("good/second")
        phone.refuses(Reason.TRY_LATER, again)
        assertEquals(emptyList<String>(), again.downloads)
        // a new app is a new chance
        assertEquals("2", Phone(phone.disk, device(app = "new")).follow(second))
    }

    private fun device(app: String) = Device(PHONE.platform, PHONE.archs, PHONE.runtimes, app)

    /** A phone that ends, or has no memory, wherever it unpacks an archive. */
    private fun failing(disk: MemoryFiles, error: () -> Error) = Phone(
        disk,
        wrap = { files ->
            object : Files by files {
                override fun seekable(path: String) = throw error()
            }
        },
    )

    @Test
    fun `a release whose unpacking was killed is put off for a day, or until there is a new app`() {
        for (app in listOf("", "new")) {
            val disk = MemoryFiles()
            repeat(3) { assertThrows(Died::class.java) { failing(disk) { Died() }.update(first) } }
            val waiting = channel("good/first")
            val later = if (app == "") NOW + Duration.ofDays(1) else NOW
            Phone(disk).refuses(Reason.TRY_LATER, waiting)
            Phone(disk).refuses(Reason.TRY_LATER, waiting, now = NOW + Duration.ofHours(23))
            assertEquals(emptyList<String>(), waiting.downloads)
            val phone = Phone(disk, device(app))
            assertEquals(Via.FULL_DOWNLOAD, phone.update(first, now = later).via)
            assertFalse("deferred" in phone.updates.read("state.json").readBytes().decodeToString())
        }
    }

    @Test
    fun `so is one for which there was no memory`() {
        val disk = MemoryFiles()
        repeat(3) { failing(disk) { OutOfMemoryError("Java heap space") }.refuses(Reason.NO_MEMORY, first) }
        Phone(disk).refuses(Reason.TRY_LATER, first)
        assertEquals("1", Phone(disk).follow(first, now = NOW + Duration.ofDays(1)))
    }

    @Test
    fun `without a clock the index's own time counts`() {
        val disk = MemoryFiles()
        repeat(3) { failing(disk) { OutOfMemoryError("Java heap space") }.refuses(Reason.NO_MEMORY, first, now = null) }
        Phone(disk).refuses(Reason.TRY_LATER, first, now = null)
        // the channel was signed again a month later, with another release
        assertEquals("2", Phone(disk).follow(channel("good/again"), now = null))
    }

    @Test
    fun `a release that cannot be unpacked is given up after three tries, over restarts of the app`() {
        val phone = Phone()
        phone.follow(first)
        val bad = channel("hostile/ARCHIVE_REFUSED/link")
        repeat(3) { phone.refuses(Reason.ARCHIVE_REFUSED, bad) }
        val again = channel("hostile/ARCHIVE_REFUSED/link")
        repeat(2) { phone.refuses(Reason.REJECTED_BEFORE, again) }
        assertEquals(emptyList<String>(), again.downloads)
    }

    @Test
    fun `a patch that does not work is followed by the full download`() {
        for (name in listOf("zstd-cut", "bsdiff-bomb")) {
            val phone = Phone()
            phone.follow(first)
            val bad = channel("hostile/PATCH_REFUSED/$name")
            phone.refuses(Reason.PATCH_REFUSED, bad)
            assertEquals(Via.FULL_DOWNLOAD, phone.update(bad).via)
            assertEquals("2", phone.open())
        }
    }

    @Test
    fun `a bundle that is too large to be patched in memory comes whole`() {
        val phone = Phone(limits = Limits(maxPatchedBytes = 50_000))
        phone.follow(first)
        assertEquals(Via.FULL_DOWNLOAD, phone.update(second).via)
    }

    @Test
    fun `a download that broke off goes on where it was`() {
        val phone = Phone()
        val zip = first.path(".zip")
        val broken = first.reading { Cut(it, 30_000) { throw IOException("connection reset") } }
        phone.refuses(Reason.CHANNEL_UNREACHABLE, broken)
        phone.refuses(Reason.CHANNEL_UNREACHABLE, first.changed(zip) { it.copyOf(40_000) })
        val rest = channel("good/first")
        phone.update(rest)
        assertEquals(listOf(zip to 40_000L), rest.asked.filter { it.first == zip })
        assertEquals("1", phone.open())
    }

    @Test
    fun `a part that was damaged on the disk is fetched again from the start`() {
        val phone = Phone()
        phone.refuses(Reason.CHANNEL_UNREACHABLE, first.changed(first.path(".zip")) { ByteArray(40_000) })
        val whole = channel("good/first")
        phone.update(whole)
        assertEquals(listOf(40_000L, 0L), whole.asked.filter { it.first.endsWith(".zip") }.map { it.second })
    }

    @Test
    fun `a full disk is named, says nothing against a release, and leaves the model`() {
        val phone = Phone()
        phone.follow(first)
        phone.disk.left = 1_000_000
        phone.refuses(Reason.DISK, second)
        val small = Phone(phone.disk, limits = Limits(spareBytes = -10_000_000))
        for (left in 0L..58_000L step 2_000) {
            phone.disk.left = left
            small.refuses(Reason.DISK, second)
        }
        phone.disk.left = Long.MAX_VALUE
        assertEquals(Via.PATCH, phone.update(second).via)
    }

    @Test
    fun `the limit of the device's size is held before anything is fetched`() {
        val channel = channel("good/first")
        Phone(limits = Limits(maxBytes = 60_000)).refuses(Reason.TOO_LARGE, channel)
        assertEquals(emptyList<String>(), channel.downloads)
    }

    @Test
    fun `what the device remembers is not guessed where it is damaged`() {
        val phone = Phone()
        phone.follow(first)
        val good = phone.updates.read("state.json").readBytes()
        val bad = listOf("", "{", good.decodeToString().replace("\"release\":1", "\"release\":\"../1\""))
        for (text in bad.map { it.toByteArray() }) {
            phone.updates.create("state.json").use { it.write(text, text.size) }
            phone.refuses(Reason.UPDATES_BROKEN, first)
        }
        phone.updates.create("state.json").use { it.write(good, good.size) }
        assertEquals(Via.NOTHING, phone.update(first).via)
    }

    @Test
    fun `each model of a channel has its own releases`() {
        val phone = Phone(MemoryFiles())
        phone.follow(second)
        val state = phone.updates.read("state.json").readBytes().decodeToString()
        assertTrue("{\"model\":\"digits\",\"target\":\"android-arm64-xnnpack\",\"release\":2}" in state, state)
    }
}
