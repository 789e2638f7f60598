"""Releases and updates, where a model has to run: the gates before a release, and the self-test after a download."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import CheckReport, Fidelity, Gate, Reuse
from edgeq.bundle.reader import Bundle, read_bundle, read_manifest
from edgeq.deliver.ota.channel import Channel, open_channel
from edgeq.deliver.ota.client import Request, Update, update
from edgeq.deliver.ota.entries import Base, Prepared, Terms, shipped
from edgeq.deliver.ota.keys import load_keys
from edgeq.deliver.ota.release import Published, add_release, bases, extract, prepare
from edgeq.deliver.ota.scratch import scratch_dir
from edgeq.errors import EdgeqError, ExitCode, UsageError, VerificationError
from edgeq.job import DataOptions, GateOptions, Progress
from edgeq.manifest import Manifest
from edgeq.pipeline import skew
from edgeq.pipeline.settle import Settled, settled_bundles

if TYPE_CHECKING:
    from edgeq.verify.host import HostRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseJob:
    """One `edgeq ota release`.

    Attributes:
        bundles: folders, released together under one number.
        deltas: how many of the channel's last releases get a patch.
        delta_from: bundles that devices may have besides, such as the one that an app ships with.
        terms: how it is signed and addressed; of a runtime that its `runtimes` do not name, what the bundle was
            packaged for.
        gates: the limits that a release is held to.
        data: the evaluation set, for churn against the shipped model.
        verdicts: what was measured of these bundles elsewhere, for gates that nobody had measured.
    """

    bundles: tuple[Path, ...]
    channel: Path
    keys: Path
    terms: Terms
    deltas: int = 3
    delta_from: tuple[Path, ...] = ()
    gates: GateOptions = field(default_factory=GateOptions)
    data: DataOptions = field(default_factory=DataOptions)
    verdicts: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRow:
    """A patch as it was measured.

    Attributes:
        published: whether it is smaller than the full download.
    """

    label: str
    algorithm: str
    size_bytes: int
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseRow:
    """What the bundle's own report says of the reuse of scales and zero points, with and without."""

    found: Reuse
    fidelity: Fidelity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """One bundle of a release.

    Attributes:
        settled: which gates of the bundle a verdict settled, in words; "" for none.
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
    """Hold bundles to the gates of a release, and publish them if all pass; otherwise nothing is written.

    Raises:
        UsageError: no bundle, no keys, or options that name nothing.
        VerificationError: a bundle did not pass its gates when it was packaged, nor by its verdict.
        IntegrityError: a bundle, the channel or the keys are not what they should be.
        EnvironmentProblem: a key is not at hand, or the disk refused a write.
    """
    _check_limits(job)
    with settled_bundles(job.bundles, job.verdicts) as places:
        return _release(job, places, progress)


def _release(job: ReleaseJob, places: Sequence[Settled], progress: Progress) -> ReleaseReport:
    """Release the bundles as they lie at `places`."""
    ring = load_keys(job.keys)
    channel = open_channel(job.channel)
    with contextlib.ExitStack() as open_runtimes:
        # its imports take seconds, in which the patches are made here
        runtime = open_runtimes.enter_context(_host()) if _needs_runtime(job) else None
        with progress.task("make the patches", len(job.bundles)) as task:
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


@contextlib.contextmanager
def _host() -> Iterator[HostRuntime]:
    from edgeq.verify.host import HostRuntime

    with HostRuntime() as runtime:
        yield runtime


def _needs_runtime(job: ReleaseJob) -> bool:
    asked = {name for name, _ in job.gates.limits}
    return bool(asked & {"flips", "class_drop"}) or any(
        skew.is_lite(read_manifest(folder)[1]) for folder in job.bundles
    )


def _check_limits(job: ReleaseJob) -> None:
    """Refuse limits that another command measures, and those of stores that none of the bundles is for."""
    from edgeq.check.store import find_store_limit

    options = job.gates
    for name, _ in options.limits:
        if name not in RELEASE_LIMITS:
            what = f"the limit {name} is measured when a model is packaged"
            raise UsageError(what, f"give it to `edgeq package`; a release takes {', '.join(RELEASE_LIMITS)}")
    platforms = {read_manifest(folder)[1].target.platform for folder in job.bundles}
    for preset in options.store_limits:
        known = find_store_limit(preset, options.app_size_bytes)
        if known.platform not in ("any", *platforms):
            what = f"store limit {preset!r} is for {known.platform}, and the bundles are for {', '.join(platforms)}"
            raise UsageError(what, "leave it out")


RELEASE_LIMITS = ("download", "size", "delta", "flips", "class_drop")


def _prepared(job: ReleaseJob, channel: Channel | None, folder: Path) -> Prepared:
    from edgeq.deliver.ota.plain import pack

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
        gates = (
            skew.runtime_gate(item.bundle, runtimes, runtime),
            skew.contract_gate(manifest, old.manifest if old else None),
            *skew.size_gates(item, old.manifest if old else None, job.gates),
            *skew.churn_gates(item.bundle, old, job.data, job.gates, runtime, progress),
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
    from edgeq.bundle.report import read_report

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


def update_device(request: Request, progress: Progress) -> Update:
    """Bring a store to the channel's newest release; each new one is tested in a child process before the switch.

    Raises:
        EdgeqError: what `edgeq.deliver.ota.client.update` raises.
    """

    def self_test(folder: Path) -> None:
        golden_self_test(folder, progress)

    with progress.task("update"):
        return update(request, self_test)


def golden_self_test(folder: Path, progress: Progress) -> None:
    """Load a bundle in a child process that may crash, and hold its golden samples to their outputs.

    Raises:
        VerificationError: it does not load, or its outputs are others.
        EnvironmentProblem: the child process does not start.
    """
    from edgeq.pipeline.verify import verify_bundle

    result = verify_bundle(folder, data=DataOptions(), gates=GateOptions(), progress=progress)
    failed: list[Gate] = [gate for gate in result.checked.gates if not gate.passed]
    if failed:
        told = "; ".join(f"{gate.name}: {gate.detail or gate.measured}" for gate in failed)
        raise VerificationError(told, "release a bundle that is good")
