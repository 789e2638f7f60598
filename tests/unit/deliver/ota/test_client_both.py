"""The channels that the Android store's tests follow: the reference client follows and refuses the same ones."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import EdgeqError
from edgeq.deliver.ota.client import Request, Update, update
from edgeq.deliver.ota.fetch import open_source
from edgeq.deliver.ota.store import Store
from tests.unit.deliver.ota.conftest import NOW, tree

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
# what each reason of the Android store's is called here
WORDS = {
    "ARCHIVE_REFUSED": "the archive is refused",
    "ENDLESS_DATA": "inflates to more than",
    "INDEX_BROKEN": "index is refused",
    "INDEX_TOO_NEW": "facts of version 2, this client knows 1",
    "MIX_AND_MATCH": "mix-and-match",
    "PATCH_REFUSED": "the patch is refused|not a bundle",
    "RUNTIME_TOO_OLD": "wrong runtime",
    "TOO_LARGE": "this device accepts at most",
    "WRONG_KEY": "wrong or revoked key",
}
# the reference client knows its target by name alone, so that these come out after the download
BY_MANIFEST = {"RUNTIME_MISSING", "WRONG_ARCH", "WRONG_PLATFORM"}


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels")
    import ota_channels

    ota_channels.main(folder)
    return folder


def follow(channel: Path, store: Path, device_id: str = "phone-1") -> Update:
    request = Request(
        source=open_source(str(channel)),
        store=store,
        device_id=device_id,
        runtime="1.5.1",
        trust=(channel / "metadata/1.root.json").read_bytes(),
        clock=NOW,
    )
    return update(request, lambda folder: void(read_bundle(folder)))


def void(_: object) -> None:
    """Drop a value."""


@pytest.fixture(scope="module")
def first(channels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with release 1."""
    store = tmp_path_factory.mktemp("first") / "store"
    assert follow(channels / "good/first", store).release == 1
    return store


def test_follows_the_good_ones(channels: Path, first: Path, tmp_path: Path) -> None:
    came = {}
    for channel in sorted((channels / "good").iterdir()):
        if channel.name not in ("addressed", "again"):  # for another device; signed in the future
            shutil.copytree(first, tmp_path / channel.name)
            done = follow(channel, tmp_path / channel.name)
            came[channel.name] = (done.release, done.via)
    assert came == {
        "first": (1, "nothing"),
        "second": (2, "patch"),
        "zstd": (2, "patch"),
        "bsdiff4": (2, "patch"),
        "rotated": (2, "patch"),
        "withdrawn": (1, "nothing"),
    }
    with pytest.raises(EdgeqError, match="wrong device"):
        follow(channels / "good/addressed", tmp_path / "addressed")
    assert follow(channels / "good/addressed", tmp_path / "tester", "tester-7").release == 1
    assert follow(channels / "threshold/both", tmp_path / "both").release == 1
    with pytest.raises(EdgeqError, match="wrong or revoked key"):
        follow(channels / "threshold/one", tmp_path / "one")


def test_refuses_the_hostile_ones(channels: Path, first: Path, tmp_path: Path) -> None:
    hostile = sorted(path for reason in (channels / "hostile").iterdir() for path in reason.iterdir())
    assert len(hostile) > 60
    before = tree(first / "slots")
    for number, channel in enumerate(hostile):
        store = tmp_path / f"{number}"
        shutil.copytree(first, store)
        reason = channel.parent.name
        with pytest.raises(EdgeqError, match="mix-and-match" if reason in BY_MANIFEST else WORDS[reason]) as caught:
            follow(channel, store)
        assert caught.value.exit_code in (3, 8), channel
        assert tree(store / "slots") == before, channel
        current = Store(store).state().current
        assert current is not None, channel
        assert current.release == 1, channel
