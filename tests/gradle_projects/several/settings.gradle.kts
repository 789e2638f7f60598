rootProject.name = "studio"
include(":apps:phone", ":apps:watch", ":shared", ":loose", ":benchmark")
project(":apps:phone").projectDir = file("$rootDir/clients/handheld")
