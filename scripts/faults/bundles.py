"""Bundles around invented weights, a channel that publishes them, and a device that follows it."""

from __future__ import annotations

import datetime
import json
import random
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "0.1.0" / "digits"
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
_SIZE, _CHANGES = 20_000, 200  # bytes of an artifact, and of them those that another version has otherwise


def bundle(folder: Path, version: str) -> Path:
    """Write a bundle around invented weights; the golden self-test is not run on it."""
    rng = random.Random(7)  # no secret
    weights = bytearray(int(rng.gauss(0, 20)) & 255 for _ in range(_SIZE))
    rng = random.Random(version)
    for _ in range(_CHANGES if version != "1" else 0):
        weights[rng.randrange(_SIZE)] = rng.randrange(256)
    return bundle_of(folder, version, bytes(weights))


def bundle_of(folder: Path, version: str, artifact: bytes) -> Path:
    """Write a bundle around any bytes."""
    from edgeq.core.files import canonical_json, sha256_bytes

    source = GOLDEN / "android-arm64-xnnpack"
    folder.mkdir(parents=True)
    shutil.copyfile(source / "golden.npz", folder / "golden.npz")
    (folder / "model.pte").write_bytes(artifact)
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["model"]["version"] = version
    for entry in manifest["files"]:
        if entry["path"] == "model.pte":
            entry.update(sha256=sha256_bytes(artifact), size_bytes=len(artifact))
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    return folder


def keys(folder: Path) -> None:
    """Make signing keys."""
    from edgeq.deliver.ota.keys import new_keys

    new_keys(folder, counts={}, places={})


def release(channel: Path, key_folder: Path, folder: Path) -> None:
    """Publish a bundle."""
    from edgeq.deliver.ota.channel import open_channel
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import Terms, add_release, bases, prepare, shipped

    before = open_channel(channel)
    item = prepare(folder, bases(before, shipped(before, "digits", "android-arm64-xnnpack")[:1]))
    add_release(channel, before, load_keys(key_folder), [item], Terms(now=NOW))


def update(store: Path, channel: Path, trust: Path) -> None:
    """Follow the channel; what is tested here is the store, so the self-test only reads the bundle."""
    from edgeq.bundle.reader import read_bundle
    from edgeq.deliver.ota.client import Request
    from edgeq.deliver.ota.client import update as run
    from edgeq.deliver.ota.fetch import open_source

    request = Request(source=open_source(str(channel)), store=store, device_id="d", trust=trust.read_bytes(), clock=NOW)
    run(request, lambda folder: read_bundle(folder) and None)


def go_back(store: Path) -> None:
    """Roll the store back to its previous release."""
    from edgeq.core.files import disk_errors, lock_dir
    from edgeq.deliver.ota.store import Store, rolled_back

    with disk_errors(store), lock_dir(store, wait_s=10):
        place = Store(store)
        place.recover()
        state = place.state()
        if state.previous is not None:
            place.save(rolled_back(state, "asked to"))
        place.recover()


def two_bundles(work: Path) -> None:
    """Make keys, a channel with release 1 at `target`, and the bundle of release 2 at `two`."""
    keys(work / "keys")
    release(work / "target", work / "keys", bundle(work / "one", "1"))
    bundle(work / "two", "2")


def device_behind(work: Path) -> None:
    """Make a channel with two releases, and at `target` the store of a device that has the first."""
    two_bundles(work)
    shutil.move(work / "target", work / "channel")
    follow(work)
    release(work / "channel", work / "keys", work / "two")


def follow(work: Path) -> None:
    """Bring the device at `target` up to date with the channel beside it."""
    update(work / "target", work / "channel", work / "channel" / "metadata" / "1.root.json")


def device_release(work: Path) -> str:
    """Return the release that the device at `target` is at, after reading all of its bundles."""
    from edgeq.deliver.ota.store import Store

    store = Store(work / "target")
    state = store.state()
    for slot in (state.current, state.previous):
        if slot is not None:
            store.bundle(slot)
    return str(state.current.release if state.current else None)
