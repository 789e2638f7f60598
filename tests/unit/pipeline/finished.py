"""A finished bundle, as the steps before would have made it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bundle_items import changed

from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import ExitCode
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import CheckReport, Gate, PackageResult

FAILED = Gate(name="size", outcome="failed", limit="", measured="", detail="", exit_code=ExitCode.SIZE)


UNVERIFIED = dataclasses.replace(FAILED, name="latency", outcome="unverified", exit_code=ExitCode.VERIFICATION)


def made(
    item: BundleInput, folder: Path, version: str, failed: bool = False, *, gates: tuple[Gate, ...] = ()
) -> PackageResult:
    folder.mkdir(parents=True)
    checked = CheckReport(gates=(*gates, *((FAILED,) if failed else ())))
    digest = write_bundle(changed(item, model_version=version, checked=checked), folder)
    return PackageResult(
        model="digits",
        target="",
        scheme="fp32",
        path=folder,
        digest=digest,
        size_bytes=1,
        download_bytes=1,
        fp32_bytes=1,
        verified=item.artifact.verified,
        checked=checked,
        delegated_macs=None,
        weights="file",
    )
