"""All gates of one artifact. Every gate is evaluated, even after one has failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeq.check.artifact import equivalence_gates, graph_gates, outputs_gate, parity_gate
from edgeq.check.device import device_gates
from edgeq.check.fidelity import floor_gates
from edgeq.check.gate import unverified
from edgeq.check.gates import GATES, PREPROCESSING, Command, allowed_unmeasured
from edgeq.check.limits import Measured, accuracy_warnings, instruction_gates, limit_gate
from edgeq.check.precision import audit_gates, audit_warnings
from edgeq.check.runtime import runtime_gate
from edgeq.check.search import search_gates, training_gates, training_warnings
from edgeq.check.stores import find_store_limit, store_gate, store_warnings
from edgeq.core.config import GateOptions
from edgeq.core.errors import UsageError, nearest
from edgeq.core.results.artifact import Artifact, Inputs
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.report import CheckReport, Gate
from edgeq.core.system import host_arch
from edgeq.core.targets import TargetProfile


def validate_options(
    options: GateOptions, targets: Sequence[TargetProfile] = (), *, command: Command = "package"
) -> None:
    """Check the gate options before a long run.

    Raises:
        UsageError: --allow-unmeasured names an unknown gate (the nearest is offered); a store limit is unknown, is for
            another platform, or needs --app-size.
    """
    names = allowed_unmeasured(command)
    for name in options.allow_unmeasured:
        if name not in names:
            what = (
                f"--allow-unmeasured {name}: `edgeq {command}` always measures this gate or never judges it"
                if name in GATES
                else f"--allow-unmeasured {name}: unknown gate.{nearest(name, names)}"
            )
            raise UsageError(what, f"give one of: {', '.join(names)}")
    for preset in options.store_limits:
        for target in targets or (None,):
            find_store_limit(preset, options.app_size_bytes, target)


def check(
    artifact: Artifact,
    inputs: Inputs,
    target: TargetProfile,
    scheme: str,
    options: GateOptions,
    *,
    download_bytes: int,
) -> CheckReport:
    """Evaluate all gates of one artifact, even after one has failed.

    Args:
        artifact: as it ran on this host and on the target's device.
        inputs: the model and its data.
        target: the profile that the artifact was made for.
        scheme: the scheme that made it.
        options: the limits, the store presets and what may stay unmeasured.
        download_bytes: the size of the bundle's deterministic, deflated ZIP.

    Raises:
        UsageError: as `validate_options` says.
    """
    validate_options(options, (target,))
    lowered, verified, quantized = artifact.lowered, artifact.verified, artifact.quantized
    has_graph = inputs.model.kind not in ("pte", "ptl")  # a lowered source has no converted graph to compare with
    unrun = verified.graph_only.why if verified.graph_only else ""
    # the artifact must be what it claims to be
    gates = [
        *((parity_gate(scheme, verified.parity, unrun),) if has_graph else ()),
        *(equivalence_gates(lowered, scheme, verified.parity) if has_graph else ()),
        outputs_gate(verified),
        *graph_gates(verified),
        *floor_gates(verified, options, is_int8=bool(quantized.quantized)),
        *preprocessing_gates(inputs.unapplied),
        *device_gates(scheme, verified),
        *training_gates(quantized.tuning),
        *search_gates(quantized.search),
        *audit_gates(target=target, scheme=scheme, lowered=lowered, verified=verified, asked_fp32=artifact.asked_fp32),
        runtime_gate(target, lowered),
    ]
    # the limits of the project, the shipped model and the stores
    size_bytes = artifact.size_bytes
    measured = Measured(
        size_bytes=size_bytes,
        download_bytes=download_bytes,
        verified=verified,
        limit_on=options.limit_on,
        host_arch=host_arch(),
        target_arch=target.arch,
        target_platform=target.platform,
        threads=target.device.threads,
    )
    gates += [limit_gate(name, limit, measured) for name, limit in options.limits]
    gates += instruction_gates(options.shipped, verified)
    gates += [
        store_gate(preset, options.app_size_bytes, size_bytes, download_bytes, target)
        for preset in options.store_limits
    ]
    allowed = [
        dataclasses.replace(gate, outcome="allowed")
        if gate.outcome == "unverified" and gate.name in options.allow_unmeasured
        else gate
        for gate in gates
    ]
    return CheckReport(gates=tuple(allowed), warnings=_warnings(artifact, inputs, target, scheme, options))


def preprocessing_gates(unapplied: str) -> tuple[Gate, ...]:
    """Report preprocessing that the manifest states but no sample went through as unverified (exit code 7)."""
    if not unapplied:
        return ()
    fix = (
        "give uint8 images, or omit --preprocess; if the data is already preprocessed, give --allow-unmeasured "
        f"{PREPROCESSING}"
    )
    return (unverified(PREPROCESSING, "applied as in the manifest", f"{unapplied}: {fix}"),)


def _device_warnings(verified: VerifyReport) -> tuple[str, ...]:
    """Say that a device's kernels were left out, and where they score otherwise than the host's."""
    runs = verified.emulation.runs if verified.emulation else ()
    said = [verified.not_emulated] if verified.not_emulated else []
    missing = verified.emulation.without_wheel if verified.emulation else ()
    said += [f"not run on runtime {version}: no ARM64 wheel of that version is known" for version in missing]
    said += [
        (
            f"{run.name} scores {run.rescored} of {run.scored} samples differently from this host: the accuracy gate "
            "uses the worse score"
        )
        for run in runs
        if run.rescored
    ]
    return tuple(said)


def _warnings(
    artifact: Artifact, inputs: Inputs, target: TargetProfile, scheme: str, options: GateOptions
) -> tuple[str, ...]:
    """Return what fails no gate, and users must know."""
    lowered, verified, quantized = artifact.lowered, artifact.verified, artifact.quantized
    has_graph = inputs.model.kind not in ("pte", "ptl")
    said = []
    if inputs.model.weights == "random":
        said.append("the weights are random: install and release will refuse this bundle")
    if not has_graph:
        said.append("lowering parity was not checked: an existing artifact has no converted graph to compare with")
    return (
        *said,
        *quantized.remarks,
        *inputs.remarks,
        *((verified.stand_in,) if verified.stand_in else ()),
        *(accuracy_warnings(scheme, verified, options) if has_graph else ()),
        *_device_warnings(verified),
        *training_warnings(quantized.tuning),
        *audit_warnings(
            target=target, scheme=scheme, lowered=lowered, verified=verified, asked_fp32=artifact.asked_fp32
        ),
        *store_warnings(options.store_limits, target),
    )
