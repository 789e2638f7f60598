"""What the gates on instructions and on predicted latency need: counts of the new artifact and of the shipped one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import Cost, LatencyPrediction, VerifyReport
from edgeq.counts import CountReport
from edgeq.device import DeviceProfile, load_device
from edgeq.job import DeviceOptions, GateOptions, Progress
from edgeq.pipeline.profile import cores_of, count_bundle, count_on, first_sample, installed_runtime
from edgeq.target import why_not_emulated
from edgeq.verify.emulate.wanted import wants_emulation

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.pipeline.prepare import Prepared
    from edgeq.pipeline.product import Product
    from edgeq.target import TargetProfile
    from edgeq.verify.emulate.container import Arrays
    from edgeq.verify.emulate.runtimes import Installed


def is_needed(options: GateOptions) -> bool:
    """Whether a gate needs counts."""
    return options.shipped is not None or options.device is not None


def with_cost(
    gates: GateOptions,
    device: DeviceOptions,
    prepared: Prepared,
    product: Product,
    target: TargetProfile,
    progress: Progress,
) -> Product:
    """Return the product with its cost, where a gate needs that and the target's kernels are emulated.

    Raises:
        EdgeqError: as `count_bundle`, or the prediction's UsageError.
    """
    if not is_needed(gates) or not wants_emulation(target, device):
        return product
    from edgeq.samples import batches
    from edgeq.verify.emulate.build import ensure_installed
    from edgeq.verify.emulate.runtimes import find_wheels

    wheels, _ = find_wheels(target.runtime, target.app.runtimes)
    if not wheels:
        return product
    sample = next(iter(batches(prepared.samples, prepared.model.inputs))).inputs
    runtime = ensure_installed(wheels[0], progress)
    cost = cost_of(
        gates,
        runtime,
        device.cpu or target.device.cpu,
        product.lowered.path,
        sample,
        threads=target.device.threads,
        timeout_s=device.timeout_s,
        progress=progress,
    )
    return dataclasses.replace(product, verified=dataclasses.replace(product.verified, cost=cost))


def with_bundle_cost(
    bundle: Bundle, gates: GateOptions, device: DeviceOptions, verified: VerifyReport, progress: Progress
) -> VerifyReport:
    """Return a bundle's report with its cost, where a gate needs that and its target runs on ARM64.

    The cores are those of --cpu, or those of the shipped target of its name.

    Raises:
        EdgeqError: as `count_bundle`.
    """
    manifest = bundle.manifest
    if not is_needed(gates) or manifest.target.arch != "arm64" or why_not_emulated(manifest.target.backend):
        return verified
    runtime = installed_runtime(manifest, progress)
    cost = cost_of(
        gates,
        runtime,
        device.cpu or cores_of(manifest),
        bundle.artifact,
        first_sample(bundle),
        threads=manifest.threads,
        timeout_s=device.timeout_s,
        progress=progress,
    )
    return dataclasses.replace(verified, cost=cost)


def cost_of(
    gates: GateOptions,
    runtime: Installed,
    cpus: tuple[str, ...],
    artifact: Path,
    sample: Arrays,
    *,
    threads: int,
    timeout_s: float,
    progress: Progress,
) -> Cost:
    """Count an artifact, and the shipped one on the same cores, and predict the device's latency.

    Raises:
        EdgeqError: as `verify.emulate.counting.count` and `count_bundle`.
    """
    profile = None if gates.device is None else load_device(gates.device)
    compared = cpus if gates.shipped is not None else ()
    cores = tuple(dict.fromkeys((*compared, *((profile.core,) if profile else ()))))
    counts = count_on(runtime, cores, artifact, sample, progress=progress, timeout_s=timeout_s)
    shipped: tuple[CountReport, ...] = ()
    if gates.shipped is not None:
        shipped = count_bundle(gates.shipped, compared, progress, timeout_s=timeout_s)
    prediction = None if profile is None else _predicted(profile, counts, threads, runtime.wheel.runtime)
    return Cost(counts=counts, shipped=shipped, prediction=prediction)


def _predicted(
    profile: DeviceProfile, counts: tuple[CountReport, ...], threads: int, runtime: str
) -> LatencyPrediction:
    total = next(one.total for one in counts if one.cpu == profile.core)
    told = profile.predict(total, threads, runtime=runtime)
    return LatencyPrediction(
        device=profile.name,
        threads=threads,
        estimate_ms=told.estimate_ms,
        low_ms=told.low_ms,
        high_ms=told.high_ms,
        extrapolated=told.extrapolated,
    )
