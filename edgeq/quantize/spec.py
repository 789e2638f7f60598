"""What a quantization method is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.config import Progress, QatConfig
from edgeq.core.errors import UsageError, nearest
from edgeq.core.results.model import LoadedModel, QParams, Scores, StoredLayer, TensorSpec
from edgeq.core.samples import Batch, Dataset, Outputs
from edgeq.core.schemes import ObserverName

# Backends whose activations are uint8, and where a clamp becomes the saturation of the range behind it: ONNX Runtime
# has no int8 convolution for x86 whose activations are signed, and OpenVINO's are for unsigned ones.
UNSIGNED = frozenset({"ort", "openvino"})

# Activations that a backend's convolutions and linear layers compute in float on their sums, before they round:
# OpenVINO 2026.4 fuses these (`FuseConvolutionAndSimpleOperation` and others of its CPU plugin's graph optimizer).
FUSED_IN_FLOAT = {
    "openvino": frozenset({"silu", "hardswish", "mish", "gelu", "sigmoid", "hardsigmoid", "tanh", "elu", "leaky_relu"})
}

# backends whose lowering makes a program in float32 compute in half by itself
NARROWING = frozenset({"coreml", "vulkan"})
# Backends whose convolutions and linear layers clamp their own results, which sums do not.
CLAMPING = frozenset({"xnnpack", "litert"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QatSpec:
    """What quantization-aware training is given.

    Attributes:
        samples: what it may train on; labels are not needed.
        options: epochs, batch, learning rate.
        logits: whether the outputs are logits [N, classes]; else their values are matched.
        seed: of all that is random.
        train: the user's own loop: called with the prepared module, the teacher and the data, returns the module.
        state_folder: where the state of each epoch is kept; None for nowhere.
        identity: what else decides the result: hashes of the data and of the code.
    """

    samples: Dataset
    options: QatConfig
    logits: bool
    seed: int
    train: Callable[[Any, Any, Any], Any] | None
    state_folder: Path | None
    identity: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """What the search for a mixed precision is given.

    Attributes:
        samples: what assignments are judged on; neither calibration nor evaluation samples.
        score: runs a converted graph on them, against fp32.
        limits: what its scores must keep, by the limits' names, at least one.
        size_limit: the most bytes that the artifact may have; None for any.
        state_folder: where the state is kept after each measurement; None for nowhere.
        identity: what else decides the result: hashes of the data and of the code.
    """

    samples: Dataset
    score: Callable[[Any], Scores]
    limits: tuple[tuple[str, float], ...]
    size_limit: float | None
    state_folder: Path | None
    identity: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseSpec:
    """What keeping more of a shipped model than its scales and zero points is given.

    Attributes:
        layers: as the shipped artifact stores them.
        score: runs a converted graph on calibration samples, against fp32.
        samples: how many these are.
    """

    layers: tuple[StoredLayer, ...]
    score: Callable[[Any], Scores]
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """What a ranking of layers is measured on, where that is not the calibration data.

    Attributes:
        samples: all of them are run once for each layer.
        score: of a graph's outputs for these samples, batch by batch; more is better.
    """

    samples: Dataset
    score: Callable[[Sequence[tuple[Batch, Outputs]]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeSpec:
    """Input of every quantization method.

    Attributes:
        model: the float model.
        captured: the same as an ExportedProgram; None for TorchScript targets.
        backend: the quantized engine, or the delegate.
        calibration: samples whose ranges are observed; empty for schemes that need none.
        keep_fp32: names or types of modules that stay in float.
        int4_group: how many weights of a row may share a scale in int4.
        label: text for progress.
        qat: for schemes that train, else None.
        shipped: the shipped model's scales and zero points, to be reused where they fit; else none.
        sticky: for keeping more of the shipped model than these, else None.
        reduce_range: whether weights keep to seven bits, so that 16-bit sums of two products cannot overflow.
        search: for schemes that search, else None.
        judge: for a ranking by score, else None.
    """

    model: LoadedModel
    captured: Any
    backend: str
    observer: ObserverName
    keep_fp32: tuple[str, ...]
    calibration: Dataset
    progress: Progress
    label: str
    qat: QatSpec | None = None
    shipped: tuple[QParams, ...] = ()
    sticky: ReuseSpec | None = None
    reduce_range: bool = False
    search: SearchSpec | None = None
    judge: JudgeSpec | None = None
    int4_group: int = 128

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self.model.inputs


# --- Weights that came pruned.


_PRUNED = 0.05  # zeros of a weight: training leaves next to none by chance


def is_pruned(weight: Any) -> bool:
    """Whether 5% or more of a matrix or kernel is exactly zero, which pruning does and training does not."""
    return bool(weight.ndim > 1 and (weight == 0).float().mean() >= _PRUNED)


# --- Module names and types as `--keep-fp32` gives them.


def matched_names(keep: Sequence[str], modules: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the modules that `keep` names, by module name or by type.

    Args:
        keep: module names ("features.0") or type names ("Linear").
        modules: type name by module name.

    Raises:
        UsageError: an entry that matches no module; the nearest is offered.
    """
    matched: set[str] = set()
    for entry in keep:
        found = {name for name, kind in modules.items() if entry in (name, kind)}
        if not found:
            known = sorted({*modules, *modules.values()} - {""})
            what = f"--keep-fp32 {entry!r} does not match any module of the model.{nearest(entry, known)}"
            raise UsageError(what, "give a module's name or type; `edgeq inspect` of a bundle lists the names")
        matched |= found
    return frozenset(matched)


def inside(name: str, modules: Collection[str]) -> bool:
    """Return whether a module or parameter is one of `modules`, or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
