"""Putting bundles in place, and the work folder; the whole of `build` is tested in tests/integration."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import shutil
from pathlib import Path

import pytest

from edgeq import _io
from edgeq.artifacts import BundleInput, CheckReport, Cost, DataFacts, Gate, LatencyPrediction, Row
from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.errors import EdgeqError, ExitCode
from edgeq.job import Job
from edgeq.pipeline.build import WORK_NAME, Cell
from edgeq.target import load_target

build = importlib.import_module("edgeq.pipeline.build")  # the package's attribute of this name is the function
TARGETS = (load_target("android-arm64-xnnpack"), load_target("ios-arm64-xnnpack"))
FAILED = Gate(name="size", outcome="failed", limit="", measured="", detail="", exit_code=ExitCode.SIZE)


def made(item: BundleInput, folder: Path, version: str, failed: bool = False) -> Row:
    folder.mkdir(parents=True)
    checked = CheckReport(gates=(FAILED,) if failed else ())
    digest = write_bundle(dataclasses.replace(item, model_version=version, checked=checked), folder)
    return Row(
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


def publish(
    item: BundleInput,
    root: Path,
    version: str,
    failed: tuple[bool, bool] = (False, False),
    schemes: tuple[str, ...] = (),
) -> None:
    job = Job(source="digits", targets=TARGETS, schemes=schemes, out=root / "out")
    cells = tuple(Cell(target=target, scheme="fp32", key=target.name) for target in TARGETS)
    rows = [made(item, root / f"work-{version}" / str(i), version, bad) for i, bad in enumerate(failed)]
    finished = {cell.key: (row, DataFacts()) for cell, row in zip(cells, rows, strict=True)}
    build.publish(build.Plan(job=job, facts={}, cells=cells, finished=finished))


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
        _io.copy_files(source, target)

    monkeypatch.setattr(build, "copy_files", copy_files)
    with pytest.raises(OSError, match="full"):
        publish(item, tmp_path, "2")
    assert set(versions(tmp_path).values()) == {"1"}
    assert sorted((tmp_path / "out").rglob("*")) == names


def test_what_a_killed_run_left_goes_first(tmp_path: Path) -> None:
    (tmp_path / WORK_NAME / "bundle-0").mkdir(parents=True)
    (tmp_path / WORK_NAME / "bundle-0" / "model.pte").touch()
    with build.work_folder(tmp_path) as work:
        assert list(work.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_librarys_words_for_a_full_disk_are_translated(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(OSError, match="No space left") as caught, build.work_folder(small_disk):
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert caught.value.errno == errno.ENOSPC


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(EdgeqError, match="mine"), build.work_folder(tmp_path):
        raise EdgeqError("mine", "mend it")


@pytest.mark.parametrize(
    ("name", "outcome", "code", "kept"),
    [
        ("latency", "failed", ExitCode.LATENCY, False),
        ("load", "failed", ExitCode.LATENCY, False),
        ("peak_memory", "failed", ExitCode.LATENCY, False),
        ("latency", "ok", ExitCode.LATENCY, True),
        ("latency", "unverified", ExitCode.VERIFICATION, True),
        ("size", "failed", ExitCode.SIZE, True),
        ("instructions", "failed", ExitCode.LATENCY, True),
    ],
)
def test_a_time_that_broke_its_limit_on_a_busy_machine_is_measured_again(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, outcome: str, code: int, kept: bool
) -> None:
    stored = []
    monkeypatch.setattr(build.cache, "store", lambda key, *_: stored.append(key))
    row = made(item, tmp_path / "bundle", "1")
    gate = dataclasses.replace(FAILED, name=name, outcome=outcome, exit_code=code)
    row = dataclasses.replace(row, checked=CheckReport(gates=(gate,)))
    assert build._stored({"key": (row, DataFacts())}, {}) == {"key": (row, DataFacts())}
    assert stored == (["key"] if kept else [])


def test_a_predicted_latency_stays_what_it_is(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = []
    monkeypatch.setattr(build.cache, "store", lambda key, *_: stored.append(key))
    row = made(item, tmp_path / "bundle", "1")
    told = LatencyPrediction(**{field.name: 0 for field in dataclasses.fields(LatencyPrediction)})
    verified = dataclasses.replace(row.verified, cost=Cost(counts=(), prediction=told))
    gate = dataclasses.replace(FAILED, name="latency", exit_code=ExitCode.LATENCY)
    row = dataclasses.replace(row, verified=verified, checked=CheckReport(gates=(gate,)))
    build._stored({"key": (row, DataFacts())}, {})
    assert stored == ["key"]
