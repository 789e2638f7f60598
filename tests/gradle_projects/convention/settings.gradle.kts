pluginManagement {
    includeBuild("build-logic")
}

rootProject.name = "news"
include(":client")
include(":sync")
