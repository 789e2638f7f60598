"""What a manifest says, fact by fact. No times, no paths, nothing of the machine that built the bundle."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeq.artifacts import Outcome, TunedWeights, Weights
from edgeq.preprocess import Preprocess
from edgeq.strict import Strict

# Names become folders and files in apps, on update servers and on devices
SLUG = r"^[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9_+-])?$"
Slug = Annotated[str, Field(pattern=SLUG)]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]  # exact in every JSON reader
Measure = Annotated[float, Field(allow_inf_nan=False)] | Literal["inf", "-inf", "nan"]
FileRole = Literal["artifact", "golden", "compiled", "example"]
Dtype = Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]


class ModelFacts(Strict):
    """Which model this is."""

    name: Slug
    version: Slug
    weights: Weights = Field(description="where the parameters came from; `random` must not ship")


class TargetFacts(Strict):
    """Where it runs."""

    name: Slug
    platform: Literal["android", "ios", "linux"]
    arch: Literal["arm64", "x86_64"]
    runtime: Literal["executorch", "torchscript", "onnx", "cuda"]
    backend: Literal["xnnpack", "coreml", "qnnpack", "x86", "fbgemm", "ort", "cuda", "cuda-torchscript"]


class RuntimeRange(Strict):
    """What loads it."""

    name: Literal["executorch", "torchscript", "onnx", "cuda"]
    exported_with: str = Field(description="the version that wrote the artifact")
    oldest_in_field: str = Field(description="the oldest version that the app builds in the field carry")
    bytecode_version: Count | None = Field(description="of a TorchScript archive; of an ONNX file its opset")
    build: Literal["full", "mobile"] = Field(
        default="full",
        exclude_if=lambda build: build == "full",
        description="of ONNX Runtime: mobile has few operators; absent for the full one",
    )


class Tensor(Strict):
    """An input or output; the batch comes first."""

    name: TensorName
    dtype: Dtype
    shape: tuple[Count, ...] = Field(max_length=16)
    preprocessing: Preprocess | None = Field(default=None, description="for an image input; null: fed as it is")


class CudaBox(Strict):
    """What a GPU box must have."""

    torch: str = Field(description="the version that wrote the artifact; older ones are refused")
    cuda: str | None = Field(description="that the compiled package was built with; null without one")
    compiled_for: str | None = Field(description="compute capability that alone runs that package; null without one")
    least_capability: str | None = Field(description="compute capability that the arithmetic needs; null: any")


class FileEntry(Strict):
    """A file of the bundle. The manifest itself and the reports are not listed."""

    path: Slug = Field(description="a plain file name")
    sha256: Sha256
    size_bytes: Count
    role: FileRole


class LayerSummary(Strict):
    """What the lowered model computes, and where. Shares are of the multiply-accumulates, 0 to 1."""

    macs: Count | None = Field(description="of one inference; null where the artifact came as it is")
    delegated_macs: Measure | None
    int8_macs: Measure | None = Field(description="read from the runtime's own profile; null: could not be matched")
    undelegated: tuple[str, ...] = Field(description="operators that were left to portable kernels")
    kept_fp32: tuple[str, ...] = Field(description="quantizable layers that stay in float")


class GateVerdict(Strict):
    """One gate. What a gate measured in ms or bytes stands in report.json only."""

    name: str
    outcome: Outcome
    limit: str
    bound: Measure | None = Field(
        default=None, description="the limit as a number, in the base unit of its name: bytes, ms, percent, pp or dB"
    )
    detail: str | None


class IntervalFacts(Strict):
    """An estimate with its 95% interval."""

    estimate: Measure
    low: Measure
    high: Measure


class Accuracy(Strict):
    """The artifact against fp32."""

    samples: Count
    inputs: Literal["evaluation", "random"]
    metric: str | None
    fp32_score: Measure | None
    score: Measure | None
    drop_pp: IntervalFacts | None
    top1_agreement: Measure | None
    sqnr_db: Measure | None = Field(description="null, as the two below, where there is no fp32 to compare with")
    cosine: Measure | None
    max_abs: Measure | None


class ParityFacts(Strict):
    """The artifact against the converted graph."""

    samples: Count
    max_abs: Measure
    max_steps: Measure | None
    sqnr_db: Measure
    differing: Measure
    reaction_db: Measure | None = Field(
        default=None, description="the graph against itself with its input one int8 step off; null where not needed"
    )


class AgreementFacts(Strict):
    """Two runs of the artifact on the same samples."""

    left: str = Field(description="host, fp32, or a CPU with its runtime")
    right: str
    samples: Count
    max_abs: Measure
    sqnr_db: Measure = Field(description="inf: the outputs are equal")
    differing: Measure = Field(description="share of the output elements that differ")
    top1_flips: Count | None


class DeviceRunFacts(Strict):
    """The artifact on one CPU model, in one version of the device's runtime."""

    cpu: str = Field(description="QEMU's name of the model, or native")
    runtime: str
    features: tuple[str, ...] = Field(description="instruction-set extensions that the runtime detected")
    samples: Count
    host: AgreementFacts
    fp32: AgreementFacts | None
    score: Measure | None = Field(description="the mean over these samples; null without labels")
    host_score: Measure | None
    fp32_score: Measure | None
    scored: Count
    rescored: Count | None = Field(description="of these, with another score than on the host")


class EmulationFacts(Strict):
    """The artifact on the device's own kernels."""

    runs: tuple[DeviceRunFacts, ...]
    between: tuple[AgreementFacts, ...] = Field(description="each pair of runs")


class GoldenFacts(Strict):
    """How a device tests itself with golden.npz: `input_<name>` and `output_<i>`, arrays [samples, …]."""

    samples: Count
    preprocessed: bool = Field(description="whether the inputs are already what the model takes")
    sqnr_floor_db: Measure = Field(description="the least signal-to-difference ratio that may be accepted")
    made_on: str | None = Field(default=None, description="the CPU model that gave the outputs; null: the host")
    made_by: Literal["graph"] | None = Field(
        default=None, description="graph: the converted graph gave the outputs, the artifact was not run; null: it was"
    )


class QatFacts(Strict):
    """How qat-int8 trained; its samples are neither those of the evaluation nor any of its own choosing."""

    data_sha256: Sha256
    samples: Count = Field(description="trained on")
    held_out: Count = Field(description="that only chose between the candidates")
    loss: Literal["kl", "mse"] | None = Field(description="null where the user's own loop trained")
    epochs: Count = Field(description="that were finished; 0 for the user's own loop")
    learning_rate: Measure | None
    batch: Count | None
    weights: TunedWeights = Field(description="which candidate was kept")


class SearchFacts(Strict):
    """What mixed-int8 chose the layers in float by; its samples are none of the calibration's or the evaluation's."""

    data_sha256: Sha256
    samples: Count
    assignments: Count = Field(description="that were tried")


class Provenance(Strict):
    """What it was made from."""

    source_sha256: Sha256
    weights_sha256: Sha256 | None = Field(default=None, description="null where source_sha256 covers them")
    calibration_sha256: Sha256 | None
    calibration_samples: Count
    evaluation_sha256: Sha256 | None
    evaluation_samples: Count
    data_findings: tuple[str, ...] = Field(description="names of the data lint's findings")
    qat: QatFacts | None = Field(default=None, description="null where nothing was trained")
    search: SearchFacts | None = Field(default=None, description="null where nothing was searched")
    seed: Count
    tools: dict[str, str] = Field(description="version of each tool")
