"""What a run publishes: a bundle's content, a row of the table, the whole report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeq.artifacts.layer_sqnr import LayerSqnrs
from edgeq.artifacts.measured import Fidelity
from edgeq.artifacts.model import KeptValues, Layer, LoadedModel, LoweredModel, QParams, Tuning, Weights
from edgeq.artifacts.search import Search
from edgeq.artifacts.variant import Choice, Comparison, Variant
from edgeq.artifacts.verdict import CheckReport
from edgeq.artifacts.verified import VerifyReport
from edgeq.errors import ExitCode

if TYPE_CHECKING:
    from edgeq.preprocess import Preprocess


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
    qat_sha256: str | None = None
    search_sha256: str | None = None
    search_samples: int = 0
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
    tuning: Tuning | None = None
    search: Search | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSet:
    """A few samples as an app would have them, and the outputs that it must reproduce.

    Attributes:
        inputs: for each model input, an array [samples, …] before preprocessing.
        outputs: for each model output, an array [samples, …].
        preprocessed: whether `inputs` are already what the model takes.
        sqnr_floor_db: the least signal-to-difference ratio that a device's self-test may show.
        made_on: the CPU model that gave the outputs; None for the host.
        made_by: what gave the outputs; None for the artifact.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    preprocessed: bool
    sqnr_floor_db: float
    made_on: str | None = None
    made_by: Literal["graph"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """What it came to that the shipped model's scales and zero points were reused.

    Attributes:
        shipped: the digest of the shipped model's bundle.
        tensors: how many int8 tensors there are.
        fresh: the tensors that have a range of their own in a channel at least, since the shipped one does not fit.
        kept: what was kept of it beyond these; None in older reports.
        patch_bytes: the patch from the shipped artifact to this one.
        patch_bytes_without: the same to the artifact that all new ranges give.
        fidelity_without: how that one compares with fp32.
    """

    shipped: str
    tensors: int
    fresh: tuple[str, ...]
    patch_bytes: int
    patch_bytes_without: int
    fidelity_without: Fidelity | None
    kept: KeptValues | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One target and scheme of a run: a line of the closing table.

    Attributes:
        path: the bundle, in place or under `rejected/`.
        seconds: what each step took; a step shared with another row counts once.
        layers: of the lowered model; none where the artifact came as it is.
        qparams: of every tensor in static int8, for models to come that are to reuse them.
        reuse: None where no shipped model's were reused.
        source: the origin of the model, as `edgeq.sources` tells it; "" in older reports.
        search: what a search for the layers to leave in float came to; None for schemes that do not search.
        layer_sqnrs: as in QuantizedModel; None in older reports too.
        choice: how --scheme auto came to the scheme; None where it was named.
        compared: with float on the same target; None where --compare was not given.
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
    qparams: tuple[QParams, ...] = ()
    reuse: Reuse | None = None
    source: str = ""
    search: Search | None = None
    layer_sqnrs: LayerSqnrs | None = None
    choice: Choice | None = None
    compared: Comparison | None = None


def variant_of(row: Row) -> Variant:
    """Return a row in figures."""
    fidelity, timing = row.verified.fidelity, row.verified.timing
    return Variant(
        scheme=row.scheme,
        size_bytes=row.size_bytes,
        score=fidelity.score if fidelity else None,
        fp32_score=fidelity.fp32_score if fidelity else None,
        drop_pp=fidelity.drop_pp if fidelity else None,
        sqnr_db=fidelity.sqnr_db if fidelity else None,
        latency_ms=timing.p50_ms if timing else None,
        latency_p90_ms=timing.p90_ms if timing else None,
        failed=tuple(gate for gate in row.checked.gates if not gate.passed),
        exit_code=row.checked.exit_code,
    )


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
