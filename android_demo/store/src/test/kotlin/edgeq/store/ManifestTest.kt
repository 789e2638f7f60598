package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource
import org.junit.jupiter.params.provider.MethodSource
import java.io.File
import java.util.Random

class ManifestTest {
    private fun broken(text: String): String {
        val refusal = assertThrows(Refusal::class.java) { parseManifest(text.toByteArray()) }
        assertEquals(Reason.MANIFEST_BROKEN, refusal.reason, refusal.message)
        return refusal.message.orEmpty()
    }

    @Test
    fun `there are golden bundles`() = assertTrue(GOLDEN_FOLDERS.size >= 3) { "$GOLDEN_FOLDERS" }

    @ParameterizedTest
    @MethodSource("goldenFolders")
    fun `every golden bundle is read, and its files are what it lists`(folder: File) {
        val manifest = parseManifest(File(folder, MANIFEST_NAME).readBytes())
        assertEquals(folder.name, manifest.target.name)
        for (entry in manifest.files) {
            val data = File(folder, entry.path).readBytes()
            assertEquals(entry.sizeBytes, data.size.toLong())
            assertEquals(entry.sha256, data.sha256())
        }
        val golden = parseGolden(manifest, File(folder, manifest.goldenFile.path).readBytes())
        assertEquals(manifest.golden.samples, golden.samples.size)
    }

    @Test
    fun `what the device needs is there`() {
        val manifest = XNNPACK.manifest
        assertEquals("digits", manifest.modelName)
        assertEquals("static-int8", manifest.scheme)
        assertEquals(2, manifest.threads)
        assertEquals(List(10) { "$it" }, manifest.labels)
        assertEquals(RuntimeFacts("executorch", "1.5.1", null), manifest.runtime)
        assertEquals(8L, QNNPACK.manifest.runtime.bytecodeVersion)
        val input = manifest.inputs.single()
        assertEquals(listOf(1, 1, 32, 32), input.shape)
        val spec = Preprocess(true, listOf(32, 32), null, (1 / 255.0).toFloat(), listOf(0.31f), listOf(0.38f), true)
        assertEquals(spec, input.preprocess)
        assertEquals(GoldenFacts(4, false, 34.91), manifest.golden)
    }

    /** The digests that `edgeq install` prints for these bundles. */
    @ParameterizedTest
    @CsvSource("android-arm64-xnnpack,223090a70157", "android-arm64-qnnpack,ffa8658ded09")
    fun `the digest is edgeq's`(target: String, start: String) {
        val bundle = if (target == XNNPACK.manifest.target.name) XNNPACK else QNNPACK
        assertEquals(start, bundle.digest.take(12))
    }

    @ParameterizedTest
    @MethodSource("edits")
    fun `what edgeq would not write is refused by name`(old: String, new: String, why: String) {
        val message = broken(XNNPACK.edited(old, new).manifestText)
        assertTrue(why in message) { message }
    }

    @Test
    fun `a preprocessing step that this store does not know is refused`() {
        val message = broken(XNNPACK.edited("\"crop\": null", "\"crop\": null, \"gamma\": 2.2").manifestText)
        assertTrue("preprocessing.gamma" in message) { message }
    }

    @Test
    fun `every key that edgeq writes today is read`() {
        val bytes = checkNotNull(ManifestTest::class.java.getResourceAsStream("/vectors/manifest.json")).readBytes()
        assertEquals(4, parseManifest(bytes).golden.samples)
    }

    @Test
    fun `a size that varies keeps to its range and its step`() {
        val bytes = checkNotNull(ManifestTest::class.java.getResourceAsStream("/vectors/manifest.json")).readBytes()
        val input = parseManifest(bytes).inputs.first()
        assertEquals(listOf(SizeRange(2, "height", 16, 32, 16)), input.varying)
        for (fits in listOf(16, 32)) assertTrue(input.takes(listOf(1, 1, fits, 32)))
        for (other in listOf(15, 24, 33, 48)) assertTrue(!input.takes(listOf(1, 1, other, 32)))
        assertTrue(!input.takes(listOf(1, 1, 32, 16)))
        val small = Tensor.of(FloatArray(16 * 32), listOf(1, 16, 32))
        assertEquals(listOf(1, 1, 16, 32), batched(input, small).shape)
        val wrong = assertThrows(IllegalArgumentException::class.java) { batched(input, small.reshape(listOf(1, 32, 16))) }
        assertTrue("height from 16 to 32" in wrong.message.orEmpty())
        val text = bytes.decodeToString()
        assertTrue("height" in text)
        assertTrue("does not fit the shape" in broken(text.replace("\"least\": 16", "\"least\": 33")))
    }

    @Test
    fun `a state names the output that it is fed from`() {
        val bytes = checkNotNull(ManifestTest::class.java.getResourceAsStream("/vectors/manifest.json")).readBytes()
        val (image, state) = parseManifest(bytes).inputs
        assertEquals(null, image.fedFrom)
        assertEquals(0, state.fedFrom)
        val text = bytes.decodeToString()
        for (wrong in listOf("\"fed_from\": 1", "\"fed_from\": -1")) {
            broken(text.replace("\"fed_from\": 0", wrong))
        }
        assertTrue("does not fit the output" in broken(text.replace("\"fed_from\": 0", "\"fed_from\": 1")))
    }

    @Test
    fun `sections that only describe may grow`() {
        parseManifest(XNNPACK.edited("\"parity\": {", "\"note\": 1, \"parity\": { \"new\": [],").manifestText.toByteArray())
    }

    @Test
    fun `bytes that are no JSON object are refused`() {
        for (text in listOf("", "[]", "null", "{", "{} {}", "\uFEFF{}", "[".repeat(100_000), "{\"a\": tru}", "'")) broken(text)
        val refusal = assertThrows(Refusal::class.java) { parseManifest(byteArrayOf(0x7b, 0xff.toByte(), 0x7d)) }
        assertTrue("UTF-8" in refusal.message.orEmpty())
        assertThrows(Refusal::class.java) { parseManifest(ByteArray(MAX_MANIFEST_BYTES + 1) { ' '.code.toByte() }) }
    }

    /** Any change of the text gives a manifest or a refusal, never another exception. */
    @Test
    fun `random damage never escapes`() {
        val bytes = XNNPACK.files.getValue(MANIFEST_NAME)
        val random = Random(0)
        var refused = 0
        repeat(3000) {
            val damaged = bytes.copyOf(if (it % 3 == 0) random.nextInt(bytes.size) else bytes.size)
            if (damaged.isNotEmpty()) damaged[random.nextInt(damaged.size)] = random.nextInt(256).toByte()
            try {
                parseManifest(damaged)
            } catch (refusal: Refusal) {
                refused++
            }
        }
        assertTrue(refused > 1000) { "$refused" }
    }

    @Test
    fun `a language model has a context and a tokenizer`() {
        val folder = File(REPOSITORY, "android_demo/app/src/test/resources/bundles/llama/android-arm64-xnnpack")
        val text = File(folder, MANIFEST_NAME).readText()
        val manifest = parseManifest(text.toByteArray())
        assertEquals(LanguageFacts(contextLength = 48, vocabulary = 300, eosIds = listOf(1)), manifest.language)
        assertEquals("tokenizer.json", manifest.tokenizer?.path)
        assertNull(XNNPACK.manifest.language)
        assertNull(XNNPACK.manifest.tokenizer)
        val wrong = listOf(
            "\"context_length\": 48" to "\"context_length\": 0",
            "\"vocabulary\": 300" to "\"vocabulary\": -1",
            "\"role\": \"tokenizer\"" to "\"role\": \"artifact\"",
            "\"role\": \"golden\"" to "\"role\": \"tokenizer\"",
            "\"bos_id\": 0" to "\"begin\": 0",
        )
        for ((old, new) in wrong) {
            check(old in text) { "the manifest has no $old" }
            val refused = assertThrows(Refusal::class.java) { parseManifest(text.replace(old, new).toByteArray()) }
            assertEquals(Reason.MANIFEST_BROKEN, refused.reason)
        }
    }

    companion object {
        @JvmStatic
        fun goldenFolders() = GOLDEN_FOLDERS

        private fun edit(old: String, new: String, why: String) = arrayOf(old, new, why)

        @JvmStatic
        fun edits() = listOf(
            edit("\"path\": \"model.pte\"", "\"path\": \"../model.pte\"", "files[1].path"),
            edit("\"path\": \"model.pte\"", "\"path\": \"/model.pte\"", "files[1].path"),
            edit("\"path\": \"model.pte\"", "\"path\": \"GOLDEN.npz\"", "share a name"),
            edit("\"path\": \"model.pte\"", "\"path\": \"Manifest.json\"", "share a name"),
            edit("\"role\": \"artifact\"", "\"role\": \"golden\"", "one artifact"),
            edit("\"name\": \"digits\"", "\"name\": \"..\"", "model.name"),
            edit("\"name\": \"digits\"", "\"name\": \"\"", "model.name"),
            edit("\"version\": \"1\"", "\"version\": 1", "model.version"),
            edit("\"threads\": 2", "\"threads\": 0", "threads must be 1 to 64"),
            edit("\"threads\": 2", "\"threads\": 2.0", "threads"),
            edit("\"threads\": 2", "\"threads\": 99999999999999999999", "Numeric"),
            edit("\"size_bytes\": 59304", "\"size_bytes\": -1", "files[1].size_bytes"),
            edit("\"sqnr_floor_db\": 34.91", "\"sqnr_floor_db\": \"nan\"", "sqnr_floor_db"),
            edit("\"sqnr_floor_db\": 34.91", "\"sqnr_floor_db\": 1e999", "finite"),
            edit("\"sqnr_floor_db\": 34.91", "\"sqnr_floor_db\": NaN", "NaN"),
            edit("\"scheme\": \"static-int8\"", "\"scheme\": \"x\", \"scheme\": \"y\"", "uplicate"),
            edit("\"dtype\": \"float32\",\n      \"name\": \"image\"", "\"dtype\": \"complex64\", \"name\": \"image\"", "dtype"),
            edit("\"mean\": [\n          0.31\n        ]", "\"mean\": [1, 2]", "one a channel"),
            edit("\"std\": [\n          0.38\n        ]", "\"std\": [0.0]", "positive"),
            edit("\"color\": \"gray\"", "\"color\": \"bgr\"", "color"),
            edit("\"layout\": \"NCHW\"", "\"layout\": \"NCWH\"", "layout"),
            edit("\"resize\": [\n          32,\n          32\n        ]", "\"resize\": [32, 32, 32]", "resize"),
            edit("\"resize\": [\n          32,\n          32\n        ]", "\"resize\": 99999", "resize"),
            edit("\"schema_version\": 1", "\"schema_version\": true", "schema_version"),
            edit("\"schema_version\": 1", "\"schema_version\": 0", "schema_version"),
        )
    }
}
