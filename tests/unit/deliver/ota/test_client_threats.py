"""Channels that the reference client must refuse: rolled back, frozen, mixed, tampered, or for others."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeq.core.errors import EdgeqError, EnvironmentProblem, IntegrityError, UnsupportedError, UsageError
from edgeq.core.targets import load_target
from edgeq.deliver.ota.client import MOST_REPEATS
from edgeq.deliver.ota.index import KEY
from edgeq.deliver.ota.keys import new_keys
from edgeq.deliver.ota.release import Terms, refresh
from tests.unit.deliver.ota.conftest import DAY, NOW, Device, Publisher, refused


def test_needs_somebody_to_trust(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle())
    refused(device, IntegrityError, "has no trusted root yet", trust=False)
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
    refused(device, IntegrityError, "mix-and-match: release 1 holds a different bundle")
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


@pytest.mark.parametrize("runtime", ["15", "foo", "v1.5", "1.x", ""])
def test_a_runtime_that_is_no_version_is_refused(publisher: Publisher, device: Device, runtime: str) -> None:
    publisher.release(publisher.bundle("1"))
    refused(device, UsageError, "is not a version", runtime=runtime)


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
def test_what_has_a_bytecode_or_an_opset_goes_by_the_runtimes_that_it_was_released_for(
    publisher: Publisher, device: Device, name: str
) -> None:
    bundle = publisher.bundle("1")
    facts = publisher.facts(bundle, runtime=name, exported_with="2.15.0", runtimes=("2.6", "2.1.0"))
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
    refused(device, IntegrityError, "differ only in case")


@pytest.mark.parametrize(
    ("facts", "why", "error"),
    [
        (None, "no edgeq facts", IntegrityError),
        ({KEY: {"kind": "bundle"}}, "refused", IntegrityError),
        ({KEY: {"schema_version": 2}}, "facts of version 2", UnsupportedError),
        ({KEY: {"kind": "other", "schema_version": 1}}, "refused", IntegrityError),
        ([], "no edgeq facts", IntegrityError),
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
    refused(device, IntegrityError, "release 1 of digits .* is listed twice")


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
    refused(device, (EnvironmentProblem, IntegrityError), "cannot read|is not a regular file")  # type: ignore[arg-type]
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


def test_endless_metadata(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))
    with (publisher.channel / "metadata/timestamp.json").open("ab") as file:
        file.write(b" " * 20_000)
    refused(device, IntegrityError, "endless data")


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
