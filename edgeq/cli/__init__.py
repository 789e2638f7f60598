"""The command line: the only place that prints or exits. Importing it loads no heavy library."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        argv: the arguments without the program's name; None for those of this process.
    """
    from edgeq.cli.main import run

    code = run(sys.argv[1:] if argv is None else argv, ends_process=True)
    if "torch" in sys.modules:
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> None:
    """End this process as Python does, but leave its memory to the system: taking torch apart takes 0.7 s.

    It returns where a stream cannot be flushed, which Python then tells.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # there is no public name for the two
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what native code printed
        os._exit(code)
