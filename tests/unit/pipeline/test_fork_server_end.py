"""The process that workers are forked from ends at once; its forks keep their exit codes."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, os
atexit.register(print, "taken apart", flush=True)
import edgeq.pipeline.fork_server_end
if os.fork() == 0:
    atexit._run_exitfuncs()  # as multiprocessing does
    os._exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_the_server_ends_at_once_and_its_forks_keep_their_exit_codes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["taken apart", "3", ""]
