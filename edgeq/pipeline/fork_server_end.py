"""Imported by the process that workers are forked from: it ends without taking torch apart, which takes 0.7 s.

multiprocessing gives its fork server modules to import, and no other way to change how it ends.
"""

from __future__ import annotations

import atexit
import os

_SERVER_PID = os.getpid()


@atexit.register
def _end_at_once() -> None:
    if os.getpid() == _SERVER_PID:  # multiprocessing calls this in each fork too, which has an exit code of its own
        os._exit(0)
