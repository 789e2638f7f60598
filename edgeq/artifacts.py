"""The frozen results that the steps hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeq.errors import ExitCode

if TYPE_CHECKING:
    from edgeq.preprocess import Preprocess

SourceKind = Literal["module", "exported", "pte", "ptl"]
Weights = Literal["file", "pretrained", "own", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A model input or output.

    Attributes:
        name: the argument's name, or `output0` and so on.
        dtype: NumPy's name of the element type.
        shape: the exported shape, the batch first.
        low, high: the range that random inputs are drawn from (high is excluded for floats).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model as it came, in eval mode and contiguous.

    Attributes:
        name: the model's name in bundles.
        kind: what `model` is.
        model: a torch.nn.Module, a torch.export.ExportedProgram, or the Path of an existing artifact.
        inputs: what it takes.
        weights: where the parameters came from; `own` means the factory or program brought them.
        fp32_bytes: bytes of parameters and buffers at four bytes an element; 0 where unknown.
        source_sha256: hash of what the user named (the file, or the state dict as loaded).
    """

    name: str
    kind: SourceKind
    model: Any
    inputs: tuple[TensorSpec, ...]
    weights: Weights
    fp32_bytes: int
    source_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """A model after fusion and quantization, still in PyTorch.

    Attributes:
        scheme: which scheme made it.
        graph: a callable torch.nn.Module that computes what the artifact is to compute.
        exported: the same as an ExportedProgram where there already is one, else None.
        quantized: names of the layers that compute in int8.
        kept_fp32: names of the quantizable layers that stay in float.
        output_steps: the quantization step of each output that is itself quantized, else None.
    """

    scheme: str
    graph: Any
    exported: Any
    quantized: tuple[str, ...]
    kept_fp32: tuple[str, ...]
    output_steps: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An operator of the lowered model that multiplies and accumulates, or holds weights.

    Attributes:
        name: the module's name in the user's model, or the operator's where it has none.
        op: the operator.
        macs: multiply-accumulates of one inference.
        weight_bytes: bytes of its constants in the artifact.
        delegated: whether the delegate took it.
    """

    name: str
    op: str
    macs: int
    weight_bytes: int
    delegated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredModel:
    """An artifact on disk, and what is known of it without running it.

    Attributes:
        path: the artifact, named as it will be in the bundle.
        runtime: `executorch` or `torchscript`.
        runtime_version: the version that wrote it; older runtimes are refused.
        bytecode_version: of a TorchScript archive, else None.
        passes: the optimization passes that ran, in order.
        operators: operators that the runtime itself must have.
        undelegated: what was left to portable kernels, an entry for each call.
        layers: operators in the order of execution; none where the artifact came as it is.
        delegated_macs: share of the multiply-accumulates that the delegate took; None where there is no delegate,
            or where it is not known.
        delegate_calls: how many delegated parts the program has.
    """

    path: Path
    runtime: str
    runtime_version: str
    bytecode_version: int | None
    passes: tuple[str, ...]
    operators: tuple[str, ...]
    undelegated: tuple[str, ...]
    layers: tuple[Layer, ...]
    delegated_macs: float | None
    delegate_calls: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(layer.macs for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95% interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The artifact against the converted graph, over `samples` inputs.

    Attributes:
        max_abs: the largest difference of any output.
        max_steps: the same in quantization steps of that output; None unless every output is quantized.
        sqnr_db: signal to difference of the worst output; infinite where the outputs are equal.
        differing: share of the output elements that differ.
        reaction_db: the graph's own SQNR when every input moves by one int8 step; None where that was not needed.
    """

    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
    reaction_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The artifact against fp32, over `samples` inputs.

    Attributes:
        inputs: `evaluation` data or `random` inputs.
        sqnr_db: of the worst output; None, as the two below, where the source is an artifact without fp32.
        cosine, max_abs: over all outputs together.
        top1_agreement: share of samples with the same argmax; None where no output is [N, classes].
        metric: the name of the score, or None without labels.
        fp32_score, score: its mean; None without labels.
        drop_pp: fp32 minus artifact in percentage points, paired; None without labels.
    """

    samples: int
    inputs: Literal["evaluation", "random"]
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    top1_agreement: float | None
    metric: str | None = None
    fp32_score: float | None = None
    score: float | None = None
    drop_pp: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of one inference on the host, in ms, of `runs` runs after `warmup`."""

    p50_ms: float
    p90_ms: float
    runs: int
    warmup: int
    threads: int
    arch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShare:
    """What the runtime's own profile says of the multiply-accumulates.

    Attributes:
        int8_macs: share of MACs in int8 kernels; None where the profile could not be matched to the layers.
        kernels: kernel names in order of execution.
        why_unmatched: the reason for a None.
    """

    int8_macs: float | None
    kernels: tuple[str, ...]
    why_unmatched: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two runs of one artifact on the same samples, `right` against `left`.

    Attributes:
        max_steps: the largest difference in quantization steps; None unless every output is quantized.
        sqnr_db: of the worst output; infinite where the outputs are equal.
        differing: share of the output elements that differ.
        top1_flips: samples whose argmax is another one; None where the first output is no [N, classes].
    """

    left: str
    right: str
    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
    top1_flips: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRun:
    """The artifact on one CPU model, in one version of the device's runtime.

    Attributes:
        cpu: QEMU's name of the model, or `native`.
        runtime: package and version.
        features: the instruction-set extensions that the runtime detected.
        host: against the host's run of the same artifact.
        fp32: against the float model; None where there is none.
        score, host_score, fp32_score: means over these samples; None without labels.
        scored: how many samples have a score.
        rescored: of these, with another score than on the host; None without labels.
        drop_pp: fp32 minus device in percentage points, paired, over these samples.
        findings: what is wrong whatever the limits: NaN, another shape.
    """

    cpu: str
    runtime: str
    features: tuple[str, ...]
    samples: int
    host: Agreement
    fp32: Agreement | None
    score: float | None
    host_score: float | None
    fp32_score: float | None
    scored: int
    rescored: int | None
    drop_pp: Interval | None
    findings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The CPU with its runtime, for people."""
        return f"{self.cpu} ({self.runtime})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """The artifact on the device's own kernels.

    Attributes:
        emulator: QEMU with its version, or `native` on an ARM64 host.
        between: each pair of runs.
        problem: why there are no runs; "" where there are.
        exit_code: of that problem.
        is_unmeasured: whether the problem only means that nothing is known, as when the time was up.
        without_wheel: runtime versions of the app builds in the field that no ARM64 wheel is known for.
    """

    emulator: str
    runs: tuple[DeviceRun, ...]
    between: tuple[Agreement, ...] = ()
    problem: str = ""
    exit_code: ExitCode = ExitCode.VERIFICATION
    is_unmeasured: bool = False
    without_wheel: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What running the artifact showed. None means that it could not be measured.

    Attributes:
        host: what it ran on, in words.
        findings: what is wrong whatever the limits: NaN, a constant output, a wrong shape.
        emulation: on the device's kernels; None where that was not asked for.
        not_emulated: why a target with a device was not run on its kernels; "" otherwise.
    """

    host: str
    parity: Parity | None
    fidelity: Fidelity | None
    timing: Timing | None
    kernels: KernelShare | None
    peak_memory_bytes: int | None
    load_ms: float | None
    outputs: tuple[TensorSpec, ...]
    findings: tuple[str, ...]
    emulation: Emulation | None = None
    not_emulated: str = ""


Outcome = Literal["ok", "failed", "unverified", "allowed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate: what was asked for, what was measured, and the exit code if that is not enough.

    Attributes:
        outcome: `unverified` fails like `failed`; `allowed` is unverified but named in --allow-unmeasured.
        limit, measured: as people read them.
        detail: by how much, or why it could not be measured.
    """

    name: str
    outcome: Outcome
    limit: str
    measured: str
    detail: str
    exit_code: ExitCode

    @property
    def passed(self) -> bool:
        """Whether this gate lets the artifact through."""
        return self.outcome in ("ok", "allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All gates of one artifact."""

    gates: tuple[Gate, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code among the gates that failed."""
        return min((gate.exit_code for gate in self.gates if not gate.passed), default=ExitCode.OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """A finding of the data lint: its name, and a line that says what was seen."""

    name: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What the manifest says of the data: hashes and counts, never paths."""

    calibration_sha256: str | None = None
    calibration_samples: int = 0
    evaluation_sha256: str | None = None
    evaluation_samples: int = 0
    findings: tuple[DataFinding, ...] = ()
    excluded_shared: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInput:
    """All that the bundle's writer needs."""

    model: LoadedModel
    model_version: str
    target: Any
    scheme: str
    lowered: LoweredModel
    verified: VerifyReport
    checked: CheckReport
    labels: tuple[str, ...]
    preprocess: Preprocess | None
    golden: GoldenSet
    data: DataFacts
    seed: int
    tools: dict[str, str]
    quantized: tuple[str, ...] = ()
    kept_fp32: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSet:
    """A few samples as an app would have them, and the outputs that it must reproduce.

    Attributes:
        inputs: for each model input, an array [samples, …] before preprocessing.
        outputs: for each model output, an array [samples, …].
        preprocessed: whether `inputs` are already what the model takes.
        sqnr_floor_db: the least signal-to-difference ratio that a device's self-test may show.
        made_on: the CPU model that gave the outputs; None for the host.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    preprocessed: bool
    sqnr_floor_db: float
    made_on: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One target and scheme of a run: a line of the closing table.

    Attributes:
        path: the bundle, in place or under `rejected/`.
        seconds: what each step took; a step shared with another row counts once.
        layers: of the lowered model; none where the artifact came as it is.
    """

    model: str
    target: str
    scheme: str
    path: Path
    digest: str
    size_bytes: int
    download_bytes: int
    fp32_bytes: int
    verified: VerifyReport
    checked: CheckReport
    delegated_macs: float | None
    weights: Weights
    cached: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """A whole run."""

    rows: tuple[Row, ...]
    data: DataFacts

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code of all rows that failed."""
        codes = [row.checked.exit_code for row in self.rows if row.checked.exit_code]
        return min(codes, default=ExitCode.OK)
