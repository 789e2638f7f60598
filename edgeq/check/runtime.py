"""Whether the oldest runtime in the field can load the artifact."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from edgeq.check.gate import unverified
from edgeq.core.errors import ExitCode, Outcome
from edgeq.core.results.model import LoweredModel
from edgeq.core.results.report import Gate
from edgeq.core.targets import TargetProfile

Version = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteRuntime:
    """The bytecode versions and operators that a torch version's lite interpreter loads.

    Attributes:
        min_bytecode, max_bytecode: kMinSupportedBytecodeVersion and kMaxSupportedBytecodeVersion of that torch's
            caffe2/serialize/versions.h.
        operators: name of the file next to this one that lists its operators.
    """

    min_bytecode: int
    max_bytecode: int
    operators: str


# pytorch_android_lite carries the version of the torch that it was built from; 2.1.0 is the last
LITE_RUNTIMES: dict[Version, LiteRuntime] = {
    (2, 1): LiteRuntime(min_bytecode=4, max_bytecode=9, operators="torch-2.1.0.ops.txt"),
}

# the newest opset that an onnxruntime release loads as finished, tried with the wheels of these versions
ONNX_OPSETS: dict[Version, int] = {(1, 16): 19, (1, 18): 21, (1, 22): 22, (1, 31): 26}

# onnxruntime-mobile, the build with few operators: of the last releases only this one's list was published
MOBILE_OPERATORS: dict[Version, str] = {(1, 17): "onnxruntime-mobile-1.17.ops.txt"}

_MOBILE_OPSET = 15  # the newest whose operators it has


def runtime_gate(target: TargetProfile, lowered: LoweredModel) -> Gate:
    """Check that the oldest of the profile's `[app] runtimes` loads the artifact (exit code 3).

    ExecuTorch, and TorchScript on an x86 host: by (major, minor), since an artifact runs on the runtime that wrote it
    or a newer one. The lite interpreter: by bytecode version and by operators. ONNX: by opset; the full builds of ONNX
    Runtime have every operator of an opset that they know.
    """
    oldest = target.app.oldest
    if lowered.runtime != target.runtime:
        return _gate("failed", oldest, lowered, f"target {target.name} runs {target.runtime} artifacts")
    if target.backend == "qnnpack":
        package = "pytorch_android_lite" if target.platform == "android" else "torch"
        return _lite(f"{package} {oldest}", oldest, lowered)
    if lowered.runtime == "onnx":
        return _mobile(oldest, lowered) if target.app.build == "mobile" else _onnx(oldest, lowered)
    exporter = _version(lowered.runtime_version)
    if exporter is None:
        why = f"the artifact does not say which {lowered.runtime} wrote it (got {lowered.runtime_version!r})"
        return unverified("runtime", f"{lowered.runtime} {oldest}", why)
    if exporter > (_version(oldest) or (0, 0)):
        why = (
            f"written by {lowered.runtime} {lowered.runtime_version}, but the oldest app in the field carries {oldest}:"
            " ship a newer app first, or export with that version"
        )
        return _gate("failed", oldest, lowered, why)
    unchecked = f"; operators not checked: no list for {oldest}" if target.platform == "android" else ""
    return _gate("ok", oldest, lowered, f"the oldest app in the field carries {oldest}{unchecked}")


def _lite(name: str, oldest: str, lowered: LoweredModel) -> Gate:
    runtime = LITE_RUNTIMES.get(_version(oldest) or (0, 0))
    if runtime is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in LITE_RUNTIMES)
        why = f"edgeq does not know which bytecode {name} loads (known: {known})"
        return unverified("runtime", f"torchscript {oldest}", why)
    if lowered.bytecode_version is None:
        return _gate("failed", oldest, lowered, "not saved for the lite interpreter: it has no bytecode")
    if not runtime.min_bytecode <= lowered.bytecode_version <= runtime.max_bytecode:
        why = (
            f"bytecode version {lowered.bytecode_version}, but {name}"
            f" loads {runtime.min_bytecode} to {runtime.max_bytecode}"
        )
        return _gate("failed", oldest, lowered, why)
    if not lowered.operators:
        return _unlisted(f"torchscript {oldest}")
    missing = sorted(set(lowered.operators) - operators_of(runtime))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        why = f"{name} lacks {', '.join(missing[:5])}{more}"
        return _gate("failed", oldest, lowered, why)
    why = (
        f"bytecode version {lowered.bytecode_version}; torch {oldest} registers all {len(lowered.operators)} operators"
    )
    return _gate("ok", oldest, lowered, why)


def _onnx(oldest: str, lowered: LoweredModel) -> Gate:
    version, opset = _version(oldest) or (0, 0), lowered.bytecode_version
    known = max((item for item in ONNX_OPSETS if item <= version), default=None)
    if known is None or opset is None:
        first = min(ONNX_OPSETS)
        why = f"edgeq does not know which opset onnxruntime {oldest} loads (known from {first[0]}.{first[1]} on)"
        return unverified("runtime", f"onnx {oldest}", why)
    if opset > ONNX_OPSETS[known]:
        why = f"opset {opset}, but onnxruntime {oldest} loads opsets up to {ONNX_OPSETS[known]}: ship a newer app first"
        return _gate("failed", oldest, lowered, why)
    foreign = sorted(name for name in lowered.operators if not name.startswith(("ai.onnx::", "com.microsoft::")))
    if foreign:
        return _gate("failed", oldest, lowered, f"onnxruntime has no operators {', '.join(foreign[:5])}")
    return _gate("ok", oldest, lowered, f"opset {opset}; onnxruntime {oldest} loads opsets up to {ONNX_OPSETS[known]}")


def _mobile(oldest: str, lowered: LoweredModel) -> Gate:
    """Hold an .ort file to the operators of onnxruntime-mobile."""
    known = MOBILE_OPERATORS.get(_version(oldest) or (0, 0))
    if known is None:
        versions = ", ".join(f"{major}.{minor}" for major, minor in MOBILE_OPERATORS)
        why = f"edgeq does not know the operators of onnxruntime-mobile {oldest} (known: {versions})"
        return unverified("runtime", f"onnx {oldest}", why)
    if lowered.path.suffix != ".ort":
        return _gate("failed", oldest, lowered, 'onnxruntime-mobile reads .ort files only: set file_format = "ort"')
    if not lowered.operators:
        return _unlisted(f"onnx {oldest}")
    has = frozenset(_lines(known))
    missing = [name for name in lowered.operators if not _in_mobile(name, has)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        why = f"onnxruntime-mobile {oldest} lacks {', '.join(missing[:5])}{more}: ship the full build"
        return _gate(
            "failed",
            oldest,
            lowered,
            f"{why}, or build your own (edgeq inspect --required-operators lists the operators)",
        )
    return _gate("ok", oldest, lowered, f"onnxruntime-mobile {oldest} has all {len(lowered.operators)} operators")


def _unlisted(limit: str) -> Gate:
    """Return the gate of an artifact whose operators are not known: that it lacks none would be said of any."""
    return unverified("runtime", limit, "the operators that the artifact needs are not known")


def _in_mobile(name: str, has: frozenset[str]) -> bool:
    """Whether the mobile build has an operator, which keeps the version of the opset that it last changed in."""
    plain, _, since = name.partition("@")
    return plain in has and int(since or 0) <= _MOBILE_OPSET


@functools.cache
def operators_of(runtime: LiteRuntime) -> frozenset[str]:
    """Return the operators, with overload names, that a lite interpreter of that torch version can have."""
    return frozenset(_lines(runtime.operators))


def _lines(name: str) -> tuple[str, ...]:
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def _gate(outcome: Outcome, oldest: str, lowered: LoweredModel, detail: str) -> Gate:
    return Gate(
        name="runtime",
        outcome=outcome,
        limit=oldest,
        measured=f"{lowered.runtime} {lowered.runtime_version}",
        detail=detail,
        exit_code=ExitCode.UNSUPPORTED,
    )


def _version(text: str) -> Version | None:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
