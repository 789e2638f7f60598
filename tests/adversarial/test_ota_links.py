"""Links in a store or in an app's asset folder: nothing outside is written or removed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

import pytest

from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import EdgeqError, IntegrityError, UsageError
from edgeq.core.files import copy_files, lock_dir, recover_dir, remove_dir, staged_dir, write_atomic
from edgeq.core.results.artifact import BundleInput
from edgeq.core.targets import load_target
from edgeq.deliver.install import install
from edgeq.deliver.ota.store import Store, rolled_back, started
from tests.unit.conftest import item
from tests.unit.deliver.ota.conftest import TARGET, Device, Publisher, device, master_keys, publisher

NAME = "digits"

__all__ = ["device", "item", "master_keys", "publisher"]  # fixtures


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder of somebody else's, which looks like everything that edgeq removes."""
    folder = tmp_path / "outside"
    for name in ("7/keep", ".x.12345678.tmp/keep", "target/keep", "tmpfile", "a.part", "keep", ".edgeq.lock"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["slots", "download", "trusted", "trusted/root_history", "slots/7"])
@pytest.mark.parametrize("then", ["update", "rollback", "start"])
def test_a_linked_folder_of_a_store(publisher: Publisher, device: Device, outside: Path, place: str, then: str) -> None:
    for version in ("1", "2"):
        publisher.release(publisher.bundle(version))
        device.update()
    publisher.release(publisher.bundle("3"))
    before = content(outside)
    path = device.store / place
    if path.is_dir():
        path.rename(device.store.parent / "moved")
    path.symlink_to(outside)
    # a link where a slot would be goes; any other is refused
    refused = contextlib.nullcontext() if place == "slots/7" else pytest.raises(IntegrityError, match="is a link")
    with refused:
        if then == "update":
            device.update()
        else:
            store = Store(device.store)
            if then == "start":
                started(store)
            else:
                store.save(rolled_back(store.state(), "asked"))
                store.recover()
    assert content(outside) == before


@pytest.mark.parametrize("name", ["state.json", "device.json", "trust.json", ".edgeq.lock", ".edgeq.update.lock"])
def test_a_linked_file_of_a_store(publisher: Publisher, device: Device, outside: Path, name: str) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))
    before = content(outside)
    (device.store / name).unlink(missing_ok=True)
    (device.store / name).symlink_to(outside / ".edgeq.lock")
    with pytest.raises(EdgeqError, match="is a link"):
        device.update()
    assert content(outside) == before


def test_a_linked_download(publisher: Publisher, device: Device, outside: Path) -> None:
    publisher.release(publisher.bundle("1"))
    zipped = next((publisher.channel / "targets").glob("*.zip"))
    (device.store / "download").mkdir(parents=True)
    (device.store / "download" / f"{zipped.name.partition('.')[0]}.part").symlink_to(outside / "keep")
    before = content(outside)
    with pytest.raises(IntegrityError, match="is a link"):
        device.update()
    assert content(outside) == before


def test_a_linked_slot_that_is_current_is_left_for_the_previous_one(
    publisher: Publisher, device: Device, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        publisher.release(publisher.bundle(version))
        device.update()
    (device.store / "slots/2").rename(tmp_path / "two")
    (device.store / "slots/2").symlink_to(tmp_path / "two")
    state, bundle, why = started(Store(device.store))
    assert bundle.folder == device.store / "slots/1"
    assert why is not None
    assert "link" in why
    assert state.bad == (2,)
    Store(device.store).recover()
    assert not os.path.lexists(device.store / "slots/2")
    assert (tmp_path / "two/manifest.json").is_file()


def models(app: Path) -> Path:
    app.mkdir()
    (app / "build.gradle").write_text(
        "plugins { id 'com.android.application' }\nandroid.sourceSets.main.assets.srcDirs = ['app/src/main/assets']"
    )
    return app / "app/src/main/assets/models"


@pytest.mark.parametrize("depth", range(1, 8))
def test_a_link_on_the_way_to_an_apps_models(publisher: Publisher, tmp_path: Path, outside: Path, depth: int) -> None:
    bundle = publisher.bundle("1")
    folder = models(tmp_path / "myapp") / NAME / TARGET
    link = tmp_path / "myapp" / Path(*folder.relative_to(tmp_path / "myapp").parts[:depth])
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    before = content(outside)
    with pytest.raises(UsageError, match="is a link"):
        install(bundle, tmp_path / "myapp")
    assert content(outside) == before
    assert len(list(outside.rglob("*"))) == len([*before, "7", "target", ".x.12345678.tmp"])


IOS = "Models/digits/ios-arm64-xnnpack"


@pytest.mark.parametrize(
    "place",
    ["", "Models", "Models/digits", IOS, "Models/Package.swift", "Models/EdgeqModels.swift", "Models/.edgeq.lock"],
)
def test_a_link_in_an_ios_project(item: BundleInput, tmp_path: Path, outside: Path, place: str) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_bundle(dataclasses.replace(item, target=load_target("ios-arm64-xnnpack")), bundle)
    app = tmp_path / "app"
    app.mkdir()
    (app / "Package.swift").touch()
    if place:
        link = app / place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside / "keep" if "." in link.name else outside)
    before = content(outside)
    # the project itself may be wherever the user names it
    refused = (
        pytest.raises(EdgeqError, match=r"is a link|was not written by edgeq") if place else contextlib.nullcontext()
    )
    with refused:
        install(bundle, app)
    assert content(outside) == before
    assert (app / IOS / "manifest.json").is_file() != bool(place)


def test_prune_takes_no_link(publisher: Publisher, tmp_path: Path, outside: Path) -> None:
    folder = models(tmp_path / "myapp") / NAME
    folder.mkdir(parents=True)
    (folder / "other-target").symlink_to(publisher.bundle("0"))
    (folder / ".target.abcd1234.tmp").symlink_to(outside)
    (folder / ".more.old").symlink_to(outside)
    before = content(outside)
    install(publisher.bundle("1"), tmp_path / "myapp")
    assert content(outside) == before
    assert (folder / "other-target/manifest.json").is_file()
    assert not os.path.lexists(folder / ".target.abcd1234.tmp")


def test_primitives_refuse_links(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / ".edgeq.lock").symlink_to(outside / "keep")
    before = content(outside)
    with pytest.raises(UsageError, match="link is a link"):
        remove_dir(root / "link/target", below=root)
    with pytest.raises(UsageError, match="link is a link"):
        remove_dir(root / "link", below=root)
    with pytest.raises(UsageError, match="link is a link"):
        write_atomic(root / "link/keep", b"theirs", below=root)
    with pytest.raises(UsageError, match="link is a link"), staged_dir(root / "link/target", below=root):
        pass
    with pytest.raises(UsageError, match="is a link"), lock_dir(root, wait_s=0):
        pass
    (root / "into").mkdir()
    (root / "into/keep").symlink_to(outside / "keep")
    (root / "from").mkdir()
    (root / "from/keep").write_text("theirs")
    with pytest.raises(FileExistsError):
        copy_files(root / "from", root / "into")
    assert content(outside) == before


def test_a_link_that_comes_while_a_folder_is_staged(tmp_path: Path, outside: Path) -> None:
    before = content(outside)
    (tmp_path / "root/models").mkdir(parents=True)
    target = tmp_path / "root/models/target"

    def stage() -> None:
        with staged_dir(target, below=tmp_path / "root") as staging:
            (staging / "file").write_text("theirs")
            (tmp_path / "root/models").rename(tmp_path / "root/moved")
            (tmp_path / "root/models").symlink_to(outside)

    with pytest.raises(UsageError, match="is a link"):
        stage()
    assert content(outside) == before


def test_leftovers_that_are_links_go_and_what_they_point_to_stays(tmp_path: Path, outside: Path) -> None:
    before = content(outside)
    (tmp_path / ".target.old").symlink_to(outside)
    (tmp_path / ".target.abcd1234.tmp").symlink_to(outside)
    recover_dir(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert content(outside) == before
