package edgeq.store

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.EnumSource

/** The process, or the device, ends before any one change on the disk. */
class KillTest {
    private val first = XNNPACK
    private val second = XNNPACK.version("2")
    private val bad = XNNPACK.version("3")

    // two kills while a model is tried look like crashes of it; three starts keep them apart here
    private val rules = Rules(chunkBytes = 20_000, maxStarts = 3)
    private val key = ModelKey("digits", "android-arm64-xnnpack")

    private fun library(files: MemoryFiles) = Library(files, PHONE, rules)

    private val loader
        get() = StandIn(first) { version -> Behaviour(gain = if (version == "3") 0.5f else 1f) }

    /** An app's life: its own model, an update, and a bad update that is rolled back. */
    private fun life(files: MemoryFiles) {
        library(files).offer(first)
        library(files).store(key).open(loader).close()
        library(files).offer(first)
        library(files).deliver(second)
        library(files).store(key).open(loader).close()
        library(files).deliver(bad)
        library(files).store(key).open(loader).close()
    }

    @ParameterizedTest
    @EnumSource(After::class)
    fun `whatever was there before, or what came, can be opened whole`(what: After) {
        val all = MemoryFiles().also(::life).changes
        assertTrue(all > 80) { "only $all changes" }
        val versions = mutableListOf<String>()
        for (dieBefore in 0 until all) {
            val files = MemoryFiles(dieBefore = dieBefore)
            assertThrows(Died::class.java) { life(files) }
            val disk = MemoryFiles(files.after(what))
            // what the app does when it starts the next time
            library(disk).offer(first)
            library(disk).store(key).open(loader).use { versions += it.manifest.modelVersion }
            assertSound(disk)
        }
        // no update is lost once it was in, and the bad one never stays
        assertEquals(versions.sorted(), versions)
        assertEquals(setOf("1", "2"), versions.toSet())
    }

    @ParameterizedTest
    @EnumSource(After::class)
    fun `a second kill while it recovers changes nothing`(what: After) {
        val all = MemoryFiles().also(::life).changes
        for (dieBefore in 0 until all step 7) {
            val files = MemoryFiles(dieBefore = dieBefore)
            assertThrows(Died::class.java) { life(files) }
            for (again in 0 until 40 step 3) {
                val disk = MemoryFiles(files.after(what), dieBefore = again)
                try {
                    library(disk).offer(first)
                    library(disk).store(key).open(loader).close()
                } catch (_: Died) {
                    // this time too
                }
                val last = MemoryFiles(disk.after(what))
                library(last).offer(first)
                library(last).store(key).open(loader).use { assertTrue(it.manifest.modelVersion in setOf("1", "2")) }
                assertSound(last)
            }
        }
    }

    /** The slots are whole, there are no more than two, and nothing else is left. */
    private fun assertSound(disk: MemoryFiles) {
        val folder = "digits/android-arm64-xnnpack"
        val state = library(disk).store(key).state
        assertEquals(Health.HEALTHY, state.health)
        assertEquals(setOf(state.current, state.previous).filterNotNull().toSet(), disk.list("$folder/slots").toSet())
        assertEquals(listOf("slots", "state.json"), disk.list(folder).filter { !it.endsWith(UNFINISHED) })
        for (digest in disk.list("$folder/slots")) {
            val source = listOf(first, second, bad).single { it.digest == digest }
            assertEquals(source.names(), disk.list("$folder/slots/$digest"))
            for (name in source.names()) {
                assertArrayEquals(source.files[name], disk.read("$folder/slots/$digest/$name").readBytes())
            }
        }
    }
}
