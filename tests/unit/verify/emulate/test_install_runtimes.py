from __future__ import annotations

import dataclasses
import shutil

import pytest

from edgeq.verify.emulate import install
from edgeq.verify.emulate.install import WHEELS, find_installed, find_wheels, runtime_folder


@pytest.mark.parametrize(
    ("runtime", "versions", "found", "missing"),
    [
        ("executorch", ("1.5",), ["1.5.1"], ()),
        ("executorch", ("1.5.0", "1.5"), ["1.5.0", "1.5.1"], ()),
        ("executorch", ("1.4", "1.5"), ["1.5.1"], ("1.4",)),
        ("executorch", ("1.50",), [], ("1.50",)),
        ("executorch", ("2.1.0",), [], ("2.1.0",)),
        ("torchscript", ("2.1.0",), ["2.1.0"], ()),
        ("torchscript", ("2.1", "2.1.0"), ["2.1.0"], ()),
        ("onnx", ("1.20",), ["1.20.1"], ()),
        ("onnx", ("1.20", "1.31.1"), ["1.20.1", "1.31.1"], ()),
        ("onnx", ("1.18", "1.31"), ["1.31.1"], ("1.18",)),
        ("onnx", ("1.18", "1.17"), ["1.20.1"], ("1.18", "1.17")),  # the oldest that is newer stands in
        ("onnx", ("1.24",), ["1.31.1"], ("1.24",)),
        ("onnx", ("1.32",), [], ("1.32",)),  # an older runtime cannot stand for a newer one
    ],
)
def test_wheels_by_the_versions_in_the_field(runtime, versions, found, missing):
    wheels, without = find_wheels(runtime, versions)
    assert [wheel.version for wheel in wheels] == found
    assert without == missing


def test_wheels_are_pinned():
    for wheel in WHEELS:
        assert len(wheel.sha256) == 64
        assert wheel.file.startswith(f"{wheel.package.replace('-', '_')}-{wheel.version}-")
        assert wheel.platform.endswith({"arm64": "aarch64", "x86_64": "x86_64"}[wheel.arch])


@pytest.fixture
def copied(executorch, tmp_path, monkeypatch):
    """The installed runtime in a cache of its own."""
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path))
    place = runtime_folder(executorch.wheel)
    shutil.copytree(executorch.folder, place)
    install._is_sound.cache_clear()
    yield place
    install._is_sound.cache_clear()


def test_what_was_installed_is_found(copied, executorch):
    found = find_installed(executorch.wheel)
    assert found is not None
    assert found.runner.is_file()


@pytest.mark.parametrize("damage", ["changed", "torn", "missing", "added", "no record", "bad record"])
def test_what_is_not_as_installed_is_discarded(copied, executorch, damage):
    library = copied / "executorch/lib/libexecutorch.so"
    record = copied / install.RECORD_NAME
    if damage == "changed":
        data = bytearray(library.read_bytes())
        data[len(data) // 2] ^= 1
        library.write_bytes(data)
    elif damage == "torn":
        library.write_bytes(library.read_bytes()[:1000])
    elif damage == "missing":
        library.unlink()
    elif damage == "added":
        (copied / "executorch/lib/libextra.so").touch()
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text('{"files": 3}')
    assert find_installed(executorch.wheel) is None
    assert not copied.exists()


def test_another_source_is_another_folder(monkeypatch, tmp_path, executorch):
    before = runtime_folder(executorch.wheel)
    sources = tmp_path / "src"
    shutil.copytree(install.SOURCES, sources)
    (sources / "runner.h").write_text((sources / "runner.h").read_text() + "// changed\n")
    monkeypatch.setattr(install, "SOURCES", sources)
    install.runtime_digest.cache_clear()
    try:
        assert runtime_folder(executorch.wheel) != before
    finally:
        install.runtime_digest.cache_clear()


def test_wheels_can_be_keys():
    assert len({dataclasses.replace(wheel) for wheel in WHEELS}) == len(WHEELS)
