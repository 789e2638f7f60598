"""The reference client on channels that edgeq wrote: downloads, patches, tries and what stays on the disk."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError, VerificationError
from edgeq.deliver.ota import client
from edgeq.deliver.ota.channel import open_channel
from edgeq.deliver.ota.index import parse_index
from edgeq.deliver.ota.release import Terms, withdraw
from edgeq.deliver.ota.store import MAX_TRIES, Store, healthy, started
from tests.unit.deliver.ota.conftest import DAY, NOW, Device, Publisher, refused


def test_installs_and_updates_by_a_patch(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    first = device.update()
    assert (first.action, first.release, first.via) == ("installed", 1, "full download")
    assert device.update().action == "up to date"
    assert len(device.tested) == 1
    store = Store(device.store)
    _, bundle, why = started(store)
    assert bundle.folder == device.store / "slots/1"
    assert why is None

    publisher.release(publisher.bundle("2"))
    second = device.update(trust=False)
    assert (second.release, second.previous, second.via) == (2, 1, "patch")
    assert second.downloaded_bytes < first.downloaded_bytes / 5
    assert sorted(path.name for path in (device.store / "slots").iterdir()) == ["1", "2"]
    assert not list(device.store.rglob("*.part"))


def break_patch(publisher: Publisher) -> None:
    """Sign the channel's index again with a patch that is none."""
    index = parse_index(publisher.state.targets.signed.targets)
    targets = publisher.channel / "targets"
    files = {one.name: ((targets / f"{one.sha256}.{one.name}").read_bytes(), one.facts) for one in index.entries}
    patch = index.deltas[0].file
    publisher.index({**files, patch.name: (b"no patch", patch.facts)})  # type: ignore[dict-item]


def test_after_a_refused_patch_comes_the_full_download(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))
    break_patch(publisher)
    refused(device, IntegrityError, "the patch is refused")
    done = device.update()
    assert (done.release, done.via) == (2, "full download")
    publisher.release(publisher.bundle("3"))
    assert device.update().via == "patch"


def test_a_patch_that_ended_the_process_is_not_begun_again(
    publisher: Publisher, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))

    def die(*_: object) -> bytes:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(client, "apply_patch", die)
        with pytest.raises(Killed):
            device.update()
    assert device.update().via == "full download"


def test_a_full_disk_says_nothing_against_a_patch(
    publisher: Publisher, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(client, "unpack", full)
        refused(device, EnvironmentProblem, "no space left")
    assert device.update().via == "patch"


def test_a_broken_download_is_continued(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    archive = next((publisher.channel / "targets").glob("*.zip"))
    good = archive.read_bytes()
    archive.write_bytes(good[:4000])
    refused(device, EnvironmentProblem, "was cut off: .* has 4000 of")
    (part,) = (device.store / "download").iterdir()
    assert part.stat().st_size == 4000
    archive.write_bytes(b"x" * 4000 + good[4000:])  # only the rest may be read
    assert device.update().release == 1


def test_a_damaged_part_is_fetched_again(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    archive = next((publisher.channel / "targets").glob("*.zip"))
    good = archive.read_bytes()
    archive.write_bytes(good[:4000])
    refused(device, EnvironmentProblem, "was cut off")
    (part,) = (device.store / "download").iterdir()
    part.write_bytes(b"x" * 4000)
    archive.write_bytes(good)
    assert device.update().release == 1


def test_too_large_for_the_device(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    refused(device, IntegrityError, "has 1.... bytes, this device accepts at most 5000", most_bytes=5000)
    assert not (device.store / "download").exists()


def test_no_space(publisher: Publisher, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.release(publisher.bundle("1"))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_500))
    refused(device, EnvironmentProblem, "no space left")


def test_a_release_that_fails_its_self_test_is_tried_three_times(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))

    def fail(_: Path) -> None:
        raise VerificationError("golden: 3.0 dB", "fix")

    device.self_test = fail
    for left in ("2 more tries", "1 more try", "not tried again"):
        with pytest.raises(VerificationError, match=f"release 2 failed its self-test .*{left}"):
            device.update()
        assert device.release == 1
    with pytest.raises(VerificationError, match="failed on this device before"):
        device.update()
    assert len(device.tested) == 1 + MAX_TRIES
    assert sorted(path.name for path in (device.store / "slots").iterdir()) == ["1"]
    device.self_test = lambda _: None
    publisher.release(publisher.bundle("3"))
    assert device.update().release == 3


class Killed(BaseException):
    """Stands for a power cut."""


def test_tries_are_counted_across_power_cuts(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))

    def die(_: Path) -> None:
        raise Killed

    device.self_test = die
    for tries in range(1, MAX_TRIES + 1):
        with pytest.raises(Killed):
            device.update()
        trying = device.state.trying
        assert trying is not None
        assert trying.tries == tries
    with pytest.raises(EnvironmentProblem, match="tried again after a day"):
        device.update()
    assert device.release == 1
    assert device.state.bad == ()


def test_an_earlier_try_is_not_fetched_again(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))

    def die(_: Path) -> None:
        raise Killed

    device.self_test = die
    with pytest.raises(Killed):
        device.update()
    for path in (publisher.channel / "targets").iterdir():
        path.unlink()
    device.self_test = lambda _: None
    done = device.update()
    assert (done.via, done.downloaded_bytes, done.release) == ("an earlier try", 0, 1)


def test_withdrawing_brings_the_old_one_back(publisher: Publisher, device: Device) -> None:
    old = publisher.bundle("1")
    publisher.release(old)
    publisher.release(publisher.bundle("2"))
    assert device.update().release == 2
    withdraw(publisher.channel, publisher.ring, 2, Terms(now=NOW + DAY))
    done = device.update(now=NOW + DAY)
    assert (done.release, done.model_version, done.via) == (3, "1", "patch")
    fresh = Device(store=device.store.with_name("fresh"), channel=device.channel, trust=device.trust)
    assert fresh.update().model_version == "1"
    # devices have left it behind: nothing is published anew
    again = withdraw(publisher.channel, publisher.ring, 2, Terms(now=NOW + DAY))
    assert (again.release, again.files) == (3, ())
    with pytest.raises(UsageError, match="no release 9"):
        withdraw(publisher.channel, publisher.ring, 9, Terms(now=NOW))


def test_a_damaged_store_is_told(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    good = (device.store / "state.json").read_bytes()
    for bad in (b"", b"{", good.replace(b'"release": 1', b'"release": "../1"'), json.dumps({"a": 1}).encode()):
        (device.store / "state.json").write_bytes(bad)
        with pytest.raises(IntegrityError, match=r"state\.json is damaged: [^:]"):
            device.update()
    (device.store / "state.json").write_bytes(good)
    (device.store / "slots/1/model.pte").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="damaged on this device"):
        device.update()
    publisher.release(publisher.bundle("2"))
    assert device.update().via == "full download"  # the base is damaged


def test_leaves_nothing_behind(publisher: Publisher, device: Device) -> None:
    for version in ("1", "2", "3", "4"):
        publisher.release(publisher.bundle(version))
        device.update()
        Store(device.store).save(healthy(device.state))
    assert sorted(path.name for path in (device.store / "slots").iterdir()) == ["3", "4"]
    (device.store / "slots/.7.abcdefgh.tmp").mkdir()
    (device.store / "slots/9").mkdir()
    (device.store / "trusted/tmpabc").write_text("x")
    (device.store / ".state.json.abcdefgh.tmp").write_text("x")
    device.update()
    left = {path.name for path in device.store.rglob("*")}
    assert not left & {".7.abcdefgh.tmp", "9", "tmpabc", ".state.json.abcdefgh.tmp", ".edgeq.lock", "download"}


def test_the_channel_keeps_what_readers_need(publisher: Publisher) -> None:
    for version in "1234567":
        publisher.release(publisher.bundle(version))
    channel = open_channel(publisher.channel)
    assert channel is not None
    assert [one.facts.release for one in channel.index.bundles] == [7, 6, 5, 4, 3, 2]
    assert {delta.facts.release for delta in channel.index.deltas} == {7}
    assert len(channel.index.deltas) == 3
    names = sorted(path.name for path in (publisher.channel / "metadata").iterdir())
    assert names == [
        "1.root.json",
        "6.snapshot.json",
        "6.targets.json",
        "7.snapshot.json",
        "7.targets.json",
        "timestamp.json",
    ]
