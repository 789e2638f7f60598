package edgeq.demo

import android.app.Application
import android.content.Context
import android.os.Build
import edgeq.store.Device
import edgeq.store.DiskFiles
import edgeq.store.Library
import edgeq.store.Loader
import edgeq.store.ModelKey
import edgeq.store.ota.Channel
import edgeq.store.ota.HttpChannel
import edgeq.store.ota.Updater
import java.io.File
import java.io.FileNotFoundException
import java.time.Instant
import java.util.UUID
import java.util.concurrent.Executor
import java.util.concurrent.Executors

/** Holds the session, which outlives the activity: a rotation neither loads a model again nor loses an answer. */
open class DemoApplication : Application() {
    protected open val loader: Loader = Runtimes
    protected open val device: Device by lazy { Device("android", archs(), Runtimes.support, app = build()) }
    protected open val background: Executor by lazy { Executors.newSingleThreadExecutor() }
    protected open val network: Executor by lazy { Executors.newSingleThreadExecutor() }

    /** The time by which an index expires; null on a device without a clock. */
    protected open val clock: () -> Instant? = Instant::now

    private val preferences by lazy { getSharedPreferences("demo", Context.MODE_PRIVATE) }

    val session: Session by lazy {
        val library = Library(DiskFiles(File(noBackupFilesDir, "models")), device)
        Session(library, loader, background, mainExecutor(), updater(library), network)
            .also { it.start(bundledSources(assets), remembered()) }
    }

    /** Where updates come from; null in an app without a channel. */
    protected open fun channel(): Channel? =
        getString(R.string.channel_url).takeIf { it.isNotEmpty() }?.let { HttpChannel(it) }

    /** The channel's first root, which the app trusts; null where it was not put into the assets. */
    protected open fun channelRoot(): ByteArray? = try {
        assets.open("channel/root.json").use { it.readBytes() }
    } catch (_: FileNotFoundException) {
        null
    }

    private fun updater(library: Library): Updater? {
        val files = DiskFiles(File(noBackupFilesDir, "updates"))
        return Updater(files, library, device, channel() ?: return null, channelRoot(), deviceId(), clock = clock)
    }

    /** A name of this installation, by which a release can be addressed to it; it tells nothing of the user. */
    private fun deviceId(): String = preferences.getString("device_id", null)
        ?: UUID.randomUUID().toString().also { preferences.edit().putString("device_id", it).apply() }

    /** The model that the next process opens first. */
    fun remember(key: ModelKey) {
        preferences.edit().putString("model", key.model).putString("target", key.target).apply()
    }

    private fun remembered(): ModelKey? {
        return ModelKey(preferences.getString("model", null) ?: return null, preferences.getString("target", null) ?: return null)
    }

    /** Tells this build of the app from the one before: when it was installed. */
    private fun build(): String = packageManager.getPackageInfo(packageName, 0).lastUpdateTime.toString()

    // Context.getMainExecutor came with Android 9
    private fun mainExecutor(): Executor {
        val handler = android.os.Handler(mainLooper)
        return Executor { handler.post(it) }
    }
}

private val ARCHS = mapOf("arm64-v8a" to "arm64", "x86_64" to "x86_64")

private fun archs(): Set<String> = Build.SUPPORTED_ABIS.mapNotNull { ARCHS[it] }.toSet()
