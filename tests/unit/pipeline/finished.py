"""A finished bundle, as the steps before would have made it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import ExitCode
from edgeq.core.results.report import BundleInput, CheckReport, Gate, PackageResult

FAILED = Gate(name="size", outcome="failed", limit="", measured="", detail="", exit_code=ExitCode.SIZE)


def made(item: BundleInput, folder: Path, version: str, failed: bool = False) -> PackageResult:
    folder.mkdir(parents=True)
    checked = CheckReport(gates=(FAILED,) if failed else ())
    digest = write_bundle(dataclasses.replace(item, model_version=version, checked=checked), folder)
    return PackageResult(
        model="digits",
        target="",
        scheme="fp32",
        path=folder,
        digest=digest,
        size_bytes=1,
        download_bytes=1,
        fp32_bytes=1,
        verified=item.verified,
        checked=checked,
        delegated_macs=None,
        weights="file",
    )
