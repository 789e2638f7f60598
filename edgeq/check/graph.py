"""What an artifact that nothing here can run is held to: a converted graph that is wrong cannot become a right one."""

from __future__ import annotations

from edgeq.artifacts import Gate, VerifyReport
from edgeq.errors import ExitCode
from edgeq.units import counted

NAME = "graph"


def graph_gates(verified: VerifyReport) -> tuple[Gate, ...]:
    """Return the gate of the converted graph's own outputs (exit code 7); none where the artifact was run.

    It can fail an artifact, and proves nothing of one: parity, outputs and accuracy stay unverified beside it.
    """
    only = verified.graph_only
    if only is None:
        return ()
    return (
        Gate(
            name=NAME,
            outcome="failed" if only.findings else "ok",
            limit="finite, not constant",
            measured=f"{len(only.findings)} findings" if only.findings else "as stated",
            detail="; ".join(only.findings)
            or f"the converted graph over {counted(only.fidelity.samples, 'sample')}; {only.why}",
            exit_code=ExitCode.VERIFICATION,
        ),
    )
