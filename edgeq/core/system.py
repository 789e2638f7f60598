"""Facts about this machine, found without torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.parse
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.files import canonical_json, sha256_bytes, sha256_file
from edgeq.core.runtimes import ETHOS_U


def package_folder() -> Path:
    """Return the folder of edgeq itself."""
    return Path(__file__).resolve().parent.parent


_TOOLS = (
    *("torch", "torchvision", "torchao", "executorch", "numpy", "pillow", "safetensors", "scikit-learn"),
    *("onnx", "onnxscript", "onnxruntime", "openvino"),
)


@functools.cache
def tool_versions() -> dict[str, str]:
    """Return the versions of the tools that affect the result."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def edgeq_version() -> str:
    """Return the version of edgeq itself."""
    return importlib.metadata.version("edgeq")


@functools.cache
def edgeq_digest() -> str:
    """Hash edgeq itself, so that a changed edgeq never answers with an old one's result."""
    root = package_folder()
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sha256_bytes(canonical_json({str(path.relative_to(root)): sha256_file(path) for path in files}))


_QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")

_DEVICES = ("nvidia0", "nvhost-gpu")  # a card, and a Jetson's own GPU

_CPUINFO = Path("/proc/cpuinfo")

# what kernels are chosen by, on x86 and on ARM
_TELLING = ("vendor_id", "CPU implementer", "CPU part")

_KERNEL_FLAGS = re.compile(r"(?:sse|ssse|avx|fma|f16c|bmi|amx|gfni|popcnt|asimd|sve|sme|neon|fp|bf16|i8mm|dot)\w*")

_SAY_S = 10.0


def host_arch() -> str:
    """Return this machine's architecture in the words of target profiles."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


def host_load() -> float | None:
    """Return how many processes wanted a processor over the last minute, on average per core; None if not known."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


def processor_name() -> str:
    """Return this machine's processor name."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SAY_S).stdout
    else:
        said = next((value for key, value in _cpuinfo() if key == "model name"), "")
    return said.strip() or f"a host with {platform.machine()}"


@functools.cache
def kernel_features() -> tuple[str, ...]:
    """Return the facts by which libraries choose their kernels: vendor, ARM core, and instruction sets.

    Float kernels and their rounding depend on them; the number of cores, the clock and the model's name only change
    times.
    """
    facts = {f"{key}: {value}" for key, value in _cpuinfo() if key in _TELLING}
    flags = {flag for key, value in _cpuinfo() if key in ("flags", "Features") for flag in value.split()}
    known = {flag for flag in flags if _KERNEL_FLAGS.fullmatch(flag)}
    return (platform.machine(), *sorted(facts), *sorted(known)) if facts or known else (processor_name(),)


@functools.cache
def processor_kind() -> str:
    """Return the kind of machine that times are comparable on: the processor and how many cores this process may use.

    A virtual machine's model name may be no more than "AMD EPYC": family, model and stepping tell these apart.
    """
    facts = dict(reversed(_cpuinfo()))
    step = "/".join(facts[key] for key in ("cpu family", "model", "stepping") if key in facts)
    step = step or "/".join(facts[key] for key in ("CPU implementer", "CPU variant", "CPU part") if key in facts)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor_name()}{f' ({step})' if step else ''}, {cores} cores"


def _cpuinfo() -> tuple[tuple[str, str], ...]:
    """Return the lines of Linux's /proc/cpuinfo, of all cores; none elsewhere."""
    with contextlib.suppress(OSError):
        lines = _CPUINFO.read_text(errors="replace").splitlines()
        return tuple((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    return ()


@functools.cache
def driver_state() -> str:
    """Return a text with the GPUs, their driver and CUDA_VISIBLE_DEVICES; "" for none."""
    gpus = _gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{gpus}; CUDA_VISIBLE_DEVICES={visible}" if gpus and visible is not None else gpus


def _gpus() -> str:
    found = shutil.which("nvidia-smi")
    if found is not None:
        done = subprocess.run([found, *_QUERY], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return "; ".join(line.strip() for line in done.stdout.splitlines())
    return next((f"/dev/{name}" for name in _DEVICES if Path("/dev", name).exists()), "")


# --- How much memory this machine has left.


def release_memory() -> None:
    """Collect reference cycles, and return free heap memory to the system (glibc only).

    Looking through all objects takes 0.1 to 0.5 s.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python's garbage collector look at all objects a tenth as often in the block, and at those before it never.

    Exporting and lowering make millions of objects that live until their end, beside the half million of the imported
    libraries. Looking through all of them again and again took 2.0 s of the 28 s of processor time that mobilenet_v2 on
    XNNPACK takes, and found next to nothing; it takes 0.9 s less in this block.
    """
    young, middle, old = gc.get_threshold()
    is_first = not gc.get_freeze_count()  # what a caller froze stays so
    if is_first:
        gc.freeze()
    gc.set_threshold(young, middle, 10 * old)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
        if is_first:
            gc.unfreeze()


def available_bytes() -> int:
    """Return the memory that is free for new data, by /proc/meminfo and the control group's limit."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # no limit reads as "max"
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


# --- Keeping libraries from talking beside what edgeq says itself.


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Disable logging in the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Disable logging, warnings and printing in the block; exceptions pass."""
    with unlogged(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def openvino() -> Any:
    """Import and return OpenVINO as it is without openvino-telemetry.

    With it, each import is reported to OpenVINO's makers over the network, and each user gets an ID in ~/intel.
    """
    before = sys.modules.get("openvino_telemetry", _ABSENT)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # so that an import of it fails
    try:
        return importlib.import_module("openvino")
    finally:
        if before is _ABSENT:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = before  # type: ignore[assignment]


_ABSENT = object()


# --- Standing in for a library's function for the length of a block.


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set `module.name` to `value` in the block.

    Raises:
        AttributeError: the library no longer has this name, so the block would change nothing.
    """
    before = getattr(module, name)
    if isinstance(module, type):
        before = vars(module).get(name, before)  # a static or class method as such
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# --- Runtimes that come with an extra of edgeq: what they need, and how to get it.


# by runtime, backend, scheme or kind of source: the extra, and the modules that it brings
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "executorch": ("executorch", ("torch", "torchao", "executorch")),
    "torchscript": ("torchscript", ("torch",)),
    "onnx": ("onnx", ("torch", "torchao", "onnx", "onnxscript", "onnxruntime")),
    "openvino": ("openvino", ("torch", "torchao", "executorch", "onnx", "onnxscript", "openvino")),
    "litert": ("litert", ("torch", "torchao", "executorch", "ai_edge_litert")),
    "cuda": ("cuda", ("torch",)),
    "qnn-htp": ("qnn", ("onnxruntime_qnn",)),
    **dict.fromkeys(ETHOS_U, ("ethos-u", ("ethosu", "serializer", "tosa_reference_model", "ml_dtypes"))),
    "weight-only-palette4": ("coreml", ("coremltools", "sklearn")),
    "torchvision": ("torchvision", ("torchvision",)),
    "hf": ("hf", ("transformers",)),
    "timm": ("timm", ("timm",)),
    "s3": ("s3", ("s3fs",)),
    "cluster": ("cluster", ("distributed",)),
    "map": ("map", ("pycocotools",)),
}

# what no extra can bring: tosa-tools 2026.5.0 asks for jsonschema 4.24.0, NumPy below 2.2 and other pins of old, which
# edgeq's own libraries exclude and its reference model does not need
_WITHOUT_EXTRA = {"ethos-u": "pip install --no-deps ethos-u-vela==5.1.0 tosa-tools==2026.5.0 ml_dtypes"}

# what the extra of every runtime brings
_OF_RUNTIMES = frozenset({"torch", "torchao", "numpy", "PIL", "safetensors"})

_SOURCES = frozenset({"torchvision", "hf", "timm"})


def check_extras(needs: Iterable[str]) -> None:
    """Check before a long run that the extras of runtimes, backends and sources are installed; imports none of them.

    Raises:
        EnvironmentProblem: some are missing (named, with the command that installs them).
    """
    extras, told = [], []
    for need in sorted(set(needs)):
        extra, modules = EXTRAS.get(need, ("", ()))
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            extras.append(extra)
            told.append(_lacking(need, missing))
    if told:
        raise EnvironmentProblem("; ".join(told), install_command(*extras))


def missing_module(text: str) -> EnvironmentProblem | None:
    """Return the error for a ModuleNotFoundError, if an extra provides the module; else None."""
    found = re.search(r"ModuleNotFoundError: No module named '(\w+)", text)
    if found is None:
        return None
    if found[1] in _OF_RUNTIMES:
        what = f"{found[1]} is not installed here, and packaging a model or running an artifact needs it"
        such = f"such as {install_command('executorch')}"
        fix = f"install the extra of a runtime (executorch, torchscript, onnx, openvino, litert, cuda), {such}; "
        return EnvironmentProblem(what, fix + "inspect, diff, report, install and ota work without it")
    for need, (extra, modules) in EXTRAS.items():
        if found[1] in modules:
            return EnvironmentProblem(_lacking(need, [found[1]]), install_command(extra))
    return None


def _lacking(need: str, modules: Sequence[str]) -> str:
    nouns = {"map": "--metric map", "weight-only-palette4": "--scheme weight-only-palette4"}
    noun = f"a {need}: model" if need in _SOURCES else nouns.get(need, f"the {need} runtime")
    return f"{noun} needs {', '.join(modules)}, which {'is' if len(modules) == 1 else 'are'} not installed"


def install_command(*extras: str) -> str:
    """Return the command that installs extras of edgeq.

    It names the checkout or wheel that edgeq itself was installed from, else the packages that the extras bring: edgeq
    is not published, so another project can take its name.
    """
    apart = [_WITHOUT_EXTRA[name] for name in extras if name in _WITHOUT_EXTRA]
    extras = tuple(name for name in extras if name not in _WITHOUT_EXTRA)
    if apart:
        return " && ".join([*([install_command(*extras)] if extras else []), *dict.fromkeys(apart)])
    installed = importlib.metadata.distribution("edgeq")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(origin.get("url", "")).path))
    if origin.get("url", "").startswith("file:") and path.exists():
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}'{path}[{','.join(extras)}]'"
    wanted = [text.partition(";") for text in installed.requires or ()]
    of_extras = re.compile(rf"extra == ['\"](?:{'|'.join(map(re.escape, extras))})['\"]")
    names = dict.fromkeys(name.strip() for name, _, marker in wanted if of_extras.search(marker))
    return f"pip install {' '.join(map(repr, names))}"


class Uncompiled:
    """Mixin of dispatch modes under which nothing is compiled.

    Torch otherwise imports its compiler (torch._dynamo, torch._inductor) at a mode's first call, only to leave the mode
    out of what it compiles: 4 to 9 seconds of processor. `_should_skip_dynamo` is torch 2.14's.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
