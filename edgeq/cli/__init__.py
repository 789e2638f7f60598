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
    from edgeq.cli.main import run

    sys.exit(run(sys.argv[1:] if argv is None else argv, ends_process=True))
