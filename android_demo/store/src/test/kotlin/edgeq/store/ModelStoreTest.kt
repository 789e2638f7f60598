package edgeq.store

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import java.io.File
import java.time.Duration
import java.time.Instant
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

class ModelStoreTest {
    private val files = MemoryFiles()
    private var now = Instant.parse("2026-11-29T12:00:00Z")
    private var device = PHONE
    private val library get() = Library(files, device, clock = { now }) // each use is a new process
    private val key = ModelKey("digits", "android-arm64-xnnpack")
    private val store get() = library.store(key)

    private fun refused(reason: Reason, text: String = "", act: () -> Unit): Refusal {
        val refusal = assertThrows(Refusal::class.java) { act() }
        assertEquals(reason, refusal.reason, refusal.message)
        assertTrue(text in refusal.message.orEmpty()) { "${refusal.message}" }
        return refusal
    }

    private fun loader(behaviour: (String) -> Behaviour = { Behaviour() }) = StandIn(XNNPACK, behaviour)

    private fun current() = store.manifest()?.modelVersion

    private fun healthy(bundle: TestBundle) {
        library.deliver(bundle)
        store.open(loader()).close()
    }

    @Test
    fun `a new bundle is tested once, and then trusted`() {
        assertEquals(key to Installed.NEW, library.deliver(XNNPACK))
        assertEquals(Health.NEW, store.state.health)
        val report = store.open(loader()).use { checkNotNull(it.firstTest) }
        assertEquals(SelfTestReport(4, true, Double.POSITIVE_INFINITY, 0, 0.0, 34.91, emptyList()), report)
        assertEquals(Health.HEALTHY, store.state.health)
        store.open(loader()).use { assertNull(it.firstTest) }
        assertEquals(key to Installed.ALREADY_THERE, library.deliver(XNNPACK))
        assertEquals(listOf(key), library.models())
    }

    @Test
    fun `a smaller difference is reported, not rolled back`() {
        library.deliver(XNNPACK)
        val report = store.open(loader { Behaviour(gain = 1.01f) }).use { checkNotNull(it.firstTest) }
        assertEquals(40.0, report.sqnrDb, 0.01) // 20 log10(1 / 0.01)
        assertTrue(report.maxAbs > 0)
        assertTrue(report.passed)
        assertEquals(Health.HEALTHY, store.state.health)
    }

    @Test
    fun `an update replaces the current one and keeps it as the previous`() {
        healthy(XNNPACK)
        healthy(XNNPACK.version("2"))
        healthy(XNNPACK.version("3"))
        assertEquals("3", current())
        assertEquals(XNNPACK.version("2").digest, store.state.previous)
        assertEquals(2, files.list("digits/android-arm64-xnnpack/slots").size)
    }

    @Test
    fun `going back to the previous version is an install like any other`() {
        healthy(XNNPACK)
        healthy(XNNPACK.version("2"))
        healthy(XNNPACK)
        assertEquals("1", current())
        assertEquals(XNNPACK.version("2").digest, store.state.previous)
    }

    private fun rolledBack(reason: Reason, behaviour: Behaviour) {
        healthy(XNNPACK)
        library.deliver(XNNPACK.version("2"))
        val loader = loader { version -> if (version == "2") behaviour else Behaviour() }
        store.open(loader).use { assertEquals("1", it.manifest.modelVersion) }
        assertEquals(1, loader.open + 1) // the failed one was closed
        val rejected = store.state.rejected.single()
        assertEquals(reason, rejected.reason)
        assertEquals("2", rejected.version)
        assertEquals(Health.HEALTHY, store.state.health)
        refused(Reason.REJECTED_BEFORE) { library.deliver(XNNPACK.version("2")) }
        assertEquals("1", current())
        // the user may insist
        assertEquals(Installed.NEW, library.import(XNNPACK.version("2")).second)
        store.open(loader()).use { assertEquals("2", it.manifest.modelVersion) }
    }

    @Test
    fun `NaN is rolled back`() = rolledBack(Reason.NOT_FINITE, Behaviour(gain = Float.NaN))

    @Test
    fun `infinity is rolled back`() = rolledBack(Reason.NOT_FINITE, Behaviour(gain = Float.POSITIVE_INFINITY))

    @Test
    fun `an answer under the floor is rolled back`() = rolledBack(Reason.BELOW_FLOOR, Behaviour(gain = 0.98f))

    @Test
    fun `a model that does not load is rolled back`() =
        rolledBack(Reason.LOAD_FAILED, Behaviour(whenLoaded = { throw IllegalStateException("error 0x14") }))

    @Test
    fun `a model that does not run is rolled back`() =
        rolledBack(Reason.RUN_FAILED, Behaviour(whenRun = { throw IllegalStateException("error 0x12") }))

    @Test
    fun `a model that crashes the app twice is rolled back`() {
        healthy(XNNPACK)
        library.deliver(XNNPACK.version("2"))
        val crashing = loader { version -> Behaviour(whenRun = { if (version == "2") throw Died() }) }
        repeat(2) {
            assertThrows(Died::class.java) { store.open(crashing) }
            assertEquals(it + 1, store.state.starts)
            assertEquals(Health.TRYING, store.state.health)
        }
        store.open(crashing).use { assertEquals("1", it.manifest.modelVersion) }
        assertEquals(Reason.CRASHED, store.state.rejected.single().reason)
    }

    /** A phone on which the second version did not get through its test. */
    private fun untested(reason: Reason, behaviour: Behaviour) {
        healthy(XNNPACK)
        library.deliver(XNNPACK.version("2"))
        val failing = loader { version -> if (version == "2") behaviour else Behaviour() }
        repeat(3) { runCatching { store.open(failing).close() } }
        assertEquals("1", current())
        assertEquals(reason, store.state.rejected.single().reason)
        refused(Reason.TRY_LATER, "after a day, or with a new app") { library.deliver(XNNPACK.version("2")) }
        refused(Reason.TRY_LATER) { library.offer(XNNPACK.version("2")) }
    }

    private fun untested() = untested(Reason.CRASHED, Behaviour(whenRun = { throw Died() }))

    private fun taken() {
        library.offer(XNNPACK.version("2"))
        store.open(loader()).use { assertEquals("2", it.manifest.modelVersion) }
        assertTrue(store.state.rejected.isEmpty())
    }

    @Test
    fun `a model whose test was killed is tried again after a day`() {
        untested()
        now += Duration.ofHours(23)
        refused(Reason.TRY_LATER) { library.deliver(XNNPACK.version("2")) }
        now += Duration.ofHours(1)
        taken()
    }

    @Test
    fun `or with a new app`() {
        untested()
        device = Device(PHONE.platform, PHONE.archs, PHONE.runtimes, app = "new")
        taken()
    }

    @Test
    fun `or when the clock was set back`() {
        untested()
        now -= Duration.ofDays(400)
        taken()
    }

    @Test
    fun `or where an older app took it out of use for ever`() {
        untested()
        val state = files.read("digits/android-arm64-xnnpack/state.json").readBytes().decodeToString()
        val old = state.replace(Regex(",\"since_s\":[0-9]+,\"app\":\"\""), "")
        assertTrue(old.length < state.length)
        files.writeAtomic("digits/android-arm64-xnnpack/state.json", old.toByteArray())
        taken()
    }

    @Test
    fun `a model that the app brought and for which there was no memory is tried again after a day`() {
        untested(Reason.NO_MEMORY, Behaviour(whenLoaded = { throw OutOfMemoryError("Java heap space") }))
        now += Duration.ofDays(1)
        healthy(XNNPACK.version("2"))
        assertEquals("2", current())
    }

    @Test
    fun `what is brought by the app itself is tried again after a day too`() {
        healthy(XNNPACK)
        library.offer(XNNPACK.version("2"))
        val dying = loader { version -> Behaviour(whenRun = { if (version == "2") throw OutOfMemoryError("native") }) }
        store.open(dying).use { assertEquals("1", it.manifest.modelVersion) }
        refused(Reason.TRY_LATER) { library.offer(XNNPACK.version("2")) }
        now += Duration.ofDays(1)
        taken()
    }

    @Test
    fun `a failed test stays one, after a year and with a new app`() {
        rolledBack(Reason.BELOW_FLOOR, Behaviour(gain = 0.98f))
        library.deliver(XNNPACK.version("3"))
        store.open(loader { version -> Behaviour(gain = if (version == "3") Float.NaN else 1f) }).close()
        now += Duration.ofDays(365)
        device = Device(PHONE.platform, PHONE.archs, PHONE.runtimes, app = "new")
        refused(Reason.REJECTED_BEFORE) { library.deliver(XNNPACK.version("3")) }
    }

    @Test
    fun `want of memory is not held against the only model`() {
        library.offer(XNNPACK)
        val failing = loader { Behaviour(whenRun = { throw OutOfMemoryError("native") }) }
        repeat(5) { refused(Reason.NO_MEMORY, "close other apps") { store.open(failing) } }
        store.open(loader()).close()
        // nor of one that was healthy
        refused(Reason.NO_MEMORY) { store.open(loader { Behaviour(whenLoaded = { throw OutOfMemoryError("native") }) }) }
        assertEquals(Health.HEALTHY, store.state.health)
    }

    @Test
    fun `one kill while starting is forgiven`() {
        library.deliver(XNNPACK)
        assertThrows(Died::class.java) { store.open(loader { Behaviour(whenLoaded = { throw Died() }) }) }
        store.open(loader()).close()
        assertEquals(0, store.state.starts)
        assertTrue(store.state.rejected.isEmpty())
    }

    @Test
    fun `without a previous one the failure is named, and again at the next start`() {
        library.offer(XNNPACK)
        refused(Reason.NOT_FINITE) { store.open(loader { Behaviour(gain = Float.NaN) }) }
        refused(Reason.NO_MODEL, "NaN") { store.open(loader()) }
        refused(Reason.REJECTED_BEFORE) { library.offer(XNNPACK) }
        assertTrue(library.models().isEmpty())
        library.deliver(XNNPACK.version("2"))
        store.open(loader()).close()
    }

    @Test
    fun `a missing library is not held against the model`() {
        library.deliver(XNNPACK)
        val missing = loader { Behaviour(whenLoaded = { throw UnsatisfiedLinkError("libexecutorch.so") }) }
        repeat(5) { refused(Reason.RUNTIME_MISSING, "libexecutorch.so") { store.open(missing) } }
        store.open(loader()).close()
    }

    @Test
    fun `what the app brings along does not undo an update`() {
        library.offer(XNNPACK)
        store.open(loader()).close()
        healthy(XNNPACK.version("2"))
        library.offer(XNNPACK)
        assertEquals("2", current())
        library.offer(XNNPACK.version("3")) // a new build of the app
        assertEquals("3", current())
    }

    @Test
    fun `an untested update does not become the one to go back to`() {
        healthy(XNNPACK)
        library.deliver(XNNPACK.version("2"))
        library.deliver(XNNPACK.version("3"))
        assertEquals(XNNPACK.digest, store.state.previous)
    }

    @Test
    fun `a slot that the disk damaged gives way, and can be installed again`(@TempDir folder: File) {
        val disk = Library(DiskFiles(folder), PHONE)
        disk.offer(XNNPACK)
        disk.store(key).open(loader()).close()
        disk.deliver(XNNPACK.version("2"))
        disk.store(key).open(loader()).close()
        File(folder, "digits/android-arm64-xnnpack/slots/${XNNPACK.version("2").digest}/model.pte").appendText("x")
        disk.store(key).open(loader()).use { assertEquals("1", it.manifest.modelVersion) }
        assertEquals(Installed.NEW, disk.deliver(XNNPACK.version("2")).second)
        disk.store(key).open(loader()).use { assertEquals("2", it.manifest.modelVersion) }
    }

    @Test
    fun `a lost state is a fresh start`() {
        healthy(XNNPACK)
        files.writeAtomic("digits/android-arm64-xnnpack/state.json", "{".toByteArray())
        refused(Reason.NO_MODEL) { store.open(loader()) }
        library.offer(XNNPACK)
        store.open(loader()).close()
    }

    @Test
    fun `a full disk leaves the old one, whatever it was writing`() {
        healthy(XNNPACK)
        var used = 0L
        while (true) {
            files.left = used
            try {
                library.deliver(XNNPACK.version("2"))
                break
            } catch (refusal: Refusal) {
                assertEquals(Reason.DISK, refusal.reason)
            }
            files.left = Long.MAX_VALUE
            assertEquals("1", current())
            store.open(loader()).close()
            used += 5_000
        }
        assertTrue(used > 60_000)
        files.left = Long.MAX_VALUE
        assertEquals("2", current())
    }

    @Test
    fun `a ZIP is installed like a folder, on a real disk`(@TempDir folder: File) {
        val zip = File(folder, "bundle.zip")
        spool(zipped(XNNPACK.files).inputStream(), zip, 1_000_000)
        val disk = Library(DiskFiles(File(folder, "models")), PHONE)
        ZipSource(zip).use { disk.import(it) }
        disk.store(key).open(loader()).close()
        assertEquals(XNNPACK.digest, disk.store(key).state.current)
        refused(Reason.TOO_LARGE) { spool(zip.inputStream(), File(folder, "other"), 1000) }
        zip.writeText("no ZIP")
        refused(Reason.NO_MODEL, "not a bundle") { ZipSource(zip) }
    }

    @Test
    fun `a ZIP with a path in it is refused`(@TempDir folder: File) {
        val zip = File(folder, "bundle.zip")
        zip.writeBytes(zipped(XNNPACK.files + ("../../evil" to byteArrayOf(1))))
        refused(Reason.FILE_NOT_LISTED, "../../evil") { ZipSource(zip).use { library.import(it) } }
        assertTrue(library.models().isEmpty())
    }

    @Test
    fun `two models live side by side`() {
        healthy(XNNPACK)
        library.deliver(QNNPACK)
        assertEquals(listOf("android-arm64-xnnpack", "android-arm64-qnnpack"), library.models().map { it.target })
        assertEquals("digits", library.store(library.models()[0]).manifest()?.modelName)
    }

    @Test
    fun `a model whose runtime the app no longer carries comes last`() {
        healthy(XNNPACK)
        library.deliver(QNNPACK)
        val torch = PHONE.runtimes.filter { it.name == "torchscript" }
        val updated = Library(files, Device(PHONE.platform, PHONE.archs, torch))
        assertEquals(listOf("android-arm64-qnnpack", "android-arm64-xnnpack"), updated.models().map { it.target })
    }

    @ParameterizedTest
    @MethodSource("notForHere")
    fun `what was not made for this device is refused`(reason: Reason, bundle: TestBundle, text: String) {
        healthy(XNNPACK)
        val before = files.changes
        refused(reason, text) { library.deliver(bundle) }
        assertEquals(before, files.changes)
    }

    @ParameterizedTest
    @MethodSource("damaged")
    fun `a damaged bundle is refused, and the old one stays`(reason: Reason, bundle: TestBundle) {
        healthy(XNNPACK.version("0"))
        refused(reason) { library.deliver(bundle) }
        store.open(loader()).use { assertEquals("0", it.manifest.modelVersion) }
        assertTrue(files.list("digits/android-arm64-xnnpack").none { it == "staging" })
    }

    @ParameterizedTest
    @MethodSource("brokenGolden")
    fun `golden samples that cannot be used are no proof`(data: ByteArray) {
        healthy(XNNPACK)
        library.deliver(XNNPACK.version("2").replaced("golden.npz", data))
        store.open(loader()).use { assertEquals("1", it.manifest.modelVersion) }
        assertEquals(Reason.GOLDEN_BROKEN, store.state.rejected.single().reason)
    }

    @Test
    fun `an app with an older runtime takes the model out of use`() {
        healthy(XNNPACK)
        val older = Device("android", setOf("arm64"), listOf(RuntimeSupport("executorch", "1.4.2", setOf("xnnpack"))))
        refused(Reason.RUNTIME_TOO_OLD) { Library(files, older).store(key).open(loader()) }
        library.offer(XNNPACK)
        assertNotNull(store.open(loader()).use { it.firstTest })
    }

    companion object {
        private fun case(reason: Reason, bundle: TestBundle, text: String = "") = arrayOf(reason, bundle, text)

        @JvmStatic
        fun notForHere() = listOf(
            case(Reason.WRONG_PLATFORM, XNNPACK.edited("\"platform\": \"android\"", "\"platform\": \"ios\""), "ios"),
            case(Reason.WRONG_ARCH, XNNPACK.edited("\"arch\": \"arm64\"", "\"arch\": \"x86_64\""), "x86_64"),
            case(Reason.NOT_ACCEPTED, XNNPACK.edited("\"accepted\": true", "\"accepted\": false")),
            case(Reason.RANDOM_WEIGHTS, XNNPACK.edited("\"weights\": \"own\"", "\"weights\": \"random\"")),
            case(Reason.RUNTIME_TOO_OLD, XNNPACK.edited("\"exported_with\": \"1.5.1\"", "\"exported_with\": \"1.6.0\""), "1.6.0"),
            case(Reason.RUNTIME_TOO_OLD, XNNPACK.edited("\"exported_with\": \"1.5.1\"", "\"exported_with\": \"unknown\"")),
            case(Reason.RUNTIME_MISSING, XNNPACK.edited("\"backend\": \"xnnpack\"", "\"backend\": \"vulkan\""), "vulkan"),
            case(Reason.RUNTIME_TOO_OLD, QNNPACK.edited("\"bytecode_version\": 8", "\"bytecode_version\": 10"), "10"),
            case(Reason.RUNTIME_TOO_OLD, QNNPACK.edited("\"bytecode_version\": 8", "\"bytecode_version\": null")),
            case(Reason.SCHEMA_TOO_NEW, XNNPACK.edited("\"schema_version\": 1", "\"schema_version\": 2"), "update the app"),
            case(Reason.MANIFEST_BROKEN, XNNPACK.with(MANIFEST_NAME, "{}".toByteArray())),
            case(Reason.NO_MODEL, XNNPACK.without(MANIFEST_NAME)),
            case(Reason.TOO_LARGE, XNNPACK.edited("\"size_bytes\": 59304", "\"size_bytes\": 9007199254740000")),
        )

        @JvmStatic
        fun damaged(): List<Array<Any>> {
            val model = XNNPACK.files.getValue("model.pte")
            val flipped = model.copyOf().also { it[100] = (it[100] + 1).toByte() }
            return listOf(
                arrayOf(Reason.FILE_HASH, XNNPACK.with("model.pte", flipped)),
                arrayOf(Reason.FILE_SIZE, XNNPACK.with("model.pte", model.copyOf(model.size - 1))),
                arrayOf(Reason.FILE_SIZE, XNNPACK.with("model.pte", model + 0)),
                arrayOf(Reason.FILE_SIZE, XNNPACK.with("model.pte", ByteArray(0))),
                arrayOf(Reason.FILE_SIZE, XNNPACK.with("model.pte", QNNPACK.files.getValue("model.ptl"))),
                arrayOf(Reason.FILE_MISSING, XNNPACK.without("model.pte")),
                arrayOf(Reason.FILE_MISSING, XNNPACK.without("golden.npz")),
                arrayOf(Reason.FILE_NOT_LISTED, XNNPACK.with("libevil.so", model)),
            )
        }

        @JvmStatic
        fun brokenGolden(): List<ByteArray> {
            val golden = XNNPACK.files.getValue("golden.npz")
            return listOf(
                "no ZIP".toByteArray(),
                golden.copyOf(golden.size / 2),
                zipped(mapOf("input_image.npy" to "no array".toByteArray())),
                QNNPACK.files.getValue("model.ptl"),
            )
        }

        private fun zipped(files: Map<String, ByteArray>): ByteArray {
            val out = java.io.ByteArrayOutputStream()
            ZipOutputStream(out).use { zip ->
                for ((name, data) in files) {
                    zip.putNextEntry(ZipEntry(name))
                    zip.write(data)
                }
            }
            return out.toByteArray()
        }
    }
}
