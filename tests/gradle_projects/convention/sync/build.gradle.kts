plugins {
    id("news.android.library")
}

dependencies {
    api("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
}
