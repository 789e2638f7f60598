package edgeq.demo

import edgeq.store.Dtype
import edgeq.store.Tensor
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.nio.ByteBuffer

class PrimitivesTest {
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
}
