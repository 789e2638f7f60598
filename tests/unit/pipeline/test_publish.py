"""Putting bundles in place: all of them, or none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.core import files
from edgeq.core.config import Job
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import DataFacts, Gate, RunReport
from edgeq.core.targets import load_target
from edgeq.pipeline import publish as publishing
from edgeq.pipeline.plan import BuildUnit, Plan
from pipeline.finished import UNVERIFIED, made

TARGETS = (load_target("android-arm64-xnnpack"), load_target("ios-arm64-xnnpack"))


def publish(
    item: BundleInput,
    root: Path,
    version: str,
    failed: tuple[bool, bool] = (False, False),
    schemes: tuple[str, ...] = (),
    gates: tuple[Gate, ...] = (),
) -> RunReport:
    job = Job(source="digits", targets=TARGETS, schemes=schemes, out=root / "out")
    cells = tuple(BuildUnit(target=target, scheme="fp32", key=target.name) for target in TARGETS)
    rows = [made(item, root / f"work-{version}" / str(i), version, bad, gates=gates) for i, bad in enumerate(failed)]
    finished = {cell.key: (row, DataFacts()) for cell, row in zip(cells, rows, strict=True)}
    return publishing.publish(Plan(job=job, facts={}, units=cells, finished=finished))


def versions(root: Path) -> dict[str, str]:
    return {
        str(path.parent.relative_to(root / "out")): read_bundle(path.parent).manifest.model.version
        for path in sorted((root / "out").rglob("manifest.json"))
    }


def test_a_bundle_of_one_scheme_does_not_outlive_a_run_of_several(item: BundleInput, tmp_path: Path) -> None:
    first, second = (target.name for target in TARGETS)
    publish(item, tmp_path, "1", failed=(True, False))
    publish(item, tmp_path, "2", failed=(False, True), schemes=("fp32", "static-int8"))
    assert versions(tmp_path) == {f"digits/{first}@fp32": "2", f"rejected/digits/{second}@fp32": "2"}
    publish(item, tmp_path, "3")
    assert versions(tmp_path) == {f"digits/{first}": "3", f"digits/{second}": "3"}


def test_bundles_are_replaced_and_change_sides(item: BundleInput, tmp_path: Path) -> None:
    publish(item, tmp_path, "1")
    assert versions(tmp_path) == {f"digits/{target.name}": "1" for target in TARGETS}
    publish(item, tmp_path, "2", failed=(True, False))
    first, second = (target.name for target in TARGETS)
    assert versions(tmp_path) == {f"rejected/digits/{first}": "2", f"digits/{second}": "2"}
    publish(item, tmp_path, "3", failed=(False, True))
    assert versions(tmp_path) == {f"digits/{first}": "3", f"rejected/digits/{second}": "3"}


@pytest.mark.parametrize("schemes", [(), ("fp32", "static-int8")])
def test_a_gate_that_was_not_measured_replaces_no_good_bundle(
    item: BundleInput, tmp_path: Path, schemes: tuple[str, ...]
) -> None:
    publish(item, tmp_path, "1")
    first, second = (target.name for target in TARGETS)
    mark = "@fp32" if schemes else ""
    report = publish(item, tmp_path, "2", failed=(True, False), schemes=schemes, gates=(UNVERIFIED,))
    assert versions(tmp_path) == {
        f"digits/{second}": "1",
        f"rejected/digits/{first}{mark}": "2",
        f"rejected/digits/{second}{mark}": "2",
    }
    removed, stays = (row.checked.warnings[-1] for row in report.rows)
    assert removed.startswith("the earlier bundle is removed, since this one was rejected: ")
    assert stays.startswith("the earlier bundle stays, since this one failed no gate: ")
    publish(item, tmp_path, "3")
    assert versions(tmp_path) == {f"digits/{first}": "3", f"digits/{second}": "3"}


def test_a_disk_that_fills_up_at_the_second_bundle_changes_nothing(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(item, tmp_path, "1")
    names = sorted((tmp_path / "out").rglob("*"))
    copies = 0

    def copy_files(source: Path, target: Path) -> None:
        nonlocal copies
        copies += 1
        if copies == 2:
            raise OSError(errno.ENOSPC, "full", str(target))
        files.copy_files(source, target)

    monkeypatch.setattr(publishing, "copy_files", copy_files)
    with pytest.raises(OSError, match="full"):
        publish(item, tmp_path, "2")
    assert set(versions(tmp_path).values()) == {"1"}
    assert sorted((tmp_path / "out").rglob("*")) == names
