"""The gates of a release: will the apps in the field load it, take it, and be better off with it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgeq.artifacts import Gate, LoweredModel
from edgeq.check.compat import runtime_gate as field_gate
from edgeq.check.outcome import at_most, unverified
from edgeq.check.store import find_store_limit, store_gate
from edgeq.errors import ExitCode, UsageError
from edgeq.intervals import samples_for_drop, samples_for_share
from edgeq.job import DataOptions, GateOptions, Progress
from edgeq.manifest import Manifest, contract_change
from edgeq.ort_format import required_operators
from edgeq.scheme import LIMITS, LimitName
from edgeq.target import App, TargetProfile
from edgeq.units import format_quantity

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.deliver.ota.entries import Prepared
    from edgeq.pipeline.churn import Churn
    from edgeq.verify.host import HostRuntime


def is_lite(manifest: Manifest) -> bool:
    """Whether the artifact is for the lite interpreter, whose operators have to be read from the artifact."""
    return manifest.target.runtime == "torchscript" and manifest.target.platform == "android"


def runtime_gate(bundle: Bundle, runtimes: tuple[str, ...], runtime: HostRuntime | None) -> Gate:
    """Hold the artifact to the oldest runtime in the field: its version, or bytecode and operators (exit code 3)."""
    manifest = bundle.manifest
    operators: tuple[str, ...] = ()
    bytecode = manifest.runtime.bytecode_version
    if is_lite(manifest) and runtime is not None:
        target = manifest.target
        runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=manifest.threads)
        facts = runtime.facts()
        operators, bytecode = facts.operators, facts.bytecode_version
    if manifest.runtime.build == "mobile":
        operators = required_operators(bundle.artifact)
    lowered = LoweredModel(
        path=bundle.artifact,
        runtime=manifest.target.runtime,
        runtime_version=manifest.runtime.exported_with,
        bytecode_version=bytecode,
        passes=(),
        operators=operators,
        undelegated=(),
        layers=(),
        delegated_macs=None,
    )
    return field_gate(_profile(manifest, runtimes), lowered)


def _profile(manifest: Manifest, runtimes: tuple[str, ...]) -> TargetProfile:
    """Return the bundle's target with the runtimes of this release; the project's own file may not be here."""
    from pydantic import ValidationError

    from edgeq.target import explain

    facts = manifest.target
    try:
        return TargetProfile(
            name=facts.name,
            description="of a bundle",
            platform=facts.platform,
            arch=facts.arch,
            runtime=facts.runtime,
            backend=facts.backend,
            schemes=("fp32",),
            app=App(runtimes=runtimes, build=manifest.runtime.build),
        )
    except ValidationError as err:
        raise explain(err, "[app]", App) from err


def contract_gate(new: Manifest, old: Manifest | None) -> Gate:
    """Hold inputs, outputs, preprocessing and labels to the shipped model's: the app was written for them (code 3)."""
    limit = "as the shipped model's"
    if old is None:
        return _gate("contract", "", limit, "no shipped model to compare with")
    change = contract_change(old, new)
    if change:
        return _gate("contract", change, limit)
    same = "inputs, outputs, preprocessing and labels are equal"
    more = sorted(set(new.layers.undelegated) - set(old.layers.undelegated))
    # an app may be built with the operators of its model only; which ones it has is not known here
    hint = f"; it uses operators that the shipped one does not: {', '.join(more[:5])}" if more else ""
    return _gate("contract", "", limit, same + hint)


def _gate(name: str, wrong: str, limit: str, detail: str = "") -> Gate:
    return Gate(
        name=name,
        outcome="failed" if wrong else "ok",
        limit=limit,
        measured="",
        detail=wrong or detail,
        exit_code=ExitCode.UNSUPPORTED,
    )


def size_gates(item: Prepared, old: Manifest | None, options: GateOptions) -> tuple[Gate, ...]:
    """Hold the very bytes that would be published to the limits (exit code 4).

    Args:
        item: the bundle with its patches.
        old: the shipped one's; None where there is none, and so no patch either.
        options: the limits, and the stores' presets, of which those for other platforms do not concern the bundle.
    """
    manifest = item.bundle.manifest
    size_bytes, download_bytes = manifest.file("artifact").size_bytes, len(item.archive)
    gates = []
    for name, limit in options.limits:
        if name == "download":
            gates.append(_bytes(name, limit, download_bytes, "the full download"))
        elif name == "size":
            gates.append(_bytes(name, limit, size_bytes, "the artifact"))
        elif name == "delta":
            gates += [_bytes(name, limit, len(delta.patch.data), f"from {delta.label}") for delta in item.deltas]
            if not item.deltas and old is None:
                gates.append(_ok(name, limit, "no patch", "no earlier release to make a patch from"))
            elif not item.deltas:
                gates.append(_unmeasured(name, limit, "no patch was made from the release that devices have: --deltas"))
    for preset in options.store_limits:
        limit_of = find_store_limit(preset, options.app_size_bytes)
        if limit_of.platform in ("any", manifest.target.platform):
            profile = _profile(manifest, (manifest.runtime.oldest_in_field,))
            gates.append(store_gate(preset, options.app_size_bytes, size_bytes, download_bytes, profile))
    return tuple(gates)


def _bytes(name: LimitName, limit: float, size_bytes: int, note: str) -> Gate:
    return at_most(
        name=name, limit=limit, measured=size_bytes, dimension="bytes", code=LIMITS[name].exit_code, note=note
    )


def _ok(name: LimitName, limit: float, measured: str, detail: str) -> Gate:
    kind = LIMITS[name]
    text = f"<= {format_quantity(limit, kind.dimension)}"
    return Gate(name=name, outcome="ok", limit=text, measured=measured, detail=detail, exit_code=kind.exit_code)


def churn_gates(
    new: Bundle,
    old: Bundle | None,
    data: DataOptions,
    options: GateOptions,
    runtime: HostRuntime | None,
    progress: Progress,
) -> tuple[Gate, ...]:
    """Hold what changes for users to the limits, on the evaluation set (exit code 5)."""
    asked = [(name, limit) for name, limit in options.limits if name in ("flips", "class_drop")]
    if not asked:
        return ()
    if old is None:
        return tuple(_ok(name, limit, "no shipped model", "nothing can change for users") for name, limit in asked)
    if data.evaluation is None or runtime is None:
        why = "no evaluation set: give --eval-data"
        return tuple(_unmeasured(name, limit, why) for name, limit in asked)
    if contract_gate(new.manifest, old.manifest).outcome == "failed":
        why = "the shipped model has other inputs or outputs"
        return tuple(_unmeasured(name, limit, why) for name, limit in asked)
    if new.manifest.file("artifact").sha256 == old.manifest.file("artifact").sha256:
        return tuple(
            _ok(name, limit, "the shipped model", "the artifact is the shipped one's") for name, limit in asked
        )
    from edgeq.pipeline.churn import churn

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


def _unmeasured(name: LimitName, limit: float, why: str) -> Gate:
    return unverified(name, f"<= {format_quantity(limit, LIMITS[name].dimension)}", why)
