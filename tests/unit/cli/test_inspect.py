"""The text of `edgeq inspect`: whole at a terminal's width, with what each gate measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.bundle.run_report import write_report
from edgeq.bundle.writer import write_bundle
from edgeq.cli.inspect import bundle_text
from edgeq.core.errors import ExitCode
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import CheckReport, Gate, PackageResult
from edgeq.pipeline.inspect import BundleInspection, inspect_path
from edgeq.report.progress import Quiet

DETAIL = "60.00% of outputs differ, by at most 0.412, over 8 samples; one int8 step at the input moves the graph too"
GATES = (
    Gate(
        name="parity",
        outcome="failed",
        limit="<= 1 step, or >= 32.1 dB",
        measured="4 steps, 30.6 dB",
        detail=DETAIL,
        exit_code=ExitCode.VERIFICATION,
    ),
    Gate(name="size", outcome="ok", limit="<= 20.0 kB", measured="10.0 kB", detail="", exit_code=ExitCode.SIZE),
)


@pytest.fixture
def judged(item: BundleInput, tmp_path: Path) -> BundleInspection:
    folder = tmp_path / "bundle"
    folder.mkdir()
    item = dataclasses.replace(item, checked=CheckReport(gates=GATES))
    made = PackageResult(
        model=item.inputs.model.name,
        target=item.target.name,
        scheme=item.scheme,
        path=folder,
        digest=write_bundle(item, folder),
        size_bytes=10_000,
        download_bytes=9_000,
        fp32_bytes=item.inputs.model.fp32_bytes,
        verified=item.artifact.verified,
        checked=item.checked,
        delegated_macs=0.9,
        weights=item.inputs.model.weights,
        layers=item.artifact.lowered.layers,
    )
    write_report(folder, made)
    found = inspect_path(folder, Quiet())
    assert isinstance(found, BundleInspection)
    return found


def test_each_gate_has_its_limit_and_what_was_measured(judged: BundleInspection) -> None:
    lines = bundle_text(judged, 10).splitlines()
    at = lines.index("gates: rejected")
    assert lines[at + 1 : at + 3] == [
        f"  failed  parity  limit <= 1 step, or >= 32.1 dB, measured 4 steps, 30.6 dB: {DETAIL}",
        "  ok      size    limit <= 20.0 kB, measured 10.0 kB",
    ]


def test_without_its_report_limits_are_shown_alone(judged: BundleInspection) -> None:
    (judged.bundle.folder / "report.json").unlink()
    found = inspect_path(judged.bundle.folder, Quiet())
    assert isinstance(found, BundleInspection)
    assert "  ok      size    limit <= 20.0 kB\n" in bundle_text(found, 10)


def test_lines_are_wrapped_below_their_last_column(judged: BundleInspection) -> None:
    lines = bundle_text(judged, 10, 80).splitlines()
    assert max(len(line) for line in lines if " " in line.strip() and "/" not in line) <= 80
    at = next(i for i, line in enumerate(lines) if line.startswith("  failed  parity"))
    column = lines[at].index("limit")
    assert lines[at + 1][:column].strip() == ""
    assert lines[at + 1][column] != " "
    # nothing is lost
    assert " ".join(" ".join(lines).split()) == " ".join(bundle_text(judged, 10).split())
