"""The gates of a release: whether the apps in the field can load it and accept its inputs, outputs and size."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.check.gate import at_most, unverified
from edgeq.check.runtime import runtime_gate
from edgeq.check.stores import find_store_limit, store_gate
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.manifest import Bundle, Manifest, contract_change
from edgeq.core.ort_format import required_operators
from edgeq.core.results.model import LoweredModel
from edgeq.core.results.report import Gate
from edgeq.core.schema import explain
from edgeq.core.schemes import LIMITS, LimitName
from edgeq.core.targets import App, TargetProfile
from edgeq.core.units import format_quantity


def is_lite(manifest: Manifest) -> bool:
    """Whether the artifact is for the lite interpreter; its operators are then read from the artifact."""
    return manifest.target.backend == "qnnpack"


def release_runtime_gate(
    bundle: Bundle, runtimes: tuple[str, ...], *, operators: tuple[str, ...] = (), bytecode: int | None = None
) -> Gate:
    """Check the artifact against the oldest runtime in the field: version, or bytecode and operators (exit code 3).

    Args:
        bundle: what is to be released.
        runtimes: versions in the field.
        operators: of the artifact, where `is_lite` says that they must be read from it.
        bytecode: its bytecode version, likewise; else the manifest's counts.
    """
    manifest = bundle.manifest
    bytecode = manifest.runtime.bytecode_version if bytecode is None else bytecode
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
    return runtime_gate(_profile(manifest, runtimes), lowered)


def _profile(manifest: Manifest, runtimes: tuple[str, ...]) -> TargetProfile:
    """Return the bundle's target with the runtimes of this release; the project's own file may not be here."""
    from pydantic import ValidationError

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
    """Compare inputs, outputs, preprocessing and labels with the shipped model's, as apps expect (exit code 3)."""
    limit = "same as the shipped model"
    if old is None:
        return _gate("contract", "", limit, "no shipped model to compare with")
    change = contract_change(old, new)
    if change:
        return _gate("contract", change, limit)
    same = "inputs, outputs, preprocessing and labels are equal"
    more = sorted(set(new.layers.undelegated) - set(old.layers.undelegated))
    # an app may be built with the operators of its model only; which ones it has is not known here
    hint = f"; it uses operators that the shipped model does not use: {', '.join(more[:5])}" if more else ""
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


def size_gates(
    manifest: Manifest,
    old: Manifest | None,
    options: GateOptions,
    *,
    download_bytes: int,
    patch_bytes: Sequence[tuple[str, int]],
) -> tuple[Gate, ...]:
    """Check the sizes of the files that would be published against the limits (exit code 4).

    Args:
        manifest: the bundle's.
        old: the shipped one's; None if there is none, and so no patch either.
        options: the limits and store presets; presets for other platforms are ignored.
        download_bytes: the size of the full download.
        patch_bytes: name of each base, and the size of the patch from it.
    """
    gates = []
    for name, limit in options.limits:
        if name == "download":
            gates.append(_bytes(name, limit, download_bytes, "the full download"))
        elif name == "size":
            gates.append(_bytes(name, limit, manifest.size_bytes, "the artifact"))
        elif name == "delta":
            gates += [_bytes(name, limit, size, f"from {base}") for base, size in patch_bytes]
            if not patch_bytes and old is None:
                gates.append(_ok(name, limit, "no patch", "there is no earlier release to make a patch from"))
            elif not patch_bytes:
                gates.append(
                    _unmeasured(
                        name, limit, "no patch was made from the release that devices have: give --deltas 1 or more"
                    )
                )
    for preset in options.store_limits:
        limit_of = find_store_limit(preset, options.app_size_bytes)
        if limit_of.platform in ("any", manifest.target.platform):
            profile = _profile(manifest, (manifest.runtime.oldest_in_field,))
            gates.append(store_gate(preset, options.app_size_bytes, manifest.size_bytes, download_bytes, profile))
    return tuple(gates)


def _bytes(name: LimitName, limit: float, size_bytes: int, note: str) -> Gate:
    return at_most(
        name=name, limit=limit, measured=size_bytes, dimension="bytes", code=LIMITS[name].exit_code, note=note
    )


def _ok(name: LimitName, limit: float, measured: str, detail: str) -> Gate:
    kind = LIMITS[name]
    text = f"<= {format_quantity(limit, kind.dimension)}"
    return Gate(name=name, outcome="ok", limit=text, measured=measured, detail=detail, exit_code=kind.exit_code)


def _unmeasured(name: LimitName, limit: float, why: str) -> Gate:
    return unverified(name, f"<= {format_quantity(limit, LIMITS[name].dimension)}", why)
