"""The child process that runs artifacts: `python -m edgeq.verify.worker`. It may crash; edgeq does not.

It reads requests from standard input and answers on what was standard output; native libraries' own prints go to
standard error. Torch is imported before the first request, while edgeq still lowers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from edgeq.core.errors import UsageError
from edgeq.verify import wire
from edgeq.verify.runtimes import RUNNERS, Runner, gpu_facts

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve requests until standard input ends."""
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
                make = RUNNERS[request["runtime"]]
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
            wire.send(replies, {"error": f"{type(err).__name__}: {err}"})


def _answer(
    runner: Runner, request: dict[str, Any], arrays: tuple[NDArray[Any], ...]
) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
    if request["op"] == "run":
        outputs = runner.run_twice(arrays) if request.get("twice") else runner.run(arrays)
        return {"overwritten": sorted(runner.overwritten)}, outputs
    if request["op"] == "time":
        return {"ms": _latencies_ms(runner, arrays, request["warmup"], request["runs"])}, ()
    if request["op"] == "memory":
        return {"peak_bytes": runner.peak_bytes()}, ()
    if request["op"] == "facts":
        return runner.facts(Path(request["folder"])), ()
    if request["op"] == "profile":
        return {"kernels": runner.profile(arrays, Path(request["folder"]))}, ()
    raise RuntimeError(f"unknown request {request['op']!r}")


def _latencies_ms(runner: Runner, arrays: tuple[NDArray[Any], ...], warmup: int, runs: int) -> list[float]:
    inputs = runner.tensors(arrays)
    for _ in range(warmup):
        runner.call(inputs)
    latencies = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        runner.call(inputs)
        latencies.append((time.perf_counter_ns() - start) / 1e6)
    return latencies


if __name__ == "__main__":
    main()
