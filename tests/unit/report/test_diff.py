"""`edgeq diff` says why an artifact's bytes differ, from what its manifest says that it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from bundle_items import changed
from pipeline.finished import made

from edgeq.bundle.reader import read_manifest
from edgeq.core.config import Job, provenance_options
from edgeq.core.errors import ExitCode
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import Source
from edgeq.core.targets import load_target
from edgeq.report.diff import Diff, diff, diff_json
from edgeq.report.html import diff_html
from tests.unit.conftest import gate

JOB = Job(source="digits", targets=(load_target("android-arm64-xnnpack"),))


def compared(item: BundleInput, folder: Path, *, same_bytes: bool = False, **change: Any) -> Diff:
    sources = []
    for name, options in (("old", {}), ("new", change)):
        artifact = folder / f"{name}.d" / "model.pte"
        artifact.parent.mkdir()
        artifact.write_bytes(b"same" if same_bytes else name.encode())
        lowered = dataclasses.replace(item.artifact.lowered, path=artifact)
        job = dataclasses.replace(JOB, **options)
        one = dataclasses.replace(
            changed(item, seed=job.seed, options=provenance_options(job, "static-int8")),
            artifact=dataclasses.replace(item.artifact, lowered=lowered),
        )
        row = made(one, folder / name, "1")
        sources.append(Source(row=row, manifest=read_manifest(row.path)[1]))
    return diff(*sources)


def test_a_changed_observer_explains_the_changed_artifact(item: BundleInput, tmp_path: Path) -> None:
    found = compared(item, tmp_path, observer="minmax")
    assert found.cause() == ("the artifact differs, and so does what it was made from: observer histogram -> minmax")
    assert diff_json(found)["cause"] == found.cause()


def test_all_that_changed_is_named(item: BundleInput, tmp_path: Path) -> None:
    found = compared(item, tmp_path, keep_fp32=("fc",), seed=3)
    assert found.cause().endswith("made from: seed 0 -> 3; keep_fp32  -> fc")


def test_an_artifact_that_differs_for_no_recorded_reason_is_said_to(item: BundleInput, tmp_path: Path) -> None:
    assert compared(item, tmp_path).cause().startswith("the artifact differs, though nothing recorded")


def test_what_became_better_or_worse_is_said(item: BundleInput, tmp_path: Path) -> None:
    gates = (gate("size", ExitCode.SIZE), gate("runtime", ExitCode.UNSUPPORTED))
    first = made(item, tmp_path / "old", "1")
    first = dataclasses.replace(first, checked=dataclasses.replace(first.checked, gates=gates))
    old = Source(row=first, manifest=read_manifest(tmp_path / "old")[1])
    fidelity = dataclasses.replace(item.artifact.verified.fidelity, sqnr_db=20.0)
    lost = dataclasses.replace(gates[1], outcome="failed")
    row = dataclasses.replace(
        old.row,
        size_bytes=old.row.size_bytes - 1,
        verified=dataclasses.replace(old.row.verified, fidelity=fidelity),
        checked=dataclasses.replace(old.row.checked, gates=(gates[0], lost)),
    )
    found = diff(old, dataclasses.replace(old, row=row))
    said = {one.title: one.verdict for one in found.changes}
    assert said == {"size": "better", "SQNR against fp32 in dB": "worse", "runtime": "worse"}
    page = diff_html(found)
    assert "1 better, 2 worse, 0 only different" in page
    assert "sqnr_db" not in page


def test_equal_artifacts_need_no_cause(item: BundleInput, tmp_path: Path) -> None:
    found = compared(item, tmp_path, same_bytes=True, observer="minmax")
    assert found.cause() == ""
    assert "observer" in {one.name for one in found.changes}


@pytest.mark.parametrize(
    ("scheme", "recorded"),
    [
        ("fp32", set()),
        ("static-int8", {"observer", "data.num_calibration_samples"}),
        ("qat-int8", {"observer", "data.num_calibration_samples", "qat.epochs", "qat.lr", "qat.batch", "qat.samples"}),
        ("mixed-int8", {"observer", "data.num_calibration_samples", "data.num_search_samples"}),
    ],
)
def test_only_options_that_can_change_the_artifact_are_recorded(scheme: str, recorded: set[str]) -> None:
    common = {"inputs", "input_dtype", "dynamic_batch", "ignore_extra_weights", "keep_fp32", "data.skip_bad_images"}
    assert set(provenance_options(JOB, scheme)) == common | recorded


def test_the_manifest_names_edgeq(item: BundleInput, tmp_path: Path) -> None:
    import edgeq

    manifest = read_manifest(made(item, tmp_path / "made", "1").path)[1]
    assert manifest.provenance.edgeq == edgeq.__version__
