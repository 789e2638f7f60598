"""The gates: pure functions from what was lowered and verified to verdicts. Nothing here imports torch."""

from __future__ import annotations

from edgeq.check.evaluate import GATE_NAMES, Candidate, check, validate_options

__all__ = ["GATE_NAMES", "Candidate", "check", "validate_options"]
