plugins {
    id("com.android.application")
}

android {
    defaultConfig {
        applicationId = "org.example.studio"
        ndk { abiFilters += listOf("armeabi-v7a") }
    }
}

dependencies { implementation(project(":shared")) }
