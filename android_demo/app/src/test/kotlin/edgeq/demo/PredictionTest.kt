package edgeq.demo

import edgeq.store.REPOSITORY
import edgeq.store.Tensor
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.io.File

class PredictionTest {
    @Test
    fun `the best three come first, as shares`() {
        val logits = Tensor.of(floatArrayOf(1f, 1000f, 999f, 0f), listOf(1, 4))
        val best = prediction(listOf(logits), listOf("a", "b", "c")).best
        assertEquals(listOf("b", "c", "a"), best.map { it.label })
        assertEquals(0.731, best[0].share, 0.001) // 1 / (1 + 1 / e)
        assertEquals(1.0, best.sumOf { it.share }, 1e-9)
    }

    @Test
    fun `a class without a label goes by its index, and few classes give few scores`() {
        val scores = Tensor.of(floatArrayOf(0f, 1f), listOf(2))
        assertEquals(listOf("1", "0"), prediction(listOf(scores), emptyList()).best.map { it.label })
    }

    @Test
    fun `latencies keep the last fifty`() {
        val latencies = Latencies()
        assertNull(latencies.medianMs)
        repeat(100) { latencies.add(it.toDouble()) }
        assertEquals(50, latencies.count)
        assertEquals(74.0, latencies.medianMs)
        assertEquals(99.0, latencies.lastMs)
    }

    @Test
    fun `the versions in the code are those of the libraries`() {
        val catalog = File(REPOSITORY, "android_demo/gradle/libs.versions.toml").readText()
        assertTrue("executorch = \"$EXECUTORCH_VERSION\"" in catalog)
        assertTrue("pytorch-lite = \"$PYTORCH_LITE_VERSION\"" in catalog)
        assertTrue("onnxruntime = \"$ONNXRUNTIME_VERSION\"" in catalog)
    }

    @Test
    fun `the two builds use the same versions`() {
        val catalog = File(REPOSITORY, "android_demo/gradle/libs.versions.toml").readText()
        val pom = File(REPOSITORY, "android_demo/pom.xml").readText()
        for (name in listOf("kotlin", "jackson", "junit", "tink", "zstd", "commons-compress", "onnxruntime")) {
            val version = Regex("<$name.version>(.*)</$name.version>").find(pom)!!.groupValues[1]
            assertTrue("$name = \"$version\"" in catalog) { "$name $version" }
        }
    }
}
