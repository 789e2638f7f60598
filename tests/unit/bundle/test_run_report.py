from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import read_report, write_report
from edgeq.core.errors import EdgeqError, IntegrityError, UnsupportedError, UsageError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.report import PackageResult

# deferred: looking at the types takes 2 s, in every worker that collects
ROWS = st.deferred(lambda: st.from_type(PackageResult)).map(
    lambda row: dataclasses.replace(row, seconds=dict(sorted(row.seconds.items())))
)


@pytest.fixture
def row(item: BundleInput, bundle: Path) -> PackageResult:
    return PackageResult(
        model="digits",
        target="android-arm64-xnnpack",
        scheme="static-int8",
        path=bundle,
        digest="0" * 64,
        size_bytes=10_000,
        download_bytes=6_000,
        fp32_bytes=40_000,
        verified=item.artifact.verified,
        checked=item.checked,
        delegated_macs=0.9,
        weights="file",
        seconds={"load": 1.25},
    )


def test_a_row_comes_back_and_the_bundle_stays_whole(row: PackageResult, bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    write_report(bundle, row)
    assert read_report(bundle) == row
    assert read_bundle(bundle).digest == digest


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(row=ROWS)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, row: PackageResult) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_report(folder, row)
    # repr tells NaN, -0.0 and every bit of a float
    assert repr(read_report(folder)) == repr(dataclasses.replace(row, path=folder))


def test_it_holds_no_path_and_moves_with_the_bundle(row: PackageResult, bundle: Path, tmp_path: Path) -> None:
    write_report(bundle, row)
    assert str(tmp_path) not in (bundle / "report.json").read_text()
    moved = bundle.rename(tmp_path / "moved")
    assert read_report(moved).path == moved


def test_numpys_numbers_and_undecodable_names_are_written(row: PackageResult, bundle: Path) -> None:
    verified: VerifyReport = dataclasses.replace(
        row.verified, load_ms=np.float32(1.5), peak_memory_bytes=np.int64(7), findings=("bad\udcff.png",)
    )
    write_report(bundle, dataclasses.replace(row, verified=verified))
    found = read_report(bundle).verified
    assert (found.load_ms, found.peak_memory_bytes, found.findings) == (1.5, 7, ("bad?.png",))


def test_no_report_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.json"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", IntegrityError),
        ("[]", IntegrityError),
        ("{}", IntegrityError),
        ('{"report_version": 1, "row": {"model": "x"}}', IntegrityError),
        ('{"report_version": 1, "row": []}', IntegrityError),
        ('{"report_version": 2}', UnsupportedError),
        ("[" * 100_000, IntegrityError),
        ("\x00", IntegrityError),
    ],
)
def test_a_broken_report_is_named(tmp_path: Path, text: str, error: type[EdgeqError]) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(error, match=r"report\.json"):
        read_report(tmp_path)


def test_a_value_of_the_wrong_kind_is_named(row: PackageResult, bundle: Path) -> None:
    write_report(bundle, row)
    path = bundle / "report.json"
    raw = json.loads(path.read_text())
    raw["row"]["checked"]["gates"][0]["outcome"] = "fine"
    path.write_text(json.dumps(raw))
    with pytest.raises(IntegrityError, match=r"checked\.gates\.0\.outcome"):
        read_report(bundle)
