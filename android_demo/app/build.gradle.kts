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

        ndk {
            abiFilters += "arm64-v8a" // the bundles' own; the runtimes bring three more
        }
    }

    androidResources {
        // compressed once more they would only grow, and could not be read in place
        noCompress += listOf("pte", "ptl", "ort", "npz")
    }

    packaging {
        // executorch and pytorch_android_lite bring these two
        jniLibs.pickFirsts += listOf("**/libc++_shared.so", "**/libfbjni.so")
    }

    buildTypes {
        release {
            // the runtimes find their classes by name, from native code: the rules keep them, but R8 was not run here
            isMinifyEnabled = false
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
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
    implementation(libs.onnxruntime)
    implementation(libs.pytorch.lite) {
        // executorch brings the same classes in the newer library
        exclude(group = "com.facebook.fbjni", module = "fbjni-java-only")
    }
}
