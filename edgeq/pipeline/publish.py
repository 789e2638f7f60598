"""From finished bundles to the output folder: all are copied before the first is switched."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from edgeq.bundle.archive import download_size_bytes
from edgeq.bundle.golden import read_golden, test_cases
from edgeq.bundle.reader import read_bundle, read_manifest
from edgeq.bundle.run_report import REPORT_NAME, read_report, write_report
from edgeq.bundle.writer import with_gates, write_bundle
from edgeq.check.evaluate import check, check_again
from edgeq.core.config import REJECTED_NAME, GateOptions, Job, provenance_options
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.files import copy_files, remove_dir, staged_dir
from edgeq.core.manifest import (
    BUNDLED_PROGRAM_NAME,
    ETDUMP_NAME,
    ETRECORD_NAME,
    MANIFEST_NAME,
    manifest_bytes,
    manifest_digest,
)
from edgeq.core.results.artifact import Artifact, BundleInput, Inputs
from edgeq.core.results.report import (
    CheckReport,
    DataFacts,
    PackageResult,
    Refusal,
    RunReport,
    Variant,
    variant_of,
    with_warning,
)
from edgeq.core.sources import origin
from edgeq.core.system import tool_versions
from edgeq.core.targets import TargetProfile
from edgeq.lower.devtools import bundled_program
from edgeq.lower.executorch import delegate_tools
from edgeq.lower.litert_environment import converter_tools
from edgeq.pipeline.plan import BuildUnit, Plan
from edgeq.pipeline.reports import write_bundle_page


def write_reports(row: PackageResult, data: DataFacts) -> PackageResult:
    """Write what a run tells of a row beside its bundle, in place of what is there, and return the row."""
    write_report(row.path, row)
    write_bundle_page(row, data)
    return row


def publish(plan: Plan) -> RunReport:
    """Switch every bundle into its place: accepted ones under the model's name, others under `rejected/`.

    An earlier bundle of a target and scheme stays where it is if this one is refused, or if no gate failed but some
    could not be measured here: that says nothing against it.
    """
    job, finished = plan.job, plan.finished
    units = [unit for unit in plan.all_units if unit.key in finished]
    for name in {row.model for row, _ in finished.values()}:
        check_owner(job, name)
    rows: list[PackageResult] = []
    replaced: list[Path] = []
    # all are copied before the first is switched: a disk that fills up leaves what was there
    with contextlib.ExitStack() as switches:
        for unit in units:
            row, _ = finished[unit.key]
            name, former = unit.name, f"{unit.name}@{row.scheme}"
            if len(job.schemes) > 1:
                name, former = former, name
            accepted, rejected = (root / row.model / name for root in (job.out, job.out / REJECTED_NAME))
            place, other = (rejected, accepted) if row.checked.exit_code else (accepted, rejected)
            copy_files(row.path, switches.enter_context(staged_dir(place, below=job.out)))
            stays = place == rejected and all(gate.passed or gate.outcome == "unverified" for gate in row.gates)
            good = [path for path in (accepted, accepted.with_name(former)) if path.exists()]
            if place == rejected and good:
                fate = "stays, since this one failed no gate" if stays else "is removed, since this one was rejected"
                row = with_warning(row, f"the earlier bundle {fate}: {good[0]}")
            rows.append(dataclasses.replace(row, path=place))
            replaced += [rejected.with_name(former)]
            replaced += [] if stays else [other, accepted.with_name(former)]
    for other in replaced:
        # a bundle of an earlier run must not pass for this one's
        remove_dir(other, below=job.out)
    refused = []
    for unit in plan.all_units:
        if unit.key in plan.refused:
            name = f"{unit.name}@{unit.scheme}" if len(job.schemes) > 1 else unit.name
            earlier = job.out / rows[0].model / name
            refused.append(
                Refusal(
                    model=rows[0].model,
                    target=unit.name,
                    scheme=unit.scheme,
                    error=plan.refused[unit.key],
                    stays=earlier if earlier.exists() else None,
                )
            )
    return RunReport(rows=tuple(rows), data=finished[units[0].key][1], refused=tuple(refused))


# --- From an artifact to a gated bundle for one target.


_ROUNDS = 5  # verdicts are in the manifest, which is in the download that they judge


def write_result(
    unit: BuildUnit,
    artifact: Artifact,
    inputs: Inputs,
    job: Job,
    folder: Path,
    *,
    deflated: dict[str, int] | None = None,
) -> PackageResult:
    """Judge an artifact by all gates, and write its bundle with their verdicts into a new folder.

    Args:
        unit: the target and scheme.
        artifact: as it ran on this host and on the target's device.
        inputs: the model and its data.
        job: its limits and options.
        folder: does not exist yet.
        deflated: as in `download_size_bytes`; only the manifest differs from one writing to the next.

    Raises:
        EdgeqError: the checks' and the writer's own errors.
    """
    target, scheme = unit.target, unit.scheme
    folder.mkdir()
    known = {} if deflated is None else deflated
    emulation = artifact.verified.emulation
    name, _, version = emulation.emulator.partition(" ") if emulation and emulation.runs else ("", "", "")
    tools = tool_versions() | delegate_tools(target.backend) | converter_tools(target.runtime)
    tools |= {name.lower(): version} if version else {}

    def write(judged_bytes: int) -> tuple[CheckReport, str, int]:
        checked = check(artifact, inputs, target, scheme, job.gates, download_bytes=judged_bytes)
        bundle = BundleInput(
            target=target,
            scheme=scheme,
            inputs=inputs,
            artifact=artifact,
            checked=checked,
            model_version=job.model_version,
            seed=job.seed,
            tools=tools,
            options=provenance_options(job, scheme),
        )
        digest = write_bundle(bundle, folder)
        return checked, digest, download_size_bytes(folder, known)

    checked, digest, download_bytes = _settled(write)
    if job.devtools and target.runtime == "executorch":
        _write_devtools(artifact, folder)
    return PackageResult(
        model=inputs.model.name,
        target=target.name,
        scheme=scheme,
        path=folder,
        digest=digest,
        size_bytes=artifact.size_bytes,
        download_bytes=download_bytes,
        fp32_bytes=inputs.model.fp32_bytes,
        verified=artifact.verified,
        checked=checked,
        delegated_macs=artifact.lowered.delegated_macs,
        weights=inputs.model.weights,
        layers=artifact.lowered.layers,
        qparams=artifact.quantized.qparams,
        reuse=artifact.reuse,
        source=origin(job.source),
        by_default=unit.by_default,
        work=inputs.work,
        search=artifact.quantized.search,
        layer_sqnrs=artifact.quantized.layer_sqnrs,
        shipped=_shipped_figures(job),
        zeros=artifact.lowered.zeros,
    )


def _write_devtools(artifact: Artifact, folder: Path) -> None:
    """Write beside a finished bundle what ExecuTorch's developer tools read: ETRecord, ETDump and BundledProgram.

    A program that no runtime here loads has no ETDump.
    """
    for name in (ETRECORD_NAME, ETDUMP_NAME):
        made = artifact.lowered.path.with_name(name)
        if made.exists():
            shutil.copyfile(made, folder / name)
    bundle = read_bundle(folder)
    cases = test_cases(read_golden(bundle), bundle.manifest)
    (folder / BUNDLED_PROGRAM_NAME).write_bytes(bundled_program(bundle.artifact, cases))


def _shipped_figures(job: Job) -> Variant | None:
    """Return the figures of the shipped model that the job names; None where it names none, or its report is unread."""
    named = job.gates.shipped or job.reuse_qparams_from
    if named is not None:
        with contextlib.suppress(EdgeqError):  # shown beside the new ones, judged by nothing
            return variant_of(read_report(named))
    return None


def _settled(write: Callable[[int], tuple[CheckReport, str, int]]) -> tuple[CheckReport, str, int]:
    """Write until the download size that was judged is the size of what was written.

    A verdict that depends on the size, and changes it, can flip for ever between two sizes: then the larger one counts.
    """
    seen = [0]
    for _ in range(_ROUNDS):
        checked, digest, download_bytes = write(seen[-1])
        if download_bytes == seen[-1]:
            return checked, digest, download_bytes
        seen.append(download_bytes)
    return write(max(seen))


# --- A result that the cache kept, under the limits of now: what was measured does not depend on them.


def judged_again(row: PackageResult, data: DataFacts, target: TargetProfile, gates: GateOptions) -> PackageResult:
    """Judge a finished bundle by other limits; its manifest and reports are written again where a verdict changes.

    Args:
        row: its `path` is a copy that may be changed.
        data: of its run.
        target: the profile that it was made for.
        gates: the limits and store presets, and what may stay unmeasured.
    """
    folder = row.path
    manifest = read_manifest(folder)[1]
    deflated: dict[str, int] = {}

    def write(judged_bytes: int) -> tuple[CheckReport, str, int]:
        checked = check_again(row, target, gates, download_bytes=judged_bytes)
        changed = with_gates(manifest, checked)
        content = manifest_bytes(changed)
        (folder / MANIFEST_NAME).write_bytes(content)
        return checked, manifest_digest(content, changed), download_size_bytes(folder, deflated)

    checked, digest, download_bytes = _settled(write)
    if checked == row.checked:
        return row
    return write_reports(dataclasses.replace(row, checked=checked, digest=digest, download_bytes=download_bytes), data)


# --- Whose bundles lie in the output folder under a model's name: one source must not replace another's by
# accident.


def check_owner(job: Job, name: str) -> None:
    """Refuse to replace bundles of another source where the name was not given but came from the source.

    Bundles that do not say what they were made from, as edgeq once wrote them, may be replaced.

    Raises:
        UsageError: another source's bundles have the name.
    """
    if job.name is not None:
        return

    own = origin(job.source)
    for report in sorted((job.out / name).glob(f"*/{REPORT_NAME}")):
        found = ""
        with contextlib.suppress(EdgeqError):  # what cannot be read says nothing
            found = read_report(report.parent).source
        if found not in ("", own):
            what = f"{report.parent} was made from {found}, and {own} would replace it under the same name"
            raise UsageError(what, f"give another --name, or --name {name} to replace it")
