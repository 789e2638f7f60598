package edgeq.store

import java.io.FileNotFoundException
import java.io.IOException
import java.time.Instant

/** What [ModelStore.install] did. */
enum class Installed { NEW, ALREADY_THERE }

/**
 * A model that is ready to run.
 *
 * @property firstTest the self-test of its first start; null when it had passed it before.
 * @property rolledBack the models that gave way to this one in this very start.
 */
class OpenModel internal constructor(
    val manifest: Manifest,
    val firstTest: SelfTestReport?,
    val rolledBack: List<Rejected>,
    private val model: LoadedModel,
    private val golden: () -> Golden,
    private val writing: () -> Writer,
) : AutoCloseable {
    private var writer: Writer? = null

    /** Runs it on inputs as the manifest describes them. */
    fun run(inputs: List<Tensor>): List<Tensor> = model.run(inputs)

    /** Preprocesses one image, and runs it; for models with one image input. */
    fun run(image: Image): List<Tensor> = run(inputs(image))

    /** One image as the model takes it. */
    fun inputs(image: Image): List<Tensor> {
        val spec = manifest.inputs.singleOrNull { it.preprocess != null }
        requireNotNull(spec?.preprocess) { "${manifest.modelName} does not take one image" }
        return listOf(batched(spec, preprocess(spec.preprocess, image)))
    }

    /** [height, width] of an image as the model knows them: that of its golden samples; empty where it takes none. */
    val imageSize: List<Int> by lazy { golden().imageSize }

    /** Runs the bundle's golden samples. */
    fun selfTest(): SelfTestReport = golden().test(model, manifest.golden.sqnrFloorDb)

    /**
     * What continues texts, loaded at the first call; for models whose manifest has a language.
     *
     * @throws Refusal as [ModelStore.open].
     */
    fun writer(): Writer = writer ?: writing().also { writer = it }

    override fun close() {
        writer?.close()
        model.close()
    }
}

/**
 * One model for one target on this device: installed whole, tried before it is trusted, rolled back when it fails.
 *
 * On disk, below [folder]: `slots/<digest>/` with the bundle's files, and `state.json`. A new bundle is copied, synced and
 * renamed into its slot before the state names it; the state says that a model is being tried before it is loaded, and
 * that it is healthy after its self-test. So a kill between any two file operations leaves a model that can be opened.
 *
 * Safe for several threads; keep one object for a folder in one process.
 */
class ModelStore internal constructor(
    private val files: Files,
    private val folder: String,
    private val device: Device,
    private val rules: Rules,
    private val clock: () -> Instant,
) {
    private val slots = Slots(files, folder, rules)
    private val installing = Any() // held while a bundle is copied, and never asked for by whoever holds the store
    private var copying = false

    /** What is remembered between starts. */
    val state: State @Synchronized get() = readState()

    /** The current bundle's manifest, without loading or checking it; null where none is installed. */
    @Synchronized
    fun manifest(): Manifest? = readState().current?.let {
        parseManifest(slots.readFile(it, MANIFEST_NAME, MAX_MANIFEST_BYTES + 1L))
    }

    /** The current bundle's files, unchecked; null where none is installed. */
    @Synchronized
    internal fun current(): BundleSource? = readState().current?.let(slots::source)

    /** Why a bundle is not taken again on this device; null where it may be. */
    @Synchronized
    internal fun rejection(digest: String): Refusal? {
        val rejected = readState().rejected.find { it.digest == digest && it.holds(clock().epochSecond, device.app) }
        return when (rejected?.untested) {
            null -> null
            true -> Refusal(Reason.TRY_LATER, "it is tried again after a day, or with a new app: ${rejected.detail}")
            false -> Refusal(Reason.REJECTED_BEFORE, "it was rolled back here: ${rejected.detail}")
        }
    }

    /**
     * Installs a bundle; whatever is refused leaves everything as it was.
     *
     * The store is free to be opened while the bundle's bytes come: a start of the app does not wait for an update.
     */
    internal fun install(source: BundleSource, bytes: ByteArray, manifest: Manifest, how: How): Installed = try {
        device.check(manifest)
        if (isThere(manifest.digest, how)) Installed.ALREADY_THERE else synchronized(installing) { copied(source, bytes, manifest, how) }
    } catch (err: IOException) {
        throw Refusal(Reason.DISK, "the model cannot be written: ${err.message}; free some space", err)
    }

    private fun copied(source: BundleSource, bytes: ByteArray, manifest: Manifest, how: How): Installed {
        synchronized(this) { copying = true }
        try {
            slots.stage(source, bytes, manifest)
            return if (place(manifest.digest, how)) Installed.NEW else Installed.ALREADY_THERE
        } finally {
            synchronized(this) { copying = false }
        }
    }

    /** Whether a bundle is the current one already, or what the app brought before. */
    @Synchronized
    private fun isThere(digest: String, how: How): Boolean {
        val state = readState()
        val offered = how == How.OFFERED
        if (offered && state.offered == digest && state.current != null) return true
        if (state.current == digest) {
            if (offered) writeState(state.copy(offered = digest))
            return true
        }
        if (how != How.ASKED_FOR) rejection(digest)?.let { throw it }
        return false
    }

    /** Makes what was staged the current model; false where it has become so meanwhile. */
    @Synchronized
    private fun place(digest: String, how: How): Boolean {
        if (isThere(digest, how)) return false.also { slots.unstage() }
        var state = readState()
        // a slot cannot be renamed over; the current one stays, so there is a model all the while
        if (state.previous == digest) state = writeState(state.copy(previous = null))
        slots.prune(setOf(state.current, state.previous))
        slots.place(digest)
        writeState(
            state.copy(
                current = digest,
                health = Health.NEW,
                starts = 0,
                previous = if (state.health == Health.HEALTHY) state.current else state.previous,
                offered = if (how == How.OFFERED) digest else state.offered,
                rejected = state.rejected.filter { it.digest != digest },
            ),
        )
        return true
    }

    /**
     * Loads the current model; a new one is tested first, and one that fails gives way to the previous.
     *
     * @throws Refusal NO_MODEL when none is installed, what was wrong with the last one when none is left,
     *   RUNTIME_MISSING when the app lacks the runtime's library, LOAD_FAILED when a model that was healthy does not
     *   load, NO_MEMORY when that is the reason and there is no previous model, DISK, LINK.
     */
    @Synchronized
    fun open(loader: Loader): OpenModel = try {
        readState().let(::prune) // what a kill left
        val rolledBack = mutableListOf<Rejected>()
        var open: OpenModel? = null
        while (open == null) open = attempt(loader, rolledBack)
        open
    } catch (err: IOException) {
        throw Refusal(Reason.DISK, "the model's state cannot be written: ${err.message}; free some space", err)
    }

    /** One start of the current model; null when it was [rolledBack], so that there is another to try. */
    private fun attempt(loader: Loader, rolledBack: MutableList<Rejected>): OpenModel? {
        val state = readState()
        val digest = state.current ?: throw Refusal(Reason.NO_MODEL, noModel(state))
        val trial = state.health != Health.HEALTHY
        if (trial && state.starts >= rules.maxStarts) {
            val what = "the app ended ${state.starts} times while it was being started"
            rolledBack += rollBack(state, Refusal(Reason.CRASHED, what))
            return null
        }
        val manifest = try {
            slots.check(digest).also(device::check)
        } catch (err: Refusal) {
            rolledBack += rollBack(state, err)
            return null
        }
        if (!trial) return opened(loader, manifest, null, rolledBack, load(loader, manifest))
        val trying = writeState(state.copy(health = Health.TRYING, starts = state.starts + 1))
        return try {
            firstStart(loader, manifest, rolledBack).also { writeState(trying.copy(health = Health.HEALTHY, starts = 0)) }
        } catch (err: Refusal) {
            // no fault of the model's, and the next start may go better
            val blameless = err.reason == Reason.RUNTIME_MISSING || (err.reason == Reason.NO_MEMORY && state.previous == null)
            if (blameless) writeState(state).also { throw err }
            rolledBack += rollBack(trying, err)
            null
        }
    }

    private fun firstStart(loader: Loader, manifest: Manifest, rolledBack: List<Rejected>): OpenModel {
        val model = load(loader, manifest)
        try {
            val report = runTest(manifest, model)
            if (!report.finite) throw Refusal(Reason.NOT_FINITE, "its self-test failed: ${report.failure}")
            if (!report.passed) throw Refusal(Reason.BELOW_FLOOR, "its self-test failed: ${report.failure}")
            return opened(loader, manifest, report, rolledBack, model)
        } catch (err: Refusal) {
            model.close()
            throw err
        }
    }

    private fun opened(
        loader: Loader,
        manifest: Manifest,
        report: SelfTestReport?,
        rolledBack: List<Rejected>,
        model: LoadedModel,
    ) = OpenModel(manifest, report, rolledBack, model, golden(manifest)) {
        val tokenizer = manifest.tokenizer
            ?: throw Refusal(Reason.LOAD_FAILED, "${manifest.modelName} has no tokenizer: package it from a folder that has one")
        loaded(manifest) { loader.writer(manifest, path(manifest, manifest.artifact), path(manifest, tokenizer)) }
    }

    private fun path(manifest: Manifest, file: FileEntry) = files.location(slots.path(manifest.digest, file.path))

    private fun runTest(manifest: Manifest, model: LoadedModel): SelfTestReport = try {
        golden(manifest)().test(model, manifest.golden.sqnrFloorDb)
    } catch (err: Refusal) {
        throw err
    } catch (err: OutOfMemoryError) {
        throw Refusal(Reason.NO_MEMORY, "there is not enough memory to test it; close other apps", err)
    } catch (err: Exception) { // a runtime throws what it likes
        throw Refusal(Reason.RUN_FAILED, "the runtime failed while running it: ${err.message?.take(300)}", err)
    }

    private fun load(loader: Loader, manifest: Manifest): LoadedModel =
        loaded(manifest) { loader.load(manifest, path(manifest, manifest.artifact)) }

    private fun <T> loaded(manifest: Manifest, load: () -> T): T = try {
        load()
    } catch (err: Refusal) {
        throw err
    } catch (err: LinkageError) {
        val what = "this app lacks the library of ${manifest.runtime.name}: ${err.message?.take(300)}"
        throw Refusal(Reason.RUNTIME_MISSING, what, err)
    } catch (err: OutOfMemoryError) {
        throw Refusal(Reason.NO_MEMORY, "there is not enough memory to load it; close other apps", err)
    } catch (err: Exception) { // a runtime throws what it likes
        throw Refusal(Reason.LOAD_FAILED, "the runtime would not load it: ${err.message?.take(300)}", err)
    }

    private fun golden(manifest: Manifest): () -> Golden = {
        parseGolden(manifest, slots.readFile(manifest.digest, manifest.goldenFile.path, manifest.goldenFile.sizeBytes))
    }

    /**
     * Goes back to the previous model. One that misbehaved is remembered; a damaged one may be installed again, and so
     * may, after a while, one whose test did not run to its end.
     */
    private fun rollBack(state: State, why: Refusal): Rejected {
        val digest = requireNotNull(state.current)
        val version = runCatching { manifest()?.modelVersion }.getOrNull().orEmpty()
        val rejected = Rejected(digest, version, why.reason, why.message.orEmpty(), clock().epochSecond, device.app)
        val misbehaved = why.reason in MISBEHAVED
        val next = state.copy(
            current = state.previous,
            health = if (state.previous == null) Health.NEW else Health.HEALTHY,
            starts = 0,
            previous = null,
            offered = if (misbehaved && !rejected.untested) state.offered else null,
            rejected = if (misbehaved) (state.rejected + rejected).takeLast(rules.maxRejected) else state.rejected,
        )
        writeState(next)
        if (next.current == null) throw why
        return rejected
    }

    private fun noModel(state: State): String =
        state.rejected.lastOrNull()?.let { "no model is left; the last one was rolled back: ${it.detail}" }
            ?: "no model is installed"

    /** The state, after a kill too; one that is no longer readable counts as none, and the app brings its own model. */
    private fun readState(): State {
        val path = "$folder/$STATE_NAME"
        val state = try {
            files.read(path).use { parseState(readAtMost(it, MAX_STATE_BYTES)) }
        } catch (_: FileNotFoundException) {
            null
        }
        return state ?: State()
    }

    private fun writeState(state: State): State {
        files.makeFolders(folder)
        files.writeAtomic("$folder/$STATE_NAME", stateBytes(state))
        prune(state)
        return state
    }

    private fun prune(state: State) {
        slots.prune(setOf(state.current, state.previous))
        if (!copying) slots.unstage()
    }

    /** How a bundle came, which decides what is done with one that was seen before. */
    internal enum class How { OFFERED, DELIVERED, ASKED_FOR }

    private companion object {
        const val STATE_NAME = "state.json"
        const val MAX_STATE_BYTES = 1_000_000L
        val MISBEHAVED = setOf(
            Reason.CRASHED, Reason.NO_MEMORY, Reason.LOAD_FAILED, Reason.RUN_FAILED, Reason.NOT_FINITE,
            Reason.BELOW_FLOOR, Reason.GOLDEN_BROKEN,
        )
    }
}
