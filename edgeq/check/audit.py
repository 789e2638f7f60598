"""The precision audit: whether the scheme delivered what its name says, by multiply-accumulates (MACs)."""

from __future__ import annotations

from edgeq.artifacts import Gate, LoweredModel, VerifyReport
from edgeq.check.outcome import unverified
from edgeq.errors import ExitCode
from edgeq.target import TargetProfile


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
    gates: list[Gate] = []
    if asked.int8_macs > 0:
        kernels = verified.kernels
        why = kernels.why_unmatched if kernels else "the runtime gave no profile of its kernels"
        gates.append(_share("int8_macs", asked.int8_macs, kernels.int8_macs if kernels else None, why))
    if asked.delegated_macs > 0:
        why = "what the delegate took of the artifact is not known"
        gates.append(_share("delegated_macs", asked.delegated_macs, lowered.delegated_macs, why))
    return tuple(gates)


def _share(name: str, least: float, share: float | None, why: str) -> Gate:
    limit = f">= {least:.1%} of MACs"
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
