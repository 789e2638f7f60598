"""The child process that runs artifacts: `python -m edgeq.verify.worker`. It may crash; edgeq does not.

It reads requests from standard input and answers on what was standard output; native libraries' own prints go to
standard error. Torch is imported before the first request, while edgeq still lowers. With `FORK_SERVER` it forks such
children from itself, so that torch is imported once for all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from edgeq.core.errors import UsageError
from edgeq.core.lazy import NDArray
from edgeq.core.runtimes import ETHOS_U
from edgeq.verify import wire
from edgeq.verify.ethos import EthosU
from edgeq.verify.runtimes import RUNNERS, Runner, gpu_facts

FORK_SERVER = "--fork-server"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve requests until standard input ends."""
    if sys.argv[1:2] == [FORK_SERVER]:
        fork_server(socket.socket(fileno=int(sys.argv[2])))
        return
    end_with_parent(os.getppid())
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, even if the parent is killed without cleanup.

    A child that survived would keep what it inherited: the output folder's lock, and the other children's pipes.

    Args:
        parent: its process, which may be gone by now.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only: elsewhere the end of the pipe has to do
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def fork_server(asked: socket.socket) -> None:
    """Import torch, and fork a child for each packet until the socket ends; then end with all children.

    A packet comes with the descriptors of the child's requests, replies and log, of a pipe that takes its process ID
    and then its exit status (negative for a signal), int32 each, and of a file with its folder and environment.
    """
    with contextlib.suppress(Exception):  # a child imports it again, and says in its log what is wrong
        import torch  # noqa: F401
    # a collection writes to every object that it looks at, and so would copy the pages that the children share
    gc.collect()
    gc.freeze()
    child_ended, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the pipe
    statuses: dict[int, int] = {}  # pipes by process ID
    while True:
        ready = select.select([asked.fileno(), child_ended], [], [])[0]
        if child_ended in ready:
            os.read(child_ended, 1 << 10)
            while statuses:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                pipe = statuses.pop(pid)
                with contextlib.suppress(BrokenPipeError):
                    os.write(pipe, struct.pack("<i", os.waitstatus_to_exitcode(status)))
                os.close(pipe)
        if asked.fileno() not in ready:
            continue
        packet, descriptors, _, _ = socket.recv_fds(asked, 16, 5)
        if not packet:
            return
        requests, replies, log, status_pipe, environment = descriptors
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with os.fdopen(environment, "rb") as file:
                state = json.load(file)
            os.environ.clear()
            os.environ.update(state["variables"])
            sys.path[:] = state["path"]
            with contextlib.suppress(OSError):  # the current folder was removed meanwhile, or may not be entered
                os.chdir(state["folder"])
            others = (asked.detach(), child_ended, tell, status_pipe, *statuses.values())
            serve_forked((requests, replies), others, log, server)
            os._exit(0)
        os.write(status_pipe, struct.pack("<i", pid))
        statuses[pid] = status_pipe
        for descriptor in (requests, replies, log, environment):
            os.close(descriptor)


def serve_forked(own: tuple[int, int], others: Sequence[int], log: Path | int, parent: int) -> None:
    """Serve requests in a process that was just forked.

    Args:
        own: descriptors to read requests from and write replies to.
        others: descriptors of the parent's to close.
        log: takes standard error and output: a path or a descriptor.
        parent: its process; this one ends with it.
    """
    end_with_parent(parent)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in others:
        os.close(descriptor)
    # new objects too: a thread of the parent may have held the old ones' locks in the moment of the fork
    errors = log if isinstance(log, int) else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    sys.stderr = sys.stdout = os.fdopen(errors, "w", buffering=1)
    serve(os.fdopen(own[0], "rb"), os.fdopen(own[1], "wb"))


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_grad_enabled(False)
    wire.send(replies, {"ready": True})
    runner: Runner | None = None
    while True:
        try:
            request, arrays = wire.receive(requests)
        except EOFError:
            return
        try:
            if request["op"] == "load":
                make = EthosU if request["backend"] in ETHOS_U else RUNNERS[request["runtime"]]
                runner = make(Path(request["path"]), request["backend"], request["threads"], trusted=request["trusted"])
                wire.send(replies, runner.load())
            elif request["op"] == "gpu":
                wire.send(replies, gpu_facts())
            elif runner is None:
                raise RuntimeError("no artifact is loaded")
            else:
                reply, outputs = _answer(runner, request, arrays)
                wire.send(replies, reply, outputs)
        except UsageError as err:
            wire.send(replies, {"refused": [err.what, err.fix]})
        except Exception as err:  # every failure is the parent's to report
            wire.send(replies, {"error": f"{type(err).__name__}: {str(err).strip()}"})


def _answer(
    runner: Runner, request: dict[str, Any], arrays: tuple[NDArray[Any], ...]
) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
    if request["op"] == "run":
        outputs = runner.run_twice(arrays) if request.get("twice") else runner.run(arrays)
        return {"overwritten": sorted(runner.overwritten)}, outputs
    if request["op"] == "time":
        inputs = runner.tensors(arrays)
        for _ in range(request["warmup"]):
            runner.call(inputs)
        latencies = []
        for _ in range(request["runs"]):
            start = time.perf_counter_ns()
            runner.call(inputs)
            latencies.append((time.perf_counter_ns() - start) / 1e6)
        return {"ms": latencies}, ()
    if request["op"] == "memory":
        return {"peak_bytes": runner.peak_bytes()}, ()
    if request["op"] == "facts":
        return runner.facts(Path(request["folder"])), ()
    if request["op"] == "profile":
        return {"kernels": runner.profile(arrays, Path(request["folder"]))}, ()
    raise RuntimeError(f"unknown request {request['op']!r}")


if __name__ == "__main__":
    main()
