"""The command line: the only place that prints or exits. Importing it loads no heavy library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        argv: the arguments without the program's name; None for those of this process.
    """
    import signal

    from edgeq.cli.run import ENDING, run
    from edgeq.errors import ExitCode

    code = run(sys.argv[1:] if argv is None else argv)
    if code == ExitCode.INTERRUPTED:
        for number in ENDING:  # impatience must not cut short what libraries still do on their way out
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
