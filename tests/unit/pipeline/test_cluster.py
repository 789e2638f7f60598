"""Which workers build, and what they are sent; whole builds on a real cluster are in tests/integration."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeq.core.config import DataConfig, GateOptions, Job
from edgeq.core.errors import EnvironmentProblem, ExitCode
from edgeq.core.results.report import ModelError
from edgeq.core.targets import load_target
from edgeq.pipeline import cluster
from edgeq.pipeline.cache import machine_facts
from edgeq.pipeline.cluster import Fleet, probe_worker
from edgeq.pipeline.plan import BuildUnit, Plan
from edgeq.pipeline.workers import Order

X86 = load_target("linux-x86_64-x86")
ORT = load_target("linux-x86_64-ort")
CUDA = load_target("linux-x86_64-cuda")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return probe_worker()


def fleet_of(*workers: dict[str, Any]) -> Fleet:
    fleet = Fleet.__new__(Fleet)
    fleet.machine = machine_facts()
    fleet._had_workers_s = 0.0
    fleet._workers = {
        f"tcp://{number}": cluster._Worker(address=f"tcp://{number}", facts=one, slots=1, threads=1)
        for number, one in enumerate(workers)
    }
    return fleet


def item_of(job: Job, *targets: Any) -> Any:
    units = tuple(BuildUnit(target=target, scheme="fp32", key=target.name) for target in targets)
    plan = Plan(job=job, facts={}, units=units, finished={})
    return cluster._Item(order=Order(name="net", plan=plan, work=Path()), plan=plan)


def test_a_worker_like_this_machine_builds(facts: dict[str, Any]) -> None:
    assert fleet_of()._why_not("tcp://a", facts) == ""


@pytest.mark.parametrize("tool", ["torch", "executorch", "python"])
def test_a_worker_with_another_version_is_named_with_both(facts: dict[str, Any], tool: str) -> None:
    other = copy.deepcopy(facts)
    other["machine"]["tools"][tool] = "1.0"
    here = machine_facts()["tools"][tool]
    assert fleet_of()._why_not("tcp://a", other) == f"tcp://a has {tool} 1.0, and this machine has {tool} {here}"
    other["machine"]["tools"].pop(tool)
    assert f"tcp://a has {tool} none, and this machine has {tool} {here}" == fleet_of()._why_not("tcp://a", other)


def test_a_worker_with_another_edgeq_library_or_kernels_is_left_out(facts: dict[str, Any]) -> None:
    for change, said in (
        (lambda machine: machine.update(edgeq="f" * 64), "has edgeq 0.1.0 (ffffffffffff), and this machine has edgeq"),
        (lambda machine: machine["libraries"].update(sympy="other"), "has another build of sympy"),
        (lambda machine: machine.update(host=["armv8"]), "would choose other kernels than the first worker"),
    ):
        other = copy.deepcopy(facts)
        change(other["machine"])
        assert said in fleet_of(facts)._why_not("tcp://a", other)


def test_a_part_goes_to_the_idlest_worker_that_has_what_it_needs(facts: dict[str, Any]) -> None:
    job = Job(source="digits", targets=(X86,))
    fleet = fleet_of(facts, facts)
    first = fleet.place_for(item_of(job, X86))
    assert first is not None
    first.parts = 1
    second = fleet.place_for(item_of(job, X86))
    assert second is not None
    assert second is not first
    second.parts = 1
    assert fleet.place_for(item_of(job, X86)) is None
    assert fleet.is_busy
    first.parts = second.parts = 0
    again = item_of(job, X86)
    again.lost.append(first.address)
    assert fleet.place_for(again) is second


def test_what_no_worker_has_is_an_error_of_that_model(facts: dict[str, Any]) -> None:
    job = Job(source="digits", targets=(CUDA,))
    with pytest.raises(
        EnvironmentProblem, match=r"no worker of the cluster can build net: .* needs the GPU and driver"
    ):
        fleet_of(facts | {"gpu": "H900, 12.0, 999"}).place_for(item_of(job, CUDA))
    with pytest.raises(EnvironmentProblem, match="all have gone"):
        fleet_of().place_for(item_of(job, X86))


def test_limited_times_are_measured_on_the_named_kind_of_worker(facts: dict[str, Any]) -> None:
    fleet = fleet_of(facts | {"cpu": "Slow, 2 cores"}, facts | {"cpu": "Fast Xeon, 64 cores"})
    limited = Job(source="digits", targets=(X86,), gates=GateOptions(limits=(("latency", 1.0),), times_on="Xeon"))
    for _ in range(3):
        placed = fleet.place_for(item_of(limited, X86))
        assert placed is not None
        assert placed.facts["cpu"] == "Fast Xeon, 64 cores"
    placed.parts = 1
    assert fleet.place_for(item_of(limited, X86)) is None, "it waits for that one"
    nobody = dataclasses.replace(limited, gates=dataclasses.replace(limited.gates, times_on="Epyc"))
    assert fleet.place_for(item_of(nobody, X86)) is not None, "built anywhere, and unverified"


def test_a_model_is_split_by_artifact_and_joined_with_the_first_error() -> None:
    job = Job(source="digits", targets=(X86, ORT))
    units = tuple(BuildUnit(target=target, scheme="fp32", key=target.name) for target in (X86, ORT))
    plan = Plan(job=job, facts={}, units=units, finished={})
    order = Order(name="net", plan=plan, work=Path())
    assert [len(part.units) for part in cluster._parts(plan, split=True)] == [1, 1]
    assert [len(part.units) for part in cluster._parts(plan, split=False)] == [2]
    items = [cluster._Item(order=order, plan=part) for part in cluster._parts(plan, split=True)]
    refusal = ModelError(what="no such layer", fix="none", exit_code=ExitCode.UNSUPPORTED)
    refused = [dataclasses.replace(one.plan, refused={one.plan.units[0].key: refusal}) for one in items]
    assert cluster._joined(order, items, dict(zip(map(id, items), refused, strict=True)), ()) == refusal
    broken = ModelError(what="no memory", fix="more", exit_code=ExitCode.ENVIRONMENT)
    assert cluster._joined(order, items, {id(items[0]): refused[0], id(items[1]): broken}, ()) == broken


def test_paths_of_the_project_are_relative_and_hidden_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("net.py", "data/a.npz", "out/old.pt", ".git/config", ".env", "venv/pyvenv.cfg", "__pycache__/n.pyc"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    files = cluster._project_files(tmp_path, Path("out"))
    assert sorted(files) == ["data/a.npz", "net.py"]
    data = DataConfig(calibration=f"{tmp_path}/data", labels=tmp_path / "labels.txt")
    job = Job(source=f"{tmp_path}/net.py:model", targets=(X86,), data=data, weights="/elsewhere/w.pt")
    moved = cluster._relative_paths(job)
    assert (moved.source, moved.data.calibration, moved.weights) == ("net.py:model", "data", "/elsewhere/w.pt")
    assert moved.data.labels == Path("labels.txt")
    assert moved.targets == job.targets


def test_files_arrive_in_pieces_and_whole_or_not_at_all(tmp_path: Path) -> None:
    worker = SimpleNamespace(local_directory=str(tmp_path))
    sha256 = cluster.sha256_bytes(b"abcdef")
    assert cluster.missing_files([sha256], worker) == [sha256]
    cluster.take_chunk(sha256, 0, b"abc", is_last=False, dask_worker=worker)
    assert cluster.missing_files([sha256], worker) == [sha256]
    with pytest.raises(ValueError, match="another content"):
        cluster.take_chunk(sha256, 3, b"xyz", is_last=True, dask_worker=worker)
    cluster.take_chunk(sha256, 0, b"abc", is_last=False, dask_worker=worker)
    cluster.take_chunk(sha256, 3, b"def", is_last=True, dask_worker=worker)
    assert cluster.missing_files([sha256], worker) == []
    for _ in range(2):
        cluster.lay_out("project", {"deep/er/net.py": (sha256, 0o644, 10**18)}, worker)
    laid = tmp_path / "edgeq" / "project" / "deep" / "er" / "net.py"
    assert (laid.read_bytes(), laid.stat().st_mtime_ns) == (b"abcdef", 10**18)
