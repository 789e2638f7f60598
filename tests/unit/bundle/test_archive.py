from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from edgeq.bundle.archive import bundle_zip, download_size_bytes, write_zip
from edgeq.bundle.reader import read_manifest
from edgeq.core.errors import IntegrityError, UsageError


def test_holds_the_listed_files_sorted_and_deflated(bundle: Path) -> None:
    (bundle / "report.json").write_text("{}")
    with zipfile.ZipFile(io.BytesIO(bundle_zip(bundle))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["golden.npz", "manifest.json", "model.pte"]
        for info in archive.infolist():
            assert archive.read(info) == (bundle / info.filename).read_bytes()
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.compress_type == zipfile.ZIP_DEFLATED
            assert info.external_attr == 0o100644 << 16
            assert info.flag_bits & 0x8 == 0  # sizes stand before the data


def test_modes_and_times_of_the_files_do_not_matter(bundle: Path) -> None:
    before = bundle_zip(bundle)
    (bundle / "model.pte").chmod(0o600)
    os.utime(bundle / "model.pte", (1, 1))
    assert bundle_zip(bundle) == before
    assert bundle_zip(bundle) == before


def test_the_counted_size_is_the_size_of_the_file(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    with path.open("wb") as sink:
        write_zip(bundle, sink)
    known: dict[str, int] = {}
    assert download_size_bytes(bundle) == path.stat().st_size
    assert download_size_bytes(bundle, known) == path.stat().st_size
    assert sorted(known) == sorted(entry.sha256 for entry in read_manifest(bundle)[1].files)
    assert download_size_bytes(bundle, known) == path.stat().st_size
    assert path.read_bytes() == bundle_zip(bundle)


def test_the_size_of_files_that_need_zip64_counts_its_headers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = download_size_bytes(bundle)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 16)
    assert download_size_bytes(bundle) == len(bundle_zip(bundle)) > plain


def test_source_date_epoch_sets_the_times(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with zipfile.ZipFile(io.BytesIO(bundle_zip(bundle))) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with zipfile.ZipFile(io.BytesIO(bundle_zip(bundle))) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("text", ["yesterday", "9" * 30])
def test_a_source_date_epoch_that_is_no_time_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        bundle_zip(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "model.pte").unlink()
    with pytest.raises(IntegrityError, match=r"model\.pte is missing"):
        download_size_bytes(bundle)
