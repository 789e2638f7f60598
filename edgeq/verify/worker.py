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

import numpy as np
from numpy.typing import NDArray

from edgeq.verify import memory, wire
from edgeq.verify.etdump import last_run, tables
from edgeq.verify.kernels import multiplies

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve requests until standard input ends."""
    end_with_parent(os.getppid())
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, which may itself be killed in mid-sentence.

    A child that lived on would keep what it inherited: the output folder's lock, and the other children's pipes.

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
    runner: _Runner | None = None
    while True:
        try:
            request, arrays = wire.receive(requests)
        except EOFError:
            return
        try:
            if request["op"] == "load":
                runner = RUNNERS[request["runtime"]](Path(request["path"]), request["backend"], request["threads"])
                wire.send(replies, runner.load())
            elif runner is None:
                raise RuntimeError("nothing is loaded")
            else:
                reply, outputs = _answer(runner, request, arrays)
                wire.send(replies, reply, outputs)
        except Exception as err:  # every failure is the parent's to report
            wire.send(replies, {"error": f"{type(err).__name__}: {err}"})


def _answer(
    runner: _Runner, request: dict[str, Any], arrays: tuple[NDArray[Any], ...]
) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
    if request["op"] == "run":
        return {}, runner.run(arrays)
    if request["op"] == "time":
        return {"ms": _latencies_ms(runner, arrays, request["warmup"], request["runs"])}, ()
    if request["op"] == "memory":
        return {"peak_bytes": runner.peak_bytes()}, ()
    if request["op"] == "facts":
        return runner.facts(Path(request["folder"])), ()
    if request["op"] == "profile":
        return {"kernels": runner.profile(arrays, Path(request["folder"]))}, ()
    raise RuntimeError(f"unknown request {request['op']!r}")


def _latencies_ms(runner: _Runner, arrays: tuple[NDArray[Any], ...], warmup: int, runs: int) -> list[float]:
    inputs = runner.tensors(arrays)
    for _ in range(warmup):
        runner.call(inputs)
    latencies = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        runner.call(inputs)
        latencies.append((time.perf_counter_ns() - start) / 1e6)
    return latencies


class _Runner:
    """An artifact in its runtime."""

    def __init__(self, path: Path, backend: str, threads: int) -> None:
        self.path = path
        self.backend = backend
        self.threads = threads
        self.mark: memory.Mark | None = None

    def load(self) -> dict[str, Any]:
        """Load the artifact, timed; return what it says of its inputs and outputs."""
        self.mark = memory.mark()
        start = time.perf_counter_ns()
        facts = self._open()
        return {"load_ms": (time.perf_counter_ns() - start) / 1e6, **facts}

    def tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Any, ...]:
        """Return torch tensors of `arrays`; copied, since what came over the pipe is read-only."""
        import torch

        return tuple(torch.from_numpy(np.array(array)) for array in arrays)

    def run(self, arrays: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
        """Run once and return every output tensor."""
        import torch

        leaves = torch.utils._pytree.tree_leaves(self.call(self.tensors(arrays)))
        return tuple(leaf.detach().numpy() for leaf in leaves)

    def peak_bytes(self) -> int | None:
        """Return the peak of what loading and running took; None where /proc does not tell."""
        return memory.peak_bytes(self.mark, self.path)

    def _open(self) -> dict[str, Any]:
        raise NotImplementedError

    def call(self, inputs: tuple[Any, ...]) -> Any:
        """Run once on tensors."""
        raise NotImplementedError

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:
        """Return the kernel names of one run, in order."""
        raise NotImplementedError

    def facts(self, folder: Path) -> dict[str, Any]:
        """Return the operators, the number of delegates and the bytecode version."""
        raise NotImplementedError


class _ExecuTorch(_Runner):
    def _open(self) -> dict[str, Any]:
        # the package's own front imports all of executorch.exir, which takes ten seconds
        from executorch.extension.pybindings import _C as runtime  # noqa: N811

        runtime._unsafe_reset_threadpool(self.threads)
        self.runtime = runtime
        # the Program must outlive its Method, or the runtime crashes
        self.program = runtime._load_program(
            str(self.path), program_verification=runtime.Verification.InternalConsistency
        )
        self.method = self.program.load_method("forward")
        meta = self.method.method_meta()
        return {
            "inputs": [_described(meta.input_tensor_meta(i)) for i in range(meta.num_inputs())],
            "outputs": [_described(meta.output_tensor_meta(i)) for i in range(meta.num_outputs())],
            "threads": runtime._threadpool_get_thread_count(),
        }

    def call(self, inputs: tuple[Any, ...]) -> Any:
        return self.method(inputs)

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:
        program = self.runtime._load_program(
            str(self.path),
            enable_etdump=True,
            debug_buffer_size=0,
            program_verification=self.runtime.Verification.InternalConsistency,
        )
        method = program.load_method("forward")
        method(self.tensors(arrays))
        dump = folder / "profile.etdp"
        program.write_etdump_result_to_file(str(dump), str(folder / "profile.bin"))
        return [event.name for event in last_run(dump)]

    def facts(self, folder: Path) -> dict[str, Any]:
        plan = tables(self.path, folder, "schema/program.fbs")["execution_plan"][0]
        names = [f"{op['name']}.{op['overload']}".rstrip(".") for op in plan.get("operators", ())]
        return {"operators": sorted(set(names)), "delegates": len(plan.get("delegates", ())), "bytecode_version": None}


def _described(info: Any) -> list[Any]:
    """Return [dtype, shape] of a tensor's meta data; the dtype is ExecuTorch's ScalarType code."""
    codes = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}
    return [{**codes, 11: "bool"}.get(info.dtype(), f"code {info.dtype()}"), list(info.sizes())]


class _TorchScript(_Runner):
    def _open(self) -> dict[str, Any]:
        import torch
        from torch.jit.mobile import _load_for_lite_interpreter

        torch.set_num_threads(self.threads)
        torch.backends.quantized.engine = self.backend
        is_lite = self.path.suffix == ".ptl"
        self.module = (_load_for_lite_interpreter if is_lite else torch.jit.load)(str(self.path))
        return {"threads": torch.get_num_threads()}

    def call(self, inputs: tuple[Any, ...]) -> Any:
        return self.module(*inputs)

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:  # noqa: ARG002
        import torch

        inputs = self.tensors(arrays)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.call(inputs)
        events = sorted(profile.events(), key=lambda event: event.time_range.start)
        return [str(event.name) for event in events if not _inside_matrix(event)]

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        from torch.jit.mobile import _export_operator_list, _get_model_bytecode_version

        is_lite = self.path.suffix == ".ptl"
        names = _export_operator_list(self.module) if is_lite else ()
        version = int(_get_model_bytecode_version(str(self.path))) if is_lite else None
        return {"operators": sorted(names), "delegates": 0, "bytecode_version": version}


def _inside_matrix(event: Any) -> bool:
    """Whether an event is part of a convolution or matrix product: each is to be counted once."""
    parent = event.cpu_parent
    while parent is not None and not multiplies("torchscript", str(parent.name)):
        parent = parent.cpu_parent
    return parent is not None


RUNNERS: dict[str, type[_Runner]] = {"executorch": _ExecuTorch, "torchscript": _TorchScript}


if __name__ == "__main__":
    main()
