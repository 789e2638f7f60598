package edgeq.store

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.nio.ByteBuffer

class NativeTest {
    private fun tensor(dtype: Dtype) =
        Tensor(dtype, listOf(2, 3), ByteBuffer.wrap(ByteArray(6 * dtype.sizeBytes) { (7 * it - 90).toByte() }))

    @Test
    fun `what goes to a runtime comes back the same`() {
        for (dtype in listOf(Dtype.FLOAT32, Dtype.FLOAT64, Dtype.INT64, Dtype.INT32, Dtype.INT8, Dtype.UINT8)) {
            val before = tensor(dtype)
            val after = tensorOf(primitives(before), sides(before), unsigned = dtype == Dtype.UINT8)
            assertEquals(dtype to listOf(2, 3), after.dtype to after.shape)
            assertArrayEquals(before.toDoubles(), after.toDoubles())
        }
    }

    @Test
    fun `a kind that the runtimes do not take is named`() {
        val refused = assertThrows(IllegalArgumentException::class.java) { primitives(tensor(Dtype.FLOAT16)) }
        assertTrue("float16" in refused.message!!)
        assertThrows(IllegalArgumentException::class.java) { tensorOf("text", longArrayOf(1)) }
    }

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
