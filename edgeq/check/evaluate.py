"""All gates of one artifact. Every gate is evaluated, even after one has failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

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
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import LoweredModel, Search, Tuning, Weights
from edgeq.core.results.report import CheckReport, Gate
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One artifact with everything that its gates need.

    Attributes:
        target: the profile that it was made for.
        scheme: the scheme that made it.
        lowered: its facts that are known without running it.
        verified: the results of running it.
        options: the limits, the store presets and the gates that may stay unmeasured.
        size_bytes: the artifact's size on disk.
        download_bytes: the size of the bundle's deterministic, deflated ZIP.
        weights: where the parameters came from.
        host_arch: the architecture of the host of `verified`, in the form of `platform.machine()`.
        has_graph: whether there was a converted graph to compare with; an existing artifact has none.
        tuning: the result of training, for schemes that train.
        search: the result of the search, for schemes that search.
        remarks: findings of quantization and of the data that the user should know.
        asked_fp32: names of the artifact's layers that --keep-fp32 keeps in float.
        unapplied: the data to which the manifest's preprocessing was not applied, in words; "" if it was applied to
            all.
    """

    target: TargetProfile
    scheme: str
    lowered: LoweredModel
    verified: VerifyReport
    options: GateOptions
    size_bytes: int
    download_bytes: int
    weights: Weights
    host_arch: str
    has_graph: bool = True
    tuning: Tuning | None = None
    search: Search | None = None
    remarks: tuple[str, ...] = ()
    asked_fp32: tuple[str, ...] = ()
    unapplied: str = ""


def check(item: Candidate) -> CheckReport:
    """Evaluate all gates of one artifact.

    Raises:
        UsageError: as `validate_options` says.
    """
    validate_options(item.options, (item.target,))
    gates = (*_gates_by_what_it_is(item), *_gates_by_what_was_asked(item))
    return CheckReport(gates=tuple(_allow_unmeasured(gate, item.options) for gate in gates), warnings=_warnings(item))


def _gates_by_what_it_is(item: Candidate) -> tuple[Gate, ...]:
    """Return the gates that no option asks for: the artifact must be what it claims to be."""
    scheme, lowered, verified = item.scheme, item.lowered, item.verified
    unrun = verified.graph_only.why if verified.graph_only else ""
    return (
        *((parity_gate(scheme, verified.parity, unrun),) if item.has_graph else ()),
        *(equivalence_gates(lowered, scheme, verified.parity) if item.has_graph else ()),
        outputs_gate(verified),
        *graph_gates(verified),
        *floor_gates(verified, item.options),
        *preprocessing_gates(item.unapplied),
        *device_gates(scheme, verified),
        *training_gates(item.tuning),
        *search_gates(item.search),
        *audit_gates(target=item.target, scheme=scheme, lowered=lowered, verified=verified, asked_fp32=item.asked_fp32),
        runtime_gate(item.target, lowered),
    )


def _gates_by_what_was_asked(item: Candidate) -> tuple[Gate, ...]:
    """Return the gates of the project's limits, the shipped model and the stores."""
    options, target = item.options, item.target
    measured = Measured(
        size_bytes=item.size_bytes,
        download_bytes=item.download_bytes,
        verified=item.verified,
        limit_on=options.limit_on,
        host_arch=item.host_arch,
        target_arch=target.arch,
        target_platform=target.platform,
        threads=target.device.threads,
    )
    return (
        *(limit_gate(name, limit, measured) for name, limit in options.limits),
        *instruction_gates(options.shipped, item.verified),
        *(
            store_gate(preset, options.app_size_bytes, item.size_bytes, item.download_bytes, target)
            for preset in options.store_limits
        ),
    )


def preprocessing_gates(unapplied: str) -> tuple[Gate, ...]:
    """Report preprocessing that the manifest states but no sample went through as unverified (exit code 7)."""
    if not unapplied:
        return ()
    fix = (
        "give uint8 images, or omit --preprocess; if the data is already preprocessed, give --allow-unmeasured "
        f"{PREPROCESSING}"
    )
    return (unverified(PREPROCESSING, "applied as in the manifest", f"{unapplied}: {fix}"),)


def _allow_unmeasured(gate: Gate, options: GateOptions) -> Gate:
    if gate.outcome == "unverified" and gate.name in options.allow_unmeasured:
        return dataclasses.replace(gate, outcome="allowed")
    return gate


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


def _warnings(item: Candidate) -> tuple[str, ...]:
    """Return what fails no gate, and is to be known all the same."""
    said = []
    if item.weights == "random":
        said.append("the weights are random: install and release will refuse this bundle")
    if not item.has_graph:
        said.append("lowering parity was not checked: an existing artifact has no converted graph to compare with")
    return (
        *said,
        *item.remarks,
        *((item.verified.stand_in,) if item.verified.stand_in else ()),
        *(accuracy_warnings(item.scheme, item.verified, item.options) if item.has_graph else ()),
        *_device_warnings(item.verified),
        *training_warnings(item.tuning),
        *audit_warnings(
            target=item.target,
            scheme=item.scheme,
            lowered=item.lowered,
            verified=item.verified,
            asked_fp32=item.asked_fp32,
        ),
        *store_warnings(item.options.store_limits, item.target),
    )
