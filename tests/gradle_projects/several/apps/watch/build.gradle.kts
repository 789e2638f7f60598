plugins {
    id("com.android.application")
}

android {
    sourceSets {
        getByName("main") { assets.srcDir("more-assets") }
        getByName("debug") { setRoot("debug-root") }
    }
}

dependencies {
    implementation(project(":shared"))
    implementation("org.pytorch:executorch-android:1.0.0")
}
