"""Fixtures of both kinds of tests, and what keeps the host's habits and its load out of them."""

import os
import signal

from boards import board, server
from hypothesis import HealthCheck, settings

__all__ = ["board", "server"]

# a caller's terminal, and its clock for releases, would change what is printed and published
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "SOURCE_DATE_EPOCH", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# a shell has what it starts in the background ignore Ctrl-C, and what tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

# other work on the machine is no fault of an example's; and what CI tries is what people try
settings.register_profile("edgeq", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeq")
