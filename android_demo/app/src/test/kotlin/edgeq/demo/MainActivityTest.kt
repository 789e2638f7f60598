package edgeq.demo

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.Canvas
import android.net.Uri
import android.os.SystemClock
import android.view.MotionEvent
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.Spinner
import android.widget.TextView
import edgeq.store.Device
import edgeq.store.FolderSource
import edgeq.store.HostModel
import edgeq.store.Loader
import edgeq.store.Manifest
import edgeq.store.PHONE
import edgeq.store.XNNPACK
import edgeq.store.ota.Channel
import edgeq.store.ota.NOW
import edgeq.store.ota.channel
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import java.io.ByteArrayOutputStream
import java.io.File
import java.util.concurrent.Executor
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

/** The app with a stand-in for the phone's runtimes, and nothing in the background. */
open class TestApplication : DemoApplication() {
    override val loader: Loader = Sevens()
    override val device: Device = PHONE
    override val background: Executor = Executor { it.run() }
}

/** The same with an update channel, signed by edgeq. */
class FollowingApplication : TestApplication() {
    override val network: Executor = Executor { it.run() }

    override val clock = { NOW }

    override fun channel(): Channel = channel("good/second")

    override fun channelRoot() = channel("good/first").files.getValue("metadata/1.root.json")
}

/** The same with the artifact in its real runtime, in another process. */
class HostApplication : TestApplication() {
    override val loader = Loader { manifest, location ->
        HostModel(File(cacheDir, "run"), File(location), manifest, DRAWN.values.map { it.image(8, 8) })
    }
}

/** The same with a runner of language models. */
class LanguageApplication : TestApplication() {
    private val digits = Sevens()
    private val language = HostLanguage()

    override val loader = object : Loader {
        override fun load(manifest: Manifest, location: String) =
            (if (manifest.language == null) digits else language).load(manifest, location)

        override fun writer(manifest: Manifest, location: String, tokenizer: String) =
            language.writer(manifest, location, tokenizer)
    }
}

@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [34], application = TestApplication::class, qualifiers = "w411dp-h891dp-xhdpi")
class MainActivityTest {
    private fun started() = Robolectric.buildActivity(MainActivity::class.java).setup().also { idle() }

    private fun idle() = shadowOf(android.os.Looper.getMainLooper()).idle()

    private fun Activity.text(id: Int) = findViewById<TextView>(id).text.toString()

    private fun Activity.press(id: Int) {
        findViewById<Button>(id).performClick()
        idle()
    }

    /** Draws with a finger, as touch events. */
    private fun Activity.draw(sketch: Sketch) {
        val view = findViewById<SketchView>(R.id.sketch)
        val time = SystemClock.uptimeMillis()
        for (stroke in sketch.strokes) {
            stroke.forEachIndexed { index, point ->
                val action = if (index == 0) MotionEvent.ACTION_DOWN else MotionEvent.ACTION_MOVE
                val event = MotionEvent.obtain(time, time, action, point.x * view.width, point.y * view.height, 0)
                view.dispatchTouchEvent(event)
            }
            val last = stroke.last()
            val (x, y) = last.x * view.width to last.y * view.height
            view.dispatchTouchEvent(MotionEvent.obtain(time, time, MotionEvent.ACTION_UP, x, y, 0))
        }
        idle()
    }

    @Test
    fun `it opens the bundle in its assets and shows what it checked`() {
        val activity = started().get()
        assertTrue("digits, version 1" in activity.text(R.id.facts))
        assertTrue("static-int8" in activity.text(R.id.facts))
        assertTrue(activity.text(R.id.verdict), "passed" in activity.text(R.id.verdict))
        assertEquals(2, activity.findViewById<Spinner>(R.id.picker).count)
    }

    @Test
    fun `what is drawn is answered with three bars and a latency`() {
        val activity = started().get()
        activity.draw(DRAWN.getValue("7"))
        assertEquals("7", activity.text(R.id.prediction))
        assertEquals("Prediction: 7, 78 percent", activity.findViewById<View>(R.id.prediction).contentDescription)
        val bars = activity.findViewById<LinearLayout>(R.id.bars)
        assertEquals(3, bars.childCount)
        assertEquals("7: 78 percent", bars.getChildAt(0).contentDescription)
        // a seven has two strokes, and each is answered
        assertTrue(activity.text(R.id.latency), "median of the last 2" in activity.text(R.id.latency))
        activity.press(R.id.clear)
        assertEquals("Draw a digit", activity.text(R.id.prediction))
    }

    @Test
    fun `a rotation keeps the drawing and the answer`() {
        val controller = started()
        controller.get().draw(DRAWN.getValue("7"))
        RuntimeEnvironment.setQualifiers("+land")
        controller.recreate()
        idle()
        assertEquals("7", controller.get().text(R.id.prediction))
        assertEquals(DRAWN.getValue("7").strokes.size, controller.get().findViewById<SketchView>(R.id.sketch).sketch.strokes.size)
    }

    @Test
    fun `the death of the process keeps the drawing and the answer`() {
        val state = android.os.Bundle()
        val first = started()
        first.get().draw(DRAWN.getValue("7"))
        first.saveInstanceState(state).pause().stop().destroy()
        // a new process has a new session; the disk is the same
        val application = RuntimeEnvironment.getApplication() as TestApplication
        val field = DemoApplication::class.java.getDeclaredField("session\$delegate").apply { isAccessible = true }
        field.set(application, lazy { fresh(application) })
        val second = Robolectric.buildActivity(MainActivity::class.java).setup(state)
        idle()
        assertEquals("7", second.get().text(R.id.prediction))
        assertTrue("before" in second.get().text(R.id.verdict))
    }

    private fun fresh(application: DemoApplication): Session {
        val files = edgeq.store.DiskFiles(File(application.noBackupFilesDir, "models"))
        val main = Executor { android.os.Handler(application.mainLooper).post(it) }
        return Session(edgeq.store.Library(files, PHONE), Sevens(), { it.run() }, main).also { it.start(emptyList(), null) }
    }

    @Test
    fun `the self-test button runs the golden samples`() {
        val activity = started().get()
        activity.press(R.id.self_test)
        assertTrue(activity.text(R.id.verdict), "4 golden samples, largest difference 0" in activity.text(R.id.verdict))
    }

    @Test
    fun `a picked bundle is imported`() {
        val activity = started().get()
        activity.press(R.id.import_bundle)
        val asked = shadowOf(activity).nextStartedActivityForResult
        assertEquals(Intent.ACTION_OPEN_DOCUMENT, asked.intent.action)
        val uri = Uri.parse("content://documents/bundle.zip")
        shadowOf(activity.contentResolver).registerInputStream(uri, zipped(XNNPACK.version("2").files).inputStream())
        shadowOf(activity).receiveResult(asked.intent, Activity.RESULT_OK, Intent().setData(uri))
        idle()
        assertTrue(activity.text(R.id.facts), "version 2" in activity.text(R.id.facts))
        assertTrue(File(activity.cacheDir, "import.zip").exists().not())
    }

    @Test
    fun `a picked file that is not a bundle is refused in words`() {
        val activity = started().get()
        activity.press(R.id.import_bundle)
        val asked = shadowOf(activity).nextStartedActivityForResult
        val uri = Uri.parse("content://documents/photo.jpg")
        shadowOf(activity.contentResolver).registerInputStream(uri, "no ZIP".byteInputStream())
        shadowOf(activity).receiveResult(asked.intent, Activity.RESULT_OK, Intent().setData(uri))
        idle()
        assertTrue(activity.text(R.id.verdict), "not a bundle" in activity.text(R.id.verdict))
        assertTrue(File(activity.cacheDir, "import.zip").exists().not())
        assertTrue("version 1" in activity.text(R.id.facts))
    }

    @Test
    fun `the picked model is remembered`() {
        val activity = started().get()
        val picker = activity.findViewById<Spinner>(R.id.picker)
        val other = 1 - picker.selectedItemPosition
        picker.setSelection(other)
        idle()
        val selected = (activity.application as DemoApplication).session.screen.selected
        assertEquals(picker.selectedItem.toString(), "digits (${selected?.target})")
        val kept = activity.getSharedPreferences("demo", 0).getString("target", null)
        assertEquals(selected?.target, kept)
    }

    @Test
    fun `everything that can be touched has a name and is large enough`() {
        val activity = started().get()
        val density = activity.resources.displayMetrics.density
        for (id in listOf(R.id.picker, R.id.sketch, R.id.clear, R.id.self_test, R.id.import_bundle)) {
            val view = activity.findViewById<View>(id)
            assertNotNull(view.contentDescription ?: (view as TextView).text)
            assertTrue("${view.height}", view.height >= 48 * density - 1)
        }
    }

    @Test
    @Config(application = FollowingApplication::class)
    fun `the update button follows the channel, and says what came`() {
        val activity = started().get()
        val button = activity.findViewById<View>(R.id.update)
        assertEquals(View.VISIBLE, button.visibility)
        assertTrue("${button.right} of ${activity.window.decorView.width}", button.right < activity.window.decorView.width)
        activity.press(R.id.update)
        assertTrue(activity.text(R.id.verdict), "Updated to release 2, version 2: a patch" in activity.text(R.id.verdict))
        assertTrue("version 2" in activity.text(R.id.facts))
        activity.press(R.id.update)
        assertTrue(activity.text(R.id.verdict), "Up to date: release 2" in activity.text(R.id.verdict))
    }

    @Test
    fun `an app without a channel has no update button`() {
        assertEquals(View.GONE, started().get().findViewById<View>(R.id.update).visibility)
    }

    @Test
    fun `no permission but the network's is asked for`() {
        val manager = RuntimeEnvironment.getApplication().packageManager
        val info = manager.getPackageInfo("edgeq.demo", android.content.pm.PackageManager.GET_PERMISSIONS)
        assertEquals(listOf("android.permission.INTERNET"), info.requestedPermissions.toList())
    }

    /** The README's picture: the real layout, and the real artifact's answer. */
    @Test
    @Config(application = HostApplication::class)
    fun `the picture`() {
        val light = picture("screen.png")
        assertTrue(light.getPixel(10, light.height - 10) and 0xff > 0x80)
    }

    @Test
    @Config(application = HostApplication::class, qualifiers = "w411dp-h891dp-night-xhdpi")
    fun `the picture in the dark`() {
        val dark = picture("screen_dark.png")
        assertTrue(dark.getPixel(10, dark.height - 10) and 0xff < 0x80)
    }

    @Test
    @Config(application = LanguageApplication::class)
    fun `a language model gets a text in place of a drawing`() {
        val activity = started().get()
        val session = (activity.application as DemoApplication).session
        fun shown(id: Int) = activity.findViewById<View>(id).visibility == View.VISIBLE
        assertTrue(shown(R.id.sketch) && !shown(R.id.text) && !shown(R.id.write))
        session.import { FolderSource(LLAMA) }
        idle()
        assertTrue(shown(R.id.text) && shown(R.id.write) && !shown(R.id.sketch) && !shown(R.id.bars))
        activity.findViewById<EditText>(R.id.text).setText("The quick brown fox")
        activity.press(R.id.write)
        assertEquals("The quick brown fox#JEErEMi8FX@CMGOEMGHCMGH8DAJGHCMEFDDksHEGJkk3", activity.text(R.id.written))
        assertTrue(activity.text(R.id.latency), "29 tokens, " in activity.text(R.id.latency))
        assertEquals("Continue", activity.text(R.id.write))
        drawn(activity, "screen_language.png")
        session.select(session.screen.models.first { it.model == "digits" })
        idle()
        assertTrue(shown(R.id.sketch) && !shown(R.id.text))
    }

    private fun picture(name: String): Bitmap {
        val activity = started().get()
        val view = activity.findViewById<SketchView>(R.id.sketch)
        view.sketch = DRAWN.getValue("4") // as touch events its points would be rounded, and another drawing
        view.performClick()
        idle()
        assertEquals("4", activity.text(R.id.prediction))
        return drawn(activity, name)
    }

    private fun drawn(activity: Activity, name: String): Bitmap {
        val root = activity.window.decorView
        assertNotEquals(0, root.width)
        val bitmap = Bitmap.createBitmap(root.width, root.height, Bitmap.Config.ARGB_8888)
        root.draw(Canvas(bitmap))
        val file = File(System.getProperty("edgeq.pictures"), name)
        file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
        return bitmap
    }

    private fun zipped(files: Map<String, ByteArray>): ByteArray {
        val out = ByteArrayOutputStream()
        ZipOutputStream(out).use { zip ->
            for ((name, data) in files) {
                zip.putNextEntry(ZipEntry(name))
                zip.write(data)
            }
        }
        return out.toByteArray()
    }
}
