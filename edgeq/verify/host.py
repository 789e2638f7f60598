"""The host's runtimes, each in a child process whose crash does not end edgeq."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeq.core.config import Progress
from edgeq.core.errors import (
    EdgeqError,
    EnvironmentProblem,
    UnsupportedError,
    UsageError,
    VerificationError,
    telling_line,
)
from edgeq.core.lazy import NDArray
from edgeq.core.results.measured import Gpu
from edgeq.core.system import missing_module
from edgeq.verify import wire
from edgeq.verify.children import (
    Child,
    calm_openmp,
    can_fork,
    forked,
    from_server,
    use_torch,
)
from edgeq.verify.runtimes import OUT_OF_MEMORY, PROFILE_NAME

_START_S = 180.0

_ANSWER_S = 600.0

_END_S = 10.0

# runtime/core/error.h of ExecuTorch 1.5: what the code means for whoever packages a model
_EXECUTORCH_ERRORS: dict[int, tuple[type[EdgeqError], str]] = {
    0x10: (UnsupportedError, "the runtime does not support an operation in it"),
    0x12: (VerificationError, "an input's dtype or shape differs from the exported one"),
    0x14: (UnsupportedError, "the runtime lacks an operator that it uses"),
    0x20: (UnsupportedError, "the runtime lacks the backend that it was lowered for"),
    0x22: (VerificationError, "the file cannot be read"),
    0x23: (VerificationError, "the file is damaged, or not an ExecuTorch program"),
    0x24: (VerificationError, "its external data is missing or damaged"),
    0x25: (EnvironmentProblem, "the runtime ran out of memory or threads"),
    0x30: (UnsupportedError, "the runtime's backend is too old for it"),
}

_CODE = re.compile(r"0x:?([0-9a-fA-F]{1,4})\b")  # ExecuTorch writes 0x:23

# what ExecuTorch logs, file and line first; cpuinfo's remarks concern the machine, not the artifact
_LOGGED = re.compile(r"^\[(?!cpuinfo|threadpool)\w+\.cpp:\d+\] (.+)$", re.MULTILINE)

_MOST_REASONS = 3


class Killed(VerificationError):
    """The child was killed from outside, usually for lack of memory: this says nothing about the artifact."""


class Refused(VerificationError):
    """The runtime answered with an error of its own; it neither crashed nor hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the runtime reported when it loaded an artifact.

    Attributes:
        inputs, outputs: (dtype, shape); empty for TorchScript, whose archives state none.
        names: of the inputs, where the artifact states them.
        stand_in: description of what ran in place of the target device; "" where nothing did.
        reference: name and version of the reference model that computes in place of an NPU; "" where none does.
        gpu: the name of the GPU that it was loaded on; "" for none.
    """

    load_ms: float
    threads: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    names: tuple[str, ...] = ()
    stand_in: str = ""
    reference: str = ""
    gpu: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFacts:
    """Facts from an artifact's own tables.

    Attributes:
        operators: what the runtime itself must have.
        delegates: how many delegated parts the program has.
        bytecode_version: of a lite archive, else None.
    """

    operators: tuple[str, ...]
    delegates: int
    bytecode_version: int | None


class HostRuntime:
    """A child process with the runtimes loaded. Start it early: importing takes seconds, in parallel.

    `overwritten` holds the indices of the inputs that the loaded artifact wrote to so far: an app's own buffers.

    Its scratch folder lies in `folder`, by default among the system's temporary files. Artifacts that could run code
    are refused unless they are `trusted`: those of this run, or those that the user trusts.
    """

    def __init__(
        self, start: Callable[[Path], Child] = from_server, *, folder: Path | None = None, trusted: bool = False
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="edgeq-verify-", dir=folder)
        self._log = Path(self._scratch.name) / "stderr"
        self._log.touch()  # also where a child writes none
        self._child = start(self._log)
        self._pipe = Pipe(self._child)
        self._ready = False
        self._trusted = trusted
        self.overwritten: frozenset[int] = frozenset()

    def __enter__(self) -> HostRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and remove its scratch folder."""
        self._child.close()
        self._scratch.cleanup()

    def load(self, path: Path, *, runtime: str, backend: str, threads: int) -> Loaded:
        """Load an artifact at the strictest verification level.

        Raises:
            UsageError: the artifact could run code, and is not trusted.
            Refused: the artifact is damaged.
            VerificationError: the runtime crashed on it.
            UnsupportedError: the runtime lacks an operator or backend.
        """
        request = {
            "op": "load",
            "path": str(path),
            "runtime": runtime,
            "backend": backend,
            "threads": threads,
            "trusted": self._trusted,
        }
        reply, _ = self._ask(request, (), f"loading {path.name}")
        self.overwritten = frozenset()
        return Loaded(
            load_ms=float(reply["load_ms"]),
            threads=int(reply["threads"]),
            inputs=tuple((dtype, tuple(shape)) for dtype, shape in reply.get("inputs", ())),
            outputs=tuple((dtype, tuple(shape)) for dtype, shape in reply.get("outputs", ())),
            names=tuple(reply.get("names", ())),
            stand_in=str(reply.get("stand_in", "")),
            reference=str(reply.get("reference", "")),
            gpu=str(reply.get("gpu", "")),
        )

    def gpu(self) -> Gpu | None:
        """Return the GPU of this host; None if there is none that torch can use."""
        reply, _ = self._ask({"op": "gpu"}, (), "looking for a GPU")
        return Gpu(name=reply["gpu"], capability=reply["capability"], cuda=reply["cuda"]) if reply else None

    def facts(self) -> ArtifactFacts:
        """Return what the loaded artifact's own tables say of it."""
        reply, _ = self._ask({"op": "facts", "folder": self._scratch.name}, (), "reading the artifact")
        return ArtifactFacts(
            operators=tuple(reply["operators"]),
            delegates=int(reply["delegates"]),
            bytecode_version=reply["bytecode_version"],
        )

    def run(self, inputs: Sequence[NDArray[Any]], *, twice: bool = False) -> tuple[NDArray[Any], ...]:
        """Run the loaded artifact once and return its outputs, or `twice` on the same tensors, and the second ones."""
        reply, outputs = self._ask({"op": "run", "twice": twice}, inputs, "running the artifact")
        self.overwritten = frozenset(reply["overwritten"])
        return outputs

    def latencies_ms(self, inputs: Sequence[NDArray[Any]], *, warmup: int, runs: int) -> tuple[float, ...]:
        """Return the time of each run after the warm-up."""
        request = {"op": "time", "warmup": warmup, "runs": runs}
        return tuple(self._ask(request, inputs, "timing the artifact")[0]["ms"])

    def peak_memory_bytes(self) -> int | None:
        """Return how far loading and running raised the child's resident set; None where /proc cannot tell."""
        peak: int | None = self._ask({"op": "memory"}, (), "reading the memory")[0]["peak_bytes"]
        return peak

    def kernels(self, inputs: Sequence[NDArray[Any]], *, etdump: Path | None = None) -> tuple[str, ...]:
        """Return the kernel names that the runtime's own profile reports for one run, in order.

        Args:
            inputs: of the run.
            etdump: where ExecuTorch's profile is kept; None to keep none.
        """
        request = {"op": "profile", "folder": self._scratch.name}
        names = tuple(self._ask(request, inputs, "profiling the artifact")[0]["kernels"])
        if etdump is not None:
            shutil.copyfile(Path(self._scratch.name) / PROFILE_NAME, etdump)
        return names

    def _ask(
        self, request: dict[str, Any], arrays: Sequence[NDArray[Any]], doing: str
    ) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
        try:
            if not self._ready:
                with self._within(_START_S, "starting the runtime"):
                    wire.receive(self._pipe)
                self._ready = True
            before = self._log.stat().st_size
            with self._within(_ANSWER_S, doing):
                wire.send(self._pipe, request, arrays)
                reply, outputs = wire.receive(self._pipe)
        except (EOFError, BrokenPipeError, ValueError, struct.error) as err:  # the last two: no frame came
            raise self._crash(doing) from err
        if "refused" in reply:
            raise UsageError(*reply["refused"])
        if "error" in reply:
            with self._log.open("rb") as log:
                log.seek(before)
                raise _translated(str(reply["error"]), doing, log.read().decode(errors="replace"))
        return reply, outputs

    @contextlib.contextmanager
    def _within(self, timeout_s: float, doing: str) -> Iterator[None]:
        """End a child that takes longer, whether it answers nothing or stops in the middle of an answer."""
        self._pipe.allow(timeout_s)
        try:
            yield
        except TimeoutError as err:
            self._child.process.kill()
            what = f"no complete answer within {timeout_s:.0f} s while {doing}"
            raise VerificationError(what, "try a smaller model, or a faster machine") from err

    def _crash(self, doing: str) -> EdgeqError:
        """Return what became of the child, which no longer answers."""
        process = self._child.process
        deadline = time.monotonic() + _END_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
        code = process.wait()
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = f"; its last message: {lines[-1].strip()[:200]}" if lines else ""
        if code >= 0 and not self._ready:
            if (missing := missing_module(last)) is not None:
                return missing
            return EnvironmentProblem(f"the runtime's process ended while starting{last}", "run `edgeq doctor`")
        how = f"crashed with {signal_name(-code)}" if code < 0 else f"ended with status {code}"
        fix = "do not ship this artifact; report the crash and the model's architecture to the runtime's developers"
        if code == -signal.SIGKILL:
            fix = "the system kills processes when memory runs out: free memory, or try a smaller model"
            return Killed(f"the runtime {how} while {doing}{last}", fix)
        return VerificationError(f"the runtime {how} while {doing}{last}", fix)


class HostRuntimes:
    """The child processes of one run, one for each artifact, started before they are needed.

    If this process has not used torch yet, it imports torch once and forks all children, which share its pages.
    Otherwise a server process forks them, each while the previous artifact is made.
    """

    def __init__(self, count: int, *, folder: Path, progress: Progress) -> None:
        """Start the children.

        Args:
            count: how many artifacts there are.
            folder: for scratch files; they go with it, even when the run is killed.
            progress: shows the import of torch.
        """
        self._folder = folder
        self._left = count
        self._forks = can_fork()
        if self._forks:
            with progress.task("import torch"):
                calm_openmp()
                import torch  # noqa: F401
            # a collection writes to every object that it looks at, and so would copy the pages that the children share
            gc.collect()
            gc.freeze()
            self._waiting = [HostRuntime(forked, folder=folder, trusted=True) for _ in range(count)]
        else:
            self._waiting = [HostRuntime(folder=folder, trusted=True)]

    def __enter__(self) -> HostRuntimes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        use_torch()
        for runtime in self._waiting:
            runtime.close()

    @property
    def first(self) -> HostRuntime:
        """The child of the first artifact, before `next` takes it."""
        return self._waiting[0]

    def next(self) -> HostRuntime:
        """Return the child for the next artifact; the caller closes it."""
        self._left -= 1
        runtime = self._waiting.pop(0)
        if not self._forks and self._left:
            self._waiting.append(HostRuntime(folder=self._folder, trusted=True))
        return runtime


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def executorch_error(text: str) -> tuple[type[EdgeqError], str]:
    """Return the kind of error and the message for the code in `text`; "" where the code is unknown."""
    code = _CODE.search(text)
    return _EXECUTORCH_ERRORS.get(int(code[1], 16) if code else 0, (VerificationError, ""))


def onnx_error(text: str) -> tuple[type[EdgeqError], str] | None:
    """Return the kind of error and the message for ONNX Runtime's error; None for another runtime's."""
    if "[ONNXRuntimeError]" not in text:
        return None
    if "fallback to CPU EP has been explicitly disabled" in text:
        return UnsupportedError, "the NPU does not take every operator of it"
    lacking = ("NOT_IMPLEMENTED", "is not a registered function/op", "No Op registered", "No opset import for domain")
    if any(words in text for words in lacking):
        return UnsupportedError, "the runtime lacks an operator that it uses"
    if "guarantees support for models stamped" in text:
        return UnsupportedError, "its opset is newer than the runtime"
    return VerificationError, ""


def torchscript_error(text: str) -> tuple[type[EdgeqError], str] | None:
    """Return the kind of error and the message for an operator that TorchScript lacks; None for other errors."""
    if "Unknown builtin op" in text or "Following ops cannot be found" in text:
        return UnsupportedError, "the runtime lacks an operator that it uses"
    return None


def openvino_error(text: str) -> tuple[type[EdgeqError], str] | None:
    """Return the kind of error and the message for OpenVINO's error; None for another runtime's."""
    if "Exception from src/" not in text:
        return None
    lacking = ("from unsupported opset", "doesn't contain the operation with type")
    if any(words in text for words in lacking):
        return UnsupportedError, "the runtime lacks an operator that it uses"
    return VerificationError, ""


def _translated(text: str, doing: str, log: str = "") -> EdgeqError:
    """Turn a runtime's error into words; ExecuTorch only gives codes, and the reason in its log."""
    missing = missing_module(text)
    if missing is not None:
        return missing
    if OUT_OF_MEMORY in text:
        what = text.partition(": ")[2].splitlines()[0]
        return EnvironmentProblem(what, "package for a smaller batch: --input with a smaller first dimension")
    if "failed locating file constants.pkl" in text:  # a ZIP of torch.save's, and not of torch.jit.save's
        what = f"failed while {doing}: it is not a TorchScript archive but a state dict or another pickle"
        return UsageError(
            what, "give a file that torch.jit.save wrote; give a state dict to --weights of `edgeq package`"
        )
    kind, meaning = onnx_error(text) or openvino_error(text) or torchscript_error(text) or executorch_error(text)
    line = telling_line(text).partition(" This is an internal miniz error")[0][:200]
    what = f"failed while {doing}: {meaning} ({line})" if meaning else f"failed while {doing}: {line}"
    reasons = [match[1].strip() for match in _LOGGED.finditer(log)]
    if reasons:
        what += f"; the runtime's log: {'; '.join(dict.fromkeys(reasons[:_MOST_REASONS]))[:300]}"
    kind = Refused if kind is VerificationError else kind
    lacks = "operator" in meaning
    fix = "replace the operator" if lacks else "package the model again; if that does not help, choose another target"
    return kind(what, f"{fix}, or choose another target" if lacks else fix)


# --- The two pipes to a child process, with a deadline for whole frames: a child may stop in the middle of one.


_PART_BYTES = 1 << 20


@dataclass(slots=True)
class Pipe:
    """A stream to read answers from and write requests to. It raises TimeoutError once `allow`'s time is over.

    Bytes go past the buffers of the child's streams: what lay in one would be invisible to `select`.
    """

    child: Child
    _deadline: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Make writes return when the pipe is full, instead of blocking on a child that no longer reads."""
        os.set_blocking(self.child.requests.fileno(), False)

    def allow(self, seconds: float) -> None:
        """Set the time limit, from now, for all reads and writes."""
        self._deadline = time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes as soon as there are any; none at the end."""
        descriptor = self.child.replies.fileno()
        if not select.select([descriptor], [], [], self._left())[0]:
            raise TimeoutError
        return os.read(descriptor, min(size, _PART_BYTES))

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        descriptor, rest = self.child.requests.fileno(), memoryview(data)
        while rest:
            if not select.select([], [descriptor], [], self._left())[1]:
                raise TimeoutError
            rest = rest[os.write(descriptor, rest[:_PART_BYTES]) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())
