plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.example.reader"
    flavorDimensions += "store"
    productFlavors {
        create("play") { dimension = "store" }
        create("galaxy") { dimension = "store" }
    }
    buildTypes {
        release { isMinifyEnabled = true }
    }
}

dependencies {
    implementation(projects.core.model)
    implementation(libs.bundles.inference)
}
