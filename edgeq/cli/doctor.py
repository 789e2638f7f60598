"""`edgeq doctor`: what is installed, and how to install what is missing; with MODEL, which targets and schemes work.

Without MODEL, no library is loaded.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import edgeq
from edgeq.cli import options as flags
from edgeq.cli.console import open_progress, say, say_json
from edgeq.cli.options import ConfigOptions, grouped, to_values
from edgeq.core.errors import EnvironmentProblem, ExitCode, UsageError
from edgeq.core.profiles import profile_files, profile_values
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.units import format_bytes

if TYPE_CHECKING:
    import edgeq.config.resolve
    import edgeq.core.system
    import edgeq.lower.litert_environment
    import edgeq.pipeline.pairs
    import edgeq.report.text
    from edgeq.pipeline.pairs import Pairs

# what requirements.lock pins: the versions that the tests ran with
TESTED = {
    "typer": "0.29.2",
    "rich": "15.0.0",
    "pydantic": "2.14.3",
    "filelock": "4.2.11",
    "platformdirs": "4.14.5",
    "jinja2": "3.1.6",
    "pygal": "3.1.3",
    "tuf": "7.0.1",
    "securesystemslib": "1.6.0",
    "cryptography": "50.0.2",
    "backports.zstd": "1.8.0",
    "bsdiff4": "1.3.2",
    "cyclonedx-python-lib": "11.12.0",
    "packageurl-python": "0.17.6",
    "urllib3": "2.8.0",
}

_RUNTIMES = "packaging models and running artifacts need it"

# by library of an extra: the version that the tests ran with, what needs it, and an extra that has it
EXTRA_LIBRARIES = {
    "torch": ("2.15.0", _RUNTIMES, "executorch"),
    "numpy": ("2.4.6", _RUNTIMES, "executorch"),
    "safetensors": ("0.8.0", _RUNTIMES, "executorch"),
    "pillow": ("13.0.0", _RUNTIMES, "executorch"),
    "pip": ("26.3", "it fetches the runtimes that QEMU runs", "executorch"),
    "torchao": ("0.18.0", "ExecuTorch and ONNX Runtime targets need it", "executorch"),
    "executorch": ("1.5.1", "ExecuTorch targets need it", "executorch"),
    "onnx": ("1.23.2", "ONNX Runtime targets need it", "onnx"),
    "onnxscript": ("0.7.2", "ONNX Runtime targets need it", "onnx"),
    "onnxruntime": ("1.31.1", "ONNX Runtime targets need it", "onnx"),
    "openvino": ("2026.4.1", "OpenVINO targets need it", "openvino"),
    "ai-edge-litert": ("2.3.0", "LiteRT targets need it", "litert"),
    "torchvision": ("0.29.2", "models named torchvision:NAME need it", "torchvision"),
    "scikit-learn": ("1.9.1", "it includes the data of the digits model", "digits"),
}

_TESTED_PYTHON = (3, 11)

_ALLOWED_PYTHON = ((3, 11), (3, 14))  # the second is excluded

# beside them, every extra of a runtime brings NumPy, safetensors and Pillow
_RUNTIME_NEEDS = {
    "executorch": ("torch", "torchao", "executorch"),
    "torchscript": ("torch",),
    "onnx": ("torch", "torchao", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "torchao", "executorch", "onnx", "onnxscript", "openvino"),
    "litert": ("torch", "torchao", "executorch", "ai-edge-litert"),
    "cuda": ("torch",),
}

_BACKEND_NEEDS = {"coreml": "coremltools"}  # executorch brings it, on Linux x86_64 and macOS only; so does its extra

# by backend: the packages that it needs beside its runtime, what they are for, and the extra
_EXTRAS_OF_BACKENDS = {
    # x86_64 Linux with glibc 2.35, and Windows
    "qnn-htp": (("onnxruntime-qnn",), "which holds the emulator of the NPU", "qnn"),
    **dict.fromkeys(ETHOS_U, (("ethos-u-vela", "tosa-tools"), "to compile for the NPU and to verify", "ethos-u")),
}

_NO_GPU = "no NVIDIA driver: emulated on the CPU, not timed, no AOTInductor package"

_ENGINES_OF_X86 = frozenset({"x86", "fbgemm"})

# a run writes models twice: staged and in place; resnet-sized ones with their reports stay below this
_LEAST_FREE_BYTES = 500_000_000

_TOOLS = (
    ("qemu-aarch64", "runs the device's ARM64 kernels; not needed with package --on host", "apt-get install qemu-user"),
    (
        "aarch64-linux-gnu-g++",
        "compiles the runners for the ARM64 runtimes",
        "apt-get install g++-aarch64-linux-gnu",
    ),
    ("ssh", "runs bundles on a Linux board: edgeq verify --on ssh:HOST", "apt-get install openssh-client"),
    ("adb", "runs bundles on a phone: edgeq verify --on adb", "apt-get install adb"),
    ("gcc", "builds the instruction counter for edgeq profile and --device", "apt-get install gcc"),
    ("nvidia-smi", "runs CUDA targets on a GPU; without it the CPU emulates them", "install NVIDIA's driver"),
    ("g++", "compiles AOTInductor packages on machines with a GPU", "apt-get install g++"),
    ("java", "runs the Android demo's tests", "apt-get install openjdk-17-jdk-headless"),
    ("mvn", "builds the Android demo for its tests", "apt-get install maven"),
    ("aapt2", "compiles the Android demo's resources for its tests", "apt-get install aapt"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        kind: python, library, target, tool or disk.
        found: its version or place; None where it is missing.
        needed: whether nothing works without it.
        remark: a problem or remark; empty if there is none.
        fix: the command or advice that fixes it; empty if there is nothing to do.
    """

    kind: str
    name: str
    ok: bool
    needed: bool
    found: str | None
    remark: str = ""
    fix: str = ""


_OPTIONS = ConfigOptions(
    keys=(
        *("model", "weights", "inputs", "state", "targets", "trust_source", "ignore_extra_weights", "seed"),
        *("data.calibration", "data.preprocess", "data.skip_bad_images"),
    ),
    docs={
        "model": "Also try this model: torchvision:NAME, file.py:factory, model.pt2, … or digits.",
        "targets": "Target to try, repeatable; if none is given, those of phones and of this host.",
        "data.calibration": "Samples to try it on: an image folder, .npz/.npy or file.py:function; else random inputs.",
    },
)


@grouped
def doctor(
    options: Annotated[dict[str, Any], _OPTIONS],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: flags.Quiet = False,
) -> None:
    """Show what is installed, what is missing, and how to install it.

    With MODEL, show which targets and schemes work for it: each pair is built and run on a few samples. Accuracy is
    not judged, and nothing is written.
    """
    values = to_values(options)
    if "model" in values:
        _try_model(values, as_json=as_json, quiet=quiet)
    if values:
        raise UsageError("options of a model were given without MODEL", "name the model: edgeq doctor MODEL …")
    findings = examine()
    ready = all(finding.ok for finding in findings if finding.needed)
    if as_json:
        say_json({"schema_version": 1, "ready": ready, "findings": [_as_json(finding) for finding in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        lines: list[str] = []
        kind = ""
        for finding in findings:
            if finding.kind != kind:
                kind = finding.kind
                lines += ["", kind] if lines else [kind]
            mark = "ok" if finding.ok else "x" if finding.needed else "-"
            said = "; ".join(part for part in (finding.found, finding.remark) if part)
            lines.append(f"  {mark:2}  {finding.name:{width}}  {said}{f'  ({finding.fix})' if finding.fix else ''}")
        say("\n".join([*lines, "", _verdict(findings) if ready else "not ready: see the lines marked with x"]))
    raise typer.Exit(ExitCode.OK if ready else ExitCode.ENVIRONMENT)


def _try_model(values: dict[str, Any], *, as_json: bool, quiet: bool) -> NoReturn:
    """Try a model with every target and scheme, and end with the exit code."""
    if "targets" not in values:
        ready = [name for name in _usual_targets() if name in {one.name for one in examine() if one.ok}]
        if not ready:
            raise EnvironmentProblem("no target can be built here", "see `edgeq doctor`")
        values = values | {"targets": ready}
    job = edgeq.config.resolve.request(values | {"device": {"on": "host"}}, {})
    with open_progress(quiet=quiet) as progress:
        found = edgeq.pipeline.pairs.try_pairs(job, progress)
    if as_json:
        pairs = [dataclasses.asdict(pair) for pair in found.pairs]
        say_json({"schema_version": 1, "model": found.model, "data": found.data, "pairs": pairs})
    else:
        say(render_pairs(found))
    raise typer.Exit(found.exit_code)


def _usual_targets() -> list[str]:
    """Return the targets of phones and of this host; those of GPUs only where one is."""
    names = []
    for name in profile_files():
        values = profile_values(name)
        is_near = values["platform"] in ("android", "ios") or values["arch"] == edgeq.core.system.host_arch()
        if is_near and (values["runtime"] != "cuda" or edgeq.core.system.driver_state()):
            names.append(name)
    return names


def render_pairs(found: Pairs) -> str:
    """Return a row for each target, a column for each scheme, and the reasons below."""
    by_pair = {(pair.target, pair.scheme): pair for pair in found.pairs}
    targets = list(dict.fromkeys(pair.target for pair in found.pairs))
    schemes = list(dict.fromkeys(pair.scheme for pair in found.pairs))
    reasons: dict[str, list[str]] = {}
    rows = [("target", *schemes)]
    for target in targets:
        cells = []
        for scheme in schemes:
            pair = by_pair.get((target, scheme))
            if pair is None:
                cells.append("-")
            elif pair.outcome == "ok":
                cells.append(f"ok {format_bytes(pair.size_bytes or 0)}")
            else:
                reason = f"{pair.outcome}: {pair.why}" + (f"; {pair.fix}" if pair.fix else "")
                number = [*reasons].index(reason) + 1 if reason in reasons else len(reasons) + 1
                reasons.setdefault(reason, []).append(f"{target} {scheme}")
                cells.append(f"{pair.outcome} ({number})")
        rows.append((target, *cells))
    working = sum(pair.outcome == "ok" for pair in found.pairs)
    lines = [f"{found.model}: {working} of {len(found.pairs)} pairs work, on {found.data}"]
    lines += edgeq.report.text.aligned(rows)
    lines += [f"({n}) {edgeq.report.text.printable(reason)}" for n, reason in enumerate(reasons, 1)]
    return "\n".join(
        [*lines, "-: the target has no such scheme; not tried: qat-int8 and mixed-int8, which train and search"]
    )


def _verdict(findings: Sequence[Finding]) -> str:
    """Return what an installation that has all that it needs is ready for."""
    if any(finding.ok for finding in findings if finding.kind == "target"):
        return "ready"
    without = "ready to inspect, compare reports, install, release and follow updates"
    return f"{without}; packaging and running models needs an extra: {edgeq.core.system.install_command('executorch')}"


def examine() -> tuple[Finding, ...]:
    """Return all findings, in the order in which they are printed."""
    libraries = [_library(name, version) for name, version in TESTED.items()]
    optional = [_library(name, *known) for name, known in EXTRA_LIBRARIES.items()]
    present = {finding.name for finding in (*libraries, *optional) if finding.found}
    tools = [_tool(*tool) for tool in _TOOLS]
    version = sys.version_info[:2]
    low, high = _ALLOWED_PYTHON
    ok = low <= version < high
    remark = "" if version == _TESTED_PYTHON else "untested" if ok else "edgeq needs 3.11, 3.12 or 3.13"
    fix = "" if ok else "make the virtual environment with python3.11"
    return (
        Finding(
            kind="python", name="python", ok=ok, needed=True, found=platform.python_version(), remark=remark, fix=fix
        ),
        *libraries,
        *optional,
        *_targets(present),
        *tools,
        _disk(Path.cwd()),
    )


def _library(name: str, tested: str, use: str = "", extra: str = "") -> Finding:
    """Return the finding of a library that edgeq always needs, or that comes with an extra."""
    fix = f"pip install {name}=={tested}"
    version = _version(name)
    if version is None and extra:
        remark, fix = f"missing; {use}", edgeq.core.system.install_command(extra)
        return Finding(kind="library", name=name, ok=False, needed=False, found=None, remark=remark, fix=fix)
    if version is None:
        return Finding(kind="library", name=name, ok=False, needed=True, found=None, remark="missing", fix=fix)
    # torch adds "+cpu" and the like to its version
    same = version.partition("+")[0] == tested
    remark = "" if same else f"edgeq was tested with {tested}"
    return Finding(
        kind="library", name=name, ok=True, needed=not extra, found=version, remark=remark, fix="" if same else fix
    )


def _targets(present: set[str]) -> list[Finding]:
    findings = []
    for name in profile_files():
        values = profile_values(name)
        findings.append(_target(name, str(values["runtime"]), str(values["backend"]), present))
    return findings


def _target(target: str, runtime: str, backend: str, present: set[str]) -> Finding:
    missing = [need for need in _RUNTIME_NEEDS[runtime] if need not in present]
    if missing:
        remark, fix = f"needs {', '.join(missing)}", edgeq.core.system.install_command(runtime)
    elif backend in _BACKEND_NEEDS and _version(_BACKEND_NEEDS[backend]) is None:
        remark = f"needs {_BACKEND_NEEDS[backend]}, which is available on Linux x86_64 and macOS"
        fix = edgeq.core.system.install_command(backend)
    elif backend in _EXTRAS_OF_BACKENDS and None in map(_version, _EXTRAS_OF_BACKENDS[backend][0]):
        names, use, extra = _EXTRAS_OF_BACKENDS[backend]
        remark, fix = f"needs {' and '.join(names)}, {use}", edgeq.core.system.install_command(extra)
    elif backend in _ENGINES_OF_X86 and platform.machine() not in ("x86_64", "AMD64"):
        remark, fix = f"the {backend} engine can only be verified on an x86 host", "run edgeq on an x86_64 machine"
    else:
        remark, fix = "", ""
    if runtime == "cuda" and not remark and not edgeq.core.system.driver_state():
        # what is made here is whole, but neither timed nor compiled
        return Finding(kind="target", name=target, ok=True, needed=False, found="ready", remark=_NO_GPU)
    converter = edgeq.lower.litert_environment
    if runtime == "litert" and not remark and not converter.is_ready():
        size = f"{converter.DOWNLOAD_GB} GB to download, {converter.INSTALLED_GB} GB on disk"
        note = f"the first run installs its converter into edgeq's cache: {size}"
        return Finding(kind="target", name=target, ok=True, needed=False, found="ready", remark=note)
    found = None if remark else "ready"
    # one target that cannot be built here does not stop the others
    return Finding(kind="target", name=target, ok=not remark, needed=False, found=found, remark=remark, fix=fix)


def _version(name: str) -> str | None:
    import importlib.metadata as metadata  # which loads all of email

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tool(name: str, use: str, fix: str) -> Finding:
    found = shutil.which(name)
    remark = "" if found else f"optional: {use}"
    return Finding(
        kind="tool", name=name, ok=found is not None, needed=False, found=found, remark=remark, fix="" if found else fix
    )


def _disk(folder: Path) -> Finding:
    free_bytes = shutil.disk_usage(folder).free
    ok = free_bytes >= _LEAST_FREE_BYTES
    remark = "" if ok else f"a run may need {format_bytes(_LEAST_FREE_BYTES)}"
    fix = "" if ok else "free some space, or work in another folder"
    found = f"{format_bytes(free_bytes)} free at {folder}"
    return Finding(kind="disk", name="disk", ok=ok, needed=True, found=found, remark=remark, fix=fix)


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "name": finding.name,
        "ok": finding.ok,
        "needed": finding.needed,
        "found": finding.found,
        "remark": finding.remark,
        "fix": finding.fix,
    }
