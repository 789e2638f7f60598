"""Results of a run: a bundle's content, a row of the table, the whole report."""

from __future__ import annotations

import dataclasses
import html
import math
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeq.core.config import Job
from edgeq.core.errors import EdgeqError, ExitCode, IntegrityError, Outcome
from edgeq.core.results.measured import Fidelity, GoldenComparison, Interval, Parity, ScoreComparison, VerifyReport
from edgeq.core.results.model import (
    KeptValues,
    Layer,
    LayerSqnrs,
    ModelWork,
    QParams,
    Search,
    Weights,
)
from edgeq.core.samples import Outputs
from edgeq.core.units import format_bytes

if TYPE_CHECKING:
    from edgeq.core.manifest import Bundle, Manifest


def with_warning(row: PackageResult, text: str) -> PackageResult:
    """Return a row with one more warning."""
    return dataclasses.replace(row, checked=dataclasses.replace(row.checked, warnings=(*row.checked.warnings, text)))


# --- How the gates judged an artifact.


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate: its limit, the measured value, and the exit code of a failure.

    Attributes:
        outcome: `unverified` fails like `failed`; `allowed` is unverified but named in --allow-unmeasured.
        limit, measured: as text.
        detail: the margin, or why it could not be measured.
        bound: the limit as a number, in the base unit of its name; None for a gate without a user's limit.
    """

    name: str
    outcome: Outcome
    limit: str
    measured: str
    detail: str
    exit_code: ExitCode
    bound: float | None = None

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


def _verdict(checked: CheckReport) -> str:
    return f"failed ({int(checked.exit_code)})" if checked.exit_code else "ok"


class Judged:
    """A result with a `CheckReport`, which decides its exit code."""

    __slots__ = ()
    checked: CheckReport

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code among the gates that failed."""
        return self.checked.exit_code

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return not self.exit_code

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Every gate that was evaluated."""
        return self.checked.gates


class GateFailed(EdgeqError):  # the name that users catch
    """Gates failed, and the caller asked for an exception (`raise_if_failed`).

    Attributes:
        gates: every gate that failed, in the order of the results.
        exit_code: the lowest of their codes, as `edgeq package` would have ended with.
    """

    def __init__(self, failed: Iterable[tuple[str, Gate]], *, errors: Iterable[tuple[str, ModelError]] = ()) -> None:
        """Make the error of failed gates, and of models that ended with an error, each with the name of its bundle."""
        failed, errors = tuple(failed), tuple(errors)
        lines = [f"{label}: {gate.name}: {gate_text(gate)}" for label, gate in failed]
        lines += [f"{label}: {error.what}" for label, error in errors]
        super().__init__("; ".join(lines), "see report.html of each bundle for all gates")
        self.gates = tuple(gate for _, gate in failed)
        self.exit_code = min([*(gate.exit_code for gate in self.gates), *(error.exit_code for _, error in errors)])


def gate_text(gate: Gate) -> str:
    """Return what a gate measured and its limit, as one line."""
    found = " ".join(part for part in (gate.measured, f"({gate.limit})" if gate.limit else "") if part)
    return f"{found}: {gate.detail}" if found and gate.detail else found or gate.detail


def raise_for(failed: Iterable[tuple[str, Gate]], *, errors: Iterable[tuple[str, ModelError]] = ()) -> None:
    """Raise `GateFailed` for gates that did not pass and models that were not built; do nothing if there are none."""
    failed, errors = tuple(failed), tuple(errors)
    if failed or errors:
        raise GateFailed(failed, errors=errors)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> str:
    """Return an HTML table for notebooks. A text that ends with report.html is a link."""

    def cell(kind: str, text: str) -> str:
        shown = html.escape(text)
        if text.endswith("report.html"):
            shown = f'<a href="{html.escape(urllib.parse.quote(text))}">{shown}</a>'
        return f'<{kind} style="text-align:left">{shown}</{kind}>'  # notebooks align to the right

    lines = [f"<tr>{''.join(cell('th', name) for name in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(cell('td', text) for text in row)}</tr>" for row in rows]
    caption = f"<p>{html.escape(title)}</p>" if title else ""
    return f"{caption}<table>{''.join(lines)}</table>"


def gates_html(gates: Iterable[Gate], *, title: str) -> str:
    """Return gates as an HTML table for notebooks, those that failed first."""
    ordered = sorted(gates, key=lambda gate: gate.passed)
    rows = [(gate.name, gate.outcome, gate.measured, gate.limit, gate.detail) for gate in ordered]
    return html_table(("gate", "verdict", "measured", "limit", ""), rows, title=title)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BundleVerification(Judged):
    """Results of reading and running a bundle.

    Attributes:
        checked: every gate that was evaluated; its warnings are remarks that fail nothing.
        verified: what running the golden samples showed; nothing in it where the artifact does not run.
        golden: None where the artifact does not run.
        score: None where no data was given, or the artifact does not run.
        outputs: for the golden samples, [samples, …] each, of what was measured: the real device, or else this host;
            none where it does not run.
    """

    folder: Path
    manifest: Manifest
    digest: str
    checked: CheckReport
    verified: VerifyReport
    golden: GoldenComparison | None
    score: ScoreComparison | None
    outputs: Outputs = ()

    def raise_if_failed(self) -> None:
        """Raise `GateFailed` with every gate that did not pass; do nothing if all passed."""
        raise_for((str(self.folder), gate) for gate in self.gates if not gate.passed)

    def __repr__(self) -> str:
        return f"<BundleVerification of {self.folder}: {_verdict(self.checked)}>"

    def _repr_html_(self) -> str:
        """Return the gates as an HTML table, for notebooks."""
        return gates_html(self.gates, title=f"{self.folder}: {_verdict(self.checked)}")


# --- A model under other schemes on the same target, in figures: what --scheme auto tried, and --compare made.


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model under one scheme on one target; None for what was not measured.

    Attributes:
        size_bytes: of the artifact; None where it could not be made.
        score, fp32_score: on the evaluation data, shares of 1 (or as the user's metric has it).
        drop_pp: fp32's score minus its own, in percentage points.
        sqnr_db: of the outputs against fp32.
        latency_ms, latency_p90_ms: p50 and p90 on this host.
        speedup: times faster than fp32, where both were timed in turns: the median over the turns, and its interval.
        failed: the gates that it did not pass.
        error: why there is no artifact; "" if there is one.
        exit_code: of its gates, or of its error.
    """

    scheme: str
    size_bytes: int | None = None
    score: float | None = None
    fp32_score: float | None = None
    drop_pp: Interval | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    speedup: Interval | None = None
    failed: tuple[Gate, ...] = ()
    error: str = ""
    exit_code: ExitCode = ExitCode.OK

    @property
    def passed(self) -> bool:
        """Whether there is an artifact, and all gates let it through."""
        return not self.error and not self.failed

    @property
    def distance(self) -> tuple[int, float, float]:
        """Orders artifacts by how near they come to passing: by failed gates, then the drop of accuracy, then SQNR."""
        drop = self.drop_pp.estimate if self.drop_pp else 0.0
        return len(self.failed), drop, math.inf if self.sqnr_db is None else -self.sqnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How --scheme auto chose a scheme.

    Attributes:
        linear_macs: the share of the float model's multiply-accumulates in matrix products (linear, recurrent and
            attention layers), which says whether dynamic-int8 is tried first.
        tried: in this order.
        chosen: the index of the one that the bundle is: the first that passed, or the nearest to that.
        untried: schemes that were left out since what failed before cannot be fixed by another scheme.
        unfinished: schemes that --time-budget did not suffice for.
    """

    linear_macs: float
    tried: tuple[Variant, ...]
    chosen: int
    untried: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A scheme compared with float on the same target.

    Attributes:
        arch: of the host that the latencies were measured on, the artifacts taking turns.
        variants: the row's own artifact first, then fp32 and fp16 where the target can run them.
    """

    arch: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the targets that a named one stands for.

    Attributes:
        target: its name.
        figures: of its artifact; latencies are those of the turns where it passed every gate and others did too, else
            those of its verification. Its error says too why it was left out.
        slowdown: times slower than the fastest, both timed in turns: the median over the turns, and its interval; None
            for the fastest itself, and where it was not timed in turns.
    """

    target: str
    figures: Variant
    slowdown: Interval | None = None

    @property
    def is_as_fast(self) -> bool:
        """Whether the turns show no difference to the fastest: the displayed interval includes 1.00."""
        return self.slowdown is not None and round(self.slowdown.low, 2) <= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """How the fastest of several targets was chosen.

    Attributes:
        name: the target that the run named, which stands for the candidates.
        cpu: the kind of machine that timed them.
        turns: of each that passed every gate; 0 where fewer than two did.
        candidates: in the order of the profile, those that were left out among them.
        chosen: the index of the one that the bundle is: of those that passed, the fastest, or of several as fast as it
            the smallest, or of several as small the first; where none passed, the nearest to that.
    """

    name: str
    cpu: str
    turns: int
    candidates: tuple[Candidate, ...]
    chosen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """A finding of the data lint: its name, and a line that says what was seen.

    Attributes:
        is_certain: whether the data are wrong beyond doubt; else people are to look at them.
    """

    name: str
    message: str
    is_certain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """The data in the manifest: hashes and counts, never paths."""

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
class GoldenSet:
    """A few samples in an app's form, and the outputs that it must reproduce.

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
    """The effect of reusing the shipped model's scales and zero points.

    Attributes:
        shipped: the digest of the shipped model's bundle.
        tensors: how many int8 tensors there are.
        fresh: the tensors that have a range of their own in a channel at least, since the shipped one does not fit.
        kept: what was kept of it beyond these; None in older reports.
        patch_bytes: the patch from the shipped artifact to this one.
        patch_bytes_without: the same to the artifact that all new ranges give.
        fidelity_without: how that one compares with fp32.
        parity_without: how that one compares with its graph; None in older reports, and where it was not run.
    """

    shipped: str
    tensors: int
    fresh: tuple[str, ...]
    patch_bytes: int
    patch_bytes_without: int
    fidelity_without: Fidelity | None
    kept: KeptValues | None = None
    parity_without: Parity | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PackageResult(Judged):
    """One target and scheme of a run: a line of the closing table.

    Attributes:
        path: the bundle, in place or under `rejected/`.
        seconds: what each step took; a step shared with another row counts once.
        layers: of the lowered model; none for a ready-made artifact.
        qparams: of every tensor in static int8, for models to come that are to reuse them.
        reuse: None where no shipped model's were reused.
        source: the origin of the model, from `edgeq.core.sources`; "" in older reports.
        search: result of the search for the layers to keep in float; None for schemes without a search.
        layer_sqnrs: as in QuantizedModel; None in older reports too.
        choice: how --scheme auto chose the scheme; None without it.
        fastest: how the target was chosen; None where the run names it.
        by_default: why the target's default is this scheme for this model; "" where the run names it, or the target has
            one default for all models.
        work: what the float model computes; None where that is not known, and in older reports.
        compared: with float on the same target; None where --compare was not given.
        shipped: the shipped model in figures, as its report has them; None where none was named.
        zeros: share of zeros among the artifact's weights, 0 to 1; None where they were not read, and in older reports.
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
    fastest: Fastest | None = None
    by_default: str = ""
    work: ModelWork | None = None
    compared: Comparison | None = None
    shipped: Variant | None = None
    zeros: float | None = None

    def __repr__(self) -> str:
        return f"<PackageResult {self.model} {self.label}: {_verdict(self.checked)}, {self.path}>"

    @property
    def named_target(self) -> str:
        """The target as the run named it: its own, or one that stands for several."""
        return self.target if self.fastest is None else self.fastest.name

    @property
    def label(self) -> str:
        """The key under which a report has this result: `target@scheme`, with the target as the run named it."""
        return f"{self.named_target}@{self.scheme}"

    @property
    def bundle(self) -> Bundle:
        """The bundle with its manifest, in place or under `rejected/`; its files are not hashed again.

        Raises:
            IntegrityError: the path now has another bundle, or none.
        """
        from edgeq.core import manifest as manifests  # loads pydantic

        try:
            data = (self.path / manifests.MANIFEST_NAME).read_bytes()
        except OSError as err:
            what = f"the bundle at {self.path} cannot be read: {err.strerror}"
            raise IntegrityError(what, "package the model again") from err
        manifest = manifests.parse_manifest(data)
        digest = manifests.manifest_digest(data, manifest)
        bundle = manifests.Bundle(folder=self.path, manifest=manifest, digest=digest)
        if bundle.digest != self.digest:
            what = f"{self.path} has the digest {bundle.digest}, this result's is {self.digest}"
            raise IntegrityError(what, "a later run replaced the bundle: use that run's report")
        return bundle

    @property
    def artifact_path(self) -> Path:
        """The model's file (.pte, .ptl, .onnx or .pt2); raises the errors of `bundle`."""
        return self.bundle.artifact


def variant_of(row: PackageResult) -> Variant:
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


_RESULT = ("target", "scheme", "size", "accuracy or fidelity", "latency p50", "verdict", "failed gates", "page")


def _result_cells(report: RunReport) -> list[tuple[str, ...]]:
    """Return the cells of a run's table for notebooks: a row for each bundle and each refusal."""
    cells: list[tuple[str, ...]] = []
    for row in report.rows:
        found, timing = variant_of(row), row.verified.timing
        fidelity = "" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
        if found.score is not None:
            drop = "" if found.drop_pp is None else f", drop {found.drop_pp.estimate:.2f} pp"
            fidelity = f"{found.score:.2%}{drop}"
        # on another machine it is another
        latency = "" if timing is None else f"{timing.p50_ms:.3g} ms, {timing.gpu or f'host {timing.arch}'}"
        verdict = _verdict(row.checked)
        failed = "; ".join(f"{gate.name}: {gate_text(gate)}" for gate in row.gates if not gate.passed)
        page = str(row.path / "report.html")
        cells.append((row.target, row.scheme, format_bytes(row.size_bytes), fidelity, latency, verdict, failed, page))
    for one in report.refused:
        verdict = f"refused ({int(one.error.exit_code)})"
        cells.append((one.target, one.scheme, "", "", "", verdict, one.error.what, ""))
    return cells


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelError:
    """Why a model has no bundles, or an app lacks some: two lines, an exit code, and a traceback if there is one.

    Attributes:
        key: of the option in edgeq.toml that it is about; "" where none is known.
        several: the single errors, if `what` reports several.
    """

    what: str
    fix: str
    exit_code: ExitCode
    trace: str = ""
    key: str = ""
    several: tuple[ModelError, ...] = ()

    @classmethod
    def of(cls, err: EdgeqError, trace: str = "") -> ModelError:
        """Return what an error says, without its frames, which hold models."""
        several = tuple(cls.of(one) for one in err.findings) if len(err.findings) > 1 else ()
        return cls(what=err.what, fix=err.fix, exit_code=err.exit_code, trace=trace, key=err.key, several=several)

    @property
    def findings(self) -> tuple[ModelError, ...]:
        """The error itself, or the single errors."""
        return self.several or (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A target and scheme that cannot be packaged, in a run whose other bundles were made.

    Attributes:
        scheme: its name, or `auto` where none that was tried could be made.
        stays: the accepted bundle of an earlier run, which was not touched; None if there is none.
    """

    model: str
    target: str
    scheme: str
    error: ModelError
    stays: Path | None = None

    @property
    def label(self) -> str:
        """The target and the scheme, as text."""
        return f"{self.target} {self.scheme}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunReport:
    """A whole run: a result for each target and scheme.

    `report["android-arm64-xnnpack"]` is the result of a target with one scheme; `report["TARGET@SCHEME"]`, or
    `report[target, scheme]`, names the scheme too. Iterating gives all results.

    Attributes:
        rows: one for each bundle, accepted or not; at least one.
        refused: the targets and schemes without a bundle.
    """

    rows: tuple[PackageResult, ...]
    data: DataFacts
    refused: tuple[Refusal, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code of all that failed."""
        codes = [row.checked.exit_code for row in self.rows if row.checked.exit_code]
        return min((*codes, *(one.error.exit_code for one in self.refused)), default=ExitCode.OK)

    @property
    def ok(self) -> bool:
        """Whether every gate of every result passed."""
        return not self.exit_code

    @property
    def results(self) -> tuple[PackageResult, ...]:
        """All results, in the order of targets and schemes."""
        return self.rows

    def __iter__(self) -> Iterator[PackageResult]:
        return iter(self.rows)

    def __repr__(self) -> str:
        parts = [f"{row.label} {_verdict(row.checked)}" for row in self.rows]
        return f"<RunReport {', '.join(parts + [f'{one.label} refused' for one in self.refused])}>"

    def __getitem__(self, key: str | tuple[str, str]) -> PackageResult:
        """Return the result of a target, or of a target and a scheme.

        Raises:
            KeyError: there is none, or the target has several schemes and none is named; of a refused one with why.
        """
        target, _, scheme = key.partition("@") if isinstance(key, str) else (key[0], "", key[1])
        refused = [one for one in self.refused if one.target == target and scheme in ("", one.scheme)]
        found = [row for row in self.rows if row.named_target == target and scheme in ("", row.scheme)]
        if len(found) != 1:
            why = "no result" if not found else "several results: give the scheme"
            if refused and not found:
                raise KeyError(f"{refused[0].label} was refused: {refused[0].error.what}")
            raise KeyError(f"{why} for {key!r}; this report has {', '.join(row.label for row in self.rows)}")
        return found[0]

    def raise_if_failed(self) -> None:
        """Raise `GateFailed` with every gate that did not pass and every refused target; do nothing if all passed."""
        failed = ((row.label, gate) for row in self.rows for gate in row.gates if not gate.passed)
        raise_for(failed, errors=((one.label, one.error) for one in self.refused))

    def _repr_html_(self) -> str:
        """Return the results as an HTML table, for notebooks."""
        return html_table(_RESULT, _result_cells(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A row with the manifest of its bundle."""

    row: PackageResult
    manifest: Manifest


# --- What a project of several models was asked to do, and how each of them ended.


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """Limits of the app as a whole in bytes, for each ABI (`android-arm64`).

    Attributes:
        size_bytes, download_bytes: maximum size of artifacts, or of ZIPs, with the runtime libraries.
        runtime_bytes: of a runtime's library, by (runtime, ABI), where it was given.
    """

    size_bytes: int | None = None
    download_bytes: int | None = None
    runtime_bytes: tuple[tuple[tuple[str, str], int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A runtime's native library for one ABI, as the app carries it, and as it is downloaded.

    Attributes:
        origin: the source of the sizes, as text.
    """

    size_bytes: int
    download_bytes: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of several parts of a project, from 1."""

    index: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One `edgeq build`: its models have different names, and one output folder."""

    jobs: tuple[Job, ...]
    out: Path
    app: AppOptions = AppOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model's result: a report or an error."""

    name: str
    report: RunReport | None
    error: ModelError | None = None

    @property
    def rows(self) -> tuple[PackageResult, ...]:
        """Its rows; none where it ended with an error."""
        return self.report.rows if self.report else ()

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Its targets and schemes that cannot be packaged; none where it ended with an error."""
        return self.report.refused if self.report else ()

    @property
    def exit_code(self) -> ExitCode:
        """The lowest of the error's code and of what failed or was refused."""
        if self.error is None:
            return self.report.exit_code if self.report else ExitCode.INTERNAL
        codes = [self.error.exit_code, self.report.exit_code if self.report else ExitCode.OK]
        return min(code for code in codes if code)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProjectReport:
    """A whole project.

    Attributes:
        app: gates of the app as a whole, one for each limit and ABI.
        not_installed: why not every bundle that passed went into its app; None where all did, or none was to.
    """

    models: tuple[ModelResult, ...]
    app: tuple[Gate, ...] = ()
    not_installed: ModelError | None = None

    @property
    def rows(self) -> tuple[PackageResult, ...]:
        """The rows of all models."""
        return tuple(row for model in self.models for row in model.rows)

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """What was refused of all models that have bundles."""
        return tuple(one for model in self.models for one in model.refused)

    @property
    def ok(self) -> bool:
        """Whether every model was built and every gate passed, the app's among them."""
        return not self.exit_code

    def __repr__(self) -> str:
        parts = [
            f"{model.name} {f'failed ({int(model.exit_code)})' if model.exit_code else 'ok'}" for model in self.models
        ]
        return f"<ProjectReport {', '.join(parts)}>"

    def __getitem__(self, name: str) -> RunReport:
        """Return the report of a model.

        Raises:
            KeyError: there is no such model, or it ended with an error, which the message has.
        """
        model = next((model for model in self.models if model.name == name), None)
        if model is None:
            raise KeyError(f"no model {name!r}; this report has {', '.join(model.name for model in self.models)}")
        if model.report is None:
            raise KeyError(f"{name} has no bundles: {model.error.what if model.error else 'not built'}")
        return model.report

    def raise_if_failed(self) -> None:
        """Raise `GateFailed` with every gate that did not pass and every model that ended with an error."""
        failed = [(f"{row.model} {row.label}", gate) for row in self.rows for gate in row.gates if not gate.passed]
        failed += [("app", gate) for gate in self.app if not gate.passed]
        errors = [(model.name, model.error) for model in self.models if model.error is not None]
        errors += [(f"{one.model} {one.label}", one.error) for one in self.refused]
        errors += [("install", self.not_installed)] if self.not_installed else []
        raise_for(failed, errors=errors)

    def _repr_html_(self) -> str:
        """Return the results of all models as an HTML table, and the app's gates as another, for notebooks."""
        rows = []
        for model in self.models:
            if model.report is not None:
                rows += [(model.name, *cells) for cells in _result_cells(model.report)]
            for one in model.error.findings if model.error else ():
                rows.append((model.name, *("",) * 5, f"error ({int(one.exit_code)})", one.what, ""))
        if self.not_installed is not None:
            error = self.not_installed
            rows.append(("install", *("",) * 5, f"error ({int(error.exit_code)})", error.what, ""))
        app = gates_html(self.app, title="the app as a whole") if self.app else ""
        return html_table(("model", *_RESULT), rows) + app

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code of all that failed."""
        codes = [model.exit_code for model in self.models] + [gate.exit_code for gate in self.app if not gate.passed]
        codes += [self.not_installed.exit_code] if self.not_installed else []
        return min((code for code in codes if code), default=ExitCode.OK)


def of_one(report: RunReport) -> ProjectReport:
    """Return the report of a single model as a project's."""
    return ProjectReport(models=(ModelResult(name=report.rows[0].model, report=report),))


def of_errors(err: EdgeqError) -> ProjectReport:
    """Return the report of a run that ended with an error before it built anything, or with findings of its models."""
    whole, models = ModelError.of(err), dict.fromkeys(one.model for one in err.findings)
    found = {name: tuple(ModelError.of(one) for one in err.findings if one.model == name) for name in models}
    results = [ModelResult(name=name, report=None, error=replace(whole, several=found[name])) for name in models]
    return ProjectReport(models=tuple(results))
