plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "edgeq.demo"
    compileSdk = 36

    defaultConfig {
        applicationId = "edgeq.demo"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
    }

    androidResources {
        // compressed once more they would only grow, and could not be read in place
        noCompress += listOf("pte", "ptl", "npz")
    }

    packaging {
        // both runtimes bring these two
        jniLibs.pickFirsts += listOf("**/libc++_shared.so", "**/libfbjni.so")
    }

    buildTypes {
        release {
            isMinifyEnabled = false // the runtimes find their classes by name, from native code
        }
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":store"))
    implementation(variantOf(libs.zstd) { artifactType("aar") })
    implementation(libs.executorch)
    implementation(libs.fbjni)
    implementation(libs.pytorch.lite) {
        // executorch brings the same classes in the newer library
        exclude(group = "com.facebook.fbjni", module = "fbjni-java-only")
    }
}
