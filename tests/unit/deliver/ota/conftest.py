"""A publisher with keys, a channel and small bundles; a device with a store."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_items import changed

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import EdgeqError
from edgeq.core.files import sha256_bytes
from edgeq.core.results.artifact import BundleInput
from edgeq.deliver.ota.channel import Channel, open_channel, publish
from edgeq.deliver.ota.client import Request, Update, update
from edgeq.deliver.ota.fetch import open_source
from edgeq.deliver.ota.index import BundleFacts, bundle_facts
from edgeq.deliver.ota.keys import KeyRing, load_keys, new_keys
from edgeq.deliver.ota.patch import pack
from edgeq.deliver.ota.release import Base, Published, Terms, add_release, bases, prepare, shipped, target_file
from edgeq.deliver.ota.store import State, Store

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
TARGET = "android-arm64-xnnpack"


@dataclass
class Publisher:
    """Makes bundles, and releases them."""

    root: Path
    item: BundleInput
    channel: Path
    keys: Path

    @property
    def ring(self) -> KeyRing:
        return load_keys(self.keys)

    @property
    def state(self) -> Channel:
        found = open_channel(self.channel)
        assert found is not None
        return found

    def bundle(self, version: str = "1", *, seed: int = 0, changes: int = 20, **values: Any) -> Path:
        """Write a bundle whose artifact differs from that of another version in a few bytes."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        data = bytearray(self.item.artifact.lowered.path.read_bytes())
        rng = np.random.default_rng([seed, sum(version.encode())])
        for at in rng.integers(0, len(data), changes):
            data[at] ^= int(rng.integers(1, 256))
        source = Path(tempfile.mkdtemp(dir=self.root)) / "model.pte"
        source.write_bytes(data)
        lowered = dataclasses.replace(self.item.artifact.lowered, path=source)
        write_bundle(changed(self.item, model_version=version, lowered=lowered, **values), folder)
        return folder

    def release(self, *folders: Path, now: datetime.datetime = NOW, deltas: int = 3, **terms: Any) -> Published:
        before = open_channel(self.channel)
        items = []
        for folder in folders:
            manifest = read_bundle(folder).manifest
            known = shipped(before, manifest.model.name, manifest.target.name)[:deltas]
            items.append(prepare(folder, bases(before, known)))
        return add_release(self.channel, before, self.ring, items, Terms(now=now, **terms))

    def index(
        self,
        files: dict[str, tuple[bytes, BundleFacts]],
        *,
        now: datetime.datetime = NOW,
        ring: KeyRing | None = None,
        custom: dict[str, Any] | None = None,
    ) -> None:
        """Sign an index that edgeq itself would never make."""
        targets = {name: target_file(name, data, facts) for name, (data, facts) in files.items()}
        for name, facts in (custom or {}).items():
            targets[name].unrecognized_fields["custom"] = facts
        before = open_channel(self.channel)
        data = {name: content for name, (content, _) in files.items() if "/" not in name}
        publish(self.channel, before, ring or self.ring, targets=targets, files=data, now=now)

    def facts(self, folder: Path, release: int = 1, **values: Any) -> BundleFacts:
        bundle, plain = read_bundle(folder), pack(folder)
        facts = bundle_facts(
            bundle.manifest,
            release=release,
            digest=bundle.digest,
            plain_sha256=sha256_bytes(plain),
            plain_bytes=len(plain),
        )
        return facts.model_copy(update=values)


@dataclass
class Device:
    """Follows a channel; what it tests itself with can be exchanged."""

    store: Path
    channel: str
    trust: Path
    device_id: str = "phone-1"
    tested: list[Path] = field(default_factory=list)
    self_test: Callable[[Path], None] = lambda _: None

    def update(self, *, now: datetime.datetime | None = NOW, trust: bool = True, **values: Any) -> Update:
        def test(folder: Path) -> None:
            self.tested.append(folder)
            read_bundle(folder)
            self.self_test(folder)

        request = Request(
            source=values.pop("source", None) or open_source(self.channel),
            store=self.store,
            device_id=values.pop("device_id", self.device_id),
            trust=self.trust.read_bytes() if trust else None,
            clock=now,
            **values,
        )
        return update(request, test)

    @property
    def state(self) -> State:
        return Store(self.store).state()

    @property
    def release(self) -> int | None:
        current = self.state.current
        return current.release if current else None


@pytest.fixture(scope="session")
def master_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("master") / "keys"
    new_keys(folder, counts={}, places={})
    return folder


@pytest.fixture
def publisher(tmp_path: Path, item: BundleInput, master_keys: Path) -> Publisher:
    keys = tmp_path / "keys"
    shutil.copytree(master_keys, keys)
    (tmp_path / "work").mkdir()
    return Publisher(root=tmp_path / "work", item=item, channel=tmp_path / "channel", keys=keys)


@pytest.fixture
def device(tmp_path: Path, publisher: Publisher) -> Device:
    return Device(
        store=tmp_path / "store",
        channel=str(publisher.channel),
        trust=publisher.channel / "metadata" / "1.root.json",
    )


def tree(root: Path) -> dict[str, bytes | None]:
    """Return every path below `root` with its content; None for a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(root.rglob("*"))
    }


__all__ = ["DAY", "NOW", "TARGET", "Base", "Device", "Publisher", "tree"]


def refused(device: Device, error: type[EdgeqError], why: str, **values: object) -> None:
    """Assert the refusal, and that what the app loads is untouched."""
    slots = tree(device.store / "slots") if (device.store / "slots").exists() else {}
    current = device.release if device.store.exists() else None
    with pytest.raises(error, match=why):
        device.update(**values)  # type: ignore[arg-type]
    if device.store.exists():
        assert device.release == current
    assert (tree(device.store / "slots") if (device.store / "slots").exists() else {}) == slots
