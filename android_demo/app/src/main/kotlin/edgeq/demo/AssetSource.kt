package edgeq.demo

import android.content.res.AssetManager
import edgeq.store.BundleSource
import java.io.InputStream

private const val MODELS = "models"

/** A bundle that `edgeq install` put into the app. */
class AssetSource(private val assets: AssetManager, private val folder: String) : BundleSource {
    override fun names(): List<String> = assets.list(folder).orEmpty().toList()

    override fun open(name: String): InputStream = assets.open("$folder/$name")
}

/** All bundles in the app's assets: `models/<model>/<target>/`. */
fun bundledSources(assets: AssetManager): List<() -> BundleSource> = assets.folders(MODELS).flatMap { model ->
    assets.folders("$MODELS/$model").map { target -> { AssetSource(assets, "$MODELS/$model/$target") } }
}

// Android lists the names in a folder; Robolectric lists the files below it
private fun AssetManager.folders(path: String) = list(path).orEmpty().map { it.substringBefore('/') }.distinct()
