"""Releases and updates, where a model has to run: the gates before a release, and the self-test after a download."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq.bundle.reader import read_bundle, read_manifest
from edgeq.bundle.run_report import read_report
from edgeq.check import release as release_checks
from edgeq.check.gate import at_most
from edgeq.check.release import _ok, _unmeasured, contract_gate
from edgeq.check.stores import find_store_limit
from edgeq.core.config import DataConfig, GateOptions, Progress
from edgeq.core.errors import EdgeqError, ExitCode, UsageError
from edgeq.core.intervals import effective_count, samples_for_drop, samples_for_share, share
from edgeq.core.lazy import NDArray, np
from edgeq.core.manifest import Bundle, Manifest
from edgeq.core.results.measured import ClassDrop, Fidelity
from edgeq.core.results.report import CheckReport, Gate, Reuse
from edgeq.core.samples import Dataset, batches, run_in_order
from edgeq.core.schemes import LIMITS, LimitName
from edgeq.core.units import format_quantity
from edgeq.deliver.ota.channel import Channel, open_channel
from edgeq.deliver.ota.keys import load_keys
from edgeq.deliver.ota.patch import pack, scratch_dir
from edgeq.deliver.ota.release import Base, Prepared, Published, Terms, add_release, bases, extract, prepare, shipped
from edgeq.pipeline.evaluation import input_specs, open_evaluation
from edgeq.pipeline.measurement import Settled, settled_bundles
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import Repeats, class_drops, class_index, cut, real_rows, scored


def churn_gates(
    new: Bundle,
    old: Bundle | None,
    data: DataConfig,
    options: GateOptions,
    runtime: HostRuntime | None,
    progress: Progress,
) -> tuple[Gate, ...]:
    """Check the changes for users against the limits, on the evaluation set (exit code 5)."""
    asked = [(name, limit) for name, limit in options.limits if name in ("flips", "class_drop")]
    if not asked:
        return ()
    if old is None:
        return tuple(_ok(name, limit, "no shipped model", "there is no change for users") for name, limit in asked)
    if data.evaluation is None or runtime is None:
        why = "there is no evaluation set: give --eval-data"
        return tuple(_unmeasured(name, limit, why) for name, limit in asked)
    if contract_gate(new.manifest, old.manifest).outcome == "failed":
        why = "the inputs or outputs differ from the shipped model's"
        return tuple(_unmeasured(name, limit, why) for name, limit in asked)
    now, before = ([entry.sha256 for entry in one.manifest.model_files] for one in (new, old))
    if now == before:
        return tuple(
            _ok(name, limit, "the shipped model", "the artifact equals the shipped one") for name, limit in asked
        )

    try:
        found = churn(new, old, data, runtime, progress)
    except UsageError as err:
        raise UsageError(f"churn cannot be measured: {err.what}", err.fix) from err
    by_point = options.limit_on == "point"
    return tuple(
        _flips_gate(limit, found, by_point) if name == "flips" else _class_drop_gate(limit, found, by_point)
        for name, limit in asked
    )


def _flips_gate(limit: float, found: Churn, by_point: bool) -> Gate:
    """Hold the share of predictions that changed, in percent, to a limit, by the upper end of its interval."""
    estimate, most = 100 * found.flips, 100 * found.most_flips
    said = f"{round(found.flips * found.samples)} of {found.samples} samples"
    if found.distinct < found.samples:
        said += f", {found.distinct} distinct"
    needed = samples_for_share(limit / 100, found.flips)
    return _proven("flips", limit, estimate, estimate if by_point else most, said, needed)


def _class_drop_gate(limit: float, found: Churn, by_point: bool) -> Gate:
    """Hold what the class that lost most lost, in percentage points, to a limit; by the upper end likewise."""
    if found.class_drop_pp is None or found.most_class_drop_pp is None:
        return _unmeasured("class_drop", limit, "the evaluation set has no labels")
    estimate = max(found.class_drop_pp, 0.0)
    needed = samples_for_drop(limit / 100, 0.0, 0.0)
    is_over = by_point or estimate > limit or found.most_class_drop_pp <= limit
    said = found.worst_class if is_over else found.least_known_class
    most = estimate if by_point else found.most_class_drop_pp
    return _proven("class_drop", limit, estimate, most, said, needed, of=" of each class")


def _proven(
    name: LimitName, limit: float, estimate: float, most: float, said: str, needed: int | None, of: str = ""
) -> Gate:
    """Fail what is over the limit on the samples at hand, and leave unverified what they cannot prove to be within it.

    A limit of 0 asks that none of these very samples changed, which needs no proof for others.
    """
    kind = LIMITS[name]
    if limit > 0 and estimate <= limit < most:
        bound = f"at most {format_quantity(most, kind.dimension)} by the 95% interval"
        wanted = f"; needs about {needed:,} distinct samples{of}" if needed else ""
        gate = _unmeasured(name, limit, f"{said}; {bound}{wanted}")
        return dataclasses.replace(gate, measured=format_quantity(estimate, kind.dimension))
    return at_most(name=name, limit=limit, measured=estimate, dimension=kind.dimension, code=kind.exit_code, note=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseJob:
    """One `edgeq ota release`.

    Attributes:
        bundles: folders, released together under one number.
        deltas: how many of the channel's last releases get a patch.
        delta_from: further bundles that devices may have, such as the one that ships in the app.
        terms: how it is signed and addressed; for a runtime that `runtimes` does not name, the bundle's own version
            counts.
        gates: the limits of a release.
        data: the evaluation set, for churn against the shipped model.
        verdicts: measurements of these bundles from other machines, for their unverified gates.
        trusted: whether artifacts that could run code may be loaded, where a gate needs them to run.
    """

    bundles: tuple[Path, ...]
    channel: Path
    keys: Path
    terms: Terms
    deltas: int = 3
    delta_from: tuple[Path, ...] = ()
    gates: GateOptions = field(default_factory=GateOptions)
    data: DataConfig = field(default_factory=DataConfig)
    verdicts: tuple[Path, ...] = ()
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRow:
    """A patch with its measured size.

    Attributes:
        published: whether it is smaller than the full download.
    """

    label: str
    algorithm: str
    size_bytes: int
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseRow:
    """The bundle's own report on reusing scales and zero points, compared with new ones."""

    found: Reuse
    fidelity: Fidelity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """One bundle of a release.

    Attributes:
        settled: the gates of the bundle that a verdict measured, as text; "" for none.
        reuse: None where it was packaged without --reuse-qparams-from, or its report is gone.
    """

    model: str
    model_version: str
    target: str
    path: Path
    digest: str
    download_bytes: int
    deltas: tuple[DeltaRow, ...]
    checked: CheckReport
    settled: str = ""
    reuse: ReuseRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReport:
    """A release, or why there is none.

    Attributes:
        published: None where a gate failed; then nothing was written.
    """

    channel: Path
    rows: tuple[ReleaseRow, ...]
    published: Published | None

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code of all gates that failed."""
        return min((row.checked.exit_code for row in self.rows if row.checked.exit_code), default=ExitCode.OK)


def release(job: ReleaseJob, progress: Progress) -> ReleaseReport:
    """Judge bundles by the gates of a release, and publish them if all pass; otherwise nothing is written.

    Raises:
        UsageError: no bundle, no keys, or options that match nothing.
        VerificationError: a bundle did not pass its gates, neither when packaged nor with its verdict.
        IntegrityError: a bundle, the channel or the keys are not what they should be.
        EnvironmentProblem: a key is not available, or a write failed.
    """
    # refuse limits that another command measures, and those of stores that none of the bundles is for
    options = job.gates
    for name, _ in options.limits:
        if name not in RELEASE_LIMITS:
            what = f"the limit {name} is measured when a model is packaged"
            raise UsageError(
                what, f"give it to `edgeq package`; the limits of a release are {', '.join(RELEASE_LIMITS)}"
            )
    platforms = {read_manifest(folder)[1].target.platform for folder in job.bundles}
    for preset in options.store_limits:
        known = find_store_limit(preset, options.app_size_bytes)
        if known.platform not in ("any", *platforms):
            what = f"store limit {preset!r} is for {known.platform}, but the bundles are for {', '.join(platforms)}"
            raise UsageError(what, "omit it")
    with settled_bundles(job.bundles, job.verdicts) as places:
        return _release(job, places, progress)


def _release(job: ReleaseJob, places: Sequence[Settled], progress: Progress) -> ReleaseReport:
    """Release the bundles as they lie at `places`."""
    ring = load_keys(job.keys)
    channel = open_channel(job.channel)
    with contextlib.ExitStack() as open_runtimes:
        # its imports take seconds, in which the patches are made here
        runtime = open_runtimes.enter_context(HostRuntime(trusted=job.trusted)) if _needs_runtime(job) else None
        with progress.task("make the patches", len(job.bundles), "bundles") as task:
            items = []
            for place in places:
                items.append(_prepared(job, channel, place.folder))
                task.advance()
        rows = tuple(
            dataclasses.replace(_checked(job, channel, item, runtime, progress), path=folder, settled=place.told)
            for folder, place, item in zip(job.bundles, places, items, strict=True)
        )
    report = ReleaseReport(channel=job.channel, rows=rows, published=None)
    if report.exit_code:
        return report
    with progress.task("sign and publish"):
        published = add_release(job.channel, channel, ring, items, job.terms)
    return ReleaseReport(channel=job.channel, rows=rows, published=published)


def _needs_runtime(job: ReleaseJob) -> bool:
    asked = {name for name, _ in job.gates.limits}
    return bool(asked & {"flips", "class_drop"}) or any(
        release_checks.is_lite(read_manifest(folder)[1]) for folder in job.bundles
    )


RELEASE_LIMITS = ("download", "size", "delta", "flips", "class_drop")


def _prepared(job: ReleaseJob, channel: Channel | None, folder: Path) -> Prepared:
    manifest = read_manifest(folder)[1]
    known = shipped(channel, manifest.model.name, manifest.target.name)
    named = [Base(label=str(path), plain=pack(path)) for path in job.delta_from if _same_place(path, manifest)]
    return prepare(folder, [*bases(channel, known[: job.deltas]), *named])


def _same_place(path: Path, manifest: Manifest) -> bool:
    other = read_manifest(path)[1]
    return (other.model.name, other.target.name) == (manifest.model.name, manifest.target.name)


def _checked(
    job: ReleaseJob,
    channel: Channel | None,
    item: Prepared,
    runtime: HostRuntime | None,
    progress: Progress,
) -> ReleaseRow:
    manifest = item.bundle.manifest
    with scratch_dir() as scratch:
        old = _shipped_bundle(job, channel, item, scratch)
        named = tuple(version for name, version in job.terms.runtimes if name == manifest.target.runtime)
        runtimes = named or (manifest.runtime.oldest_in_field,)
        operators: tuple[str, ...] = ()
        bytecode: int | None = None
        if release_checks.is_lite(manifest) and runtime is not None:
            target = manifest.target
            runtime.load(item.bundle.artifact, runtime=target.runtime, backend=target.backend, threads=manifest.threads)
            facts = runtime.facts()
            operators, bytecode = facts.operators, facts.bytecode_version
        gates = (
            release_checks.release_runtime_gate(item.bundle, runtimes, operators=operators, bytecode=bytecode),
            release_checks.contract_gate(manifest, old.manifest if old else None),
            *release_checks.size_gates(
                manifest,
                old.manifest if old else None,
                job.gates,
                download_bytes=len(item.archive),
                patch_bytes=[(delta.label, len(delta.patch.data)) for delta in item.deltas],
            ),
            *churn_gates(item.bundle, old, job.data, job.gates, runtime, progress),
        )
    return ReleaseRow(
        model=manifest.model.name,
        model_version=manifest.model.version,
        target=manifest.target.name,
        path=item.bundle.folder,
        digest=item.bundle.digest,
        download_bytes=len(item.archive),
        deltas=tuple(
            DeltaRow(
                label=delta.label,
                algorithm=delta.patch.algorithm,
                size_bytes=len(delta.patch.data),
                published=len(delta.patch.data) < len(item.archive),
            )
            for delta in item.deltas
        ),
        checked=CheckReport(gates=gates),
        reuse=_reuse(item.bundle),
    )


def _reuse(bundle: Bundle) -> ReuseRow | None:
    """Return the comparison that the report beside the bundle holds; it tells people, and no gate reads it."""
    try:
        row = read_report(bundle.folder)
    except EdgeqError:
        return None
    if row.digest != bundle.digest or row.reuse is None:
        return None
    return ReuseRow(found=row.reuse, fidelity=row.verified.fidelity)


def _shipped_bundle(job: ReleaseJob, channel: Channel | None, item: Prepared, scratch: Path) -> Bundle | None:
    """Return what devices have now: the channel's newest release, or else the first that --delta-from names."""
    manifest = item.bundle.manifest
    for entry in shipped(channel, manifest.model.name, manifest.target.name):
        if channel is not None and not entry.facts.withdrawn:
            return extract(channel, entry, scratch)
    named = next((path for path in job.delta_from if _same_place(path, manifest)), None)
    return read_bundle(named) if named else None


# --- What a new model does otherwise than the shipped one, on the same data: flips, and classes that got worse.


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """A new model against the shipped one.

    Attributes:
        samples: how many predictions were compared; a sample that is a whole batch has one for each row.
        distinct: how many of them are of distinct samples.
        flips: share of them that changed.
        most_flips: the upper end of its 95% interval, by Wilson's method.
        class_drop_pp: by how much the accuracy of the class that lost most fell; None without labels.
        worst_class: that class, as text.
        most_class_drop_pp: the largest upper end of all classes' 95% intervals, which hold together.
        least_known_class: its class, as text.
    """

    samples: int
    distinct: int
    flips: float
    most_flips: float
    class_drop_pp: float | None
    worst_class: str
    most_class_drop_pp: float | None = None
    least_known_class: str = ""


def churn(new: Bundle, old: Bundle, data: DataConfig, runtime: HostRuntime, progress: Progress) -> Churn:
    """Run both artifacts on the evaluation set.

    Args:
        new: the bundle to be released.
        old: the shipped one, with equal inputs and outputs.
        data: the evaluation data.
        runtime: a child process that runs them one after the other.
        progress: where progress is reported.

    Raises:
        UsageError: the data does not fit, a label is none of the model's classes, or the first output is not class
            scores.
        VerificationError: an artifact does not run.
        UnsupportedError: the runtime lacks what an artifact needs.
    """
    samples = open_evaluation(new, data, progress).samples
    before, repeats = _predictions(old, samples, runtime, progress, "shipped model")
    after, _ = _predictions(new, samples, runtime, progress, "new model")
    keys = repeats.keys()
    flips, distinct = float(np.mean(before != after)), len(set(keys))
    worth = effective_count(keys)
    found = Churn(
        samples=len(before),
        distinct=distinct,
        flips=flips,
        most_flips=share(flips * worth, worth)[1],
        class_drop_pp=None,
        worst_class="",
    )
    if not samples.labelled:
        return found
    labels = _labels(new.manifest, samples)
    drops = class_drops(labels.tolist(), before.tolist(), after.tolist(), keys)
    worst = max(drops, key=lambda one: one.drop_pp.estimate)
    unsure = max(drops, key=lambda one: one.drop_pp.high)
    return dataclasses.replace(
        found,
        class_drop_pp=worst.drop_pp.estimate,
        worst_class=_class_words(worst, new.manifest.labels),
        most_class_drop_pp=unsure.drop_pp.high,
        least_known_class=_class_words(unsure, new.manifest.labels),
    )


def _class_words(one: ClassDrop, names: tuple[str, ...]) -> str:
    name = names[one.label] if 0 <= one.label < len(names) and names[one.label] else f"class {one.label}"
    return f"{name}: {one.fp32_right} right of {one.samples} before, {one.right} now"


def _labels(manifest: Manifest, samples: Dataset) -> NDArray[Any]:
    """Return the class of each row, int64 [rows]."""
    classes = manifest.outputs[0].shape[1]
    return np.asarray(
        [
            class_index(label, classes)
            for batch in batches(samples, input_specs(manifest))
            for _, label in scored(batch, (), by_row=True)
        ]
    )


def _predictions(
    bundle: Bundle, samples: Dataset, runtime: HostRuntime, progress: Progress, what: str
) -> tuple[NDArray[Any], Repeats]:
    """Return the predicted class of each row, int64 [rows], and which rows are repeats.

    A sample that is a whole batch has several rows.
    """
    target = bundle.manifest.target
    runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=bundle.manifest.threads)
    found, repeats = [], Repeats()
    with progress.task(f"run the {what}", samples.count) as task:
        specs = input_specs(bundle.manifest)
        for batch, _, outputs in run_in_order(batches(samples, specs), specs, lambda fed: runtime.run(fed.inputs)):
            scores = cut(batch, outputs)[0]
            if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) != real_rows(batch):
                model = bundle.manifest.model.name
                what = f"the first output of {model} is not [N, classes], but {list(scores.shape)}"
                raise UsageError(what, "flips and class_drop are for classifiers; omit these limits")
            if not np.isfinite(scores).all():
                raise UsageError(f"the {what} gives NaN or Inf", "verify the bundle with `edgeq verify`")
            found.append(scores.argmax(axis=1))
            repeats.add(batch, outputs)
            task.advance(batch.rows)
    return np.concatenate(found), repeats
