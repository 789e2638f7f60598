"""`edgeq build --cluster`: the models of a project on the workers of a Dask cluster.

The coordinator, which is this process, plans, asks the caches, hands out parts of models, checks what comes back, keeps
it and publishes it; workers only build. A part is a model's units that share an artifact, or a whole model where there
are more models than workers. It is placed by what a worker is and has: the versions and kernels of the others, a GPU,
an emulator, memory, a slot for measuring, and the kind of machine whose times count. The project's files go to each
worker once, by the hash of their content; of what stays here a worker has the names only. The states of all that the
user's code looked at on a worker are compared with this machine's when a part comes back.

Dask moves the calls and the data, and tells which workers there are. Every part runs in a process of its own
(`unit_server.py`); when its worker is lost, it is given to two others in turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeq.bundle.reader import read_bundle
from edgeq.check.limits import counts_on
from edgeq.core.config import BuildConfig, Job, Progress, Task
from edgeq.core.errors import EdgeqError, EnvironmentProblem, ExitCode, first_line
from edgeq.core.files import canonical_json, sha256_bytes, sha256_file
from edgeq.core.results.report import ModelError, with_warning
from edgeq.core.system import available_bytes, check_extras, edgeq_version, processor_kind, unlogged
from edgeq.core.targets import NPU
from edgeq.core.units import counted
from edgeq.deliver.ota import keys
from edgeq.pipeline.cache import device_facts, machine_facts, stored
from edgeq.pipeline.plan import BuildUnit, Finished, Made, Part, Plan, group_by_artifact
from edgeq.pipeline.portable import at, bound, portable, relative
from edgeq.pipeline.tracking import current_state
from edgeq.pipeline.workers import MEMORY_BYTES, Order, Outcome
from edgeq.verify.children import calm_openmp
from edgeq.verify.emulate.support import wants_emulation

_CONNECT_S = 10.0

_TRIES = 3  # a part that loses its worker goes to two others

_POLL_S = 0.25

_RESTART_S = 60.0  # without any worker

_LOOK_S = 2.0  # between two looks at which workers there are

_CHUNK_BYTES = 32 << 20  # of files on their way: the client and the scheduler hold one at a time

_LOG_LINES = 40

# of the project's folder these are not the project
_NOT_SENT = frozenset({"__pycache__", "node_modules"})

# dependencies whose states are those of the project or of both machines; owners of copies differ
_COMPARED = (
    "file",
    "names",
    "kind",
    "real",
    "shape",
    "env",
    "variables",
    "arguments",
    "host",
    "library",
    "distribution",
    "plugins",
)

# with what follows it: PEM (RFC 7468, also with "\\n" in JSON or a variable), and PuTTY's files
_PRIVATE_KEY = re.compile(
    rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?:\s|\\[nr])+(?:[A-Za-z0-9+/]{16}|Proc-Type:)|PuTTY-User-Key-File-\d:"
)

_MOST_KEY_BYTES = 1 << 20

_TIMED_SLOT = "edgeq-latency"  # a worker's resource: it takes parts with limits on times, one after the other


# --- On a worker: called by Dask, in a thread of the worker's process.


def probe_worker() -> dict[str, Any]:
    """Return what a worker is, for the coordinator to compare and to place parts by."""
    return {
        "version": edgeq_version(),
        "machine": machine_facts(),
        "cpu": processor_kind(),
        "devices": device_facts(),
        "memory": available_bytes(),
    }


def missing_files(hashes: Sequence[str], dask_worker: Any) -> list[str]:
    """Return which contents this worker, which Dask passes by that name, does not have."""
    folder = _worker_folder(dask_worker) / "files"
    return [sha256 for sha256 in hashes if not (folder / sha256).is_file()]


def take_chunk(sha256: str, offset: int, data: bytes, *, is_last: bool, dask_worker: Any) -> None:
    """Write a piece of a file; the last one puts it into place if its content is right.

    Raises:
        ValueError: the content is not what it was to be.
        OSError: the disk is full.
    """
    folder = _worker_folder(dask_worker) / "files"
    folder.mkdir(mode=0o700, exist_ok=True)
    part = folder / f"{sha256}.part"
    flags = os.O_WRONLY | (0 if offset else os.O_CREAT | os.O_TRUNC)
    try:
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            file.seek(offset)
            file.write(data)
        if is_last and sha256_file(part) != sha256:
            raise ValueError(f"{sha256[:12]} arrived with another content")
    except (OSError, ValueError):
        part.unlink(missing_ok=True)  # it may have filled the disk
        raise
    if is_last:
        part.replace(folder / sha256)


class Entry(NamedTuple):
    """A name in the project's folder, as a worker makes it.

    Attributes:
        kind: a file with its content, a folder, a link, or a file that is sent as its name only.
        content: the hash of a file, or where a link leads to.
    """

    kind: Literal["file", "folder", "link", "name"]
    content: str = ""
    mode: int = 0
    changed_ns: int = 0


def lay_out(project: str, root: str, entries: Mapping[str, Entry], dask_worker: Any) -> None:
    """Make the project's folder from the contents that were sent.

    Args:
        project: a name for this state of it.
        root: the name of its folder, which code may ask for.
        entries: what it has, by names relative to it.
        dask_worker: this worker.
    """
    folder = _worker_folder(dask_worker)
    if (folder / project).is_dir():
        return
    staging = Path(tempfile.mkdtemp(dir=folder))
    try:
        _make_project(folder / "files", staging / root, entries)
        staging.rename(folder / project)
    except OSError:
        if not (folder / project).is_dir():  # another client was not faster
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _make_project(files: Path, place: Path, entries: Mapping[str, Entry]) -> None:
    place.mkdir()
    made = {place: 0o755}
    for name, entry in sorted(entries.items()):  # a folder comes before what is in it
        target = place / name
        if entry.kind == "folder":
            target.mkdir()
            made[target] = entry.mode
        elif entry.kind == "link":
            target.symlink_to(entry.content)
        elif entry.kind == "file":
            shutil.copyfile(files / entry.content, target)
            target.chmod(entry.mode)
            os.utime(target, ns=(entry.changed_ns, entry.changed_ns))
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0))
    for target, mode in made.items():
        target.chmod(mode | 0o700)


def run_part(part: Part, topic: str) -> dict[str, Any]:
    """Make a part in the process beside this worker, and return how it ended with the bundles' files."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    folder = _worker_folder(worker)
    with _unit_servers.borrowed(folder) as server:
        work = Path(tempfile.mkdtemp(prefix="edgeq-part-", dir=folder))
        try:
            outcome: Made | ModelError | None = None
            try:
                server.pipe.send(dataclasses.replace(part, project=folder / part.project, work=work))
                while outcome is None:
                    if not server.pipe.poll(_POLL_S):
                        state = worker.state.tasks.get(key)
                        # the client has gone, or does not want it
                        if state is None or state.state != "executing":
                            server.close()
                            return {"outcome": None}
                        continue
                    message = server.pipe.recv()
                    if message[0] == "done":
                        outcome = message[1]
                    else:
                        worker.log_event(topic, (key, message))
            except (EOFError, ConnectionResetError, BrokenPipeError):
                last = server.log()[-1:]
                what = f"the process beside the worker ended while it built {part.name}"
                what += f"; the last line of its log: {last[0][:200]}" if last else ""
                outcome = ModelError(what=what, fix="see the worker's log", exit_code=ExitCode.ENVIRONMENT)
            return {"outcome": outcome, "bundles": _bundles(outcome), "log": server.log()}
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _bundles(made: Made | ModelError | None) -> dict[str, dict[str, bytes]]:
    if not isinstance(made, Made) or not isinstance(made.outcome, Plan):
        return {}
    finished: Finished = made.outcome.finished
    return {
        key: {path.name: path.read_bytes() for path in sorted(row.path.iterdir())} for key, (row, _) in finished.items()
    }


def _worker_folder(worker: Any) -> Path:
    folder = Path(worker.local_directory) / "edgeq"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class _UnitServer:
    """The process that makes this worker's units, over a socket; it ends when the worker does."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        calm_openmp()
        self._log = folder / f"units-{uuid.uuid4().hex[:8]}.log"
        with theirs, os.fdopen(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeq.pipeline.unit_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd=folder,
            )
        self.pipe = Connection(ours.detach())

    @property
    def is_running(self) -> bool:
        return not self.pipe.closed and self._process.poll() is None

    def log(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]

    def close(self) -> None:
        """End it with its unit."""
        self.pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._process.kill()


class _UnitServers:
    """The idle servers of this worker: as many as it runs parts at once."""

    def __init__(self) -> None:
        self._idle: list[_UnitServer] = []
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, folder: Path) -> Iterator[_UnitServer]:
        with self._guard:
            server = self._idle.pop() if self._idle else None
        if server is None or not server.is_running:
            server = _UnitServer(folder)
        try:
            yield server
        finally:
            if server.is_running:
                with self._guard:
                    self._idle.append(server)


_unit_servers = _UnitServers()


# --- On the coordinator.


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield a client of the scheduler at an address.

    Raises:
        EnvironmentProblem: Dask is not installed, or there is no scheduler within ten seconds.
    """
    check_extras(("cluster",))
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it logs is told by edgeq's own messages
    with unlogged():
        from distributed import Client

        try:
            client = Client(address, timeout=_CONNECT_S, set_as_default=False, name="edgeq")
        except (OSError, ValueError) as err:
            what = f"--cluster {address}: no scheduler answered within {_CONNECT_S:.0f} s: {first_line(err, 160)}"
            raise EnvironmentProblem(what, "start one with `dask scheduler`, or check the address") from err
    try:
        yield client
    finally:
        with unlogged(), contextlib.suppress(Exception):
            client.close(timeout=5)


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker that can be given parts.

    Attributes:
        slots: how many parts it takes at once: its resource `edgeq`, else one, and no more than it has memory for.
        threads: of a part, for torch.
        memory_bytes: of a part.
        is_for_times: whether it takes parts with limits on times where it can, and no others where it need not.
    """

    address: str
    facts: Mapping[str, Any]
    slots: int
    threads: int
    memory_bytes: int = 0
    is_for_times: bool = False
    parts: int = 0
    is_ready: bool = False


@dataclass(slots=True, eq=False)
class _Item:
    """A part to build, with how often it was tried and where.

    Attributes:
        needs: of a worker's devices, each with a target that needs it.
        is_timed: whether a limit is on its times.
    """

    order: Order
    plan: Plan
    needs: Mapping[str, str] = field(default_factory=dict)
    is_timed: bool = False
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    why: str = ""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    worker: _Worker | None = None
    tasks: dict[int, tuple[contextlib.ExitStack, Task]] = field(default_factory=dict)


class Fleet:
    """The workers of a cluster that build alike, and the project's files on them."""

    def __init__(self, client: Any, out: Path) -> None:
        """Look at the workers.

        Raises:
            EnvironmentProblem: there is none, or none with this machine's edgeq and tools.
        """
        self._client = client
        self._root = Path.cwd()
        self._entries, self._not_sent = _project_entries(self._root, out)
        self._project = sha256_bytes(canonical_json([self._root.name, self._entries]))[:16]
        self._topic = f"edgeq-{uuid.uuid4().hex}"
        self._workers: dict[str, _Worker] = {}
        self._looked: set[str] = set()
        self._looked_s = 0.0
        self._had_workers_s = time.monotonic()
        self._left_out: list[str] = []
        self._machine: Mapping[str, Any] = {}
        self._devices: Mapping[str, str] = dict.fromkeys(device_facts(), "")
        self._look()
        if not self._workers:
            why = "; ".join(self._left_out[:5]) or "it has no workers"
            what = f"no worker of the cluster at {self._address} can build: {why}"
            raise EnvironmentProblem(what, "start workers with the versions of this machine")

    @property
    def machine(self) -> Mapping[str, Any]:
        """What results depend on, as `cache.job_facts` takes it."""
        return {**self._machine, "devices": self._devices}

    @property
    def warnings(self) -> list[str]:
        """Which workers are left out, and which files are not sent though they may be sources."""
        keys = [name for name, why in self._not_sent.items() if why == _HAS_KEY]
        return [
            *(f"a worker of the cluster was left out: {why}" for why in self._left_out),
            *(f"{name} holds a private key, and was not sent to the workers" for name in keys),
        ]

    @property
    def _address(self) -> str:
        return str(self._client.scheduler.address) if self._client.scheduler is not None else "the scheduler"

    def _look(self) -> None:
        """Add new workers, and remove those that have left."""
        self._looked_s = time.monotonic()
        found = self._client.scheduler_info(n_workers=-1)["workers"]
        for address in set(self._workers) - set(found):
            del self._workers[address]
        self._looked &= set(found)
        new = sorted(set(found) - self._looked)
        if not new:
            return
        self._looked |= set(new)
        answers = self._client.run(probe_worker, workers=new, on_error="return")
        for address in new:
            facts = answers.get(address)
            if not isinstance(facts, dict):
                answer = first_line(facts) if facts else "no answer"
                self._leave_out(f"{address} does not answer as an edgeq worker ({answer})")
                continue
            why = self._why_not(address, facts)
            if why:
                self._leave_out(why)
                continue
            self._machine = self._machine or facts["machine"]
            resources = found[address].get("resources") or {}
            is_for_times = resources.get(_TIMED_SLOT, 0) >= 1
            memory = found[address].get("memory_limit") or facts["memory"]
            wanted = 1 if is_for_times else int(resources.get("edgeq", 1))
            slots = max(1, min(wanted, memory // MEMORY_BYTES))
            self._workers[address] = _Worker(
                address=address,
                facts=facts,
                slots=slots,
                threads=max(1, found[address]["nthreads"] // slots),
                memory_bytes=memory // slots,
                is_for_times=is_for_times,
            )
        here = device_facts()
        for name, known in self._devices.items():
            there = [worker.facts["devices"][name] for worker in self._workers.values()]
            if not known:  # of several kinds one counts, this machine's if it is among them
                mine = here[name] if here[name] in there else ""
                self._devices = {**self._devices, name: mine or next(filter(None, there), "")}

    def _leave_out(self, why: str) -> None:
        if why not in self._left_out:
            self._left_out.append(why)

    def _why_not(self, address: str, facts: Mapping[str, Any]) -> str:
        """Return why a worker cannot build as this machine, or as the first worker, would; "" if it can."""
        here, there = machine_facts(), facts["machine"]
        for name in sorted({*here["tools"], *there["tools"]}):
            ours, theirs = here["tools"].get(name, "none"), there["tools"].get(name, "none")
            if ours != theirs:
                return f"{address} has {name} {theirs}, and this machine has {name} {ours}"
        if here["edgeq"] != there["edgeq"]:
            ours, theirs = (
                f"{version} ({digest[:12]})"
                for version, digest in ((edgeq_version(), here["edgeq"]), (facts["version"], there["edgeq"]))
            )
            return f"{address} has edgeq {theirs}, and this machine has edgeq {ours}"
        if self._machine and there != self._machine:
            first = self._machine
            for name in sorted({*first["libraries"], *there["libraries"]}):
                if first["libraries"].get(name) != there["libraries"].get(name):
                    return f"{address} has another build of {name} than the first worker"
            kinds = " and ".join(sorted({facts["cpu"], *(one.facts["cpu"] for one in self._workers.values())}))
            return f"{address} would choose other kernels than the first worker ({kinds}), and builds nothing"
        return ""

    def run_all(self, orders: Sequence[Order], progress: Progress) -> list[Outcome]:
        """Make all models, and return how each ended, in their order. One that fails does not stop the others.

        Raises:
            KeyboardInterrupt: and no part runs any more.
        """
        items = [
            _Item(order=order, plan=plan, needs=_needs(plan), is_timed=_limits_times(plan.job))
            for order in orders
            for plan in _parts(order.plan, split=len(orders) < 2 * len(self._workers))
        ]
        run = _ClusterRun(self, items, progress)
        self._client.subscribe_topic(self._topic, run.heard)
        try:
            run.to_the_end()
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(run.running), force=True)
                self._client.unsubscribe_topic(self._topic)
        return [
            _joined(order, [item for item in items if item.order is order], run.ended, self.warnings)
            for order in orders
        ]

    def place_for(self, item: _Item) -> _Worker | None:
        """Return the idlest worker that can build a part; None where all are busy.

        Raises:
            EnvironmentProblem: no worker has what the part needs.
        """
        job = item.plan.job
        able = [worker for worker in self._workers.values() if self._has(worker, item)]
        if self._workers:
            self._had_workers_s = time.monotonic()
        elif time.monotonic() - self._had_workers_s < _RESTART_S:
            return None  # what watches a worker starts it again
        if not able:
            needs = [f"{target} needs {_DEVICES[name]}" for name, target in item.needs.items()]
            why = f"{' and '.join(needs)}, and none has it" if self._workers else "all have gone"
            what = f"no worker of the cluster can build {item.order.name}: {why}"
            raise EnvironmentProblem(what, "start such a worker, or build on this machine")
        named = [worker for worker in able if counts_on(job.gates.times_on, worker.facts["cpu"])]
        if item.is_timed and named:
            able = named
        able = [worker for worker in able if worker.is_for_times == item.is_timed] or able
        able = [worker for worker in able if worker.address not in item.lost] or able
        free = [worker for worker in able if worker.parts < worker.slots]
        if item.tries:  # it may have needed more memory
            return max(free, key=lambda worker: worker.memory_bytes, default=None)
        return min(free, key=lambda worker: worker.parts / worker.slots, default=None)

    def _has(self, worker: _Worker, item: _Item) -> bool:
        """Whether a worker has the devices that a part needs; of several kinds of GPU or QEMU, one counts.

        Where no worker ever had a GPU, the processor emulates it, as on one machine.
        """
        there = worker.facts["devices"]
        return all(there[name] == self._devices[name] and (there[name] or name == "gpu") for name in item.needs)

    @property
    def is_busy(self) -> bool:
        """Whether no worker takes another part."""
        return bool(self._workers) and all(worker.parts >= worker.slots for worker in self._workers.values())

    def send_to(self, worker: _Worker) -> None:
        """Send a worker the files of the project that it does not have.

        Raises:
            OSError, ValueError: its disk is full, or a file was changed meanwhile.
        """
        client, places = self._client, [worker.address]
        hashes = {entry.content: name for name, entry in self._entries.items() if entry.kind == "file"}
        missing = client.run(missing_files, sorted(hashes), workers=places)[worker.address]
        for sha256 in missing:
            path = self._root / hashes[sha256]
            size, offset = path.stat().st_size, 0
            with path.open("rb") as file:
                while True:
                    data = file.read(_CHUNK_BYTES)
                    is_last = offset + len(data) >= size
                    client.run(take_chunk, sha256, offset, data, is_last=is_last, workers=places)
                    offset += len(data)
                    if is_last:
                        break
        client.run(lay_out, self._project, self._root.name or _ROOT, self._entries, workers=places)
        worker.is_ready = True

    def submit(self, item: _Item, worker: _Worker) -> Any:
        """Give a part to a worker, and return Dask's future."""
        part = Part(
            name=item.order.name,
            plan=dataclasses.replace(item.plan, facts={**item.plan.facts, "devices": worker.facts["devices"]}),
            project=Path(self._project, self._root.name or _ROOT),
            module_folders=_project_folders(self._root),
            work=Path(),
            threads=worker.threads,
        )
        return self._client.submit(
            run_part,
            part,
            self._topic,
            workers=[worker.address],
            allow_other_workers=False,
            pure=False,
            retries=0,
            key=f"edgeq-{item.order.name}-{uuid.uuid4().hex[:12]}",
        )

    def named(self, name: str) -> str:
        """Return in words what a user's code looked at."""
        kind, _, rest = name.partition(":")
        if kind in _WORDS:
            return _WORDS[kind].format(rest)
        parents = (rest, *(str(parent) for parent in Path(rest).parents))
        why = next((self._not_sent[place] for place in parents if place in self._not_sent), "")
        return f"{rest} (not sent: {why})" if why else "the project's folder" if rest == "." else rest

    def refresh(self) -> None:
        """Look at the workers again, if the last look was some time ago."""
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._look()

    def is_here(self, worker: _Worker) -> bool:
        """Whether a worker has not gone."""
        return self._workers.get(worker.address) is worker

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler answers."""
        return bool(self._client.status == "running")

    def why_lost(self, address: str) -> list[str]:
        """Return the last lines of the log of a worker that has gone, from the process that watches it."""
        with contextlib.suppress(Exception):
            logs = self._client.get_worker_logs(n=_LOG_LINES, workers=[address], nanny=True)
            return [str(line[-1] if isinstance(line, tuple | list) else line) for line in logs.get(address, ())]
        return []


class _ClusterRun:
    """The parts of one run: waiting, running, ended."""

    def __init__(self, fleet: Fleet, items: Sequence[_Item], progress: Progress) -> None:
        self._fleet = fleet
        self._progress = progress
        self._waiting = deque(items)
        self._heard: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._ended_some = threading.Event()
        self.running: dict[Any, _Item] = {}
        self.ended: dict[int, Any] = {}

    def heard(self, event: Any) -> None:
        """Note progress from a worker; Dask calls this in a thread of its own."""
        self._heard.append(event[1])

    def to_the_end(self) -> None:
        """Give out parts and take results until all have ended."""
        gone_s: float | None = None
        while self._waiting or self.running:
            self._show()
            if not self._fleet.is_connected:
                gone_s = gone_s or time.monotonic()
                if time.monotonic() - gone_s > _CONNECT_S:
                    return self._scheduler_is_gone()
                time.sleep(_POLL_S)
                continue
            gone_s = None
            try:
                self._fleet.refresh()
                self._give_out()
                self._ended_some.wait(_POLL_S)
                self._ended_some.clear()
                for future, item in list(self.running.items()):
                    if future.done():
                        self._take(future, item)
                    elif item.worker is not None and not self._fleet.is_here(item.worker):
                        future.cancel(force=True)
                        self._lose(future, item, "it ended while it built")
            except OSError:  # the scheduler may have gone in the middle; the next round knows
                time.sleep(_POLL_S)
        return None

    def _give_out(self) -> None:
        full = set()  # what parts need that found no worker free
        for item in list(self._waiting):
            if self._fleet.is_busy:
                return
            needs = (*item.needs, item.is_timed, item.plan.job.gates.times_on, *item.lost)
            if needs in full:
                continue
            try:
                worker = self._fleet.place_for(item)
            except EnvironmentProblem as err:
                self._waiting.remove(item)
                self.ended[id(item)] = ModelError.of(err)
                continue
            if worker is None:
                full.add(needs)
                continue
            if not worker.is_ready:
                try:
                    with self._progress.task(f"send the project to {worker.address}"):
                        self._fleet.send_to(worker)
                except (OSError, ValueError) as err:
                    if not self._fleet.is_connected:
                        raise
                    item.lost.append(worker.address)
                    item.why = f"the project's files could not be sent to it: {first_line(err)}"
                    self._try_again(item)
                    continue
            self._waiting.remove(item)
            item.worker, worker.parts = worker, worker.parts + 1
            future = self._fleet.submit(item, worker)
            self.running[future] = item
            future.add_done_callback(lambda _: self._ended_some.set())

    def _take(self, future: Any, item: _Item) -> None:
        """Take a part's result."""
        if future.status != "finished":  # its worker died, or could not run it at all
            why = "it ended while it built"
            if future.status == "error":
                why = f"it could not build: {first_line(future.exception())}"
            self._lose(future, item, why)
            return
        result = future.result()
        self._forget(future, item)
        made = result["outcome"]
        if isinstance(made, ModelError):  # the process ended
            made = Made(outcome=made)
        if made is None:
            self._try_again(item)
        elif made.differing:
            self.ended[id(item)] = _differing(item, made.differing)
        elif isinstance(made.outcome, ModelError):
            self._take_error(item, made, result.get("log", ()))
        else:
            try:
                self.ended[id(item)] = self._received(item, made, result["bundles"])
            except (EdgeqError, OSError) as err:
                code = err.exit_code if isinstance(err, EdgeqError) else ExitCode.ENVIRONMENT
                what = err.what if isinstance(err, EdgeqError) else first_line(err)
                self.ended[id(item)] = ModelError(what=what, fix="run the same command again", exit_code=code)

    def _take_error(self, item: _Item, made: Made, log: Sequence[str]) -> None:
        error: ModelError = made.outcome  # type: ignore[assignment]  # the caller has looked
        item.log.extend(log)
        is_of_machine = error.exit_code == ExitCode.ENVIRONMENT
        # a full disk, or too little memory: another worker may have more
        if is_of_machine and item.tries + 1 < _TRIES and item.worker is not None:
            item.lost.append(item.worker.address)
            item.why = error.what
            self._try_again(item)
            return
        different = [] if is_of_machine else _different(made.looked_at)
        if different:
            self.ended[id(item)] = self._changed_meanwhile(item, different, error)
        else:
            where = "" if item.worker is None else f" (on {item.worker.address})"
            self.ended[id(item)] = dataclasses.replace(error, what=f"{error.what}{where}")

    def _changed_meanwhile(self, item: _Item, different: Sequence[str], error: ModelError | None) -> ModelError:
        names = ", ".join(self._fleet.named(name) for name in different[:5])
        failed = f"; there it failed: {error.what}" if error is not None else ""
        what = f"{item.order.name} read what differs between this machine and its worker: {names}{failed}"
        fix = (
            "do not change files while the fleet builds; keep what a model reads in folders of its own; set variables, "
            "and mount files from outside of the project, on the workers; or build this model on one machine"
        )
        return ModelError(what=what, fix=fix, exit_code=ExitCode.USAGE, trace=error.trace if error else "")

    def _received(self, item: _Item, made: Made, bundles: Mapping[str, Mapping[str, bytes]]) -> Plan | ModelError:
        """Write a part's bundles into the work folder, check them, and keep them in the caches."""
        different = _different(made.looked_at)
        if different:
            return self._changed_meanwhile(item, different, None)
        plan: Plan = made.outcome  # type: ignore[assignment]  # the caller has looked
        finished: Finished = {}
        for key, (row, data) in plan.finished.items():
            folder = Path(tempfile.mkdtemp(prefix="received-", dir=item.order.work))
            for name, content in bundles[key].items():
                (folder / Path(name).name).write_bytes(content)
            if read_bundle(folder).digest != row.digest:
                what = f"a bundle of {item.order.name} arrived with another digest than it was built with"
                return ModelError(what=what, fix="run the same command again", exit_code=ExitCode.INTEGRITY)
            row = dataclasses.replace(row, path=folder)
            entry = made.kept.get(key)
            if entry is None:
                finished[key] = (row, data)
                continue
            root = str(Path.cwd())
            absolute = at(entry.dependencies, root)
            dependencies = bound(absolute, root) if entry.is_bound else portable(absolute, root)
            finished |= stored({key: (row, data)}, dependencies, item.order.plan.job.build)
        whole: Plan = dataclasses.replace(plan, finished=finished, facts=item.plan.facts)
        return whole

    def _lose(self, future: Any, item: _Item, why: str) -> None:
        """Note that a part went with its worker, and give it to another one, or up."""
        worker = item.worker
        self._forget(future, item)
        if worker is not None:
            item.lost.append(worker.address)
            item.why = why
        self._try_again(item)

    def _try_again(self, item: _Item) -> None:
        item.tries += 1
        if item in self._waiting:
            self._waiting.remove(item)
        if item.tries < _TRIES:
            self._waiting.append(item)
            return
        lines = [*item.log, *(line for address in dict.fromkeys(item.lost) for line in self._fleet.why_lost(address))]
        what = f"{item.order.name} failed on {counted(item.tries, 'worker')} ({', '.join(item.lost)}): {item.why}"
        if lines:
            what += f"; the last line of the log: {lines[-1][:200]}"
        fix = "see the log with --verbose, and give the workers more memory or disk"
        self.ended[id(item)] = ModelError(
            what=what, fix=fix, exit_code=ExitCode.ENVIRONMENT, trace="\n".join(lines[-_LOG_LINES:])
        )

    def _forget(self, future: Any, item: _Item) -> None:
        del self.running[future]
        future.release()
        if item.worker is not None:
            item.worker.parts -= 1
        for stack, _ in item.tasks.values():
            stack.close()
        item.tasks.clear()

    def _scheduler_is_gone(self) -> None:
        """End what has not ended: what is finished is kept, and the next run takes it from the cache."""
        what = "the cluster's scheduler ended before this model was built"
        error = ModelError(
            what=what, fix="start it, and run the same command again: it resumes", exit_code=ExitCode.ENVIRONMENT
        )
        for item in (*self.running.values(), *self._waiting):
            self.ended[id(item)] = error
            for stack, _ in item.tasks.values():
                stack.close()
        self.running.clear()
        self._waiting.clear()

    def _show(self) -> None:
        """Show the progress that workers reported."""
        by_key = {future.key: item for future, item in self.running.items()}
        while self._heard:
            key, (kind, *values) = self._heard.popleft()
            item = by_key.get(key)
            if item is None:
                continue
            if kind == "open":
                number, description, total, unit = values
                stack = contextlib.ExitStack()
                task = stack.enter_context(self._progress.task(f"{item.order.name}: {description}", total, unit))
                item.tasks[number] = (stack, task)
                item.log.append(description)
            elif kind == "close" and values[0] in item.tasks:
                item.tasks.pop(values[0])[0].close()
            elif values[0] in item.tasks:
                task = item.tasks[values[0]][1]
                task.advance(values[1]) if kind == "advance" else task.note(values[1])


def _parts(plan: Plan, *, split: bool) -> list[Plan]:
    """Return a model's plan in parts: one for each artifact, or one."""
    missing = plan.missing
    groups: list[Sequence[BuildUnit]] = list(group_by_artifact(missing).values()) if split else [missing]
    # shared caches, and the keys for them, are the coordinator's, which has asked them
    build = BuildConfig(cache_trust=(keys.NO_KEY,) if plan.job.build.cache_trust else ())
    job = dataclasses.replace(_relative_paths(plan.job), build=build)
    return [dataclasses.replace(plan, job=job, units=tuple(group), finished={}, refused={}) for group in groups]


def _joined(order: Order, items: Sequence[_Item], ended: Mapping[int, Any], warnings: Sequence[str]) -> Outcome:
    """Return a model's outcome from its parts: an error of one is the model's, as on one machine."""
    outcomes = [ended[id(item)] for item in items]
    errors = [one for one in outcomes if isinstance(one, ModelError)]
    if errors:
        return min(errors, key=lambda error: error.exit_code)
    finished, refused = dict(order.plan.finished), dict(order.plan.refused)
    chosen: dict[str, BuildUnit] = {}  # of units of the default scheme
    for item, plan in zip(items, outcomes, strict=True):
        chosen |= {unit.key: made for unit, made in zip(item.plan.units, plan.units, strict=True)}
        for key, (row, data) in plan.finished.items():
            for text in warnings:
                row = with_warning(row, text)
            finished[key] = (row, data)
        refused |= plan.refused
    units = tuple(chosen.get(unit.key, unit) for unit in order.plan.units)
    whole = dataclasses.replace(order.plan, units=units, finished=finished, refused=refused)
    return whole if finished else whole.refusal


def _limits_times(job: Job) -> bool:
    return any(name in ("latency", "load", "peak_memory") for name, _ in job.gates.limits)


_DEVICES = {"gpu": "a GPU", "emulator": "QEMU"}


def _needs(plan: Plan) -> dict[str, str]:
    """Return which devices of a worker a part needs, each with the name of a target that does."""
    found = {}
    for unit in plan.units:
        if unit.target.runtime == "cuda":
            found["gpu"] = unit.target.name
        if wants_emulation(unit.target, plan.job.device) and unit.target.backend != NPU:
            found["emulator"] = unit.target.name
    return found


_WORDS = {
    "env": "the variable {}",
    "variables": "the {} of the environment variables",
    "arguments": "{} words of the command line",
    "host": "the {} of the machine",
    "library": "the library {}",
    "distribution": "the library {}",
    "plugins": "the libraries with plugins for {}",
}


def _different(looked_at: Mapping[str, str]) -> list[str]:
    """Return what the user's code looked at on a worker and is not the same here."""
    found = []
    for name, state in looked_at.items():
        kind, _, rest = name.partition(":")
        is_compared = kind in _COMPARED or (kind == "modules" and not Path(rest).is_absolute())
        if is_compared and current_state(name) != state:
            found.append(name)
    return found


def _differing(item: _Item, facts: Mapping[str, tuple[Any, Any]]) -> ModelError:
    parts = []
    for name, (there, here) in facts.items():
        if isinstance(there, dict) and isinstance(here, dict):
            keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
            parts.append(f"{name}: {', '.join(keys[:5])}")
        else:
            parts.append(name)
    what = f"{item.order.name} differs between this machine and its worker: {'; '.join(parts)}"
    fix = "do not change files while the fleet builds; put what a model needs into the project's folder"
    return ModelError(what=what, fix=fix, exit_code=ExitCode.USAGE)


def _relative_paths(value: Any) -> Any:
    """Return options with the paths in the project relative to its folder."""
    if isinstance(value, str):
        return relative(value)
    if isinstance(value, Path):
        return Path(relative(str(value)))
    if isinstance(value, tuple):
        return tuple(_relative_paths(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: _relative_paths(getattr(value, one.name)) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


_ROOT = "project"  # for the folder / itself

_HAS_KEY = "it holds a private key"


def _project_entries(root: Path, out: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return what a worker makes of the project's folder, by names, and why some are sent as names only.

    A link within the project stays a link; what others lead to is sent in their place.
    """
    entries: dict[str, Entry] = {}
    not_sent: dict[str, str] = {}
    real_root, real_out = os.path.realpath(root), os.path.realpath(out)

    def add(folder: Path, prefix: str, above: tuple[str, ...]) -> None:
        for path in sorted(folder.iterdir()):
            name, real = f"{prefix}{path.name}", os.path.realpath(path)
            is_inside = f"{real}/".startswith(f"{real_root}/")
            is_link = path.is_symlink() and (is_inside or not path.exists())
            why = _why_not_sent(path, real == real_out)
            if not is_link and real in above:
                why = why or "its link leads back to a folder around it"
            entries[name], why = _entry(path, is_link=is_link, why=why)
            if why:
                not_sent[name] = why
            elif entries[name].kind == "folder":
                add(path, f"{name}/", (*above, real))

    add(root, "", (real_root,))
    return entries, not_sent


def _entry(path: Path, *, is_link: bool, why: str) -> tuple[Entry, str]:
    """Return what a worker makes of a path, and why it is only the name; "" where it is the whole.

    Args:
        path: in the project.
        is_link: whether it stays a link.
        why: as it is returned; a reason that is known.
    """
    if path.is_dir() and (why or not is_link):
        return Entry("folder", mode=path.stat().st_mode & 0o777), why
    if why:
        return Entry("name"), why
    if is_link:
        leads = path.readlink()
        if leads.is_absolute() and path.exists():
            leads = Path(os.path.relpath(path.resolve(), path.parent.resolve()))
        return Entry("link", str(leads)), ""
    try:
        facts, content = path.stat(), _content(path)
    except OSError as err:
        return Entry("name"), err.strerror or "it cannot be read"
    if not content:
        return Entry("name"), _HAS_KEY
    return Entry("file", content, facts.st_mode & 0o777, facts.st_mtime_ns), ""


def _content(path: Path) -> str:
    """Return the hash of a file; "" for one that holds a private key."""
    if path.stat().st_size > _MOST_KEY_BYTES:
        return sha256_file(path)
    data = path.read_bytes()
    return "" if _PRIVATE_KEY.search(data) else sha256_bytes(data)


def _why_not_sent(path: Path, is_out: bool) -> str:
    if path.name.startswith("."):
        return "hidden"
    if is_out:
        return "the output folder"
    if path.name in _NOT_SENT:
        return "not source"
    if not path.is_dir():
        return "" if path.is_file() or path.is_symlink() else "not a file"
    if (path / "pyvenv.cfg").exists():
        return "a virtual environment"
    return "a folder of `edgeq keys`" if (path / keys.FILE_NAME).exists() else ""


def _project_folders(root: Path) -> tuple[str, ...]:
    """Return where modules are looked for in the project, in order."""
    folders = [Path(folder or ".").absolute() for folder in sys.path]
    inside = [folder.relative_to(root).as_posix() for folder in folders if folder.is_relative_to(root)]
    return tuple(folder for folder in dict.fromkeys(inside) if not Path(root, folder, "pyvenv.cfg").exists())
