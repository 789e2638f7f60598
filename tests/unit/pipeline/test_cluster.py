"""Which workers build, and what they are sent; whole builds on a real cluster are in tests/integration."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeq.core.config import DataConfig, DeviceConfig, GateOptions, Job
from edgeq.core.errors import EnvironmentProblem, ExitCode
from edgeq.core.results.report import ModelError
from edgeq.core.targets import load_target
from edgeq.deliver.ota.keys import new_keys
from edgeq.pipeline import cluster
from edgeq.pipeline.cache import job_facts, machine_facts, unit_key
from edgeq.pipeline.cluster import Entry, Fleet, probe_worker
from edgeq.pipeline.plan import BuildUnit, Plan
from edgeq.pipeline.tracking import current_state
from edgeq.pipeline.workers import Order

X86 = load_target("linux-x86_64-x86")
ORT = load_target("linux-x86_64-ort")
CUDA = load_target("linux-x86_64-cuda")
PHONE = load_target("android-arm64-xnnpack")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return probe_worker()


def fleet_of(*workers: dict[str, Any]) -> Fleet:
    fleet = Fleet.__new__(Fleet)
    fleet._machine = machine_facts()
    fleet._devices = workers[0]["devices"] if workers else {"gpu": "", "emulator": ""}
    fleet._had_workers_s = 0.0
    fleet._workers = {
        f"tcp://{number}": cluster._Worker(address=f"tcp://{number}", facts=one, slots=1, threads=1)
        for number, one in enumerate(workers)
    }
    return fleet


def item_of(job: Job, *targets: Any) -> Any:
    units = tuple(BuildUnit(target=target, scheme="fp32", key=target.name) for target in targets)
    plan = Plan(job=job, facts={}, units=units, finished={})
    order = Order(name="net", plan=plan, work=Path())
    return cluster._Item(order=order, plan=plan, needs=cluster._needs(plan), is_timed=cluster._limits_times(job))


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
    emulated = Job(source="digits", targets=(PHONE,))
    bare = facts | {"devices": {"gpu": "", "emulator": ""}}
    cuda = Job(source="digits", targets=(CUDA,))
    fleet = fleet_of(bare)
    assert fleet.place_for(item_of(cuda, CUDA)) is not None, "emulated, as on one machine without a GPU"
    fleet._devices = {"gpu": "H900", "emulator": ""}  # of one that has gone
    for job, target, said in (
        (cuda, CUDA, "linux-x86_64-cuda needs a GPU, and none has it"),
        (emulated, PHONE, "android-arm64-xnnpack needs QEMU, and none has it"),
    ):
        with pytest.raises(EnvironmentProblem, match=f"no worker of the cluster can build net: {said}") as raised:
            fleet.place_for(item_of(job, target))
        assert raised.value.exit_code == 9
    with pytest.raises(EnvironmentProblem, match="all have gone"):
        fleet_of().place_for(item_of(Job(source="digits", targets=(X86,)), X86))
    on_host = dataclasses.replace(emulated, device=DeviceConfig(on="host"))
    assert fleet_of(bare).place_for(item_of(on_host, PHONE)) is not None


def test_a_part_goes_to_workers_with_its_device_though_this_machine_has_none(facts: dict[str, Any]) -> None:
    bare = facts | {"devices": {"gpu": "", "emulator": ""}}
    rich = facts | {"devices": {"gpu": "H900, 12.0, 999", "emulator": "ab" * 32}}
    other = facts | {"devices": {"gpu": "H800, 12.0, 999", "emulator": ""}}
    fleet = fleet_of(bare, other, rich)
    fleet._devices = rich["devices"]
    for target in (CUDA, PHONE):
        placed = fleet.place_for(item_of(Job(source="digits", targets=(target,)), target))
        assert placed is not None
        assert placed.facts is rich
    fleet._workers["tcp://2"].parts = 1
    assert fleet.place_for(item_of(Job(source="digits", targets=(CUDA,)), CUDA)) is None, "it waits for that one"


def test_the_key_of_a_unit_holds_the_devices_of_the_workers_that_build_it(facts: dict[str, Any]) -> None:
    job = Job(source="digits", targets=(CUDA,))
    keys = {
        (gpu, target.name): unit_key(
            job_facts(job, {**facts["machine"], "devices": {"gpu": gpu, "emulator": ""}}), target, "fp32"
        )
        for gpu in ("H900", "H800")
        for target in (CUDA, X86)
    }
    assert keys["H900", CUDA.name] != keys["H800", CUDA.name]
    assert keys["H900", X86.name] == keys["H800", X86.name] == unit_key(job_facts(job), X86, "fp32")


class Scheduler:
    """A client whose workers answer what they are told to."""

    status = "running"
    scheduler = SimpleNamespace(address="tcp://scheduler")

    def __init__(self, workers: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> None:
        self.workers = workers

    def scheduler_info(self, **_: Any) -> dict[str, Any]:
        return {"workers": {name: seen for name, (_, seen) in self.workers.items()}}

    def run(self, _: Any, workers: list[str], **__: Any) -> dict[str, Any]:
        return {name: self.workers[name][0] for name in workers}


def test_what_a_worker_has_comes_from_its_resources_its_memory_and_its_devices(
    facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    without = {"gpu": "", "emulator": ""}
    seen = {"nthreads": 8, "memory_limit": 0}
    answers: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "tcp://a": (facts | {"devices": without, "memory": 64 * 10**9}, seen | {"resources": {"edgeq": 4}}),
        "tcp://b": (
            facts | {"devices": without | {"gpu": "H900"}},
            seen | {"memory_limit": 5 * 10**9, "resources": {"edgeq": 4}},
        ),
        "tcp://c": (facts | {"memory": 10**9}, seen | {"resources": {"edgeq-latency": 1, "edgeq": 4}}),
    }
    fleet = Fleet(Scheduler(answers), tmp_path / "out")
    slots = {name: (worker.slots, worker.threads, worker.is_for_times) for name, worker in fleet._workers.items()}
    assert slots == {"tcp://a": (4, 2, False), "tcp://b": (2, 4, False), "tcp://c": (1, 8, True)}
    assert fleet.machine["devices"] == {"gpu": "H900", "emulator": facts["devices"]["emulator"]}
    # after a part has ended with its worker, the next one is that with the most memory for it
    job = Job(source="digits", targets=(X86,))
    again = item_of(job, X86)
    again.tries, again.lost = 1, ["tcp://b"]
    placed = fleet.place_for(again)
    assert placed is not None
    assert placed.address == "tcp://a"


def test_times_are_measured_in_a_slot_of_their_own_where_there_is_one(facts: dict[str, Any]) -> None:
    fleet = fleet_of(facts, facts)
    slot = fleet._workers["tcp://1"]
    slot.is_for_times = True
    plain = Job(source="digits", targets=(X86,))
    limited = dataclasses.replace(plain, gates=GateOptions(limits=(("latency", 1.0),)))
    assert fleet.place_for(item_of(limited, X86)) is slot
    assert fleet.place_for(item_of(plain, X86)) is not slot
    fleet._workers["tcp://0"].parts = 1
    assert fleet.place_for(item_of(plain, X86)) is None, "the slot stays free"
    slot.parts = 1
    assert fleet.place_for(item_of(limited, X86)) is None, "one after the other"
    del fleet._workers["tcp://0"]
    slot.parts = 0
    assert fleet.place_for(item_of(plain, X86)) is slot, "nobody else is there"


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


KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAbcdefghijk\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with all that is not sent as it is."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "a.npz").write_text("a")
    (outside / "w.pt").write_text("w")
    for name in ("net.py", "data/b.npz", "out/old.pt", ".git/config", ".env", "venv/pyvenv.cfg", "__pycache__/n.pyc"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    new_keys(Path("ci-keys"), counts={}, places={})
    shutil.copy("ci-keys/targets-1.pem", "deploy.txt")
    Path("ssh").write_text(KEY.replace("PRIVATE", "OPENSSH PRIVATE"))
    Path("cloud.json").write_text('{"private_key": "' + KEY.replace("\n", "\\n") + '"}')
    Path("about_keys.py").write_text('FORMAT = "-----BEGIN PRIVATE KEY-----"  # no key\n')
    Path("empty").mkdir()
    Path("latest.npz").symlink_to("data/b.npz")
    Path("all").symlink_to(root / "data")
    Path("mounted").symlink_to(outside)
    Path("w.pt").symlink_to(outside / "w.pt")
    Path("lost").symlink_to("nowhere")
    (outside / "back").symlink_to(outside)
    os.mkfifo("pipe")
    return root


def test_what_is_sent_and_of_what_only_the_name(tree: Path) -> None:
    entries, not_sent = cluster._project_entries(tree, tree / "out")
    assert not_sent == {
        ".env": "hidden",
        ".git": "hidden",
        "out": "the output folder",
        "venv": "a virtual environment",
        "__pycache__": "not source",
        "ci-keys": "a folder of `edgeq keys`",
        "pipe": "not a file",
        "mounted/back": "its link leads back to a folder around it",
        **dict.fromkeys(("deploy.txt", "ssh", "cloud.json"), cluster._HAS_KEY),
    }
    kinds = {name: entry.kind for name, entry in entries.items()}
    assert {name for name, kind in kinds.items() if kind == "file"} == {
        "net.py",
        "about_keys.py",
        "data/b.npz",
        "w.pt",
        "mounted/w.pt",
        "mounted/deep/a.npz",
    }
    assert {name: entries[name].content for name, kind in kinds.items() if kind == "link"} == {
        "latest.npz": "data/b.npz",
        "all": "data",
        "lost": "nowhere",
    }
    assert {name for name, kind in kinds.items() if kind == "name"} == {
        ".env",
        "pipe",
        "deploy.txt",
        "ssh",
        "cloud.json",
    }


def send(tree: Path, folder: Path, entries: dict[str, Any]) -> Path:
    """Lay a project out as on a worker, and return where it is."""
    worker = SimpleNamespace(local_directory=str(folder))
    files = {entry.content: name for name, entry in entries.items() if entry.kind == "file"}
    for sha256 in cluster.missing_files(sorted(files), worker):
        cluster.take_chunk(sha256, 0, (tree / files[sha256]).read_bytes(), is_last=True, dask_worker=worker)
    for _ in range(2):
        cluster.lay_out("abc", tree.name, entries, worker)
    return folder / "edgeq" / "abc" / tree.name


def test_a_worker_has_the_same_names_links_and_files(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, _ = cluster._project_entries(tree, tree / "out")
    place = send(tree, tmp_path / "worker", entries)
    names = [
        *(
            "names:.",
            "names:data",
            "names:all",
            "names:empty",
            "names:mounted/deep",
            "file:net.py",
            "file:mounted/w.pt",
        ),
        *("file:latest.npz", "kind:.git", "kind:.env", "kind:out", "kind:latest.npz", "real:latest.npz", "kind:lost"),
        *("shape:net.py", "shape:data", "modules:.", "modules:data", "shape:mounted/deep/a.npz"),
    ]
    here = {name: current_state(name) for name in names}
    monkeypatch.chdir(place)
    there = {name: current_state(name) for name in names}
    stays = {
        name: current_state(name) for name in ("file:.env", "names:.git", "names:out", "file:deploy.txt", "shape:.env")
    }
    monkeypatch.chdir(tree)
    assert there == here
    assert cluster._different({**there, **stays, "host:name": "x", "modules:/elsewhere": "x"}) == [*stays, "host:name"]
    # nothing of a secret is there, and what is there is its owner's alone
    assert not any(
        secret in path.read_bytes()
        for path in (tmp_path / "worker").rglob("*")
        if path.is_file()
        for secret in (b"PRIVATE KEY-----\n", b"PRIVATE KEY-----\\n", b".git/config", b".env")
    )
    for path in ((tmp_path / "worker" / "edgeq"), (tmp_path / "worker" / "edgeq" / "files")):
        assert path.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "worker" / "edgeq" / "files").iterdir()} == {0}


def test_what_differs_is_named_with_the_reason(tree: Path, facts: dict[str, Any]) -> None:
    fleet = fleet_of(facts)
    _, fleet._not_sent = cluster._project_entries(tree, tree / "out")
    said = [fleet.named(name) for name in ("file:.git/config", "names:.", "env:HOME", "host:name", "file:deploy.txt")]
    assert said == [
        ".git/config (not sent: hidden)",
        "the project's folder",
        "the variable HOME",
        "the name of the machine",
        "deploy.txt (not sent: it holds a private key)",
    ]
    fleet._left_out = ["tcp://b has torch 1.0, and this machine has torch 2.0"]
    assert fleet.warnings == [
        "a worker of the cluster was left out: tcp://b has torch 1.0, and this machine has torch 2.0",
        "cloud.json holds a private key, and was not sent to the workers",
        "deploy.txt holds a private key, and was not sent to the workers",
        "ssh holds a private key, and was not sent to the workers",
    ]


def test_options_name_paths_of_the_project_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
    entries = {"deep": Entry("folder", mode=0o500), "deep/net.py": Entry("file", sha256, 0o640, 10**18)}
    cluster.lay_out("project", "root", entries, worker)
    laid = tmp_path / "edgeq" / "project" / "root" / "deep" / "net.py"
    assert (laid.read_bytes(), laid.stat().st_mtime_ns) == (b"abcdef", 10**18)
    assert (laid.stat().st_mode & 0o777, laid.parent.stat().st_mode & 0o777) == (0o640, 0o700)
