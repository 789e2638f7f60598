"""The reference client on channels that edgeq wrote, good and hostile."""

from __future__ import annotations

import datetime
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeq.deliver.ota import place
from edgeq.deliver.ota.channel import open_channel
from edgeq.deliver.ota.client import MOST_REPEATS
from edgeq.deliver.ota.entries import Terms
from edgeq.deliver.ota.facts import KEY, parse_index
from edgeq.deliver.ota.keys import forget_retired, load_keys, new_keys, rotated
from edgeq.deliver.ota.release import refresh, withdraw
from edgeq.deliver.ota.state import MAX_TRIES, healthy
from edgeq.deliver.ota.store import Store, started
from edgeq.errors import (
    EdgeqError,
    EnvironmentProblem,
    IntegrityError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from edgeq.target import load_target
from tests.unit.deliver.ota.conftest import DAY, NOW, Device, Publisher, tree


def refused(device: Device, error: type[EdgeqError], why: str, **values: object) -> None:
    """Assert the refusal, and that what the app loads is untouched."""
    slots = tree(device.store / "slots") if (device.store / "slots").exists() else {}
    current = device.release if device.store.exists() else None
    with pytest.raises(error, match=why):
        device.update(**values)  # type: ignore[arg-type]
    if device.store.exists():
        assert device.release == current
    assert (tree(device.store / "slots") if (device.store / "slots").exists() else {}) == slots


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


def test_needs_somebody_to_trust(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle())
    refused(device, IntegrityError, "trusts nobody yet", trust=False)
    device.trust.with_name("other.json").write_text("{}")
    device.trust = device.trust.with_name("other.json")
    refused(device, IntegrityError, "damaged or was tampered")


def test_another_publishers_root(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    publisher.release(publisher.bundle())
    other = Publisher(root=publisher.root, item=publisher.item, channel=tmp_path / "other", keys=tmp_path / "okeys")
    new_keys(other.keys, counts={}, places={})
    other.release(other.bundle())
    device.trust = other.channel / "metadata/1.root.json"
    refused(device, IntegrityError, "wrong or revoked key")


def test_rollback_of_the_index(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    publisher.release(publisher.bundle("1"))
    shutil.copytree(publisher.channel, tmp_path / "old")
    publisher.release(publisher.bundle("2"))
    device.update()
    device.channel = str(tmp_path / "old")
    refused(device, IntegrityError, "rollback")
    # nor where python-tuf's own memory is lost
    shutil.rmtree(device.store / "trusted")
    refused(device, IntegrityError, "rollback: .* this device has seen")


def test_rollback_of_a_release(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    publisher.release(publisher.bundle("2"))
    device.update()
    kept = {name: target for name, target in publisher.state.targets.signed.targets.items() if ".1.zip" in name}
    from edgeq.deliver.ota.channel import publish

    publish(publisher.channel, publisher.state, publisher.ring, targets=kept, files={}, now=NOW)
    refused(device, IntegrityError, "rollback: the channel's newest release is 1, this device has 2")


def test_freeze(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    refused(device, IntegrityError, "freeze: .*expired", now=NOW + 31 * DAY)
    refresh(publisher.channel, publisher.ring, Terms(now=NOW + 31 * DAY))
    assert device.update(now=NOW + 31 * DAY).action == "up to date"


def test_freeze_on_a_device_without_a_clock(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    first = device.update(now=None)
    assert first.action == "installed"
    assert first.notes
    for _ in range(MOST_REPEATS):
        device.update(now=None)
    refused(device, IntegrityError, "freeze: .*no clock", now=None)
    publisher.release(publisher.bundle("2"), now=NOW + DAY)
    assert device.update(now=None).release == 2


def test_a_clock_that_stands_before_the_index_is_no_clock(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    wrong = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
    assert device.update(now=wrong).notes
    # an index that had expired when a newer one was signed stays refused, whatever the clock says
    shutil.copytree(publisher.channel, publisher.channel.with_name("old"))
    refresh(publisher.channel, publisher.ring, Terms(now=NOW + 40 * DAY))
    device.update(now=wrong)
    device.channel = str(publisher.channel.with_name("old"))
    refused(device, IntegrityError, "rollback|freeze", now=wrong)


def test_mix_and_match(publisher: Publisher, device: Device, tmp_path: Path) -> None:
    publisher.release(publisher.bundle("1"))
    shutil.copytree(publisher.channel, tmp_path / "old")
    publisher.release(publisher.bundle("2"))
    place = publisher.channel / "metadata"
    shutil.copyfile(tmp_path / "old/metadata/1.targets.json", place / "2.targets.json")
    refused(device, IntegrityError, "mix-and-match")


def test_another_bundle_under_a_signed_name(publisher: Publisher, device: Device) -> None:
    from edgeq.bundle.archive import bundle_zip

    said, other = publisher.bundle("1"), publisher.bundle("2")
    publisher.index({"a.zip": (bundle_zip(other), publisher.facts(said))})
    refused(device, IntegrityError, "mix-and-match: release 1 holds another bundle")
    facts = publisher.facts(other, model_version="3")
    publisher.index({"a.zip": (bundle_zip(other), facts)})
    refused(device, IntegrityError, "mix-and-match: .*model version 2, the index says 3")
    facts = publisher.facts(other, arch="x86_64")
    publisher.index({"a.zip": (bundle_zip(other), facts)})
    refused(device, IntegrityError, "mix-and-match: .*ABI arm64, the index says x86_64")


def test_wrong_device(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    publisher.release(publisher.bundle("2"), devices=("tester-7",))
    assert device.update().release == 1
    refused(device, IntegrityError, "wrong device: the store is for device id phone-1", device_id="phone-2")
    other = Device(store=device.store.with_name("b"), channel=device.channel, trust=device.trust, device_id="tester-7")
    assert other.update().release == 2


def test_a_release_for_other_devices_only(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"), devices=("tester-7",))
    refused(device, UnsupportedError, "wrong device: no release of the channel is for phone-1")


def test_wrong_target_abi_or_runtime(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    refused(device, UnsupportedError, "wrong target or ABI: .*linux-x86_64-xnnpack", target="linux-x86_64-xnnpack")
    refused(device, UnsupportedError, "wrong runtime: .*1.5.1, for 1.5; this device has 1.4.0", runtime="1.4.0")
    refused(device, UnsupportedError, "no model other", model="other")
    assert device.update(runtime="1.6.0").release == 1


def test_a_torchscript_archive_goes_by_the_runtimes_that_it_was_released_for(
    publisher: Publisher, device: Device
) -> None:
    bundle = publisher.bundle("1")
    facts = publisher.facts(bundle, runtime="torchscript", exported_with="2.15.0", runtimes=("2.6", "2.1.0"))
    publisher.index({"a.zip": (b"x", facts)})
    refused(
        device, UnsupportedError, "wrong runtime: .*2.15.0, for 2.6 and 2.1.0; this device has 2.0.1", runtime="2.0.1"
    )
    refused(device, IntegrityError, "archive is refused", runtime="2.1.0")  # it was chosen, and fetched


def test_a_choice_has_to_be_told(publisher: Publisher, device: Device) -> None:
    other = publisher.bundle("1", target=load_target("ios-arm64-xnnpack"))
    publisher.release(publisher.bundle("1"), other)
    refused(device, UsageError, "several targets: android-arm64-xnnpack, ios-arm64-xnnpack")
    assert device.update(target="ios-arm64-xnnpack").release == 1
    refused(device, IntegrityError, "wrong device: the store is for target ios", target="android-arm64-xnnpack")


@pytest.mark.parametrize(
    "name", ["../evil.zip", "/etc/evil.zip", "a/b.zip", "C:evil.zip", ".hidden", "a..b.zip", "ä.zip"]
)
def test_names_that_would_become_paths(publisher: Publisher, device: Device, name: str) -> None:
    from tuf.api.metadata import TargetFile

    from edgeq.deliver.ota.channel import publish

    publisher.release(publisher.bundle("1"))
    targets = dict(publisher.state.targets.signed.targets)
    made = TargetFile.from_data(name, b"x", ["sha256"])
    made.unrecognized_fields["custom"] = {KEY: publisher.facts(publisher.bundle("2"), 2).model_dump(mode="json")}
    targets[name] = made
    before = publisher.state
    with pytest.raises(IntegrityError, match="would become a path"):
        publish(publisher.channel, before, publisher.ring, targets=targets, files={}, now=NOW).index  # noqa: B018
    refused(device, IntegrityError, "would become a path")


def test_names_that_differ_in_case(publisher: Publisher, device: Device) -> None:
    facts = publisher.facts(publisher.bundle("1"))
    publisher.index({"a.zip": (b"1", facts), "A.zip": (b"2", facts)})
    refused(device, IntegrityError, "differ in case only")


@pytest.mark.parametrize(
    ("facts", "why", "error"),
    [
        (None, "no facts", IntegrityError),
        ({KEY: {"kind": "bundle"}}, "refused", IntegrityError),
        ({KEY: {"schema_version": 2}}, "facts of version 2", UnsupportedError),
        ({KEY: {"kind": "other", "schema_version": 1}}, "refused", IntegrityError),
        ([], "no facts", IntegrityError),
    ],
)
def test_facts_that_are_none(
    publisher: Publisher, device: Device, facts: object, why: str, error: type[EdgeqError]
) -> None:
    publisher.index({"a.zip": (b"1", publisher.facts(publisher.bundle("1")))}, custom={"a.zip": facts})
    refused(device, error, why)


def test_two_bundles_of_one_release(publisher: Publisher, device: Device) -> None:
    facts = publisher.facts(publisher.bundle("1"))
    publisher.index({"a.zip": (b"1", facts), "b.zip": (b"2", facts)})
    refused(device, IntegrityError, "release 1 of digits .* stands twice")


def test_tampered_downloads(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    archive = next((publisher.channel / "targets").glob("*.zip"))
    good = archive.read_bytes()
    archive.write_bytes(good[:-1] + b"x")
    refused(device, IntegrityError, "not the file that was signed")
    archive.write_bytes(good + b"x")
    refused(device, IntegrityError, "endless data")
    archive.unlink()
    archive.symlink_to("/etc/hostname")
    refused(device, (EnvironmentProblem, IntegrityError), "cannot read|no plain file")  # type: ignore[arg-type]
    archive.unlink()
    refused(device, EnvironmentProblem, "the channel has no targets/")
    archive.write_bytes(good)
    assert device.update().release == 1

    publisher.release(publisher.bundle("2"))
    patch = next((publisher.channel / "targets").glob("*.patch"))
    good = patch.read_bytes()
    patch.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    refused(device, IntegrityError, "not the file that was signed")
    patch.write_bytes(good)
    assert device.update().via == "patch"


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
        patched.setattr(place, "apply_patch", die)
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
        patched.setattr(place, "unpack", full)
        refused(device, EnvironmentProblem, "no space left")
    assert device.update().via == "patch"


def test_endless_metadata(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    with (publisher.channel / "metadata/timestamp.json").open("ab") as file:
        file.write(b" " * 20_000)
    refused(device, IntegrityError, "endless data")


def test_a_broken_download_is_continued(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    archive = next((publisher.channel / "targets").glob("*.zip"))
    good = archive.read_bytes()
    archive.write_bytes(good[:4000])
    refused(device, EnvironmentProblem, "broke off: .* has 4000 of")
    (part,) = (device.store / "download").iterdir()
    assert part.stat().st_size == 4000
    archive.write_bytes(b"x" * 4000 + good[4000:])  # only the rest may be read
    assert device.update().release == 1


def test_a_damaged_part_is_fetched_again(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    archive = next((publisher.channel / "targets").glob("*.zip"))
    good = archive.read_bytes()
    archive.write_bytes(good[:4000])
    refused(device, EnvironmentProblem, "broke off")
    (part,) = (device.store / "download").iterdir()
    part.write_bytes(b"x" * 4000)
    archive.write_bytes(good)
    assert device.update().release == 1


def test_too_large_for_the_device(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    refused(device, IntegrityError, "has 1.... bytes, this device takes 5000", most_bytes=5000)
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
    for left in ("2 more tries", "1 more tries", "not tried again"):
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
    with pytest.raises(VerificationError, match="failed on this device before"):
        device.update()
    assert device.release == 1


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

    from edgeq._io import sha256_bytes

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


def test_single_bits_of_a_channel(publisher: Publisher, device: Device) -> None:
    """A short share of `scripts/fault bits`: every flip is refused, and what is intact is not."""
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))
    snapshot = device.store.with_name("before")
    shutil.copytree(device.store, snapshot, symlinks=True)
    needed = [path for path in sorted(publisher.channel.rglob("*")) if path.is_file()]
    needed = [path for path in needed if "1.root" not in path.name and "1.targets" not in path.name]
    needed = [path for path in needed if path.suffix == ".patch" or path.name.startswith(("2.", "timestamp"))]
    assert len(needed) == 4
    rng = np.random.default_rng(0)
    for i in range(150):
        shutil.rmtree(device.store)  # what was verified once is not read again
        shutil.copytree(snapshot, device.store, symlinks=True)
        path = needed[i % len(needed)]
        good = path.read_bytes()
        at = int(rng.integers(0, len(good)))
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << int(rng.integers(0, 8)))]) + good[at + 1 :])
        with pytest.raises(EdgeqError) as caught:
            device.update()
        assert caught.value.exit_code in (3, 8, 9), caught.value
        assert device.release == 1
        path.write_bytes(good)
    for _ in range(10):
        shutil.rmtree(device.store)
        shutil.copytree(snapshot, device.store, symlinks=True)
        assert device.update().release == 2


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
