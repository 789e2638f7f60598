"""Counting what one inference makes a core do: edgeq's QEMU plugin, and the runtime's own profile for the operators."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeq.core.errors import EnvironmentProblem, UsageError, VerificationError, nearest
from edgeq.core.files import lock_dir, sha256_bytes, sha256_file, staged_dir
from edgeq.core.results.measured import COUNTERS, CountReport, Counts, OperatorCounts, total
from edgeq.verify.emulate.cpus import CPUS, Cpu, find_cpu
from edgeq.verify.emulate.install import SOURCES, Installed, emulator_folder
from edgeq.verify.emulate.runner import Arrays, Ran, Work, run_all
from edgeq.verify.runtimes import Event, last_run

_SOURCES = ("a64_classes.h", "caches.h", "count_plugin.c", "read_clock.c")

_TOOLS = (
    ("gcc", "count_plugin.c", "count_plugin.so", "gcc"),
    ("aarch64-linux-gnu-gcc", "read_clock.c", "read_clock.so", "g++-aarch64-linux-gnu"),
)

_FLAGS = ("-shared", "-fPIC", "-O2", "-fvisibility=hidden")

_ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h

_RUNTIME = "(runtime)"

_NOT_TRACED = "the C API of the runner gives no times of operators"

# Cores that QEMU 7.2 has no model of, by one with the same instructions: kernels are chosen by instructions and part
# number. Part numbers: Arm's Technical Reference Manuals, MIDR_EL1; uarch: pytorch/cpuinfo's cpuinfo.h. Cortex-A75 has
# dot products from revision 2 on, by cpuinfo's aarch64-isa.c; revision 1 is that of the phones in `devices/`.
_STAND_INS = {  # model, part number, variant, uarch
    "cortex-a55": ("cortex-a76", 0xD05, 2, 0x00300355),
    "cortex-a73": ("cortex-a72", 0xD09, 0, 0x00300373),
    "cortex-a75": ("cortex-a76", 0xD0A, 1, 0x00300375),
    "cortex-a77": ("cortex-a76", 0xD0D, 1, 0x00300377),
    "cortex-a78": ("cortex-a76", 0xD41, 1, 0x00300378),
}


def countable_cores() -> tuple[str, ...]:
    """Return the names of the cores that instructions can be counted for."""
    return tuple(sorted({*(cpu.name for cpu in CPUS), *_STAND_INS}))


def find_core(name: str) -> Cpu:
    """Return the CPU model whose kernels are those of core `name`.

    Raises:
        UsageError: an unknown name.
        UnsupportedError: this QEMU lacks it.
        EnvironmentProblem: QEMU is missing.
    """
    if name in _STAND_INS:
        model, part, variant, uarch = _STAND_INS[name]
        return dataclasses.replace(find_cpu(model), part=part, variant=variant, uarch=uarch)
    if name not in countable_cores() and not name.startswith("max"):
        hint = nearest(name, countable_cores())
        raise UsageError(f"unknown CPU {name!r}.{hint}", f"use one of: {', '.join(countable_cores())}")
    return find_cpu(name)


def count(
    runtime: Installed,
    core: str,
    model: Path,
    sample: Arrays,
    *,
    operators: bool = False,
    timeout_s: float = 600.0,
) -> CountReport:
    """Count one inference in the steady state: the second of two, on one thread.

    Instructions are the same on every run. So are the cache lines, since addresses are not randomized meanwhile.

    Args:
        runtime: the ARM64 runtime.
        core: whose kernels; see `countable_cores`.
        model: the artifact.
        sample: its inputs.
        operators: whether to run once more, with the runtime's profiler, and tell the operators apart.
        timeout_s: for all of it.

    Raises:
        EdgeqError: as `run_all` and `find_core`; EnvironmentProblem also where a compiler is missing.
    """
    work = Work(runtime=runtime, cpu=find_core(core), model=model, samples=(sample,), runs=2)
    traced = operators and runtime.wheel.runtime not in ("onnx", "litert")
    tools = _tools()
    with tempfile.TemporaryDirectory(prefix="edgeq-count-") as name, _fixed_addresses():
        files = [Path(name) / "total", *([Path(name) / "traced"] if traced else [])]
        ran = run_all([_counted(work, tools, file) for file in files], timeout_s=timeout_s)
        looks = [_looks(file) for file in files]
        whole = _last_call(looks[0], ran[0])
        if not traced:
            return CountReport(cpu=core, total=whole, why_no_operators=_NOT_TRACED if operators else "")
        found, why = _operators(runtime, ran[1].trace or b"", looks[1], whole, Path(name))
    return CountReport(cpu=core, total=whole, operators=found, why_no_operators=why)


def _counted(work: Work, tools: Path, file: Path) -> Work:
    """Return the work with the plugin and the clock; one that goes into `traced` tells its operators too."""
    plugin = f"{tools}/count_plugin.so,out={file}"
    options = ("-plugin", plugin, "-E", f"LD_PRELOAD={tools}/read_clock.so")
    return dataclasses.replace(work, qemu_options=options, trace=file.name == "traced")


def _looks(file: Path) -> tuple[Counts, ...]:
    """Return the counters at each look at the clock."""
    rows = [line.split()[1:] for line in file.read_text().splitlines()]
    return tuple(Counts(**dict(zip(COUNTERS, map(int, row), strict=True))) for row in rows)


def _last_call(looks: Sequence[Counts], ran: Ran) -> Counts:
    """Return what the last call cost: the runner looks right before and after it, a microsecond a look."""
    between = round(ran.latencies_ms[-1][-1] * 1000)
    if not 0 < between < len(looks):
        what = f"nothing was counted: {between} of {len(looks)} clock readings lie in the runner's last call"
        raise VerificationError(what, "run `edgeq emulator install`, then this command again")
    return looks[-1] - looks[-1 - between]


def _operators(
    runtime: Installed, dump: bytes, looks: Sequence[Counts], whole: Counts, folder: Path
) -> tuple[tuple[OperatorCounts, ...], str]:
    """Return the operators of the last call with what each costs, or none and why."""
    path = folder / "profile.etdp"
    path.write_bytes(dump)
    try:
        events = last_run(path) if runtime.wheel.runtime == "executorch" else _lines(dump.decode())
        parts = attribute(events, looks)
    except UnclearProfileError as err:
        return (), str(err)
    rest = whole - total(part.counts for part in parts)
    return (*parts, OperatorCounts(name=_RUNTIME, counts=rest)), ""


def _lines(text: str) -> tuple[Event, ...]:
    """Return the events that src/ptl_runner.cpp wrote."""
    rows = [line.split("\t") for line in text.splitlines()]
    return tuple(Event(name=name, in_delegate=False, start=int(start), end=int(end)) for name, start, end in rows)


class UnclearProfileError(Exception):
    """The runtime's profile and the clock readings do not match."""


def attribute(events: Sequence[Event], looks: Sequence[Counts]) -> tuple[OperatorCounts, ...]:
    """Give each operator of a call what was counted between two looks at the clock.

    XNNPACK looks once before its first operator and once after each, and logs the operators after the call; ExecuTorch
    looks before and after each operator that it runs itself.

    Args:
        events: of the last run, in the order in which they were logged.
        looks: the counters at each look; the runner's own look after the call is the last one.

    Raises:
        UnclearProfileError: the profile and the clock readings do not match.
    """
    frame = next((event for event in events if event.name == "Method::execute"), None)
    if frame is None:
        raise UnclearProfileError("the profile has no Method::execute")
    # the runtime's clock began before the first look that counts, so it is aligned by its end
    shift = len(looks) - 2 - frame.end // 1000
    parts: list[tuple[str, int, int]] = []
    waiting: list[str] = []
    for event in events:
        start, end = event.start // 1000 + shift, event.end // 1000 + shift
        if event.in_delegate:
            waiting.append(event.name)
        elif event.name == "DELEGATE_CALL":
            if end - start - 1 != len(waiting) + 2:
                raise UnclearProfileError(
                    f"the delegate read the clock {end - start - 1} times in {len(waiting)} operators"
                )
            parts += [(name, start + 2 + i, start + 3 + i) for i, name in enumerate(waiting)]
            waiting = []
        elif event.name not in _FRAMES:
            parts.append((event.name, start, end))
    return tuple(OperatorCounts(name=name, counts=looks[last] - looks[first]) for name, first, last in parts)


# events that hold others
_FRAMES = frozenset({"Method::execute", "OPERATOR_CALL", "Method::init", "Program::load_method"})


def _tools() -> Path:
    """Return the folder with the plugin and the clock, compiled once for each content of their sources.

    Raises:
        EnvironmentProblem: a compiler is missing, or failed.
    """
    digest = sha256_bytes("".join(sha256_file(SOURCES / name) for name in _SOURCES).encode())[:16]
    root = emulator_folder()
    folder = root / f"counter-{digest}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with lock_dir(root, wait_s=600.0):
        if not folder.is_dir():
            with staged_dir(folder) as staging:
                for compiler, source, product, package in _TOOLS:
                    _compile(compiler, SOURCES / source, staging / product, package)
    return folder


def _compile(compiler: str, source: Path, product: Path, package: str) -> None:
    found = shutil.which(compiler)
    if found is None:
        what = f"{compiler} is missing; edgeq needs it to compile its instruction counter"
        raise EnvironmentProblem(what, f"apt-get install {package}")
    done = subprocess.run(
        [found, *_FLAGS, str(source), "-o", str(product)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[0][:300]
        raise EnvironmentProblem(f"{compiler} could not compile {source.name}: {last}", f"apt-get install {package}")


@contextlib.contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Let the programs that are started in the block have the same addresses each time: cache sets depend on them."""
    personality = ctypes.CDLL(None).personality
    before = personality(ctypes.c_ulong(0xFFFFFFFF))  # asks only
    personality(ctypes.c_ulong(before | _ADDR_NO_RANDOMIZE))
    try:
        yield
    finally:
        personality(ctypes.c_ulong(before))
