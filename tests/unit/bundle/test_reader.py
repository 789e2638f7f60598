from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_items import changed

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError
from edgeq.core.results.artifact import BundleInput


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_returns_what_was_written(item: BundleInput, bundle: Path) -> None:
    found = read_bundle(bundle)
    assert found.folder == bundle
    assert found.manifest.model.name == "digits"
    assert (found.artifact, found.golden) == (bundle / "model.pte", bundle / "golden.npz")
    assert len(found.digest) == 64


def test_reports_may_lie_beside_it(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    (bundle / "report.json").write_text("{}")
    (bundle / "report.html").write_text("<p>")
    assert read_bundle(bundle).digest == digest


@pytest.mark.parametrize("at", [0, 9_999, 5_000])
def test_one_bit_of_the_artifact(bundle: Path, at: int) -> None:
    flip(bundle / "model.pte", at)
    with pytest.raises(IntegrityError, match=r"model\.pte is not the file"):
        read_bundle(bundle)


def test_no_byte_of_the_manifest_changes_unseen(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    path = bundle / "manifest.json"
    original = path.read_bytes()
    for at in range(0, len(original), 37):
        flip(path, at)
        with contextlib.suppress(IntegrityError):
            assert read_bundle(bundle).digest != digest
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "model.pte").unlink(), r"model\.pte is missing"),
        (lambda folder: (folder / "golden.npz").unlink(), r"golden\.npz is missing"),
        (
            lambda folder: (folder / "model.pte").write_bytes(b""),
            (
                r"model\.pte has 0 bytes, but the manifest "
                r"states 10000"
            ),
        ),
        (lambda folder: (folder / "extra.bin").write_bytes(b""), r"extra\.bin is not listed"),
        (lambda folder: (folder / "sub").mkdir(), "sub is not listed"),
        (lambda folder: (folder / "report.json").mkdir(), r"report\.json is not a regular file"),
        (lambda folder: (folder / "report.html").symlink_to("/etc/passwd"), r"report\.html is not a regular file"),
        (lambda folder: link(folder / "model.pte"), r"model\.pte is not a regular file"),
        (lambda folder: link(folder / "manifest.json"), r"manifest\.json is a link"),
        (lambda folder: pipe(folder / "golden.npz"), r"golden\.npz is not a regular file"),
        (lambda folder: pipe(folder / "manifest.json"), r"manifest\.json is not a regular file"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{"), r"manifest\.json does not have edgeq's format"),
    ],
)
def test_damage_is_named(bundle: Path, damage: Callable[[Path], object], why: str) -> None:
    damage(bundle)
    with pytest.raises(IntegrityError, match=why):
        read_bundle(bundle)


def test_swapped_files_are_refused(item: BundleInput, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.pte"
    other.write_bytes(item.artifact.lowered.path.read_bytes()[::-1])
    second = tmp_path / "second"
    second.mkdir()
    write_bundle(changed(item, lowered=dataclasses.replace(item.artifact.lowered, path=other)), second)
    shutil.copyfile(second / "model.pte", bundle / "model.pte")
    with pytest.raises(IntegrityError, match=r"model\.pte"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_a_place_that_is_no_bundle_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no bundle at"):
        read_bundle(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_the_environments_fault(bundle: Path) -> None:
    (bundle / "model.pte").chmod(0)
    with pytest.raises(EnvironmentProblem, match=r"model\.pte"):
        read_bundle(bundle)


def test_100_mb_take_at_most_a_second(item: BundleInput, tmp_path: Path) -> None:
    large = tmp_path / "model.pte"
    large.write_bytes(bytes(100_000_000))
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(changed(item, lowered=dataclasses.replace(item.artifact.lowered, path=large)), folder)
    start = time.process_time()  # not the wall's: other tests run beside this one
    read_bundle(folder)
    assert time.process_time() - start < 1
