package edgeq.store

import edgeq.store.ota.KEY
import edgeq.store.ota.NOW
import edgeq.store.ota.Phone
import edgeq.store.ota.Updater
import edgeq.store.ota.channel
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTimeoutPreemptively
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.nio.file.Files.createSymbolicLink
import java.nio.file.Files.isSymbolicLink
import java.time.Duration

/** Links below the store's folders, on a real disk: nothing outside is written or removed. */
class LinksTest {
    @TempDir
    lateinit var temporary: File

    /** An app's folder with two models of one channel, the second one current. */
    private inner class App(name: String) {
        val folder = File(temporary, name).also { it.mkdir() }
        val store = File(folder, "models/${Phone.FOLDER}")
        private val library get() = Library(DiskFiles(File(folder, "models")), PHONE)

        init {
            library.offer(XNNPACK)
            open()
            update("good/second")
            open()
        }

        fun open(): String = library.store(KEY).open(StandIn(XNNPACK)).use { it.manifest.modelVersion }

        fun update(name: String) {
            val root = channel("good/first").files.getValue("metadata/1.root.json")
            Updater(DiskFiles(File(folder, "updates")), library, PHONE, channel(name), root, "phone-1", clock = { NOW }).update(KEY)
        }

        /** All that an app does with its store; what is refused goes on. */
        fun live(): List<Reason> = listOf(
            { library.offer(XNNPACK.version("4")) },
            { open() },
            { library.deliver(XNNPACK.version("3")) },
            { open() },
            { update("good/withdrawn") },
            { update("good/first") },
            { library.models() },
            { open() },
        ).mapNotNull { act ->
            try {
                act()
                null
            } catch (err: Refusal) {
                err.reason
            }
        }
    }

    private fun content(folder: File): Map<String, String> = folder.walk().filter { it.isFile || it.list()?.isEmpty() == true }
        .associate { it.relativeTo(folder).path to if (it.isFile) it.readBytes().sha256() else "empty" }

    /** Puts a link in a path's place, to somebody else's files, which look just like what was there. */
    private fun linked(app: App, path: String): File {
        val place = File(app.folder, path)
        val outside = File(temporary, "outside-${app.folder.name}")
        if (place.exists()) place.copyRecursively(outside) else outside.writeText("somebody's")
        if (outside.isDirectory) {
            File(outside, "keep").writeText("somebody's")
            File(outside, "staging").mkdir()
            File(outside, "staging/keep").writeText("somebody's")
        }
        place.deleteRecursively()
        createSymbolicLink(place.toPath(), outside.toPath())
        return outside
    }

    @Test
    fun `a link in any place of the store is not followed`() {
        val some = App("some")
        val own = some.folder.walk().map { it.relativeTo(some.folder).path }.filter { it.isNotEmpty() }.toList()
        val part = channel("good/first").path(".zip").substringAfter('/').substringBefore('.')
        val none = listOf("staging", "staging/model.pte", "state.json.new", "slots/7").map { "models/${Phone.FOLDER}/$it" } +
            listOf("download/$part.part", "download/other", "state.json.new", "root.json.new").map { "updates/$it" }
        assertTrue(own.size >= 16) { "$own" }
        (own + none).forEachIndexed { index, path ->
            val app = App("app$index")
            if (path.endsWith("staging/model.pte")) File(app.store, "staging").mkdir()
            val outside = linked(app, path)
            val before = if (outside.isFile) mapOf("" to outside.readText()) else content(outside)
            val reasons = app.live()
            assertEquals(before, if (outside.isFile) mapOf("" to outside.readText()) else content(outside)) { "$path $reasons" }
            val allowed = setOf(Reason.LINK, Reason.ROLLBACK, Reason.NO_MODEL, Reason.REJECTED_BEFORE)
            assertTrue(reasons.all { it in allowed }) { "$path: $reasons" }
            app.folder.deleteRecursively()
        }
    }

    @Test
    fun `a link for a whole store is refused by its name`() {
        for (path in listOf("models", "updates", "models/${Phone.FOLDER}/slots", "models/${Phone.FOLDER}/state.json", "updates/download")) {
            val app = App(path.replace('/', '-'))
            linked(app, path)
            val refusal = assertThrows(Refusal::class.java) { app.open(); app.update("good/withdrawn") }
            assertEquals(Reason.LINK, refusal.reason)
            assertTrue("${File(app.folder, path)} is a link" in refusal.message!!, refusal.message)
        }
    }

    @Test
    fun `a link for the current model is damage, and gives way to the previous one`() {
        val app = App("app")
        val state = parseState(File(app.store, "state.json").readBytes())!!
        val outside = linked(app, "models/${Phone.FOLDER}/slots/${state.current}")
        val before = content(outside)
        assertEquals("1", app.open())
        assertEquals(listOf(state.previous), File(app.store, "slots").list()!!.toList())
        assertEquals(before, content(outside))
    }

    @Test
    fun `a folder where a file belongs goes with what is in it`() {
        val app = App("app")
        File(app.store, "staging/deep/er").mkdirs()
        File(app.folder, "updates/download/x.part/y").mkdirs()
        assertEquals("2", app.open())
        app.update("good/withdrawn")
        assertEquals(listOf("slots", "state.json"), app.store.list()!!.sorted())
        assertEquals(0, File(app.folder, "updates/download").list()!!.size)
    }

    @Test
    fun `a pipe is not waited for`() {
        val files = DiskFiles(temporary)
        check(ProcessBuilder("mkfifo", File(temporary, "pipe").path).start().waitFor() == 0)
        assertTimeoutPreemptively(Duration.ofSeconds(20)) {
            assertThrows(IOException::class.java) { files.read("pipe") }
            assertThrows(IOException::class.java) { files.create("pipe") }
            assertThrows(IOException::class.java) { files.append("pipe") }
            assertThrows(IOException::class.java) { files.seekable("pipe") }
            assertThrows(FileNotFoundException::class.java) { FolderSource(temporary).open("pipe") }
        }
    }

    @Test
    fun `a document is not spooled through a link, and a bundle's folder not read through one`() {
        val keep = File(temporary, "keep").also { it.writeText("somebody's") }
        val link = File(temporary, "import.zip")
        createSymbolicLink(link.toPath(), keep.toPath())
        assertThrows(FileNotFoundException::class.java) { FolderSource(temporary).open("import.zip") }
        spool("mine".byteInputStream(), link, 100)
        assertEquals("somebody's" to "mine", keep.readText() to link.readText())
        assertTrue(!isSymbolicLink(link.toPath()))
    }
}
