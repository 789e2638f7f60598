import org.jetbrains.kotlin.gradle.dsl.KotlinVersion

plugins {
    alias(libs.plugins.kotlin.jvm)
    `maven-publish`
}

group = "edgeq"
version = "0.1.0"

// gradle :store:publishToMavenLocal, for an app of your own: docs/howto/add-to-app.md
publishing {
    publications {
        create<MavenPublication>("store") {
            from(components["java"])
        }
    }
}

kotlin {
    jvmToolchain(17)
    // a Kotlin compiler reads what is one version newer than it: an app may be at 2.0
    coreLibrariesVersion = "2.1.21"
    compilerOptions {
        languageVersion = KotlinVersion.KOTLIN_2_1
        apiVersion = KotlinVersion.KOTLIN_2_1
    }
}

dependencies {
    implementation(libs.jackson.core)
    implementation(libs.tink)
    implementation(libs.commons.compress)
    compileOnly(libs.zstd) // for a phone it is the AAR with Android's libraries, which only an app can bring
    testImplementation(libs.zstd)
    testImplementation(libs.junit.jupiter)
    testRuntimeOnly(libs.junit.launcher)
}

tasks.test {
    useJUnitPlatform()
    systemProperty("edgeq.root", rootDir.parent)
    systemProperty("edgeq.python", "$rootDir/../.venv/bin/python")
}
