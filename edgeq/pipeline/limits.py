"""The limits of `edgeq verify`, on a bundle that is finished, and the remarks beside them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgeq.artifacts import Gate, VerifyReport
from edgeq.job import GateOptions
from edgeq.manifest import Manifest
from edgeq.target import why_not_run

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle


def limit_gates(bundle: Bundle, verified: VerifyReport, options: GateOptions) -> tuple[Gate, ...]:
    """Hold a bundle, and what was measured of it, to limits.

    Args:
        bundle: as it lies on disk.
        verified: what running it showed, here or elsewhere.
        options: the limits, the shipped bundle, and what may stay unmeasured.
    """
    from edgeq.bundle.archive import download_size_bytes
    from edgeq.check.instructions import instruction_gates
    from edgeq.check.limits import Measured, limit_gate
    from edgeq.verify.run import host_arch

    measured = Measured(
        size_bytes=bundle.manifest.file("artifact").size_bytes,
        download_bytes=download_size_bytes(bundle.folder) if "download" in dict(options.limits) else 0,
        verified=verified,
        limit_on=options.limit_on,
        host_arch=host_arch(),
        target_arch=bundle.manifest.target.arch,
        target_platform=bundle.manifest.target.platform,
        threads=bundle.manifest.threads,
    )
    judged = [limit_gate(name, limit, measured) for name, limit in options.limits]
    judged += instruction_gates(options.shipped, verified)
    return tuple(settled(gate, options) for gate in judged)


def settled(gate: Gate, options: GateOptions) -> Gate:
    """Let a gate pass that may stay unmeasured."""
    if gate.name == "accuracy_drop":
        gate = dataclasses.replace(gate, detail="a bundle holds no fp32 model; package again with this limit")
    allowed = gate.outcome == "unverified" and gate.name in options.allow_unmeasured
    return dataclasses.replace(gate, outcome="allowed") if allowed else gate


def remarks(manifest: Manifest, verified: VerifyReport) -> tuple[str, ...]:
    """Say where a bundle was run, if that is not its device, and what stands in the way of its release."""
    from edgeq.verify.run import host_arch

    said = []
    if why_not_run(manifest.target.backend) or (verified.emulation is not None and verified.emulation.runs):
        pass
    elif manifest.target.platform in ("android", "ios"):
        said.append(f"run on the host's kernels ({host_arch()}), not the phone's")
    elif manifest.target.arch != host_arch():
        said.append(f"run on the host's kernels ({host_arch()}), not those of {manifest.target.arch}")
    if manifest.model.weights == "random":
        said.append("the weights are random: install and release will refuse this bundle")
    return tuple(said)
