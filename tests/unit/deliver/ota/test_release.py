"""What a publisher writes: bills of materials, what stays in a channel, and what a killed run leaves."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.core import files as channels
from edgeq.core.errors import IntegrityError, UsageError, VerificationError
from edgeq.deliver.ota import channel, release
from edgeq.deliver.ota.bom import bill_of_materials
from edgeq.deliver.ota.channel import open_channel
from edgeq.deliver.ota.patch import pack, unpack
from edgeq.deliver.ota.release import Terms, refresh, withdraw
from tests.unit.deliver.ota.conftest import DAY, NOW, Device, Publisher, tree


def test_the_published_zip_is_the_file_of_the_download_gate(publisher: Publisher) -> None:
    folder = publisher.bundle()
    publisher.release(folder)
    (archive,) = (publisher.channel / "targets").glob("*.zip")
    assert archive.read_bytes() == bundle_zip(folder)


def test_the_index_says_what_a_client_must_know(publisher: Publisher) -> None:
    folder = publisher.bundle("1")
    publisher.release(folder, runtimes=(("executorch", "1.5"), ("torchscript", "2.1")), devices=("a",))
    (entry,) = publisher.state.index.bundles
    bundle = read_bundle(folder)
    assert entry.facts.digest == bundle.digest
    assert (entry.facts.target, entry.facts.arch, entry.facts.runtime) == (
        "android-arm64-xnnpack",
        "arm64",
        "executorch",
    )
    assert (entry.facts.exported_with, entry.facts.runtimes, entry.facts.devices) == ("1.5.1", ("1.5",), ("a",))
    assert entry.facts.plain_bytes == len(pack(folder))


def test_plain_forms_are_exact(publisher: Publisher, tmp_path: Path) -> None:
    folder = publisher.bundle()
    data = pack(folder)
    place = tmp_path / "place"
    place.mkdir()
    unpack(data, place)
    assert tree(place) == {name: data for name, data in tree(folder).items() if not name.startswith("report")}
    for bad in (b"", data[:20], data[:-1], data + b"x", b"x" + data, data[:14] + b"\xff" * 8 + data[22:]):
        with pytest.raises(IntegrityError):
            unpack(bad, place)


def test_the_bill_of_materials(publisher: Publisher) -> None:
    folder = publisher.bundle("1.2")
    publisher.release(folder, licence="Apache-2.0 OR MIT")
    (path,) = (publisher.channel / "targets").glob("*.cdx.json")
    bill = json.loads(path.read_text())
    manifest = read_bundle(folder).manifest
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "digits", "1.2")
    assert model["hashes"] == [{"alg": "SHA-256", "content": manifest.file("artifact").sha256}]
    assert model["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    parts = {part["name"]: part for part in bill["components"]}
    assert parts["calibration-data"]["hashes"][0]["content"] == "b" * 64
    assert "evaluation-data" not in parts
    assert parts["torch"]["version"] == "2.15.0"


def test_bills_are_the_same_for_the_same_release(publisher: Publisher) -> None:
    bundle = read_bundle(publisher.bundle())
    bills = {bill_of_materials(bundle.manifest, bundle.digest, now=NOW, licence=None) for _ in range(3)}
    assert len(bills) == 1


def test_no_licence(publisher: Publisher) -> None:
    with pytest.raises(UsageError, match="not an SPDX license"):
        publisher.release(publisher.bundle(), licence="my own terms!")
    assert not publisher.channel.exists()


def test_refuses_what_must_not_ship(publisher: Publisher) -> None:
    import dataclasses

    random = publisher.bundle(model=dataclasses.replace(publisher.item.inputs.model, weights="random"))
    with pytest.raises(VerificationError, match="random weights"):
        publisher.release(random)
    folder = publisher.bundle("1")
    publisher.release(folder)
    with pytest.raises(UsageError, match="is already release 1"):
        publisher.release(folder)
    with pytest.raises(UsageError, match="two bundles of digits"):
        publisher.release(publisher.bundle("2"), publisher.bundle("3"))
    other = publisher.bundle("2", model=dataclasses.replace(publisher.item.inputs.model, name="Digits"))
    with pytest.raises(UsageError, match="only in case"):
        publisher.release(other)


def test_a_folder_that_is_no_channel(publisher: Publisher) -> None:
    publisher.channel.mkdir()
    (publisher.channel / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not a channel: it holds notes\.txt"):
        publisher.release(publisher.bundle())


@pytest.mark.parametrize("name", ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_a_tampered_channel_is_not_added_to(publisher: Publisher, name: str) -> None:
    publisher.release(publisher.bundle("1"))
    path = publisher.channel / "metadata" / name
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2', 1))
    with pytest.raises(IntegrityError, match="damaged, or signed with other keys"):
        publisher.release(publisher.bundle("2"))
    path.unlink()
    if name != "1.root.json":
        with pytest.raises(IntegrityError):
            open_channel(publisher.channel)


def test_a_damaged_base_is_told(publisher: Publisher) -> None:
    publisher.release(publisher.bundle("1"))
    next((publisher.channel / "targets").glob("*.zip")).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="not the file that was released"):
        publisher.release(publisher.bundle("2"))


def test_a_release_that_is_cut_short_changes_nothing_for_readers(
    publisher: Publisher, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.release(publisher.bundle("1"))
    before = tree(publisher.channel)
    write = channels.write_atomic
    for number in range(6):
        calls = iter(range(100))

        def cut(path: Path, data: bytes, calls=calls, number: int = number) -> None:
            if next(calls) == number:
                raise OSError(28, "No space left on device")
            write(path, data)

        monkeypatch.setattr(channel, "write_atomic", cut)
        with pytest.raises(Exception, match="no space left"):
            publisher.release(publisher.bundle("2"))
        monkeypatch.setattr(channel, "write_atomic", write)
        assert tree(publisher.channel) == before
        assert device.update().release == 1
    publisher.release(publisher.bundle("3"))
    assert device.update().model_version == "3"


def test_a_root_that_ends_soon_is_renewed(publisher: Publisher) -> None:
    publisher.release(publisher.bundle("1"))
    publisher.release(publisher.bundle("2"), now=NOW + 10 * DAY)
    assert len(publisher.state.roots) == 1
    publisher.release(publisher.bundle("3"), now=NOW + 600 * DAY)
    assert len(publisher.state.roots) == 2
    assert publisher.state.roots[-1].signed.expires > NOW + datetime.timedelta(days=1300)


def test_what_has_expired_by_clients_clocks_is_not_signed(publisher: Publisher, device: Device) -> None:
    first, second = publisher.bundle("1"), publisher.bundle("2")
    with pytest.raises(UsageError, match=r"as of 2026-11-21 .*, the index would have expired on 2026-12-21") as told:
        publisher.release(first, clock=NOW + 30 * DAY)
    assert "SOURCE_DATE_EPOCH" in told.value.fix
    assert not publisher.channel.joinpath("metadata").exists()
    with pytest.raises(UsageError, match="the root would have expired on 2028-11-20"):
        publisher.release(first, clock=NOW + 730 * DAY, valid_days=3650)
    done = publisher.release(first, clock=NOW + 29 * DAY)
    assert done.expires == NOW + 30 * DAY
    assert device.update(now=NOW + 29 * DAY).release == 1

    # a withdrawal that no device would take leaves the bad release on all of them
    publisher.release(second)
    before = tree(publisher.channel)
    for act in (
        lambda terms: withdraw(publisher.channel, publisher.ring, 2, terms),
        lambda terms: refresh(publisher.channel, publisher.ring, terms),
    ):
        with pytest.raises(UsageError, match="every client would refuse the channel"):
            act(Terms(now=NOW, clock=NOW + 31 * DAY))
    assert tree(publisher.channel) == before


def test_an_index_that_clients_would_refuse_is_not_signed(publisher: Publisher) -> None:
    publisher.release(publisher.bundle("1"))
    before = tree(publisher.channel)
    with pytest.raises(IntegrityError, match=r"bundle\.devices\.0"):
        publisher.release(publisher.bundle("2"), devices=("bad id!",))
    after = {name: data for name, data in tree(publisher.channel).items() if name != ".edgeq.lock"}
    assert after == {name: data for name, data in before.items() if name != ".edgeq.lock"}


@pytest.mark.parametrize("step", ["pack", "bundle_zip"])
def test_a_bundle_that_is_packaged_anew_while_it_is_read_is_not_released(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder, other = publisher.bundle("1"), publisher.bundle("2")
    read = getattr(release, step)

    def late(place: Path) -> bytes:
        if place == folder:
            for path in other.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        found: bytes = read(place)
        return found

    monkeypatch.setattr(release, step, late)
    with pytest.raises(IntegrityError, match="changed while it was released"):
        publisher.release(folder)
    assert not publisher.channel.exists()
