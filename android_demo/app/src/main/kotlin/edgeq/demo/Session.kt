package edgeq.demo

import edgeq.store.BundleSource
import edgeq.store.Installed
import edgeq.store.Library
import edgeq.store.Loader
import edgeq.store.Manifest
import edgeq.store.ModelKey
import edgeq.store.OpenModel
import edgeq.store.Reason
import edgeq.store.Refusal
import edgeq.store.Rejected
import edgeq.store.SelfTestReport
import edgeq.store.Writer
import edgeq.store.ota.Update
import edgeq.store.ota.Updater
import edgeq.store.ota.Via
import java.util.concurrent.Executor

/** The last thing that happened besides an inference. */
sealed interface Event {
    data class Checked(val report: SelfTestReport?) : Event

    data class Tested(val report: SelfTestReport) : Event

    data class RolledBack(val rejected: Rejected) : Event

    data class Refused(val reason: Reason, val detail: String) : Event

    data class Imported(val key: ModelKey) : Event

    data class Updated(val update: Update) : Event
}

/** Times as the screen shows them. */
data class Timing(val lastMs: Double, val medianMs: Double, val count: Int)

/**
 * What a language model wrote.
 *
 * @property pieces how many pieces of text came, most of them a token each.
 * @property perSecond of these, from the first one on; null before the second.
 */
data class Written(val prompt: String, val text: String = "", val pieces: Int = 0, val perSecond: Double? = null, val isDone: Boolean = false)

/** All that the screen shows; replaced whole. */
data class Screen(
    val models: List<ModelKey> = emptyList(),
    val selected: ModelKey? = null,
    val manifest: Manifest? = null,
    val event: Event? = null,
    val prediction: Prediction? = null,
    val timing: Timing? = null,
    val written: Written? = null,
    val busy: Boolean = false,
    val updating: Boolean = false,
)

/**
 * The app without Android: opens models, runs them, and tells [observer] what to show.
 *
 * @param background runs one task after the other: a model is not safe for several threads.
 * @param main where [screen] changes and [observer] is called.
 * @param updater follows the update channel; null in an app that has none.
 * @param network where the channel is read, so that drawings are answered meanwhile.
 */
class Session(
    private val library: Library,
    private val loader: Loader,
    private val background: Executor,
    private val main: Executor,
    private val updater: Updater? = null,
    private val network: Executor = background,
) {
    /** Whether there is a channel to ask for updates. */
    val hasChannel: Boolean get() = updater != null

    /** Only on [main]. */
    var screen = Screen()
        private set

    /** Only on [main]; called at once with what there is. */
    var observer: ((Screen) -> Unit)? = null
        set(value) {
            field = value
            value?.invoke(screen)
        }

    // only in the background
    private var model: OpenModel? = null
    private var opened: ModelKey? = null
    private var latencies = Latencies()

    /** What writes at the moment. */
    @Volatile
    private var writing: Writer? = null

    /** The newest sketch that waits for an inference; older ones are dropped. */
    @Volatile
    private var waiting: Sketch? = null

    /** Installs what the app brings along, and opens [wanted] or the first model. Call it once. */
    fun start(offered: List<() -> BundleSource>, wanted: ModelKey?) = task {
        val refused = offered.mapNotNull { source -> refusal { library.offer(source()) } }
        val models = library.models()
        show { it.copy(models = models) }
        open(wanted?.takeIf { it in models } ?: models.firstOrNull())
        // a bundle for another ABI is not news while there is a model
        if (models.isEmpty()) refused.firstOrNull()?.let { event -> show { it.copy(event = event) } }
    }

    fun select(key: ModelKey) {
        if (key != screen.selected) task { open(key) }
    }

    /** Recognises a sketch; an empty one takes the prediction away. */
    fun recognise(sketch: Sketch) {
        waiting = sketch
        background.execute {
            val newest = waiting ?: return@execute
            waiting = null
            guarded { infer(newest) }
        }
    }

    /** Continues a text with a language model; what comes is shown piece by piece. */
    fun write(prompt: String) = task {
        val open = model ?: return@task
        val language = open.manifest.language ?: return@task
        var written = Written(prompt)
        show { it.copy(written = written) }
        val writer = open.writer().also { writing = it }
        var first = 0L
        try {
            writer.write(prompt, language.contextLength) { piece ->
                val now = System.nanoTime()
                if (written.pieces == 0) first = now
                val speed = if (written.pieces > 0) written.pieces / ((now - first) / 1e9) else null
                written = written.copy(text = written.text + piece, pieces = written.pieces + 1, perSecond = speed)
                val shown = written
                show { it.copy(written = shown) }
            }
        } finally {
            writing = null
            show { it.copy(written = written.copy(isDone = true)) }
        }
    }

    /** Ends what [write] does, after the next piece. */
    fun stopWriting() {
        writing?.stop()
    }

    fun selfTest() = task {
        model?.let { open -> open.selfTest().let { report -> show { it.copy(event = Event.Tested(report)) } } }
    }

    /** Installs a bundle that the user picked, and opens it. */
    fun import(source: () -> BundleSource) = task {
        val (key, installed) = source().let { bundle ->
            try {
                library.import(bundle)
            } finally {
                (bundle as? AutoCloseable)?.close()
            }
        }
        val models = library.models()
        show { it.copy(models = models) }
        val fine = open(key)
        if (fine && installed == Installed.ALREADY_THERE) show { it.copy(event = Event.Imported(key)) }
    }

    /** Brings the selected model to the channel's newest release, and opens it; what went wrong is shown. */
    fun update() {
        val key = screen.selected ?: return
        if (updater == null || screen.updating) return
        show { it.copy(updating = true) }
        network.execute {
            var update: Update? = null
            val refused = refusal { update = updater.update(key) }
            background.execute {
                guarded { update?.let { updated(key, it) } }
                show { it.copy(updating = false, event = refused ?: it.event) }
            }
        }
    }

    /** Starts what came, which is tested first and may be rolled back. */
    private fun updated(key: ModelKey, update: Update) {
        val fine = update.via == Via.NOTHING || key != opened || open(key)
        if (fine) show { it.copy(event = Event.Updated(update)) }
    }

    private fun infer(sketch: Sketch) {
        val open = model?.takeIf { it.manifest.language == null } ?: return
        if (sketch.isEmpty) return show { it.copy(prediction = null) }
        val size = open.imageSize
        require(size.size == 2) { "${open.manifest.modelName} takes no image" }
        val inputs = open.inputs(sketch.image(size[0], size[1]))
        val begin = System.nanoTime()
        val outputs = open.run(inputs)
        latencies.add((System.nanoTime() - begin) / 1e6)
        val result = prediction(outputs, open.manifest.labels)
        val timing = Timing(latencies.lastMs!!, latencies.medianMs!!, latencies.count)
        show { it.copy(prediction = result, timing = timing) }
    }

    /** Opens a model in place of the one that is open; whether it is the one that was asked for. */
    private fun open(key: ModelKey?): Boolean {
        model?.close()
        model = null
        opened = key
        latencies = Latencies()
        show { it.copy(selected = key, manifest = null, prediction = null, timing = null, written = null, event = null) }
        val store = library.store(key ?: return false)
        val open = store.open(loader)
        model = open
        val event = open.rolledBack.lastOrNull()?.let { Event.RolledBack(it) } ?: Event.Checked(open.firstTest)
        show { it.copy(manifest = open.manifest, event = event) }
        return event is Event.Checked
    }

    private fun task(act: () -> Unit) = background.execute {
        show { it.copy(busy = true) }
        guarded(act)
        show { it.copy(busy = false) }
    }

    private fun guarded(act: () -> Unit) {
        refusal(act)?.let { event -> show { it.copy(event = event) } }
    }

    private fun refusal(act: () -> Unit): Event.Refused? = try {
        act()
        null
    } catch (err: Refusal) {
        Event.Refused(err.reason, err.message.orEmpty())
    } catch (err: OutOfMemoryError) {
        Event.Refused(Reason.NO_MEMORY, err.message ?: "there is not enough memory; close other apps")
    } catch (err: Exception) { // a runtime throws what it likes
        Event.Refused(Reason.RUN_FAILED, err.message ?: err.javaClass.simpleName)
    }

    private fun show(change: (Screen) -> Screen) = main.execute {
        screen = change(screen)
        observer?.invoke(screen)
    }
}
