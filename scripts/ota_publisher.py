"""One publisher of update channels, for `scripts/ota_channels.py`: he signs what edgeq would, and what it would not."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from edgeq.bundle.reader import read_bundle
from edgeq.core.files import sha256_bytes
from edgeq.deliver.ota.channel import Channel, open_channel, publish
from edgeq.deliver.ota.index import BundleFacts, DeltaFacts, bundle_facts
from edgeq.deliver.ota.keys import load_keys, new_keys
from edgeq.deliver.ota.patch import pack
from edgeq.deliver.ota.release import Terms, add_release, bases, prepare, shipped, target_file

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
GOLDEN = Path(__file__).parents[1] / "tests/golden/0.1.0/digits/android-arm64-xnnpack"
NAME = "digits.android-arm64-xnnpack.2.zip"


class Publisher:
    """One publisher with his keys and two bundles."""

    def __init__(self, root: Path) -> None:
        self.work = root / "work"
        self.work.mkdir(parents=True)
        self.keys = root / "keys"
        new_keys(self.keys, counts={}, places={})
        self.one = version(self.work, "1")
        self.two = version(self.work, "2")

    def release(self, channel: Path, bundle: Path, **terms: Any) -> None:
        """Release a bundle as `edgeq ota release` does."""
        before = open_channel(channel)
        manifest = read_bundle(bundle).manifest
        known = shipped(before, manifest.model.name, manifest.target.name)
        item = prepare(bundle, bases(before, known))
        add_release(channel, before, load_keys(self.keys), [item], Terms(now=NOW, **terms))

    def facts(self, bundle: Path, **values: Any) -> BundleFacts:
        """Return what the index should say of a bundle as release 2, or what it says instead."""
        read, plain = read_bundle(bundle), pack(bundle)
        facts = bundle_facts(
            read.manifest, release=2, digest=read.digest, plain_sha256=sha256_bytes(plain), plain_bytes=len(plain)
        )
        return facts.model_copy(update=values)

    def sign(
        self, channel: Path, files: Mapping[str, tuple[bytes, Any]], custom: Mapping[str, Any] | None = None
    ) -> None:
        """Sign an index with entries that edgeq itself would never make; names that are paths get no file."""
        before = cast(Channel, open_channel(channel))
        targets = dict(before.targets.signed.targets)
        targets |= {name: target_file(name, data, facts) for name, (data, facts) in files.items()}
        for name, facts in (custom or {}).items():
            targets[name].unrecognized_fields["custom"] = facts
        data = {name: content for name, (content, _) in files.items() if "/" not in name}
        try:
            publish(channel, before, load_keys(self.keys), targets=targets, files=data, now=NOW)
            open_channel(channel).index  # type: ignore[union-attr]  # noqa: B018
        except Exception as err:  # edgeq refuses to read what it was made to sign here
            print(f"{channel.name}: {err}", file=sys.stderr)


def version(work: Path, name: str) -> Path:
    """Return the golden bundle as another version of the model, whose artifact differs in a few bytes."""
    folder = work / f"bundle-{name}"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("report.*"))
    if name == "1":
        return folder
    data = bytearray((folder / "model.pte").read_bytes())
    for at in range(4000, len(data), 5000):
        data[at] ^= 1
    manifest = (folder / "manifest.json").read_text()
    old = sha256_bytes((folder / "model.pte").read_bytes())
    manifest = manifest.replace('"version": "1"', f'"version": "{name}"').replace(old, sha256_bytes(bytes(data)))
    (folder / "model.pte").write_bytes(data)
    (folder / "manifest.json").write_text(manifest)
    return folder


def delta_facts(publisher: Publisher, **values: Any) -> DeltaFacts:
    """Return what the index should say of the patch, or what it says instead."""
    base, output = pack(publisher.one), pack(publisher.two)
    facts = DeltaFacts(
        model="digits",
        target="android-arm64-xnnpack",
        release=2,
        algorithm="zstd",
        base_sha256=sha256_bytes(base),
        output_sha256=sha256_bytes(output),
        output_bytes=len(output),
    )
    return facts.model_copy(update=values)
