package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** The verdict on golden outputs: `edgeq verify`'s own on the same bytes (scripts/store_vectors.py). */
class SelfTestTest {
    private val arrays = parseNpz(vector("golden.npz"))
    private val cases = (parseJson(vector("golden.json")) as List<*>).map { JsonObject(it as Map<*, *>, "") }

    /** Answers the golden samples one after the other. */
    private class Recorded(private val outputs: List<List<Tensor>>) : LoadedModel {
        private var next = 0

        override fun run(inputs: List<Tensor>) = outputs[next++]

        override fun close() = Unit
    }

    private fun tested(expected: List<Tensor>, measured: List<Tensor>, floorDb: Double): SelfTestReport {
        val rows = expected.first().shape.first()
        val golden = Golden(List(rows) { row -> emptyList<Tensor>() to expected.map { it[row] } }, emptyList())
        return golden.test(Recorded(List(rows) { row -> measured.map { batch(it[row]) } }), floorDb)
    }

    private fun batch(row: Tensor) = row.reshape(listOf(1) + row.shape)

    private fun column(vararg rows: FloatArray) = Tensor.of(rows.flatMap { it.asIterable() }.toFloatArray(), listOf(rows.size, rows[0].size))

    @Test
    fun `the app refuses what the host refuses, and names the same channels`() {
        cases.forEachIndexed { index, case ->
            val side = { name: String -> List(case.count("outputs").toInt()) { arrays.getValue("${name}_${index}_$it") } }
            val report = tested(side("expected"), side("measured"), case.number("floor_db"))
            assertEquals(case.flag("passed"), report.passed) { "case $index: $case $report" }
            assertEquals(case.text("lost"), report.lost.joinToString()) { "case $index: $report" }
            val sqnrDb = case.measure("sqnr_db")
            if (sqnrDb.isFinite()) {
                assertEquals(sqnrDb, report.sqnrDb, 1e-3 * maxOf(1.0, kotlin.math.abs(sqnrDb))) { "case $index" }
            } else {
                assertEquals(sqnrDb, report.sqnrDb) { "case $index" }
            }
        }
        val hidden = cases.count { it.text("lost").isNotEmpty() && it.measure("sqnr_db") >= it.number("floor_db") }
        assertTrue(hidden >= 10) { "only $hidden cases that the whole output hides" }
    }

    @Test
    fun `a detector without objectness is refused by the channel's name`() {
        val expected = column(floatArrayOf(640f, 320f, 0.9f), floatArrayOf(12f, 40f, 0.1f), floatArrayOf(77f, 600f, 0.4f))
        val measured = column(floatArrayOf(640f, 320f, 0f), floatArrayOf(12f, 40f, 0f), floatArrayOf(77f, 600f, 0f))
        val report = tested(listOf(expected), listOf(measured), 20.0)
        assertTrue(report.sqnrDb > 55) { "$report" }
        assertEquals("lost: output 0, channel 2 (0.0 dB)", report.failure)
    }

    @Test
    fun `the worst output counts and is named`() {
        val good = column(floatArrayOf(1f, 2f, 3f))
        val report = tested(listOf(good, good), listOf(good, column(floatArrayOf(9f, -9f, 9f))), 20.0)
        assertEquals(1, report.worstOutput)
        assertTrue(report.failure.startsWith("output 1: SQNR -")) { report.failure }
        val broken = tested(listOf(good, good), listOf(good, column(floatArrayOf(1f, Float.NaN, 3f))), 20.0)
        assertEquals("output 1 holds NaN or infinity", broken.failure)
        assertTrue(!broken.passed)
    }

    @Test
    fun `an infinity that both have is equal, and any other is not`() {
        val masked = column(floatArrayOf(1f, Float.NEGATIVE_INFINITY, 3f))
        val report = tested(listOf(masked), listOf(masked), 20.0)
        assertTrue(report.passed) { "$report" }
        assertEquals(Double.POSITIVE_INFINITY, report.sqnrDb)
        for (other in listOf(Float.POSITIVE_INFINITY, Float.NaN, -1e4f)) {
            val broken = tested(listOf(masked), listOf(column(floatArrayOf(1f, other, 3f))), 20.0)
            assertEquals("output 0 holds NaN or infinity", broken.failure)
        }
    }

    /** Adds its input to the state, with a scale of its own. */
    private class Adding(private val scale: Float) : LoadedModel {
        override fun run(inputs: List<Tensor>): List<Tensor> {
            val (x, state) = inputs.map { it.toDoubles().single().toFloat() }
            return listOf(Tensor.of(floatArrayOf(scale * state + x), listOf(1, 1)))
        }

        override fun close() = Unit
    }

    @Test
    fun `a state is what the device itself made of the sample before`() {
        val one = Tensor.of(floatArrayOf(1f), listOf(1, 1))
        val sums = listOf(0f, 1f, 2f, 3f).map { Tensor.of(floatArrayOf(it), listOf(1, 1)) }
        // the recorded states are right, and an error of the device's own adds up
        val samples = List(3) { listOf(one, sums[it]) to listOf(sums[it + 1].reshape(listOf(1))) }
        val fed = Golden(samples, emptyList(), listOf(null, 0))
        assertEquals(Double.POSITIVE_INFINITY, fed.test(Adding(1f), 20.0).sqnrDb)
        assertEquals(Golden(samples, emptyList()).test(Adding(0.9f), 10.0).maxAbs, 0.2, 1e-6)
        assertEquals(fed.test(Adding(0.9f), 10.0).maxAbs, 0.29, 1e-6)
    }

    @Test
    fun `a state of another shape is refused`() {
        val one = Tensor.of(floatArrayOf(1f), listOf(1, 1))
        val golden = Golden(List(2) { listOf(one, one.reshape(listOf(1))) to listOf(one.reshape(listOf(1))) }, emptyList(), listOf(null, 0))
        assertEquals(Reason.RUN_FAILED, assertThrows(Refusal::class.java) { golden.test(Adding(1f), -99.0) }.reason)
    }

    @Test
    fun `outputs of another shape or dtype are refused`() {
        val expected = column(floatArrayOf(1f, 2f, 3f, 4f))
        val bytes = Tensor.of(byteArrayOf(1, 2, 3, 4), listOf(1, 4))
        for (other in listOf(column(floatArrayOf(1f, 2f, 3f)), expected.reshape(listOf(1, 2, 2)), bytes)) {
            val refusal = assertThrows(Refusal::class.java) { tested(listOf(expected), listOf(other), 3.0) }
            assertEquals(Reason.RUN_FAILED, refusal.reason)
        }
        assertThrows(Refusal::class.java) { tested(listOf(expected), listOf(expected, expected), 3.0) }
    }
}
