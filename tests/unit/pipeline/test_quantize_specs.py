"""Which bundles may lend their scales and zero points, seen before anything is quantized."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import write_report
from edgeq.core.config import Job
from edgeq.core.errors import EdgeqError, IntegrityError, UnsupportedError, UsageError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.model import QParams
from edgeq.core.results.report import PackageResult
from edgeq.core.targets import load_target
from edgeq.pipeline.cache import job_facts
from edgeq.pipeline.quantize_specs import check_reuse, read_shipped

QPARAMS = (QParams(name="conv.weight", shape=(4, 3, 3, 3), scales=(0.5, 0.25, 0.125, 1.0), zero_points=(0, 0, 0, 0)),)


@pytest.fixture
def row(item: BundleInput, bundle: Path) -> PackageResult:
    return PackageResult(
        model="digits",
        target=item.target.name,
        scheme=item.scheme,
        path=bundle,
        digest=read_bundle(bundle).digest,
        size_bytes=10_000,
        download_bytes=6_000,
        fp32_bytes=40_000,
        verified=item.artifact.verified,
        checked=item.checked,
        delegated_macs=0.9,
        weights="file",
        qparams=QPARAMS,
    )


def job(bundle: Path, item: BundleInput, scheme: str = "", target: str = "") -> Job:
    return Job(
        source="digits",
        targets=(load_target(target or item.target.name),),
        out=Path("out"),
        schemes=(scheme or item.scheme,),  # type: ignore[arg-type]
        reuse_qparams_from=bundle,
    )


def test_a_bundle_with_its_report_lends_them(item: BundleInput, bundle: Path, row: PackageResult) -> None:
    write_report(bundle, row)
    check_reuse(job(bundle, item))
    assert read_shipped(bundle)[1] == QPARAMS


@pytest.mark.parametrize(
    ("scheme", "target", "error", "told"),
    [
        ("fp32", "", UnsupportedError, "supports qat-int8, static-a16w8, static-int8, but this run has fp32"),
        ("qat-int8", "", UsageError, "static-int8, but this run has .* qat-int8"),
        ("static-int8", "linux-x86_64-x86", UsageError, "but this run has torchscript x86 static-int8"),
    ],
)
def test_another_runtime_or_scheme_is_refused_before_the_run(
    item: BundleInput, bundle: Path, row: PackageResult, scheme: str, target: str, error: type[EdgeqError], told: str
) -> None:
    write_report(bundle, row)
    with pytest.raises(error, match=told):
        check_reuse(job(bundle, item, scheme, target))


def test_what_lends_none_is_refused(item: BundleInput, bundle: Path, row: PackageResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.json"):
        check_reuse(job(bundle, item))
    write_report(bundle, dataclasses.replace(row, qparams=()))
    with pytest.raises(UsageError, match="holds no scales and zero points"):
        check_reuse(job(bundle, item))
    write_report(bundle, dataclasses.replace(row, digest="1" * 64))
    with pytest.raises(UsageError, match="does not match the bundle beside it"):
        check_reuse(job(bundle, item))
    with pytest.raises(UsageError):
        check_reuse(job(tmp_path / "absent", item))
    write_report(bundle, row)
    (bundle / "golden.npz").write_bytes(b"other")
    with pytest.raises(IntegrityError):
        check_reuse(job(bundle, item))


def test_the_shipped_bundle_is_in_the_key_of_the_cache(item: BundleInput, bundle: Path, row: PackageResult) -> None:
    write_report(bundle, row)
    plain = dataclasses.replace(job(bundle, item), reuse_qparams_from=None)
    before = job_facts(job(bundle, item))
    assert before != job_facts(plain)
    other = dataclasses.replace(QPARAMS[0], scales=(0.5, 0.25, 0.125, 2.0))
    write_report(bundle, dataclasses.replace(row, qparams=(other,)))
    assert job_facts(job(bundle, item)) != before
