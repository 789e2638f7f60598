"""The reference client follows new keys, and refuses those that were revoked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeq.core.errors import IntegrityError
from edgeq.deliver.ota.keys import forget_retired, load_keys, rotated
from edgeq.deliver.ota.release import Terms, refresh
from tests.unit.deliver.ota.conftest import NOW, Device, Publisher, refused


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_rotated_keys_are_followed_and_revoked_ones_refused(
    publisher: Publisher, device: Device, tmp_path: Path, role: str
) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    old_keys = tmp_path / "stolen"
    shutil.copytree(publisher.keys, old_keys)
    ring = rotated(publisher.ring, role)  # type: ignore[arg-type]
    refresh(publisher.channel, ring, Terms(now=NOW))
    forget_retired(ring)
    assert not list(publisher.keys.glob(f"{role}-1.pem"))
    assert device.update().action == "up to date"
    publisher.release(publisher.bundle("2"))
    assert device.update().release == 2
    # whoever has the old keys signs an index of his own
    forged = tmp_path / "forged"
    shutil.copytree(publisher.channel, forged)
    newest = max(forged.glob("metadata/*.root.json"))
    root = newest.read_bytes()
    newest.unlink()
    thief = Publisher(root=publisher.root, item=publisher.item, channel=forged, keys=old_keys)
    if role == "root":
        # he can only make a root that does not follow from the new one
        for path in forged.rglob("*.json"):
            path.unlink()
        thief.release(thief.bundle("3"))
        newest.write_bytes(root)
        device.channel = str(forged)
        refused(device, IntegrityError, "rollback|wrong or revoked|mix-and-match")
        return
    _resign(thief, role)
    newest.write_bytes(root)
    device.channel = str(forged)
    refused(device, IntegrityError, "wrong or revoked key")


def _resign(thief: Publisher, role: str) -> None:
    """Sign the present index as the next one, with the thief's keys only where he has them."""
    from tuf.api.metadata import Metadata
    from tuf.api.serialization.json import JSONSerializer

    from edgeq.core.files import sha256_bytes

    place = thief.channel / "metadata"
    ring = load_keys(thief.keys)
    names = {"timestamp": place / "timestamp.json"}
    for kind in ("snapshot", "targets"):
        names[kind] = max(place.glob(f"*.{kind}.json"), key=lambda path: int(path.name.split(".")[0]))
    parts = {kind: Metadata.from_file(str(path)) for kind, path in names.items()}
    for kind in ("targets", "snapshot", "timestamp"):
        metadata = parts[kind]
        metadata.signed.version += 1
        if kind == "snapshot":
            metadata.signed.meta["targets.json"].version += 1
            metadata.signed.meta["targets.json"].hashes = None
            metadata.signed.meta["targets.json"].length = None
        if kind == "timestamp":
            data = (place / f"{parts['snapshot'].signed.version}.snapshot.json").read_bytes()
            metadata.signed.snapshot_meta.version += 1
            metadata.signed.snapshot_meta.length = len(data)
            metadata.signed.snapshot_meta.hashes = {"sha256": sha256_bytes(data)}
        for number, signer in enumerate(ring.signers(kind)):  # type: ignore[arg-type]
            metadata.sign(signer, append=number > 0)
        name = "timestamp.json" if kind == "timestamp" else f"{metadata.signed.version}.{kind}.json"
        metadata.to_file(str(place / name), JSONSerializer(compact=False))
