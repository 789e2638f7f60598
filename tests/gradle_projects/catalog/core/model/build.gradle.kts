plugins {
    alias(libs.plugins.android.library)
}

android { namespace = "org.example.reader.model" }
