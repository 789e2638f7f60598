"""How the gates judged an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeq.errors import ExitCode

Outcome = Literal["ok", "failed", "unverified", "allowed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate: what was asked for, what was measured, and the exit code if that is not enough.

    Attributes:
        outcome: `unverified` fails like `failed`; `allowed` is unverified but named in --allow-unmeasured.
        limit, measured: as people read them.
        detail: by how much, or why it could not be measured.
        bound: the limit as a number, in the base unit of its name; None for a gate that people set no limit for.
    """

    name: str
    outcome: Outcome
    limit: str
    measured: str
    detail: str
    exit_code: ExitCode
    bound: float | None = None

    @property
    def passed(self) -> bool:
        """Whether this gate lets the artifact through."""
        return self.outcome in ("ok", "allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All gates of one artifact."""

    gates: tuple[Gate, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code among the gates that failed."""
        return min((gate.exit_code for gate in self.gates if not gate.passed), default=ExitCode.OK)
