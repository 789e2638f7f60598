"""A model of another source is not replaced by accident."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.bundle.run_report import write_report
from edgeq.core.config import Job
from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import CheckReport, PackageResult
from edgeq.core.targets import load_target
from edgeq.pipeline.publish import check_owner

JOB = Job(source="models.py:plain", targets=(load_target("linux-x86_64-x86"),), out=Path("out"))


@pytest.fixture(autouse=True)
def _there(item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`out/net/…` holds the report of a bundle that `net.py:build` gave, and `out/old/…` one that does not say."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("net", f"{tmp_path.name}/net.py:build"), ("old", "")):
        folder = Path("out", name, "android-arm64-xnnpack")
        folder.mkdir(parents=True)
        row = PackageResult(
            model=name,
            target="android-arm64-xnnpack",
            scheme="fp32",
            path=folder,
            digest="0" * 64,
            size_bytes=1,
            download_bytes=1,
            fp32_bytes=1,
            verified=item.artifact.verified,
            checked=CheckReport(gates=()),
            delegated_macs=None,
            weights="file",
            source=source,
        )
        write_report(folder, row)


@pytest.mark.parametrize("source", ["net.py:model", "sub/net.py:build", "net.pt2", "torchvision:net"])
def test_another_source_is_refused_whatever_its_target(source: str) -> None:
    job = dataclasses.replace(JOB, source=source)
    with pytest.raises(UsageError, match=r"out/net/android-arm64-xnnpack was made from .*net\.py:build") as caught:
        check_owner(job, "net")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "--name net to replace it" in caught.value.fix
    check_owner(dataclasses.replace(job, name="net"), "net")
    check_owner(job, "old")
    check_owner(job, "new")


def test_the_same_source_may_replace_its_own() -> None:
    check_owner(dataclasses.replace(JOB, source="net.py:build"), "net")
    check_owner(dataclasses.replace(JOB, source=str(Path("net.py").absolute()) + ":build"), "net")
