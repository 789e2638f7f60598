#!/usr/bin/env bash
# Release a model over the air: make keys, publish two signed releases into a channel, and let a device take them.
# The channel is a folder here; on a web server it is the same files. Needs `edgeq` on the PATH.
set -euo pipefail

target=linux-x86_64-x86
edgeq package digits --target "$target" --on host --out out --quiet
edgeq keys new keys   # private keys: keep them off the build machine, see docs/updates.md
edgeq ota release "out/digits/$target" --channel channel --keys keys

# the device: an app ships with the first root of trust, and starts what `ota start` prints
edgeq ota update --channel channel --store store --device-id phone-1 --trust channel/metadata/1.root.json
edgeq ota start --store store
edgeq ota healthy --store store

# the next version goes out as a patch where that is smaller
edgeq package digits --target "$target" --on host --out out --model-version 2 --seed 1 --quiet
edgeq ota release "out/digits/$target" --channel channel --keys keys
edgeq ota update --channel channel --store store --device-id phone-1
edgeq ota start --store store
