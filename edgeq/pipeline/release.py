"""From a product to a gated bundle for one target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import BundleInput, CheckReport, Row
from edgeq.job import Job
from edgeq.machine import host_arch
from edgeq.pipeline.cache import tool_versions
from edgeq.pipeline.prepare import Prepared
from edgeq.pipeline.product import Product
from edgeq.sources import origin

if TYPE_CHECKING:
    from edgeq.target import TargetProfile

_ROUNDS = 5  # verdicts are in the manifest, which is in the download that they judge


def bundled(
    job: Job,
    prepared: Prepared,
    product: Product,
    target: TargetProfile,
    scheme: str,
    folder: Path,
    *,
    deflated: dict[str, int] | None = None,
) -> Row:
    """Write the bundle into a new folder and judge it by all gates; `deflated` is `download_size_bytes`' own.

    Raises:
        EdgeqError: the checks' and the writer's own errors.
    """
    folder.mkdir()
    size_bytes = product.lowered.path.stat().st_size
    checked, digest, download_bytes = _written(job, prepared, product, target, scheme, folder, deflated)
    return Row(
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
    prepared: Prepared,
    product: Product,
    target: TargetProfile,
    scheme: str,
    folder: Path,
    deflated: dict[str, int] | None,
) -> tuple[CheckReport, str, int]:
    """Write a bundle with its verdicts; return them, its digest and the bytes of its download."""
    from edgeq.bundle.archive import download_size_bytes
    from edgeq.bundle.writer import write_bundle
    from edgeq.check.gates import Candidate, check

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
    job: Job, prepared: Prepared, product: Product, target: TargetProfile, scheme: str, checked: CheckReport
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


def _tools(product: Product, target: TargetProfile) -> dict[str, str]:
    """Return the versions of what decides the result; QEMU decides where it ran the device's kernels."""
    from edgeq.lower.delegates import delegate_tools

    emulation = product.verified.emulation
    name, _, version = emulation.emulator.partition(" ") if emulation and emulation.runs else ("", "", "")
    return tool_versions() | delegate_tools(target.backend) | ({name.lower(): version} if version else {})
