from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import EdgeqError, IntegrityError
from edgeq.deliver.ota.patch import unzip

MOST = 1_000_000


def rebuilt(bundle: Path, change: Callable[[zipfile.ZipFile], None] | None = None, skip: str = "") -> bytes:
    """Return a bundle's ZIP with something added."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(bundle.iterdir()):
            if path.name != skip:
                archive.write(path, path.name)
        if change:
            change(archive)
    return sink.getvalue()


def added(name: str, mode: int = 0o100644, data: bytes = b"x") -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # ZipInfo's own would mend it
        info.external_attr = mode << 16
        archive.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)

    return add


def refused(data: bytes, tmp_path: Path, why: str, most: int = MOST) -> None:
    """Assert the refusal, and that nothing lies outside the folder."""
    place = tmp_path / "place" / "inner"
    place.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if place not in path.parents}
    with pytest.raises(IntegrityError, match=why):
        unzip(data, place, most_bytes=most)
    assert {path for path in tmp_path.rglob("*") if place not in path.parents} == before


def test_gives_the_bundle(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    assert unzip(bundle_zip(bundle), place, most_bytes=MOST).digest == read_bundle(bundle).digest


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil", "leads out of the folder"),
        ("..", "leads out of the folder"),
        ("a/../../evil", "leads out of the folder"),
        ("..\\evil", "leads out of the folder"),
        ("/etc/evil", "absolute path"),
        ("\\\\server\\evil", "absolute path"),
        ("C:\\evil", "absolute path"),
        ("c:evil", "absolute path"),
        ("folder/", "not a plain file name"),
        ("folder/model.pte", "not a plain file name"),
        ("model.pte\0.txt", "not a plain file name"),
        ("modèl.pte", "not a plain file name"),
        (".hidden", "not a plain file name"),
        ("", "not a plain file name"),
        ("x" * 5000, "not a plain file name|entries in"),
    ],
)
def test_refuses_names(bundle: Path, tmp_path: Path, name: str, why: str) -> None:
    refused(rebuilt(bundle, added(name)), tmp_path, why)


def test_refuses_links_and_devices(bundle: Path, tmp_path: Path) -> None:
    refused(rebuilt(bundle, added("model.link", stat.S_IFLNK | 0o777, b"/etc/passwd")), tmp_path, "symbolic link")
    refused(rebuilt(bundle, added("model.pipe", stat.S_IFIFO | 0o644)), tmp_path / "2", "not a regular file")


def test_a_link_in_place_of_a_file(bundle: Path, tmp_path: Path) -> None:
    data = rebuilt(bundle, added("model.pte", stat.S_IFLNK | 0o777, b"/etc/passwd"), skip="model.pte")
    refused(data, tmp_path, "symbolic link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["model.pte", "MODEL.PTE", "Manifest.json"])
def test_refuses_names_that_stand_twice(bundle: Path, tmp_path: Path, name: str) -> None:
    refused(rebuilt(bundle, added(name)), tmp_path, "differ only in case")


def test_refuses_what_the_manifest_does_not_list(bundle: Path, tmp_path: Path) -> None:
    refused(rebuilt(bundle, added("more.bin")), tmp_path, "it holds .*more.bin")
    refused(rebuilt(bundle, skip="golden.npz"), tmp_path / "2", "its manifest lists")
    refused(rebuilt(bundle, skip="manifest.json"), tmp_path / "3", r"has no manifest\.json")


def test_refuses_bombs(bundle: Path, tmp_path: Path) -> None:
    bomb = rebuilt(bundle, added("zeros.bin", data=bytes(20_000_000)))
    assert len(bomb) < 100_000
    refused(bomb, tmp_path, "would inflate to 200")
    # one that hides its size
    at = bomb.rindex(b"zeros.bin") - 46 + 24
    hidden = bomb[:at] + (10).to_bytes(4, "little") + bomb[at + 4 :]
    refused(hidden, tmp_path / "2", "refused")


def test_refuses_an_entry_that_is_larger_than_listed(bundle: Path, tmp_path: Path) -> None:
    data = rebuilt(bundle, added("model.pte", data=bytes(500_000)), skip="model.pte")
    refused(data, tmp_path, "inflates to more than its 10000 bytes")


def test_refuses_many_entries(bundle: Path, tmp_path: Path) -> None:
    def many(archive: zipfile.ZipFile) -> None:
        for i in range(3000):
            archive.writestr(f"f{i}", b"")

    refused(rebuilt(bundle, many), tmp_path, "3003 entries")


def test_refuses_other_formats(bundle: Path, tmp_path: Path) -> None:
    plain = bundle_zip(bundle)
    refused(b"", tmp_path, "not a ZIP")
    refused(plain + b"more", tmp_path / "2", "not a ZIP, or other data follows")
    refused(plain[:-22] + b"PK\6\7" + bytes(16) + plain[-22:], tmp_path / "3", "ZIP64")
    refused(plain[: len(plain) // 2] + plain[-22:], tmp_path / "4", "refused")

    def squeezed(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("more.bin")
        info.external_attr = 0o100644 << 16
        archive.writestr(info, b"x" * 100, compress_type=zipfile.ZIP_LZMA)

    refused(rebuilt(bundle, squeezed), tmp_path / "5", "uses a compression that edgeq does not write")


def test_refuses_a_changed_file(bundle: Path, tmp_path: Path) -> None:
    data = rebuilt(bundle, added("model.pte", data=bytes(10_000)), skip="model.pte")
    refused(data, tmp_path, r"model\.pte is not the file")


def test_any_damage_ends_well_or_in_a_named_error(bundle: Path, tmp_path: Path) -> None:
    """A short share of `scripts/fault archives`."""
    plain = bundle_zip(bundle)
    rng = np.random.default_rng(0)
    for i in range(200):
        data = bytearray(plain)
        for at in rng.integers(0, len(data), rng.integers(1, 8)):
            data[at] = int(rng.integers(0, 256))
        if rng.integers(0, 5) == 0:
            at = int(rng.integers(0, len(data)))
            data[at:at] = rng.bytes(int(rng.integers(1, 100)))
        place = tmp_path / f"{i}"
        place.mkdir()
        try:
            unzip(bytes(data), place, most_bytes=MOST)
        except EdgeqError:
            continue
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != bundle} <= {
        str(i) for i in range(200)
    }
