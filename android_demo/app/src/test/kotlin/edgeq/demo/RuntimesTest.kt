package edgeq.demo

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

class RuntimesTest {
    @Test
    fun `a runtime's want of memory has a type of its own`() {
        for (
            said in listOf(
                "[Executorch Error 0x21] Memory allocation failed: Failed to load method",
                "[Executorch Error 0x25] Out of resources: x",
                "[Executorch Error 0x31] Delegate memory allocation failed: x",
                "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
            )
        ) {
            val err = RuntimeException(said)
            assertEquals(err, assertThrows(OutOfMemoryError::class.java) { native { throw err } }.cause)
        }
    }

    @Test
    fun `its other errors stay what they are`() {
        for (said in listOf("[Executorch Error 0x210] x", "[Executorch Error 0x12] Invalid argument: 0x21", "", null)) {
            val err = IllegalStateException(said)
            assertEquals(err, assertThrows(IllegalStateException::class.java) { native { throw err } })
        }
        assertEquals(7, native { 7 })
    }
}
