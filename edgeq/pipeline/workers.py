"""Worker processes for the models of a project: as many at once as memory and cores allow.

They are forked from one process that has imported torch, which is half of what a small model takes, and has run no
kernel: libgomp hangs in a child that was forked after it had started threads. A worker that wants to measure times
asks for it: the others are stopped meanwhile, so that no model is judged by how busy another one kept the machine.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from edgeq.core.config import SAMPLES, Progress, Task
from edgeq.core.errors import EdgeqError, ExitCode, first_line
from edgeq.core.files import disk_errors
from edgeq.core.marks import file_part
from edgeq.core.results.report import ModelError
from edgeq.core.system import available_bytes, replaced
from edgeq.core.targets import TargetProfile
from edgeq.pipeline.package import complete
from edgeq.pipeline.plan import Plan
from edgeq.verify.children import torch_is_unused
from edgeq.verify.worker import end_with_parent

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of an enumeration that only concerns torchao


def _end_at_once(server_pid: int) -> None:
    if os.getpid() == server_pid:  # its forks come here too, and have exit codes of their own
        os._exit(0)


if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    # the process that workers are forked from has nothing to save; taking torch apart would take 0.7 s
    atexit.register(_end_at_once, os.getpid())

_MOST_SOCKET_BYTES = 108  # unix(7), the end's zero included

_SOCKET_BYTES = len("/pymp-xxxxxxxx/listener-xxxxxxxx")

TORCHVISION = "torchvision"

# what captures a model and prepares it for int8, for targets of any runtime but TorchScript: 3 s of imports
EXPORT = (
    "edgeq.core.exir",
    "torchao.quantization.pt2e.quantize_pt2e",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "executorch.backends.xnnpack.quantizer.xnnpack_quantizer",
)

MEMORY_BYTES = 2 * 10**9  # of a worker with its child: mobilenet_v2 takes 1.1 GB, resnet50 1.7 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A model to be made, in a work folder of its own."""

    name: str
    plan: Plan
    work: Path


Outcome = Plan | ModelError


@dataclass(slots=True)
class _Worker:
    order: Order
    process: BaseProcess
    pipe: Connection
    open_tasks: dict[int, tuple[contextlib.ExitStack, Task]] = field(default_factory=dict)
    outcome: Outcome | None = None


def run_all(orders: Sequence[Order], progress: Progress) -> list[Outcome]:
    """Make all models, and return how each ended, in their order. One that fails does not stop the others.

    Raises:
        KeyboardInterrupt: and no worker is left.
    """
    floor = _Floor(orders, progress)
    try:
        # the process that workers are forked from imports torch first, which takes seconds
        with progress.task("import torch"):
            floor.start_some()
            floor.listen()
        while not floor.is_done:
            floor.start_some()
            floor.listen()
    finally:
        floor.end()
    return floor.outcomes()


def most_workers() -> int:
    """Return how many workers this machine has cores and memory for; one at least."""
    return max(1, min(len(os.sched_getaffinity(0)), available_bytes() // MEMORY_BYTES))


def imports_of(sources: Sequence[str], targets: Iterable[TargetProfile], folder: Path) -> tuple[str, ...]:
    """Return torch, and the modules that models import, by their targets and by what their sources name.

    Args:
        sources: of the models.
        targets: of any of them.
        folder: that relative sources start from.
    """
    files = [folder / name for source in sources if (name := file_part(source)) is not None and name.endswith(".py")]
    named = [*sources, *(path.read_text(errors="replace") for path in files if path.is_file())]
    is_exported = any(target.runtime != "torchscript" for target in targets)
    is_named = any(TORCHVISION in text for text in named)
    return ("torch", *((TORCHVISION,) if is_named else ()), *(EXPORT if is_exported else ()))


_imported: dict[str, None] = {}  # in the process that this one's workers are forked from, in this order


def fork_server(imports: Sequence[str]) -> ForkServerContext:
    """Return what forks processes from one that has imported what is installed of `imports`.

    A process that has not imported all of it ends, and another one imports it too.
    """
    # put its sockets where their paths fit into the 108 bytes of unix(7), however long TMPDIR is
    if len(os.fsencode(tempfile.gettempdir())) + _SOCKET_BYTES >= _MOST_SOCKET_BYTES:
        with replaced(tempfile, "tempdir", "/tmp"):  # noqa: S108  # a folder of our own is made in it
            multiprocessing.util.get_temp_dir()  # which remembers it, and removes it at the end
    context = multiprocessing.get_context("forkserver")
    if not _imported.keys() >= set(imports):
        _imported.update(dict.fromkeys(imports))
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public name for it
        context.set_forkserver_preload([__name__, *_imported])
    return context


class _Floor:
    """The workers of one run."""

    def __init__(self, orders: Sequence[Order], progress: Progress) -> None:
        self._orders = orders
        self._progress = progress
        self._waiting = deque(orders)
        self._running: list[_Worker] = []
        self._ended: dict[str, Outcome] = {}
        self._asking: deque[_Worker] = deque()  # the first one has the machine for itself
        self._most = min(most_workers(), len(orders))
        if self._most > 1:
            # threads of several workers share the cores: libgomp's own count for that case, which it cannot see
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        self._context = fork_server(
            imports_of(
                [order.plan.job.source for order in orders],
                [target for order in orders for target in order.plan.job.all_targets],
                Path(),
            )
        )

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    def outcomes(self) -> list[Outcome]:
        return [self._ended[order.name] for order in self._orders]

    def start_some(self) -> None:
        """Start what fits; one always does. While one measures its times, none starts."""
        while self._waiting and not self._asking and len(self._running) < self._most:
            if self._running and available_bytes() < MEMORY_BYTES:
                return
            order = self._waiting.popleft()
            here, there = self._context.Pipe()
            threads = max(1, len(os.sched_getaffinity(0)) // self._most)
            process = self._context.Process(target=_work, args=(there, order, threads), name=order.name)
            process.start()
            there.close()
            self._running.append(_Worker(order=order, process=process, pipe=here))

    def listen(self) -> None:
        """Wait for a message from a worker or the end of one."""
        by_pipe = {worker.pipe: worker for worker in self._running}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]  # wait returns what it was given
            try:
                self._heard(worker, worker.pipe.recv())
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._running.remove(worker)
                for stack, _ in worker.open_tasks.values():
                    stack.close()
                self._leave(worker)
                self._ended[worker.order.name] = worker.outcome or crashed(
                    worker.order.name, worker.process.exitcode or 0
                )
                worker.pipe.close()

    def _heard(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        kind, *values = message
        if kind == "open":
            number, description, total, unit = values
            stack = contextlib.ExitStack()
            task = stack.enter_context(self._progress.task(f"{worker.order.name}: {description}", total, unit))
            worker.open_tasks[number] = (stack, task)
        elif kind == "advance":
            worker.open_tasks[values[0]][1].advance(values[1])
        elif kind == "note":
            worker.open_tasks[values[0]][1].note(values[1])
        elif kind == "close":
            worker.open_tasks.pop(values[0])[0].close()
        elif kind == "alone":
            self._asking.append(worker)
            if self._asking[0] is worker:
                self._grant()
        elif kind == "not alone":
            self._leave(worker)
        else:
            worker.outcome = values[0]

    def _grant(self) -> None:
        """Let the first that asked go on alone, or all where nobody asks."""
        alone = self._asking[0] if self._asking else None
        for worker in self._running:
            _signal(worker.process, signal.SIGCONT if alone in (None, worker) else signal.SIGSTOP)
        if alone is not None:
            with contextlib.suppress(BrokenPipeError):
                alone.pipe.send("go")

    def _leave(self, worker: _Worker) -> None:
        """Take a worker from those that ask; if it was its turn, it is the next one's."""
        if worker in self._asking:
            was_first = self._asking[0] is worker
            self._asking.remove(worker)
            if was_first:
                self._grant()

    def end(self) -> None:
        """End what still runs, at once: what a model needs is in place or in the work folder, which goes too."""
        for worker in self._running:
            _signal(worker.process, signal.SIGKILL)
            worker.process.join()


def _signal(process: BaseProcess, number: int) -> None:
    if process.pid is not None:
        signal_tree(process.pid, number)


def signal_tree(root: int, number: int) -> None:
    """Signal a process and all below it: a worker's runtimes lead sessions of their own."""
    for pid in _tree(root):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # it may just have ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))


def crashed(name: str, code: int) -> ModelError:
    """Return the error of a worker that ended without a result.

    Args:
        name: the model.
        code: its exit code, negative for a signal.
    """
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    killed = code == -signal.SIGKILL
    what = f"the worker of {name} ended with {how}"
    fix = "the kernel kills processes when memory runs out: close other programs" if killed else "report this"
    return ModelError(what=what, fix=fix, exit_code=ExitCode.ENVIRONMENT if killed else ExitCode.INTERNAL)


def _work(pipe: Connection, order: Order, threads: int) -> None:
    """Make one model, in a forked process."""
    report_outcome(pipe, threads, order.work, lambda progress: complete(order.plan, order.work, progress))


def report_outcome(pipe: Connection, threads: int, work: Path, make: Callable[[Progress], Any]) -> None:
    """Make something in this forked process, and send how it ended; progress is sent meanwhile."""
    end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.dup2(2, 1)  # what the user's code prints is no part of the result
    torch_is_unused()
    import torch

    torch.set_num_threads(threads)
    tqdm = sys.modules.get("tqdm")  # torch.fx has it
    if tqdm is not None:
        # its own lock is a semaphore of the system, which a worker that is ended would leave behind
        tqdm.tqdm.set_lock(threading.RLock())
    pipe.send(("done", outcome_of(work, lambda: make(Remote(pipe)))))


def outcome_of(work: Path, make: Callable[[], Any]) -> Any:
    """Return what `make`, which writes to a work folder, returns, or the model's error that it ends with."""
    try:
        with disk_errors(work):
            return make()
    except EdgeqError as err:
        return ModelError.of(err, traceback.format_exc())
    except (Exception, SystemExit) as err:  # whatever it is, the other models go on
        what = f"internal error: {type(err).__name__}: {first_line(err)}"
        fix = "run again with --debug and report the output"
        return ModelError(what=what, fix=fix, exit_code=ExitCode.INTERNAL, trace=traceback.format_exc())


class Remote:
    """Progress that is sent over a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._count = 0

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> Iterator[Task]:
        """Open a step over there."""
        self._count += 1
        number = self._count
        self._pipe.send(("open", number, description, total, unit))
        try:
            yield _RemoteTask(lambda kind, value: self._pipe.send((kind, number, value)))
        finally:
            self._pipe.send(("close", number))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until the other workers are stopped; they continue when the block ends."""
        self._pipe.send(("alone",))
        self._pipe.recv()
        try:
            yield
        finally:
            self._pipe.send(("not alone",))


@dataclass(frozen=True, slots=True)
class _RemoteTask:
    tell: Callable[[str, Any], None]

    def advance(self, steps: int = 1) -> None:
        """Report `steps` more finished steps."""
        self.tell("advance", steps)

    def note(self, text: str) -> None:
        """Report a remark on the current step."""
        self.tell("note", text)
