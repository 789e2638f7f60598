package edgeq.demo

import android.app.Activity
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.Spinner
import android.widget.TextView
import edgeq.store.ModelKey
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.ZipSource
import edgeq.store.spool
import java.io.File
import java.io.IOException
import kotlin.math.roundToInt

/** The one screen: a sheet to draw on, the answer, and what is known of the model that gave it. */
class MainActivity : Activity() {
    private val app get() = application as DemoApplication
    private val session get() = app.session
    private val sketch by lazy { findViewById<SketchView>(R.id.sketch) }
    private val picker by lazy { findViewById<Spinner>(R.id.picker) }
    private val words by lazy { Words(resources) }
    private var listed = emptyList<ModelKey>()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        sketch.sketch = Sketch.parse(savedInstanceState?.getString(SKETCH))
        sketch.onDrawn = { session.recognise(it) }
        findViewById<Button>(R.id.clear).setOnClickListener {
            sketch.sketch = Sketch()
            session.recognise(sketch.sketch)
        }
        findViewById<Button>(R.id.write).setOnClickListener {
            val isWriting = session.screen.written?.isDone == false
            if (isWriting) session.stopWriting() else session.write(findViewById<EditText>(R.id.text).text.toString())
        }
        findViewById<Button>(R.id.self_test).setOnClickListener { session.selfTest() }
        findViewById<Button>(R.id.import_bundle).setOnClickListener { pick() }
        findViewById<Button>(R.id.update).setOnClickListener { session.update() }
        findViewById<View>(R.id.update).visibility = if (session.hasChannel) View.VISIBLE else View.GONE
        picker.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>, view: View?, position: Int, id: Long) = select(listed[position])

            override fun onNothingSelected(parent: AdapterView<*>) = Unit
        }
        // after the death of the process, what was drawn is recognised again
        if (savedInstanceState != null && session.screen.prediction == null) session.recognise(sketch.sketch)
    }

    override fun onStart() {
        super.onStart()
        session.observer = ::show
    }

    override fun onStop() {
        session.observer = null
        super.onStop()
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putString(SKETCH, sketch.sketch.text())
    }

    private fun select(key: ModelKey) {
        if (key == session.screen.selected) return
        app.remember(key)
        session.select(key)
        session.recognise(sketch.sketch)
    }

    private fun pick() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        startActivityForResult(intent, PICK)
    }

    @Deprecated("the framework's own way; androidx is not used here")
    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        val uri = data?.data
        if (requestCode == PICK && resultCode == RESULT_OK && uri != null) session.import { opened(uri) }
    }

    /** The picked document as a file: a ZIP cannot be read from a stream twice. In the background. */
    private fun opened(uri: Uri): ZipSource {
        val file = File(cacheDir, "import.zip")
        try {
            val stream = contentResolver.openInputStream(uri) ?: throw IOException("the document is gone")
            stream.use { spool(it, file, MAX_IMPORT_BYTES) }
            return ZipSource(file)
        } catch (err: IOException) {
            throw Refusal(Reason.DISK, "the document cannot be read: ${err.message}", err)
        } finally {
            file.delete() // it stays readable until it is closed
        }
    }

    private fun show(screen: Screen) {
        showModels(screen)
        showPrediction(screen.prediction)
        val isLanguage = screen.manifest?.language != null
        text(R.id.latency, if (isLanguage) words.speed(screen.written) else words.latency(screen.timing))
        showWritten(screen, isLanguage)
        text(R.id.facts, screen.manifest?.let(words::facts).orEmpty())
        text(R.id.verdict, words.verdict(screen))
        findViewById<View>(R.id.self_test).isEnabled = screen.manifest != null && !screen.busy
        findViewById<View>(R.id.import_bundle).isEnabled = !screen.busy
        findViewById<View>(R.id.update).isEnabled = screen.selected != null && !screen.busy && !screen.updating
    }

    /** A language model gets a text in place of the sheet to draw on. */
    private fun showWritten(screen: Screen, isLanguage: Boolean) {
        for (id in listOf(R.id.text, R.id.write, R.id.written)) {
            findViewById<View>(id).visibility = if (isLanguage) View.VISIBLE else View.GONE
        }
        for (id in listOf(R.id.sketch, R.id.clear, R.id.prediction, R.id.bars)) {
            findViewById<View>(id).visibility = if (isLanguage) View.GONE else View.VISIBLE
        }
        val isWriting = screen.written?.isDone == false
        text(R.id.write, getString(if (isWriting) R.string.stop else R.string.write))
        findViewById<View>(R.id.write).isEnabled = isWriting || !screen.busy
        text(R.id.written, screen.written?.let { it.prompt + it.text }.orEmpty())
    }

    private fun showModels(screen: Screen) {
        if (screen.models != listed) {
            listed = screen.models
            val names = listed.map { "${it.model} (${it.target})" }
            val adapter = ArrayAdapter(this, android.R.layout.simple_spinner_item, names)
            adapter.setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item)
            picker.adapter = adapter
        }
        val position = listed.indexOf(screen.selected)
        if (position >= 0 && position != picker.selectedItemPosition) picker.setSelection(position)
    }

    private fun showPrediction(prediction: Prediction?) {
        val best = prediction?.best.orEmpty()
        val title = findViewById<TextView>(R.id.prediction)
        title.text = best.firstOrNull()?.let { getString(R.string.prediction, it.label) } ?: getString(R.string.prompt)
        title.contentDescription = best.firstOrNull()?.let(words::spokenPrediction)
        val bars = findViewById<LinearLayout>(R.id.bars)
        while (bars.childCount < best.size) layoutInflater.inflate(R.layout.bar, bars)
        while (bars.childCount > best.size) bars.removeViewAt(0)
        best.forEachIndexed { index, score ->
            val percent = (100 * score.share).roundToInt()
            val row = bars.getChildAt(index)
            row.contentDescription = getString(R.string.score_spoken, score.label, percent)
            row.findViewById<TextView>(R.id.label).text = score.label
            row.findViewById<ProgressBar>(R.id.bar).progress = percent
            row.findViewById<TextView>(R.id.percent).text = getString(R.string.score, percent)
        }
    }

    private fun text(id: Int, text: String) {
        val view = findViewById<TextView>(id)
        if (view.text.toString() != text) view.text = text // an unchanged one is not read out again
    }

    private companion object {
        const val SKETCH = "sketch"
        const val PICK = 1
        const val MAX_IMPORT_BYTES = 2_000_000_000L
    }
}
