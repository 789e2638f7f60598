package edgeq.demo

import android.app.Application
import android.content.Context
import android.os.Build
import edgeq.store.Device
import edgeq.store.DiskFiles
import edgeq.store.Library
import edgeq.store.Loader
import edgeq.store.ModelKey
import java.io.File
import java.util.concurrent.Executor
import java.util.concurrent.Executors

/** Holds the session, which outlives the activity: a rotation neither loads a model again nor loses an answer. */
open class DemoApplication : Application() {
    protected open val loader: Loader = Runtimes
    protected open val device: Device by lazy { Device("android", archs(), Runtimes.support) }
    protected open val background: Executor by lazy { Executors.newSingleThreadExecutor() }

    private val preferences by lazy { getSharedPreferences("demo", Context.MODE_PRIVATE) }

    val session: Session by lazy {
        val library = Library(DiskFiles(File(noBackupFilesDir, "models")), device)
        Session(library, loader, background, mainExecutor()).also { it.start(bundledSources(assets), remembered()) }
    }

    /** The model that the next process opens first. */
    fun remember(key: ModelKey) {
        preferences.edit().putString("model", key.model).putString("target", key.target).apply()
    }

    private fun remembered(): ModelKey? {
        return ModelKey(preferences.getString("model", null) ?: return null, preferences.getString("target", null) ?: return null)
    }

    // Context.getMainExecutor came with Android 9
    private fun mainExecutor(): Executor {
        val handler = android.os.Handler(mainLooper)
        return Executor { handler.post(it) }
    }
}

private val ARCHS = mapOf("arm64-v8a" to "arm64", "x86_64" to "x86_64")

private fun archs(): Set<String> = Build.SUPPORTED_ABIS.mapNotNull { ARCHS[it] }.toSet()
