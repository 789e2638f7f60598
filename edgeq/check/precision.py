"""The precision audit: whether the scheme delivered what its name says, by multiply-accumulates (MACs)."""

from __future__ import annotations

from edgeq.check.gate import unverified
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import KernelShare, VerifyReport
from edgeq.core.results.model import LoweredModel
from edgeq.core.results.report import Gate
from edgeq.core.targets import TargetProfile


def audit_gates(
    *, target: TargetProfile, scheme: str, lowered: LoweredModel, verified: VerifyReport
) -> tuple[Gate, ...]:
    """Return the gates of the shares (0 to 1) that the profile's `[audit.SCHEME]` asks for; of 0, none.

    Args:
        target: the profile.
        scheme: the scheme that made the artifact.
        lowered: what the delegate took.
        verified: what the runtime's own profile showed of the kernels.
    """
    asked = next((audit for name, audit in target.audit.items() if name == scheme), None)
    if asked is None:
        return ()
    kernels = verified.kernels
    why = kernels.why_unmatched if kernels else "the runtime gave no profile of its kernels"
    no_linear = why or "the model has no linear or recurrent layer"
    unread = "what the artifact stores is not known"
    undelegated = "what the delegate took of the artifact is not known"
    measured = (
        ("int8_macs", asked.int8_macs, kernels.int8_macs if kernels else None, why),
        ("int8_linear_macs", asked.int8_linear_macs, kernels.int8_linear_macs if kernels else None, no_linear),
        ("int8_gain", asked.int8_gain, _gain(asked.int8_gain, kernels, lowered), why or unread),
        ("half_macs", asked.half_macs, kernels.half_macs if kernels else None, why),
        ("int8_weights", asked.int8_weights, _stored(lowered, "int8"), unread),
        ("half_weights", asked.half_weights, _stored(lowered, "float16", "bfloat16"), unread),
        ("delegated_macs", asked.delegated_macs, lowered.delegated_macs, undelegated),
    )
    return tuple(_share(name, least, share, reason) for name, least, share, reason in measured if least > 0)


def _gain(least: float, kernels: KernelShare | None, lowered: LoweredModel) -> float | None:
    """Return the larger of the shares of all MACs and of the constants in int8; a model must have one or the other.

    None where neither reaches `least` and one is not known.
    """
    # ONNX Runtime's tool keeps an embedding's table in unsigned integers
    shares = (kernels.int8_macs if kernels else None, _stored(lowered, "int8", "uint8", "qint8"))
    known = [share for share in shares if share is not None]
    return max(known) if len(known) == len(shares) or any(share >= least for share in known) else None


def _stored(lowered: LoweredModel, *dtypes: str) -> float | None:
    """Return the share of the artifact's constants that it holds in `dtypes`."""
    total = sum(elements for _, elements in lowered.stored)
    return sum(elements for name, elements in lowered.stored if name in dtypes) / total if total else None


def _share(name: str, least: float, share: float | None, why: str) -> Gate:
    of = "MACs or constants" if name == "int8_gain" else "MACs" if name.endswith("macs") else "constants"
    limit = f">= {least:.1%} of {of}"
    if share is None:
        return unverified(name, limit, why or "no reason given")
    passed = share >= least
    by = abs(share - least) * 100
    return Gate(
        name=name,
        outcome="ok" if passed else "failed",
        limit=limit,
        measured=f"{share:.1%}",
        detail=f"{by:.3g} points {'above' if passed else 'short'}",
        exit_code=ExitCode.VERIFICATION,
    )
