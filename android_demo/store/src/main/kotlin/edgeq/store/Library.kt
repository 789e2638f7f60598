package edgeq.store

import java.io.FileNotFoundException
import java.time.Instant

/** Which model, for which target. */
data class ModelKey(val model: String, val target: String)

/**
 * All models of an app, each in its own [ModelStore] below `<model>/<target>/`.
 *
 * Three ways lead in: [offer] for what the app itself carries, [deliver] for an update channel, [import] for what the
 * user picked. All three check the same; they differ in what is done with a bundle that was seen before.
 *
 * @param clock the device's time: a model whose test did not run to its end is tried again after a day.
 */
class Library(
    private val files: Files,
    private val device: Device,
    private val rules: Rules = Rules(),
    private val clock: () -> Instant = Instant::now,
) {
    private val stores = mutableMapOf<ModelKey, ModelStore>()

    /** The models that are installed: those of the device's first runtime first, then in order of their names. */
    fun models(): List<ModelKey> = files.list("").flatMap { model -> files.list(model).map { ModelKey(model, it) } }
        .filter { store(it).state.current != null }
        .sortedBy { rank(it) }

    private fun rank(key: ModelKey): Int = try {
        val runtime = store(key).manifest()?.runtime?.name
        device.runtimes.indexOfFirst { it.name == runtime }.takeIf { it >= 0 }
    } catch (_: Refusal) { // damaged; opening it says how
        null
    } ?: device.runtimes.size

    /** The store of one model. */
    @Synchronized
    fun store(key: ModelKey): ModelStore =
        stores.getOrPut(key) { ModelStore(files, "${key.model}/${key.target}", device, rules, clock) }

    /** Installs what the app carries, once: an update that came since stays, and so does a rollback. */
    fun offer(source: BundleSource): ModelKey = install(source, ModelStore.How.OFFERED).first

    /** Installs an update; one that was rolled back on this device is refused. */
    fun deliver(source: BundleSource): Pair<ModelKey, Installed> = install(source, ModelStore.How.DELIVERED)

    /** Installs what the user asked for, even if it was rolled back before; it is tested again. */
    fun import(source: BundleSource): Pair<ModelKey, Installed> = install(source, ModelStore.How.ASKED_FOR)

    private fun install(source: BundleSource, how: ModelStore.How): Pair<ModelKey, Installed> {
        val bytes = try {
            source.open(MANIFEST_NAME).use { readAtMost(it, MAX_MANIFEST_BYTES + 1L) }
        } catch (err: FileNotFoundException) {
            throw Refusal(Reason.NO_MODEL, "this is not a bundle: it has no $MANIFEST_NAME", err)
        }
        val manifest = parseManifest(bytes)
        val key = ModelKey(manifest.modelName, manifest.target.name)
        return key to store(key).install(source, bytes, manifest, how)
    }
}
