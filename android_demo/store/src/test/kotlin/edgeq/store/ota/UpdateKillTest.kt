package edgeq.store.ota

import edgeq.store.After
import edgeq.store.Died
import edgeq.store.Health
import edgeq.store.MemoryFiles
import edgeq.store.UNFINISHED
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.EnumSource

/** The process, or the device, ends before any one change on the disk while the app follows a channel. */
class UpdateKillTest {
    private val first = channel("good/first")
    private val second = channel("good/second")

    /** The first release whole, the second as a patch. */
    private fun life(disk: MemoryFiles) {
        Phone(disk).follow(first)
        Phone(disk).follow(second)
    }

    @ParameterizedTest
    @EnumSource(After::class)
    fun `the next run gets there, whatever the last one left`(what: After) {
        val all = MemoryFiles().also(::life).changes
        assertTrue(all > 80) { "only $all changes" }
        for (dieBefore in 0 until all) {
            val files = MemoryFiles(dieBefore = dieBefore)
            assertThrows(Died::class.java) { life(files) }
            val phone = Phone(MemoryFiles(files.after(what)))
            // whatever is installed opens
            val before = phone.library.store(KEY).state.current?.let { phone.open() }
            assertEquals("2", phone.follow(second)) { "killed before change $dieBefore, had $before" }
            assertSound(phone)
        }
    }

    @ParameterizedTest
    @EnumSource(After::class)
    fun `a second kill while it goes on changes nothing`(what: After) {
        val all = MemoryFiles().also(::life).changes
        for (dieBefore in 0 until all step 17) {
            val files = MemoryFiles(dieBefore = dieBefore)
            assertThrows(Died::class.java) { life(files) }
            for (again in 0 until 60 step 11) {
                val disk = MemoryFiles(files.after(what), dieBefore = again)
                try {
                    Phone(disk).follow(second)
                } catch (_: Died) {
                    // this time too
                }
                val phone = Phone(MemoryFiles(disk.after(what)))
                assertEquals("2", phone.follow(second))
                assertSound(phone)
            }
        }
    }

    private fun assertSound(phone: Phone) {
        val state = phone.library.store(KEY).state
        assertEquals(Health.HEALTHY, state.health)
        val slots = phone.models.list("${Phone.FOLDER}/slots").toSet()
        assertEquals(setOf(state.current, state.previous).filterNotNull().toSet(), slots)
        assertEquals(emptyList<String>(), phone.updates.list("download"))
        val left = phone.updates.list("").filter { !it.endsWith(UNFINISHED) }
        assertEquals(listOf("download", "root.json", "state.json"), left)
        assertEquals(Via.NOTHING, phone.update(second).via)
    }
}
