"""The precision audit: the share of multiply-accumulates (MACs) that runs in the precision of the scheme."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgeq.check.gate import unverified
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import KernelShare, VerifyReport
from edgeq.core.results.model import BATCHED, EXACT, NO_KERNEL, RECURRENT, TRANSPOSED, Layer, LoweredModel, ModelWork
from edgeq.core.results.report import Gate
from edgeq.core.runtimes import FLOAT_TABLES, INT8_TABLES
from edgeq.core.schemes import NEEDS_CALIBRATION
from edgeq.core.targets import TargetProfile
from edgeq.core.units import counted

_SHOWN = 3  # names of layers in a gate's detail

# a model of recurrent layers or transposed convolutions gains nothing from static int8: its plan is no excuse below
# this share of the MACs
_LITTLE = 0.25

_MOST = 0.5  # of the MACs: with less in int8, an int8 artifact is float for the most part


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """The layers that a share is over, and what was meant to stay in float.

    Attributes:
        share: of their multiply-accumulates in int8, 0 to 1.
        broken: names of those that ran in float, the ones with most MACs first.
        exempt: shares of all MACs that were meant to stay in float, by the reason.
    """

    share: float
    broken: tuple[str, ...]
    exempt: tuple[tuple[str, float], ...]


def audit_gates(
    *,
    target: TargetProfile,
    scheme: str,
    lowered: LoweredModel,
    verified: VerifyReport,
    asked_fp32: Collection[str] = (),
    in_float: Mapping[str, Collection[str]] | None = None,
) -> tuple[Gate, ...]:
    """Return a gate for each share (0 to 1) that the profile's `[audit.SCHEME]` requires; a share of 0 has none.

    int8 shares are over the layers meant for int8: all except those that the user keeps in float and products of two
    activations, which have no weight to quantize. A layer in float for any other reason counts against the share.

    Args:
        target: the profile.
        scheme: the scheme that made the artifact.
        lowered: the work that the delegate took.
        verified: the kernels in the runtime's own profile.
        asked_fp32: names of its layers that the user keeps in float.
        in_float: names of its layers that quantization left in float, by the reason.
    """
    asked = next((audit for name, audit in target.audit.items() if name == scheme), None)
    if asked is None:
        return ()
    kernels = verified.kernels
    why = kernels.why_unmatched if kernels else "the runtime gave no profile of its kernels"
    no_linear = why or "the model has no linear or recurrent layer"
    unread = "the constants of the artifact are not known"
    undelegated = "the delegate's share of the artifact is not known"
    measured = (
        ("int8_macs", asked.int8_macs, kernels.int8_macs if kernels else None, why),
        ("int8_linear_macs", asked.int8_linear_macs, kernels.int8_linear_macs if kernels else None, no_linear),
        ("int8_gain", asked.int8_gain, _gain(asked.int8_gain, kernels, lowered), why or unread),
        ("half_macs", asked.half_macs, kernels.half_macs if kernels else None, why),
        ("int8_weights", asked.int8_weights, _stored(lowered, "int8"), unread),
        ("int4_weights", asked.int4_weights, _stored(lowered, "int4"), unread),
        ("palette_weights", asked.palette_weights, _stored(lowered, "palette4"), unread),
        ("half_weights", asked.half_weights, _stored(lowered, "float16", "bfloat16"), unread),
        ("delegated_macs", asked.delegated_macs, lowered.delegated_macs, undelegated),
    )
    layers: dict[str, list[tuple[Layer, str]]] = {}
    if kernels is not None and scheme != "pretrained":  # of a model that came quantized the plan is not known
        pairs = list(zip(lowered.layers, kernels.precisions, strict=False))
        layers = {"int8_macs": pairs, "int8_linear_macs": [pair for pair in pairs if pair[0].is_linear]}
    gates = tuple(
        _share(
            name,
            least,
            share,
            reason,
            _planned(layers.get(name, ()), asked_fp32, in_float or {}),
            _advice(name, layers.get(name, ()), target, scheme)
            or _keeping(layers.get(name, ()), asked_fp32, in_float or {}),
        )
        for name, least, share, reason in measured
        if least > 0
    )
    return tuple(
        _whole(gate, lowered, asked_fp32, in_float or {}) if gate.name == "int4_weights" else gate for gate in gates
    )


def _whole(
    gate: Gate, lowered: LoweredModel, asked_fp32: Collection[str], in_float: Mapping[str, Collection[str]]
) -> Gate:
    """Fail the audit of int4 where a layer that was to be in int4 is not, and say what is left and why."""
    missing = [name for name, ratio in lowered.int4_db if ratio == -math.inf]
    reasons = {"--keep-fp32": asked_fp32, **in_float}
    left = "; ".join(f"{counted(len(names), 'layer')} left by {why}" for why, names in reasons.items() if names)
    detail = "; ".join(part for part in (gate.detail, left) if part)
    if not missing:
        return dataclasses.replace(gate, detail=f"{counted(len(lowered.int4_db), 'layer')} in int4; {detail}")
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    lost = f"not in int4 in the artifact: {', '.join(missing[:_SHOWN])}{more}"
    return dataclasses.replace(
        gate, outcome="failed", detail=f"{lost}; give --keep-fp32 for what may stay in float; {detail}"
    )


def audit_warnings(
    *,
    target: TargetProfile,
    scheme: str,
    lowered: LoweredModel,
    verified: VerifyReport,
    asked_fp32: Collection[str] = (),
    in_float: Mapping[str, Collection[str]] | None = None,
) -> tuple[str, ...]:
    """Warn if most of an int8 artifact's work is in float by intention; arguments as in `audit_gates`."""
    kernels = verified.kernels
    asked = next((audit for name, audit in target.audit.items() if name == scheme), None)
    in_float = in_float or {}
    judged = asked is not None and (asked.int8_macs >= _MOST or NO_KERNEL in in_float)
    if not judged or kernels is None or kernels.int8_macs is None:
        return ()
    planned = _planned(list(zip(lowered.layers, kernels.precisions, strict=False)), asked_fp32, in_float)
    if planned is None or kernels.int8_macs >= _MOST:
        return ()
    schemes = [name for name in target.schemes if name != scheme]
    if RECURRENT in in_float and "dynamic-int8" in schemes:
        instead = "; --scheme dynamic-int8 computes them in int8"
    elif RECURRENT in in_float and "weight-only-int8" in schemes:
        instead = "; --scheme weight-only-int8 stores them in int8"
    else:
        order = ("fp16",) if NO_KERNEL in in_float else ("dynamic-int8", "fp16")
        suits = next((name for name in order if name in schemes), None)
        instead = f"; {suits} may suit the model better; --compare shows the gain of {scheme}" if suits else ""
    return (f"only {kernels.int8_macs:.1%} of the MACs are in int8, {_exemptions(planned)}{instead}",)


def table_warnings(
    target: TargetProfile, scheme: str, lowered: LoweredModel, work: ModelWork | None
) -> tuple[str, ...]:
    """Warn if most of an artifact in static int8 is tables of embeddings in float32: no audit of MACs sees them."""
    if scheme not in NEEDS_CALIBRATION or target.backend not in FLOAT_TABLES:
        return ()
    in_float = _stored(lowered, "float32")
    if work is None or work.table_share < _MOST or (in_float is not None and in_float < _MOST):
        return ()
    suits = next((name for name in INT8_TABLES if name in target.schemes), None)
    instead = f"; --scheme {suits} stores them in int8" if suits else ""
    return (f"the tables of embeddings, {work.table_share:.1%} of the weights, are in float32{instead}",)


def _planned(
    pairs: Collection[tuple[Layer, str]], asked_fp32: Collection[str], in_float: Mapping[str, Collection[str]]
) -> _Planned | None:
    """Return what is audited of layers with their precisions; None where all or none of it was meant for int8."""
    exempt = {"--keep-fp32": 0, **dict.fromkeys(in_float, 0), "products of activations": 0}
    total = sum(layer.macs for layer, _ in pairs)
    in_float = _excuses(pairs, in_float)
    meant, int8, broken = 0, 0, []
    for layer, kind in pairs:
        why = next((why for why, names in in_float.items() if layer.name.partition("#")[0] in names), None)
        if layer.name in asked_fp32:
            exempt["--keep-fp32"] += layer.macs
        elif why is not None and kind != "int8":
            exempt[why] += layer.macs
        elif layer.of_activations and kind != "int8":
            exempt["products of activations"] += layer.macs
        else:
            meant += layer.macs
            int8 += layer.macs if kind == "int8" else 0
            broken += [] if kind == "int8" else [layer]
    if not meant or meant == total:
        return None
    broken.sort(key=lambda layer: -layer.macs)
    shares = tuple((why, macs / total) for why, macs in exempt.items() if macs)
    return _Planned(share=int8 / meant, broken=tuple(layer.name for layer in broken if layer.macs), exempt=shares)


def _excuses(
    pairs: Collection[tuple[Layer, str]], in_float: Mapping[str, Collection[str]]
) -> Mapping[str, Collection[str]]:
    """Return the reasons that count: where little is in int8, no kernels are no excuse, and another scheme suits."""
    if sum(layer.macs for layer, kind in pairs if kind == "int8") >= _LITTLE * sum(layer.macs for layer, _ in pairs):
        return in_float
    no_excuse = (RECURRENT, NO_KERNEL, TRANSPOSED, BATCHED, EXACT)
    return {why: names for why, names in in_float.items() if why not in no_excuse}


def _exemptions(planned: _Planned) -> str:
    return "left in float: " + ", ".join(f"{share:.1%} by {why}" for why, share in planned.exempt)


def _gain(least: float, kernels: KernelShare | None, lowered: LoweredModel) -> float | None:
    """Return the larger of the shares of all MACs and of the constants in int8; a model must have one or the other.

    None where neither reaches `least` and one is not known.
    """
    # ONNX Runtime's tool keeps an embedding's table in unsigned integers
    shares = (kernels.int8_macs if kernels else None, _stored(lowered, "int8", "uint8", "qint8"))
    known = [share for share in shares if share is not None]
    return max(known) if len(known) == len(shares) or any(share >= least for share in known) else None


# indices, masks and shapes, such as the distance of each two words of DeBERTa, and zero points
_NO_WEIGHTS = frozenset({"int64", "int32", "bool"})


def _stored(lowered: LoweredModel, *dtypes: str) -> float | None:
    """Return the share of the artifact's constants, but for whole numbers, that it holds in `dtypes`."""
    total = sum(elements for name, elements in lowered.stored if name not in _NO_WEIGHTS)
    return sum(elements for name, elements in lowered.stored if name in dtypes) / total if total else None


def _advice(name: str, pairs: Collection[tuple[Layer, str]], target: TargetProfile, scheme: str) -> str:
    """Return which scheme has int8 kernels for what ran in float, where most of that is linear or recurrent."""
    in_float = [layer for layer, kind in pairs if kind != "int8"]
    linear = sum(layer.macs for layer in in_float if layer.is_linear and not layer.of_activations)
    if name == "int4_weights":
        others = ("weight-only-int8",) if target.backend == "openvino" else ("static-int8",)  # those of convolutions
        other = next((each for each in others if each in target.schemes), None)
        return f"; --scheme {other} stores the other layers in int8" if other else ""
    suits = name == "int8_macs" and scheme != "dynamic-int8" and "dynamic-int8" in target.schemes
    if not suits or 2 * linear < sum(layer.macs for layer in in_float):
        return ""
    return "; --scheme dynamic-int8 computes linear and recurrent layers in int8"


def _keeping(
    pairs: Collection[tuple[Layer, str]], asked_fp32: Collection[str], in_float: Mapping[str, Collection[str]]
) -> str:
    """Name the layers that ran in float without a reason, where they are few, with the option that gives one."""
    excused = {*asked_fp32, *(name for names in _excuses(pairs, in_float).values() for name in names)}
    broken = [layer for layer, kind in pairs if kind != "int8" and layer.macs and not layer.of_activations]
    broken.sort(key=lambda layer: -layer.macs)
    names = list(dict.fromkeys(layer.name.partition("#")[0] for layer in broken if layer.name not in excused))
    if not 0 < len(names) <= _SHOWN:
        return ""
    options = " ".join(f"--keep-fp32 {name}" for name in names)
    return f"; {', '.join(names)} ran in float: if that may stay so, add {options}"


def _share(name: str, least: float, share: float | None, why: str, planned: _Planned | None, advice: str) -> Gate:
    of = "MACs or constants" if name == "int8_gain" else "MACs" if name.endswith("macs") else "constants"
    limit = f">= {least:.1%} of {of}"
    if share is None:
        return unverified(name, limit, why or "no reason given")
    judged = share if planned is None else planned.share
    passed = judged >= least
    by = abs(judged - least) * 100
    detail = f"{by:.3g} points {'above' if passed else 'short'}"
    if planned is not None:
        detail += f" over the layers that were meant for int8; {share:.1%} over all, {_exemptions(planned)}"
        if not passed:
            more = f" and {len(planned.broken) - _SHOWN} more" if len(planned.broken) > _SHOWN else ""
            detail += f"; not in int8: {', '.join(planned.broken[:_SHOWN])}{more}"
    if not passed:
        detail += advice
    return Gate(
        name=name,
        outcome="ok" if passed else "failed",
        limit=limit,
        measured=f"{judged:.1%}",
        detail=detail,
        exit_code=ExitCode.VERIFICATION,
    )
