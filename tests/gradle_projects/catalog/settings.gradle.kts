pluginManagement { repositories { google() } }

rootProject.name = "reader"
include(":mobile")
include(":core:model")
