"""The manifest: the contract between edgeq, app and update channel, and its reader.

It holds no times, paths or facts about the build machine, so equal inputs give equal bytes. Measured
numbers are rounded to four significant digits, so that noise in the last bits does not change the digest.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from edgeq.core.errors import Outcome, UsageError
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import TunedWeights, VaryingSize, Weights, shape_text
from edgeq.core.runtimes import BackendName, RuntimeName
from edgeq.core.schema import Strict, document_bytes, parse_strict


def measure(value: float) -> float | Literal["inf", "-inf", "nan"]:
    """Return a measured number with four significant digits; JSON has no infinity or NaN, so these are strings."""
    rounded = float(f"{value:.4g}")
    if math.isnan(rounded):
        return "nan"
    if math.isinf(rounded):  # the greatest floats round up to it
        return "inf" if rounded > 0 else "-inf"
    return rounded + 0.0  # -0.0 and 0.0 are equal, and must give equal bytes


# --- What a manifest says, fact by fact. No times, no paths, nothing of the machine that built the bundle.


# Names become folders and files in apps, on update servers and on devices
SLUG = r"^[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9_+-])?$"

Slug = Annotated[str, Field(pattern=SLUG)]

TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]  # exact in every JSON reader


def _rounded(value: Any) -> Any:
    return measure(value) if isinstance(value, float) else value


# documents are filled from the results' own fields, and this rounds them
Measure = Annotated[
    Annotated[float, Field(allow_inf_nan=False)] | Literal["inf", "-inf", "nan"], BeforeValidator(_rounded)
]

FileRole = Literal["artifact", "weights", "golden", "compiled", "example", "reference", "tokenizer"]

Dtype = Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]


class ModelFacts(Strict):
    """The model's identity."""

    name: Slug
    version: Slug
    weights: Weights = Field(description="origin of the parameters; `random` must not ship")


class TargetFacts(Strict):
    """The target that it runs on."""

    name: Slug
    platform: Literal["android", "ios", "linux", "bare-metal"]
    arch: Literal["arm64", "x86_64", "cortex-m"]
    runtime: RuntimeName
    backend: BackendName


class RuntimeRange(Strict):
    """The runtime versions that load it."""

    name: RuntimeName
    exported_with: str = Field(description="the version that wrote the artifact")
    oldest_in_field: str = Field(description="the oldest version that the app builds in the field carry")
    bytecode_version: Count | None = Field(
        description=("bytecode version of a TorchScript archive, opset of an ONNX file")
    )
    build: Literal["full", "mobile"] = Field(
        default="full",
        exclude_if=lambda build: build == "full",
        description="build of ONNX Runtime: mobile has few operators; absent for the full build",
    )


class SizeRange(Strict):
    """A size that varies from call to call; sizes of one name are equal in each call."""

    axis: Count
    name: TensorName
    least: Count
    most: Count
    step: Count = Field(default=1, exclude_if=lambda step: step == 1, description="it is a multiple of this")


class Tensor(Strict):
    """An input or output; the batch comes first."""

    name: TensorName
    dtype: Dtype
    shape: tuple[Count, ...] = Field(max_length=16)
    preprocessing: Preprocess | None = Field(default=None, description="for an image input; null: no preprocessing")
    varying: tuple[SizeRange, ...] = Field(
        default=(),
        max_length=16,
        exclude_if=lambda varying: not varying,
        description="the sizes that vary; `shape` has their largest values; absent where none does",
    )
    fed_from: Count | None = Field(
        default=None,
        exclude_if=lambda index: index is None,
        description="of an input that is a state: the index of the output whose last value it is; absent for others. "
        "The golden samples are then the first steps of a sequence",
    )

    def model_post_init(self, _context: object) -> None:
        """Check that the ranges belong to the shape."""
        for one in self.varying:
            fits = one.axis < len(self.shape) and self.shape[one.axis] == one.most
            if not (fits and 1 <= one.least < one.most and one.step >= 1):
                raise ValueError(f"the range of {one.name} does not fit the shape of {self.name}")

    def varying_sizes(self) -> tuple[VaryingSize, ...]:
        """Return the sizes that vary, as the steps take them."""
        return tuple(VaryingSize(**one.model_dump()) for one in self.varying)

    def shape_text(self) -> str:
        """Return "[1, 8..128]"."""
        return shape_text(self.shape, self.varying_sizes())

    def text(self) -> str:
        """Return "float32 [1, 8..128]", and for a state the output that it is fed from."""
        fed = "" if self.fed_from is None else f" fed from output {self.fed_from}"
        return f"{self.dtype} {self.shape_text()}{fed}"


class CudaBox(Strict):
    """Requirements on a GPU machine."""

    torch: str = Field(description="the version that wrote the artifact; older ones are refused")
    cuda: str | None = Field(description="CUDA version of the compiled package; null without one")
    compiled_for: str | None = Field(description="the only compute capability that runs that package; null without one")
    least_capability: str | None = Field(description="minimum compute capability for the arithmetic; null: any")


class NpuNeeds(Strict):
    """An artifact for an Ethos-U: what it was compiled for, and what a firmware must have for it."""

    accelerator: str
    system_config: str
    memory_mode: str
    parts: Count = Field(description="parts of the program that the NPU computes")
    cycles: Count = Field(description="vela's estimate for the NPU, without what the CPU does around its parts")
    sram_bytes: Count = Field(description="vela's figure, of the NPU's tensors and caches")
    dram_bytes: Count = Field(description="the same in DRAM")
    flash_bytes: Count = Field(description="commands and weights of the NPU")
    scratch_bytes: Count = Field(description="the scratch pool: what the NPU needs of the temporary allocator")
    planned_bytes: Count = Field(
        description="of the method pool: what the runtime sets aside for tensors, beside its own structures"
    )
    cpu_operators: tuple[str, ...] = Field(description="kernels that the firmware must have: what the CPU computes")


class LanguageFacts(Strict):
    """A language model with a cache: it takes tokens and the place of the first one, and keeps what it made of them.

    Calls begin at place 0. The golden samples are the first calls of a text, each with one token.
    """

    context_length: Count = Field(description="places that the cache has")
    most_tokens: Count = Field(description="tokens of one call, at most; a longer text takes several calls")
    vocabulary: Count = Field(description="tokens that the logits tell apart")
    bos_id: Count | None = Field(description="the token that a text begins with; null: none")
    eos_ids: tuple[Count, ...] = Field(description="the tokens that end a text")


class FileEntry(Strict):
    """A file of the bundle. The manifest itself and the reports are not listed."""

    path: Slug = Field(description="a plain file name")
    sha256: Sha256
    size_bytes: Count
    role: FileRole


class LayerSummary(Strict):
    """The lowered model's computation, and where it runs. Shares are of the multiply-accumulates, 0 to 1."""

    macs: Count | None = Field(description="of one inference; null for a ready-made artifact")
    delegated_macs: Measure | None
    int8_macs: Measure | None = Field(description="from the runtime's own profile; null: could not be matched")
    undelegated: tuple[str, ...] = Field(description="operators that were left to portable kernels")
    kept_fp32: tuple[str, ...] = Field(description="quantizable layers that stay in float")


class GateVerdict(Strict):
    """One gate. Measured values in ms or bytes are only in report.json."""

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
    sqnr_db: Measure | None = Field(description="null, like the next two, where there is no fp32 to compare with")
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
    rescored: Count | None = Field(description="samples with a different score than on the host")


class EmulationFacts(Strict):
    """The artifact on the device's own kernels."""

    runs: tuple[DeviceRunFacts, ...]
    between: tuple[AgreementFacts, ...] = Field(description="each pair of runs")


class GoldenFacts(Strict):
    """How a device tests itself with golden.npz: `input_<name>` and `output_<i>`, arrays [samples, …]."""

    samples: Count
    preprocessed: bool = Field(description="whether the inputs are already preprocessed")
    sqnr_floor_db: Measure = Field(description="the lowest signal-to-difference ratio that passes")
    made_on: str | None = Field(default=None, description="the CPU model that computed the outputs; null: the host")
    made_by: Literal["graph"] | None = Field(
        default=None,
        description=(
            "graph: the outputs are from the converted graph, since the artifact was not run; null: from the artifact"
        ),
    )


class QatFacts(Strict):
    """How qat-int8 trained; its samples do not overlap the evaluation data."""

    data_sha256: Sha256
    samples: Count = Field(description="trained on")
    held_out: Count = Field(description="samples that only chose between the candidates")
    loss: Literal["kl", "mse"] | None = Field(description="null where the user's own loop trained")
    epochs: Count = Field(description="finished epochs; 0 for the user's own loop")
    learning_rate: Measure | None
    batch: Count | None
    weights: TunedWeights = Field(description="the candidate that was kept")


class SearchFacts(Strict):
    """How mixed-int8 chose the float layers; its samples are neither calibration nor evaluation samples."""

    data_sha256: Sha256
    samples: Count
    assignments: Count = Field(description="assignments that were tried")


class Provenance(Strict):
    """The inputs and tools that it was built from."""

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
    edgeq: str | None = Field(
        default=None, exclude_if=lambda version: version is None, description="version of edgeq; absent in older ones"
    )
    options: dict[str, str] = Field(
        default_factory=dict,
        exclude_if=lambda options: not options,
        description="options that can change the artifact, by their keys in edgeq.toml; absent in older ones",
    )
    shipped: Sha256 | None = Field(
        default=None,
        exclude_if=lambda digest: digest is None,
        description="digest of the bundle whose scales and zero points were reused; absent where none was",
    )


SCHEMA_VERSION: Final = 1

MANIFEST_NAME = "manifest.json"

GOLDEN_NAME = "golden.npz"

REPORT_NAMES = ("report.json", "report.html")

# what ExecuTorch's developer tools read, with --devtools: they hold times and paths, and no release or app gets them
ETRECORD_NAME, ETDUMP_NAME, BUNDLED_PROGRAM_NAME = "model.etrecord", "model.etdump", "model.bpte"

# files beside a manifest that it does not list, and that the digest does not cover
UNLISTED_NAMES = (*REPORT_NAMES, ETRECORD_NAME, ETDUMP_NAME, BUNDLED_PROGRAM_NAME)

MAX_MANIFEST_BYTES = 4_000_000


class Manifest(Strict):
    """manifest.json of a bundle."""

    schema_version: Literal[1]
    model: ModelFacts
    target: TargetFacts
    runtime: RuntimeRange
    scheme: Slug
    threads: int = Field(ge=1, le=64, description="threads that the app should use")
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = Field(description="by output index")
    files: tuple[FileEntry, ...] = Field(min_length=2, max_length=4)
    dynamic_batch: bool = Field(
        default=False,
        exclude_if=lambda is_open: not is_open,
        description="whether inputs and outputs accept any batch size, not only the stated one",
    )
    planned_memory_bytes: Count | None = Field(
        default=None,
        exclude_if=lambda planned: planned is None,
        description="memory that the runtime sets aside for the largest sizes; absent where none varies or none is "
        "planned ahead",
    )
    passes: tuple[str, ...]
    layers: LayerSummary
    gates: tuple[GateVerdict, ...]
    accepted: bool = Field(description="whether every gate passed")
    accuracy: Accuracy | None
    graph_accuracy: Accuracy | None = Field(
        default=None, description="the converted graph against fp32, if the artifact was not run; null otherwise"
    )
    parity: ParityFacts | None
    golden: GoldenFacts
    emulation: EmulationFacts | None = Field(default=None, description="null: not run on the device's kernels")
    not_emulated: str | None = Field(default=None, description="the reason, if the target has a device")
    cuda: CudaBox | None = Field(
        default=None, exclude_if=lambda box: box is None, description="absent for other runtimes"
    )
    npu: NpuNeeds | None = Field(
        default=None, exclude_if=lambda npu: npu is None, description="absent for other backends than Ethos-U"
    )
    language: LanguageFacts | None = Field(
        default=None, exclude_if=lambda language: language is None, description="absent for other models"
    )
    verified_on: str = Field(description="what ran the artifact, by architecture, or none")
    provenance: Provenance

    def model_post_init(self, _context: object) -> None:
        """Check conditions that involve several fields."""
        roles = [entry.role for entry in self.files]
        if len(set(roles)) != len(roles) or not {"artifact", "golden"} <= set(roles):
            raise ValueError("expected one artifact and one golden file, and no role twice")
        names = [name.lower() for name in (*(entry.path for entry in self.files), MANIFEST_NAME, *UNLISTED_NAMES)]
        if len(set(names)) != len(names):
            raise ValueError("two files share a name, or use that of the manifest or of a file beside it")
        for one in self.inputs:
            if one.fed_from is None:
                continue
            source = self.outputs[one.fed_from] if one.fed_from < len(self.outputs) else None
            if source is None or (source.dtype, source.shape) != (one.dtype, one.shape) or one.varying:
                raise ValueError(f"the state {one.name} does not fit the output that it is fed from")
        if all(one.fed_from is not None for one in self.inputs):
            raise ValueError("every input is a state")
        if self.accepted != all(gate.outcome in ("ok", "allowed") for gate in self.gates):
            raise ValueError("`accepted` contradicts the gates")

    def file(self, role: Literal["artifact", "golden"]) -> FileEntry:
        """Return the entry of the artifact or of the golden file."""
        return next(entry for entry in self.files if entry.role == role)

    @property
    def model_files(self) -> tuple[FileEntry, ...]:
        """The artifact, and the file that has its weights where they are not in it, by name."""
        return tuple(entry for entry in self.files if entry.role in ("artifact", "weights"))

    @property
    def size_bytes(self) -> int:
        """Size of the artifact with its weights."""
        return sum(entry.size_bytes for entry in self.model_files)

    def compiled(self) -> FileEntry | None:
        """Return the entry of the package that was compiled for one GPU; None if there is none."""
        return next((entry for entry in self.files if entry.role == "compiled"), None)


def check_slug(text: str, what: str) -> None:
    """Refuse early a text that a manifest does not allow as a name or version.

    Raises:
        UsageError: with the characters that it may have.
    """
    if re.fullmatch(SLUG, text) is None:
        expected = "expected 1 to 64 of A-Z a-z 0-9 . _ + -, starting with a letter or digit, not ending with a period"
        raise UsageError(f"{what} {text!r}: {expected}", "give another one; use --name if it comes from a file's name")


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the manifest's bytes: sorted JSON, equal for equal manifests.

    Raises:
        UsageError: it would be larger than `parse_manifest` reads.
    """
    fix = "shorten the labels or the names of layers"
    return document_bytes(manifest, what="manifest", most_bytes=MAX_MANIFEST_BYTES, fix=fix)


def manifest_digest(data: bytes, manifest: Manifest) -> str:
    """Return a bundle's digest: SHA-256 over the manifest's bytes, then path and hash of each file, sorted."""
    digest = hashlib.sha256(data)
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        digest.update(f"{entry.path}\0{entry.sha256}\n".encode())
    return digest.hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that `data` holds; any other bytes raise one of the errors below.

    Raises:
        IntegrityError: too large, not JSON, a duplicate key, an unknown key, or a value that is not allowed.
        UnsupportedError: a newer schema than this edgeq knows.
    """
    return parse_strict(
        data,
        Manifest,
        name=MANIFEST_NAME,
        version=SCHEMA_VERSION,
        most_bytes=MAX_MANIFEST_BYTES,
        again="get the bundle again, or package the model again",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose files match its manifest.

    Attributes:
        folder: its folder.
        digest: SHA-256 in hexadecimal over the manifest and the files that it lists.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def artifact(self) -> Path:
        """The model's file."""
        return self.folder / self.manifest.file("artifact").path

    @property
    def golden(self) -> Path:
        """The self-test's inputs and outputs."""
        return self.folder / self.manifest.file("golden").path


# --- What an app counts on: the tensors that it feeds and reads, how images become inputs, and what the outputs
# mean.


def contract_change(old: Manifest, new: Manifest) -> str:
    """Return the first difference between `old` and `new` that breaks an app, as text; "" for none."""
    for what, left, right in (
        ("inputs", _tensors(old.inputs), _tensors(new.inputs)),
        ("outputs", _tensors(old.outputs), _tensors(new.outputs)),
        ("preprocessing", _preprocessing(old), _preprocessing(new)),
        ("labels", ", ".join(old.labels), ", ".join(new.labels)),
    ):
        if left != right:
            return f"different {what}: {right or 'none'}; the app expects {left or 'none'}"
    return ""


def _tensors(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{one.name} {one.text()}" for one in tensors)


def _preprocessing(manifest: Manifest) -> str:
    return "; ".join(one.preprocessing.model_dump_json() if one.preprocessing else "none" for one in manifest.inputs)
