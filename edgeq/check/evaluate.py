"""All gates of one artifact. Every gate is evaluated, even after one has failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeq.check.artifact import (
    continuation_gates,
    equivalence_gates,
    graph_gates,
    outputs_gate,
    parity_gate,
    sizes_gates,
    weights_gates,
    with_reuse,
)
from edgeq.check.device import device_gates
from edgeq.check.drift import STATE, state_gates
from edgeq.check.fidelity import CLASS_DROP, FIDELITY, floor_gates
from edgeq.check.gate import unverified
from edgeq.check.gates import GATES, PREPROCESSING, Command, allowed_unmeasured
from edgeq.check.limits import INSTRUCTIONS_GATE, Measured, accuracy_warnings, instruction_gates, limit_gate
from edgeq.check.precision import audit_gates, audit_warnings, table_warnings
from edgeq.check.runtime import runtime_gate
from edgeq.check.search import search_gates, training_gates, training_warnings
from edgeq.check.stores import find_store_limit, store_gate, store_limits, store_warnings
from edgeq.core.config import GateOptions
from edgeq.core.devices import load_device
from edgeq.core.errors import UsageError, nearest
from edgeq.core.results.artifact import Artifact, Inputs
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import LoweredModel
from edgeq.core.results.report import CheckReport, Gate, PackageResult
from edgeq.core.samples import state_specs
from edgeq.core.schemes import FLOAT_SCHEMES
from edgeq.core.system import host_arch
from edgeq.core.targets import TargetProfile
from edgeq.core.units import counted


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


def check_cost_options(options: GateOptions, targets: Sequence[TargetProfile] = ()) -> None:
    """Refuse options that cannot be counted or predicted, before a long run.

    Raises:
        UsageError: --shipped is not a bundle, an unknown --device, one without --limit-on predicted, or the reverse,
            or a target that asks for more threads than the device has.
    """
    if options.latency_on == "predicted" and options.device is None:
        what = "--limit-on predicted needs a device to predict for"
        raise UsageError(what, "add --device NAME; `edgeq devices list` shows the names")
    if options.latency_on == "predicted" and not any(name == "latency" for name, _ in options.limits):
        what = "--limit-on predicted needs a latency limit, but none is given"
        raise UsageError(what, "add --limit latency=40ms")
    if options.device is not None:
        if options.latency_on != "predicted":
            raise UsageError(
                "--device only applies with --limit-on predicted", "add --limit-on predicted, or omit --device"
            )
        profile = load_device(options.device)
        for target in targets:
            profile.check_threads(target.device.threads)
    if options.shipped is not None and not (options.shipped / "manifest.json").is_file():
        what = f"--shipped {options.shipped} is not a bundle: expected a folder with manifest.json"
        raise UsageError(what, "give the folder that `edgeq package` wrote, OUT/<model>/<target>")


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
    asked = asked_gates(verified, target, options, size_bytes=artifact.size_bytes, download_bytes=download_bytes)
    is_evaluated = verified.fidelity is not None and verified.fidelity.inputs == "evaluation"
    # the artifact must be what it claims to be
    gates = [
        *((with_reuse(parity_gate(scheme, verified.parity, unrun), scheme, artifact.reuse),) if has_graph else ()),
        *(equivalence_gates(lowered, scheme, verified.parity) if has_graph else ()),
        outputs_gate(verified),
        *sizes_gates(scheme, verified),
        *state_gates(verified, options, has_state=bool(state_specs(inputs.model.inputs))),
        *continuation_gates(scheme, verified, inputs.model.language),
        *graph_gates(verified),
        *weights_gates(lowered),
        *floor_gates(scheme, verified, options),
        *preprocessing_gates(inputs.unapplied),
        *device_gates(scheme, verified),
        *training_gates(quantized.tuning),
        *search_gates(quantized.search, asked if is_evaluated else ()),
        *audit_gates(
            target=target,
            scheme=scheme,
            lowered=lowered,
            verified=verified,
            asked_fp32=artifact.asked_fp32,
            in_float=artifact.quantized.in_float,
        ),
        runtime_gate(target, lowered),
        *asked,
    ]
    return CheckReport(
        gates=_allowed(gates, options),
        warnings=(
            *_warnings(artifact, inputs, target, scheme),
            *_asked_warnings(target, scheme, verified, options, has_graph=has_graph),
        ),
    )


def asked_gates(
    verified: VerifyReport, target: TargetProfile, options: GateOptions, *, size_bytes: int, download_bytes: int
) -> list[Gate]:
    """Return the gates of the project's limits, the shipped model and the stores."""
    measured = Measured(
        size_bytes=size_bytes,
        download_bytes=download_bytes,
        verified=verified,
        limit_on=options.limit_on,
        host_arch=host_arch(),
        target_arch=target.arch,
        target_platform=target.platform,
        threads=target.device.threads,
        times_on=options.times_on,
        sram_bytes=verified.npu.needed_sram_bytes if verified.npu else None,
        cycles=verified.npu.cycles if verified.npu else None,
    )
    return [
        *(limit_gate(name, limit, measured) for name, limit in options.limits),
        *instruction_gates(options.shipped, verified),
        *(
            store_gate(preset, options.app_size_bytes, size_bytes, download_bytes, target)
            for preset in options.store_limits
        ),
    ]


def _allowed(gates: Sequence[Gate], options: GateOptions) -> tuple[Gate, ...]:
    """Return the gates, those that may stay unmeasured marked as such."""
    return tuple(
        dataclasses.replace(gate, outcome="allowed")
        if gate.outcome == "unverified" and gate.name in options.allow_unmeasured
        else gate
        for gate in gates
    )


def check_again(row: PackageResult, target: TargetProfile, options: GateOptions, *, download_bytes: int) -> CheckReport:
    """Evaluate the gates of a finished row by other limits, from the measurements that it holds.

    The result equals that of `check` with these options: the artifact's own gates do not depend on them, but for the
    floor's and for what may stay unmeasured.

    Args:
        row: neither searched nor chosen by limits.
        target: the profile that it was made for.
        options: the limits, the store presets and what may stay unmeasured.
        download_bytes: the size of the bundle's deterministic, deflated ZIP.

    Raises:
        UsageError: as `validate_options` says.
    """
    validate_options(options, (target,))
    verified = row.verified
    asked = [gate for gate in row.gates if _is_asked(gate)]
    own = [
        dataclasses.replace(gate, outcome="unverified") if gate.outcome == "allowed" else gate
        for gate in row.gates
        if not _is_asked(gate) and gate.name not in (FIDELITY, CLASS_DROP, STATE)
    ]
    order = list(GATES)  # `check` lists the artifact's own gates in this order
    place = sum(order.index(gate.name) < order.index(FIDELITY) for gate in own)
    before_state = sum(order.index(gate.name) < order.index(STATE) for gate in own)
    has_state = any(gate.name == STATE for gate in row.gates)
    gates = [
        *own[:before_state],
        *state_gates(verified, options, has_state=has_state),
        *own[before_state:place],
        *floor_gates(row.scheme, verified, options),
        *own[place:],
        *asked_gates(verified, target, options, size_bytes=row.size_bytes, download_bytes=download_bytes),
    ]
    before = GateOptions(
        limits=tuple((gate.name, gate.bound) for gate in asked if gate.bound is not None),  # type: ignore[misc]
        store_limits=tuple(gate.name for gate in asked if gate.name in store_limits()),
        latency_on=options.latency_on,
    )
    has_graph = NO_GRAPH not in row.checked.warnings
    said = row.checked.warnings
    rest = len(said) - len(_asked_warnings(target, row.scheme, verified, before, has_graph=has_graph))
    now = _asked_warnings(target, row.scheme, verified, options, has_graph=has_graph)
    return CheckReport(gates=_allowed(gates, options), warnings=(*said[:rest], *now))


def _is_asked(gate: Gate) -> bool:
    return gate.bound is not None or gate.name == INSTRUCTIONS_GATE or gate.name in store_limits()


# what quantizes inputs and dequantizes outputs, or narrows whole numbers, around what an NPU computes
_IN_AND_OUT = ("quantized_decomposed::", "dim_order_ops::")


def preprocessing_gates(unapplied: str) -> tuple[Gate, ...]:
    """Report preprocessing that the manifest states but no sample went through as unverified (exit code 7)."""
    if not unapplied:
        return ()
    fix = (
        "give uint8 images, or omit --preprocess; if the data is already preprocessed, give --allow-unmeasured "
        f"{PREPROCESSING}"
    )
    return (unverified(PREPROCESSING, "applied as in the manifest", f"{unapplied}: {fix}"),)


def size_warnings(verified: VerifyReport) -> tuple[str, ...]:
    """Say what an app must not rely on the runtime for: it answers outside of the range, or crashes."""
    beyond = verified.sizes.beyond if verified.sizes else ()
    bad = [run.text for run in beyond if run.outcome in ("other", "crashes")]
    return (f"outside of the sizes that it was packaged for, {'; '.join(bad)}: check sizes in the app",) if bad else ()


def npu_warnings(verified: VerifyReport) -> tuple[str, ...]:
    """Say what of a model for an NPU its CPU computes, beyond what takes the values in and out."""
    if verified.npu is None:
        return ()
    other = [name for name in verified.npu.cpu_operators if not name.startswith(_IN_AND_OUT)]
    what = "the CPU computes what the NPU does not take, and the firmware needs these kernels"
    return (f"{what}: {', '.join(other)}",) if other else ()


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


NO_GRAPH = "lowering parity was not checked: an existing artifact has no converted graph to compare with"


_SMALL_BYTES = 100_000  # of smaller artifacts, what surrounds the weights may be most


def _larger_than_fp32(times: float, lowered: LoweredModel) -> str:
    """Say that a quantized artifact is larger than the float weights, and why where that is seen."""
    modules = {layer.name.partition("#")[0] for layer in lowered.layers}
    said = f"the artifact is {times:.2g} times as large as the fp32 weights, although they are quantized"
    if len(lowered.layers) < _STEPS * max(1, len(modules)):
        return said
    calls = f"{len(lowered.layers):,} calls of {counted(len(modules), 'layer')}"
    fewer = "give fewer steps for each call, with the state as an input and an output (--state)"
    other = "use a runtime with recurrent kernels, ONNX Runtime or QNNPACK"
    return f"{said}: the graph has {calls}, as recurrent layers are written out step by step; {fewer}, or {other}"


_STEPS = 8  # calls of a layer, from which on the graph is that of steps


def _warnings(artifact: Artifact, inputs: Inputs, target: TargetProfile, scheme: str) -> tuple[str, ...]:
    """Return what fails no gate, users must know, and no limit changes."""
    lowered, verified, quantized = artifact.lowered, artifact.verified, artifact.quantized
    said = []
    if inputs.model.weights == "random":
        said.append("the weights are random: install and release will refuse this bundle")
    if inputs.model.kind in ("pte", "ptl"):
        said.append(NO_GRAPH)
    if scheme not in FLOAT_SCHEMES and artifact.size_bytes > max(inputs.model.fp32_bytes, _SMALL_BYTES):
        said.append(_larger_than_fp32(artifact.size_bytes / max(1, inputs.model.fp32_bytes), lowered))
    return (
        *said,
        *quantized.remarks,
        *inputs.remarks,
        *((verified.stand_in,) if verified.stand_in else ()),
        *npu_warnings(verified),
        *_device_warnings(verified),
        *size_warnings(verified),
        *training_warnings(quantized.tuning),
        *audit_warnings(
            target=target,
            scheme=scheme,
            lowered=lowered,
            verified=verified,
            asked_fp32=artifact.asked_fp32,
            in_float=artifact.quantized.in_float,
        ),
        *table_warnings(target, scheme, lowered, inputs.work),
    )


def _asked_warnings(
    target: TargetProfile, scheme: str, verified: VerifyReport, options: GateOptions, *, has_graph: bool
) -> tuple[str, ...]:
    """Return the warnings that depend on what was limited; `check_again` replaces them, so they come last."""
    # without a limit on it, a time that comes and goes with the host's load is no news
    is_timed = options.latency_on == "measured" and any(name == "latency" for name, _ in options.limits)
    return (
        *((verified.timing.warning,) if is_timed and verified.timing and verified.timing.warning else ()),
        *(accuracy_warnings(scheme, verified, options) if has_graph else ()),
        *store_warnings(options.store_limits, target),
    )
