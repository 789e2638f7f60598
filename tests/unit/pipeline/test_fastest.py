"""Which of several candidates is kept: the fastest that passed; within the noise the smallest, then the first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.bundle.run_report import read_report
from edgeq.core.config import Job
from edgeq.core.errors import ExitCode, UnsupportedError
from edgeq.core.results.measured import Interval
from edgeq.core.results.report import Candidate, DataFacts, ModelError, PackageResult, Variant
from edgeq.core.targets import TargetGroup, load_target
from edgeq.pipeline.fastest import choose_fastest, winner
from edgeq.pipeline.plan import BuildUnit, GroupUnit, Results, Run
from edgeq.report import text
from edgeq.report.progress import Quiet
from pipeline.finished import FAILED

NAMES = ("linux-x86_64-x86", "linux-x86_64-fbgemm", "linux-x86_64-ort")
X86, FBGEMM, ORT = (load_target(name) for name in NAMES)
GROUP = TargetGroup(name="mine", description="of my own", candidates=(X86, FBGEMM, ORT))


def candidate(size: int, slowdown: tuple[float, float, float] | None = None, failed: int = 0, sqnr: float = 30.0):
    slower = None if slowdown is None else Interval(low=slowdown[0], estimate=slowdown[1], high=slowdown[2])
    figures = Variant(scheme="fp32", size_bytes=size, sqnr_db=sqnr, failed=(FAILED,) * failed)
    return Candidate(target="t", figures=figures, slowdown=slower)


REFUSED = Candidate(target="t", figures=Variant(scheme="fp32", error="no", exit_code=ExitCode.UNSUPPORTED))


@pytest.mark.parametrize(
    ("candidates", "place"),
    [
        ([candidate(1, (1.02, 1.1, 1.2)), candidate(9)], 1),  # slower by more than the noise, though smaller
        ([candidate(1, (1.004, 1.1, 1.2)), candidate(9)], 0),  # the interval shows 1.00
        ([candidate(9, (0.9, 1.1, 1.2)), candidate(1), candidate(1, (1.0, 1.0, 1.1))], 1),  # as small: the first
        ([candidate(1, None, failed=1), REFUSED, candidate(9)], 2),  # the only one that passed
        ([REFUSED, candidate(1, None, 2, 40), candidate(1, None, 1, 10), candidate(1, None, 1, 20)], 3),  # the nearest
    ],
)
def test_the_rule(candidates, place):
    assert winner(candidates) == place


@pytest.fixture
def row(host_bundle: Path) -> PackageResult:
    return read_report(host_bundle)


def chosen(rows: list[PackageResult | None], folder: Path) -> Results:
    """The choice between a bundle under several names; None where a candidate was refused."""
    units = [BuildUnit(target=one, scheme="static-int8", key=one.name) for one in (X86, FBGEMM)]
    finished = {unit.key: (one, DataFacts()) for unit, one in zip(units, rows, strict=True) if one is not None}
    refused = {unit.key: UnsupportedError("no such layer", "fix") for unit in units if unit.key not in finished}
    left_out = ModelError(what="needs onnx", fix="pip install onnx", exit_code=ExitCode.ENVIRONMENT)
    unit = GroupUnit(
        group=GROUP, scheme="static-int8", key="group", candidates=tuple(units), left_out={ORT.name: left_out}
    )
    job = Job(source="digits", groups=(GROUP,), cache=False)
    run = Run(job=job, facts={}, work=folder, progress=Quiet())
    return choose_fastest(run, (unit,), Results(finished=finished, refused=refused))


def copied(row: PackageResult, folder: Path, **changes: object) -> PackageResult:
    folder.mkdir()
    for path in row.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return dataclasses.replace(row, path=folder, **changes)


def test_one_artifact_under_two_names_is_as_fast_as_itself(row: PackageResult, tmp_path: Path) -> None:
    both = [copied(row, tmp_path / "a", size_bytes=2), copied(row, tmp_path / "b", target=FBGEMM.name, size_bytes=1)]
    found, _ = chosen([*both], tmp_path).finished["group"]
    fastest = found.fastest
    assert fastest is not None
    assert fastest.turns == 15
    slower = [one.slowdown for one in fastest.candidates]
    assert sum(one is not None for one in slower) == 1  # the fastest has none, nor has what was left out
    assert all(one.figures.latency_ms and one.figures.latency_p90_ms for one in fastest.candidates[:2])
    assert found.target == fastest.candidates[fastest.chosen].target
    assert (found.named_target, found.label) == ("mine", "mine@static-int8")
    assert read_report(found.path) == found  # what is kept tells of the choice
    lines = text.candidate_lines(fastest)
    assert lines[2] == f"{ORT.name}: refused: needs onnx; pip install onnx"
    assert f"{found.target} is " in text.fastest(fastest)


def test_the_only_one_that_passed_is_not_timed(row: PackageResult, tmp_path: Path) -> None:
    failing = dataclasses.replace(row.checked, gates=(FAILED,))
    both = [copied(row, tmp_path / "a", checked=failing), copied(row, tmp_path / "b", target=FBGEMM.name)]
    found, _ = chosen([*both], tmp_path).finished["group"]
    assert found.fastest is not None
    assert (found.target, found.fastest.turns) == (FBGEMM.name, 0)
    assert text.fastest(found.fastest) == f"{FBGEMM.name} is the only candidate that passed every gate"
    assert "refused: size" in text.candidate_lines(found.fastest)[0]


def test_where_none_passes_the_nearest_is_kept_with_its_exit_code(row: PackageResult, tmp_path: Path) -> None:
    failing = dataclasses.replace(row.checked, gates=(FAILED,))
    found, _ = chosen([copied(row, tmp_path / "a", checked=failing), None], tmp_path).finished["group"]
    assert (found.target, found.exit_code) == (X86.name, ExitCode.SIZE)
    assert found.fastest is not None
    assert "none of 3 candidates passed every gate" in text.fastest(found.fastest)
    assert text.candidate_lines(found.fastest)[1] == f"{FBGEMM.name}: refused: no such layer"


def test_where_nothing_could_be_built_the_lowest_code_counts(tmp_path: Path) -> None:
    error = chosen([None, None], tmp_path).refused["group"]
    assert error.exit_code == ExitCode.UNSUPPORTED
    assert error.what.startswith(f"no candidate of mine could be built: {X86.name}: no such layer; ")
    assert f"{ORT.name}: needs onnx" in error.what
