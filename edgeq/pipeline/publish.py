"""From finished bundles to the output folder: all are copied before the first is switched."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from edgeq.bundle.archive import download_size_bytes
from edgeq.bundle.run_report import REPORT_NAME, read_report, write_report
from edgeq.bundle.writer import write_bundle
from edgeq.check.evaluate import Candidate, check
from edgeq.core.config import REJECTED_NAME, Job
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.files import copy_files, remove_dir, staged_dir
from edgeq.core.results.report import (
    BundleInput,
    CheckReport,
    DataFacts,
    PackageResult,
    Refusal,
    RunReport,
    with_warning,
)
from edgeq.core.sources import origin
from edgeq.core.system import host_arch, tool_versions
from edgeq.core.targets import TargetProfile
from edgeq.lower.executorch import delegate_tools
from edgeq.pipeline.plan import Artifact, Inputs, Plan
from edgeq.pipeline.reports import page_title, write_page


def write_reports(row: PackageResult, data: DataFacts) -> PackageResult:
    """Write what a run tells of a row beside its bundle, in place of what is there, and return the row."""

    write_report(row.path, row)
    write_page(row.path, (row,), data, title=page_title(row))
    return row


def publish(planned: Plan) -> RunReport:
    """Switch every bundle into its place: accepted ones under the model's name, others under `rejected/`.

    An earlier bundle of a target and scheme that is refused now stays where it is.
    """

    job, finished = planned.job, planned.finished
    cells = [cell for cell in planned.cells if cell.key in finished]
    for name in {row.model for row, _ in finished.values()}:
        check_owner(job, name)
    rows: list[PackageResult] = []
    replaced: list[Path] = []
    # all are copied before the first is switched: a disk that fills up leaves what was there
    with contextlib.ExitStack() as switches:
        for cell in cells:
            row, _ = finished[cell.key]
            name, former = cell.target.name, f"{cell.target.name}@{row.scheme}"
            if len(job.schemes) > 1:
                name, former = former, name
            accepted, rejected = (root / row.model / name for root in (job.out, job.out / REJECTED_NAME))
            place, other = (rejected, accepted) if row.checked.exit_code else (accepted, rejected)
            copy_files(row.path, switches.enter_context(staged_dir(place, below=job.out)))
            if other == accepted and accepted.exists():
                row = with_warning(row, f"the earlier bundle is removed, since this one was rejected: {accepted}")
            rows.append(dataclasses.replace(row, path=place))
            replaced += [other, *(side.with_name(former) for side in (accepted, rejected))]
    for other in replaced:
        # a bundle of an earlier run must not pass for this one's
        remove_dir(other, below=job.out)
    refused = []
    for cell in planned.cells:
        if cell.key in planned.refused:
            name = f"{cell.target.name}@{cell.scheme}" if len(job.schemes) > 1 else cell.target.name
            earlier = job.out / rows[0].model / name
            refused.append(
                Refusal(
                    model=rows[0].model,
                    target=cell.target.name,
                    scheme=cell.scheme,
                    error=planned.refused[cell.key],
                    stays=earlier if earlier.exists() else None,
                )
            )
    return RunReport(rows=tuple(rows), data=finished[cells[0].key][1], refused=tuple(refused))


# --- From a product to a gated bundle for one target.


_ROUNDS = 5  # verdicts are in the manifest, which is in the download that they judge


def bundled(
    job: Job,
    prepared: Inputs,
    product: Artifact,
    target: TargetProfile,
    scheme: str,
    folder: Path,
    *,
    deflated: dict[str, int] | None = None,
) -> PackageResult:
    """Write the bundle into a new folder and judge it by all gates; `deflated` is `download_size_bytes`' own.

    Raises:
        EdgeqError: the checks' and the writer's own errors.
    """
    folder.mkdir()
    size_bytes = product.lowered.path.stat().st_size
    checked, digest, download_bytes = _written(job, prepared, product, target, scheme, folder, deflated)
    return PackageResult(
        model=prepared.model.name,
        target=target.name,
        scheme=scheme,
        path=folder,
        digest=digest,
        size_bytes=size_bytes,
        download_bytes=download_bytes,
        fp32_bytes=prepared.model.fp32_bytes,
        verified=product.verified,
        checked=checked,
        delegated_macs=product.lowered.delegated_macs,
        weights=prepared.model.weights,
        layers=product.lowered.layers,
        qparams=product.qparams,
        reuse=product.reuse,
        source=origin(job.source),
        search=product.search,
        layer_sqnrs=product.layer_sqnrs,
    )


def _written(
    job: Job,
    prepared: Inputs,
    product: Artifact,
    target: TargetProfile,
    scheme: str,
    folder: Path,
    deflated: dict[str, int] | None,
) -> tuple[CheckReport, str, int]:
    """Write a bundle with its verdicts; return them, its digest and the bytes of its download."""

    known = {} if deflated is None else deflated  # only the manifest differs from one writing to the next

    def write(judged_bytes: int) -> tuple[CheckReport, str, int]:
        item = Candidate(
            target=target,
            scheme=scheme,
            lowered=product.lowered,
            verified=product.verified,
            tuning=product.tuning,
            search=product.search,
            options=job.gates,
            size_bytes=product.lowered.path.stat().st_size,
            download_bytes=judged_bytes,
            weights=prepared.model.weights,
            host_arch=host_arch(),
            has_graph=prepared.model.kind not in ("pte", "ptl"),
            remarks=(*product.remarks, *prepared.remarks),
            asked_fp32=product.asked_fp32,
            unapplied=prepared.unapplied,
        )
        checked = check(item)
        digest = write_bundle(_bundle_input(job, prepared, product, target, scheme, checked), folder)
        return checked, digest, download_size_bytes(folder, known)

    return _settled(write)


def _settled(write: Callable[[int], tuple[CheckReport, str, int]]) -> tuple[CheckReport, str, int]:
    """Write until the download size that was judged is the one that came of it.

    A verdict that the size itself brings about can flip for ever between two sizes: then the larger one counts.
    """
    seen = [0]
    for _ in range(_ROUNDS):
        checked, digest, download_bytes = write(seen[-1])
        if download_bytes == seen[-1]:
            return checked, digest, download_bytes
        seen.append(download_bytes)
    return write(max(seen))


def _bundle_input(
    job: Job, prepared: Inputs, product: Artifact, target: TargetProfile, scheme: str, checked: CheckReport
) -> BundleInput:
    return BundleInput(
        model=prepared.model,
        model_version=job.model_version,
        target=target,
        scheme=scheme,
        lowered=product.lowered,
        verified=product.verified,
        checked=checked,
        labels=prepared.labels,
        preprocess=prepared.preprocess,
        golden=product.golden,
        data=prepared.data,
        seed=job.seed,
        tools=_tools(product, target),
        quantized=product.quantized,
        kept_fp32=product.kept_fp32,
        tuning=product.tuning,
        search=product.search,
    )


def _tools(product: Artifact, target: TargetProfile) -> dict[str, str]:
    """Return the versions of what decides the result; QEMU decides where it ran the device's kernels."""
    emulation = product.verified.emulation
    name, _, version = emulation.emulator.partition(" ") if emulation and emulation.runs else ("", "", "")
    return tool_versions() | delegate_tools(target.backend) | ({name.lower(): version} if version else {})


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
