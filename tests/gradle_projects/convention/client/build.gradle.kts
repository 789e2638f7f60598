plugins {
    alias(libs.plugins.news.android.application)
}

dependencies {
    implementation(project(":sync"))
}
