"""A command that imported torch ends as Python ends it, but for taking torch apart."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO

from edgeq.core.errors import ExitCode

SCRIPT = """
import atexit, sys, threading, time
import edgeq.cli.main
from edgeq import cli


class Torch:
    def __del__(self):
        print("taken apart")


def run(argv, ends_process):
    sys.modules["torch"] = Torch()
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print("run")
    return 4


sys.modules["edgeq.cli.main"].run = run
"""


def call(stdout: int | IO[str]) -> subprocess.CompletedProcess[str]:
    code = SCRIPT + "import importlib\nimportlib.reload(cli).main([])"  # importing the module hid the function
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, text=True, check=False, stdout=stdout, stderr=subprocess.PIPE, env=environment)


def test_threads_and_exit_functions_end_first_and_the_code_is_the_runs() -> None:
    done = call(subprocess.PIPE)
    assert (done.returncode, done.stdout.splitlines()) == (ExitCode.SIZE, ["run", "thread", "at exit"]), done.stderr


def test_a_full_disk_is_told_as_python_tells_it() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = call(full)
    assert done.returncode == 120
    assert "No space left on device" in done.stderr
