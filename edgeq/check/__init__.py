"""The gates: pure functions from the results of lowering and verification to verdicts. Nothing here imports torch."""

from __future__ import annotations

from edgeq.check.evaluate import check, validate_options
from edgeq.check.gates import GATES

__all__ = ["GATES", "check", "validate_options"]
