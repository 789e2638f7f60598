"""`edgeq build --cluster` on a real cluster of two worker processes: the digests of one machine, and faults put in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.core.system import processor_name

from .conftest import X86, Project
from .processes import alive, descendants, finish, start, wait_for, wait_until_dead

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="workers are watched by /proc")]

HEAD = f"""
targets = ["{X86}", "linux-x86_64-ort"]
schemes = ["fp32"]
device.on = "host"
"""
GOOD = '[[model]]\nname = "good"\nsource = "quarters.py:model"\n'
LARGE = f'[[model]]\nname = "large"\nsource = "quarters.py:model"\nlimit.size = "1kB"\ntargets = ["{X86}"]\n'
SLOW_MODEL = f'[[model]]\nname = "slow"\nsource = "slow.py:model"\ntargets = ["{X86}"]\n'
SLOW = """
import time

from quarters import example_inputs, model as plain


def model():
    time.sleep(6)
    return plain()
"""
WIDE = """
import torch


def model():
    return torch.nn.Linear(1000, 1000)


def example_inputs():
    return (torch.zeros(1, 1000),)
"""
# the process of a unit, its fork server, the process beside the worker, and the worker
DEADLY = """
import os
import signal
from pathlib import Path

import torch
from quarters import example_inputs, model as plain


def kill_worker():
    pid = os.getpid()
    for _ in range(3):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    signal.pause()


class Once(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, image):
        marker = Path("/dev/shm") / os.environ.get("EDGEQ_TEST_MARKER", "MARKER")
        if (torch.jit.is_tracing() or torch.compiler.is_compiling()) and not marker.exists():
            marker.touch()
            kill_worker()
        return self.net(image)


def once():
    return Once()


def always():
    kill_worker()
"""


# code that looks around: links, names, its own place, and what its folder has
LOOKING = """
from pathlib import Path

import numpy as np
from quarters import example_inputs, model as plain

HERE = Path(__file__).resolve()


def model():
    net = plain()
    for path in sorted(HERE.parent.glob("*.txt")) + sorted(Path("linked").iterdir()):
        if path.name != "notes.md" and not path.name.startswith("."):
            net.head.bias.data += float(np.loadtxt(path))
    return net
"""
HIDDEN = """
from pathlib import Path

from quarters import example_inputs, model as plain


def model():
    net = plain()
    net.head.bias.data += float(Path(".gain").read_text())
    return net
"""
NAMED = """
import socket

from quarters import example_inputs, model as plain


def model():
    net = plain()
    net.head.bias.data += len(socket.gethostname())
    return net
"""


@contextlib.contextmanager
def local_cluster(
    place: Path, workers: Path, *within: str, **variables: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a cluster; its workers have a cache of their own. `within` is a command that starts it."""
    process = subprocess.Popen(
        [*within, sys.executable, str(Path(__file__).with_name("local_cluster.py")), str(workers)],
        stdout=subprocess.PIPE,
        stderr=(place / "log").open("wb"),
        text=True,
        env={**os.environ, "EDGEQ_CACHE_DIR": str(place / "cache"), **variables},
        start_new_session=True,
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip(), process
    below = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in alive(below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_dead(below)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    place = tmp_path_factory.mktemp("cluster")
    with local_cluster(place, place / "workers") as found:
        yield found


def digests(folder: Path) -> dict[str, str]:
    found = {path.parent for path in folder.rglob("manifest.json")}
    return {str(place.relative_to(folder)): read_bundle(place).digest for place in found}


def units() -> list[Path]:
    return list(Path(f"/tmp/edgeq-units-{os.getuid()}").glob("*.unit"))  # noqa: S108


def write(project: Project, *models: str) -> None:
    (project.root / "edgeq.toml").write_text(HEAD + "".join(models))


def test_a_cluster_gives_the_digests_of_one_machine_and_judges_times_on_one_kind(
    project: Project, scheduler: tuple[str, subprocess.Popen[str]]
) -> None:
    write(project, GOOD, LARGE)
    remote = finish(start("build", "--cluster", scheduler[0], "-o", "remote", "--json"))
    document = json.loads(remote.out)
    assert remote.code == 4, document["models"][0]["error"]
    assert [row["cached"] for model in document["models"] for row in model["rows"]] == [False] * 3
    assert processor_name() in document["models"][0]["rows"][0]["verified"]["timing"]["cpu"]
    local = finish(start("build", "-o", "local", "--json", EDGEQ_CACHE_DIR=str(project.root.parent / "other")))
    assert local.code == 4, local.err
    assert digests(project.root / "remote") == digests(project.root / "local") != {}
    # the coordinator kept what came: this machine alone takes it from the cache, with the same digests
    again = json.loads(finish(start("build", "-o", "again", "--json")).out)
    assert all(row["cached"] for model in again["models"] for row in model["rows"])
    assert digests(project.root / "again") == digests(project.root / "local")
    # any client of Dask's does from Python
    script = "import edgeq, sys; from distributed import Client\n"
    script += (
        "report = edgeq.build(client=Client(sys.argv[1]), progress=False); print(*(r.digest for r in report.rows))"
    )
    called = subprocess.run(
        [sys.executable, "-c", script, scheduler[0]], capture_output=True, text=True, check=True, timeout=120
    )
    assert sorted(called.stdout.split()) == sorted(digests(project.root / "local").values())
    assert units() == []
    # a limit on times: no kind of machine is named, then the workers' own, then another one
    write(project, f'{GOOD}limit.latency = "100s"\ntargets = ["{X86}"]\n')
    for args, code, outcome in (
        ((), 7, "unverified"),
        (("--latency-cpu", processor_name()), 0, "ok"),
        (("--latency-cpu", "Zuse Z3"), 7, "unverified"),
    ):
        found = finish(start("build", "--cluster", scheduler[0], "--json", *args))
        assert found.code == code, found.err
        (model,) = json.loads(found.out)["models"]
        gates = [gate for row in model["rows"] for gate in row["gates"] if gate["name"] == "latency"]
        assert {gate["outcome"] for gate in gates} == {outcome}


def test_a_worker_that_dies_gives_its_parts_to_others_twice(
    project: Project, scheduler: tuple[str, subprocess.Popen[str]], request: pytest.FixtureRequest
) -> None:
    marker = Path("/dev/shm") / f"edgeq-{os.getpid()}"  # noqa: S108
    request.addfinalizer(lambda: marker.unlink(missing_ok=True))
    (project.root / "deadly.py").write_text(DEADLY.replace("MARKER", marker.name))
    model = '[[model]]\nname = "{0}"\nsource = "deadly.py:{0}"\ntargets = ["' + X86 + '"]\n'
    write(project, model.format("once"), model.format("always"))
    result = finish(start("build", "--cluster", scheduler[0], "--json"))
    document = json.loads(result.out)
    once, always = document["models"]
    assert (once["exit_code"], once["error"]) == (0, None), result.err
    assert marker.exists()
    assert result.code == always["exit_code"] == 9
    what = always["error"]["what"]
    assert "once: lower " in result.err, "one was killed while it lowered"
    assert what.startswith("always failed on 3 workers (tcp://127.0.0.1:")
    assert "): it ended while it built; the last line of the log: " in what
    assert set(digests(project.out)) == {f"once/{X86}"}


def test_a_source_that_changes_while_the_fleet_builds_and_a_second_client(
    project: Project, scheduler: tuple[str, subprocess.Popen[str]]
) -> None:
    (project.root / "slow.py").write_text(SLOW)
    write(project, SLOW_MODEL)
    first = start("build", "--cluster", scheduler[0])
    wait_for(first, "slow: ")
    second = finish(start("build", "--cluster", scheduler[0]))
    second.fails(9, "another edgeq is writing to")
    (project.root / "slow.py").write_text(SLOW + "# changed\n")
    ended = finish(first)
    assert ended.code == 2, ended.out
    assert "slow read what differs between this machine and its worker: slow.py" in ended.out
    assert digests(project.out) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_coordinator_that_ends_leaves_no_unit_on_the_workers(
    project: Project, scheduler: tuple[str, subprocess.Popen[str]], number: signal.Signals
) -> None:
    (project.root / "slow.py").write_text(SLOW.replace("sleep(6)", "sleep(600)"))
    write(project, SLOW_MODEL)
    process = start("build", "--cluster", scheduler[0])
    wait_for(process, "slow: ")
    running = descendants(scheduler[1].pid)
    process.send_signal(number)
    assert finish(process).code == (130 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 30
    while units() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert units() == []
    assert alive(running), "the workers stay"
    if number == signal.SIGINT:
        assert not project.out.exists()
    else:
        shutil.rmtree(project.out)  # the work folder, which the next run would remove


def test_workers_on_another_machine_see_what_this_one_has_or_the_model_is_refused(
    project: Project, tmp_path: Path
) -> None:
    """The workers have another host name, and none of this machine's folders of the project."""
    if subprocess.run(["unshare", "--mount", "--uts", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.txt").write_text("2")
    (project.root / "linked").symlink_to(outside)
    (project.root / "a.txt").write_text("1")
    (project.root / ".gain").write_text("3")
    (project.root / "empty").mkdir()
    for name, text in (("looking", LOOKING), ("hidden", HIDDEN), ("named", NAMED)):
        (project.root / f"{name}.py").write_text(text)
    model = '[[model]]\nname = "{0}"\nsource = "{0}.py:model"\ntargets = ["' + X86 + '"]\n'
    write(project, *(model.format(name) for name in ("looking", "hidden", "named")))
    script = (
        f"hostname another && mount -t tmpfs tmpfs {outside} && mount -t tmpfs tmpfs {project.root}"
        ' && cd /tmp && exec "$@"'
    )
    (tmp_path / "cluster").mkdir()
    within = ("unshare", "--mount", "--uts", "sh", "-c", script, "sh")
    with local_cluster(tmp_path / "cluster", project.root / "workers", *within) as (address, _):
        remote = finish(start("build", "--cluster", address, "--json"))
    looking, hidden, named = json.loads(remote.out)["models"]
    assert (looking["error"], looking["exit_code"]) == (None, 0), remote.err
    assert (hidden["exit_code"], named["exit_code"], remote.code) == (2, 2, 2)
    what = hidden["error"]["what"]
    assert "hidden read what differs between this machine and its worker: .gain (not sent: hidden); there it f" in what
    assert (
        named["error"]["what"] == "named read what differs between this machine and its worker: the name of the machine"
    )
    # the same digest here, from the cache and without it
    for args, cached in (((), True), (("--no-cache",), False)):
        local = json.loads(finish(start("build", "looking", "--json", *args)).out)
        (row,) = local["models"][0]["rows"]
        assert (row["cached"], row["digest"]) == (cached, looking["rows"][0]["digest"])


def test_a_scheduler_that_dies_in_the_middle(project: Project, scheduler: tuple[str, subprocess.Popen[str]]) -> None:
    """What is finished is published and kept; this test is the last one, since the cluster dies in it."""
    (project.root / "slow.py").write_text(SLOW.replace("sleep(6)", "sleep(600)"))
    write(project, GOOD, SLOW_MODEL)
    process = start("build", "--cluster", scheduler[0], "--json")
    wait_for(process, "slow: ")
    cells = project.cache / "cells"
    deadline = time.monotonic() + 120
    while len(list(cells.glob("*/*/entry.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    below = descendants(scheduler[1].pid)
    os.kill(scheduler[1].pid, signal.SIGKILL)
    ended = finish(process)
    for pid in alive(below):
        os.kill(pid, signal.SIGKILL)
    assert ended.code == 9, ended.err
    good, slow = json.loads(ended.out)["models"]
    assert good["exit_code"] == 0
    assert "the cluster's scheduler ended before this model was built" in slow["error"]["what"]
    rerun = json.loads(finish(start("build", "good", "--json")).out)
    assert [row["cached"] for row in rerun["models"][0]["rows"]] == [True, True]


def test_workers_with_a_full_disk(project: Project, small_disk: Callable[[Path, str], Path], tmp_path: Path) -> None:
    disk = small_disk(tmp_path / "disk", "2m")
    (project.root / "weights.bin").write_bytes(os.urandom(4 << 20))
    write(project, GOOD)
    with local_cluster(tmp_path, disk / "workers") as (address, _):
        result = finish(start("build", "--cluster", address))
        # the sources fit, and the artifact does not
        (project.root / "weights.bin").unlink()
        (project.root / "wide.py").write_text(WIDE)
        write(project, f'[[model]]\nname = "wide"\nsource = "wide.py:model"\ntargets = ["{X86}"]\n')
        wide = finish(start("build", "--cluster", address, "--json"))
    assert wide.code == 9, wide.err
    assert "no space left on the disk that holds " in json.loads(wide.out)["models"][0]["error"]["what"]
    assert result.code == 9, result.err
    assert "good failed on 3 workers (tcp://127.0.0.1:" in result.out
    assert "the project's files could not be sent to it: [Errno 28] No space left on device" in result.out


def test_no_scheduler_at_the_address(project: Project) -> None:
    write(project, GOOD)
    began = time.monotonic()
    result = finish(start("build", "--cluster", "tcp://127.0.0.1:9"))
    result.fails(9, "--cluster tcp://127.0.0.1:9: no scheduler answered within 10 s", "dask scheduler")
    assert time.monotonic() - began < 40
    assert not project.out.exists()
