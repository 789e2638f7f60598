"""Children that cannot start, or do not answer as they should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.core.errors import EdgeqError, EnvironmentProblem, VerificationError
from edgeq.verify.children import Child, started
from edgeq.verify.host import HostRuntime


def talking(program, log=Path(os.devnull)) -> Child:
    """A child that runs a program of its own."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
    return Child(process=process, requests=process.stdin, replies=process.stdout)


def broken(log) -> Child:
    """What a torch that cannot be imported looks like."""
    return talking("import sys; sys.exit('ImportError: libtorch.so is missing')", log)


def test_a_child_that_cannot_start_is_the_environments():
    with HostRuntime(broken) as host, pytest.raises(EnvironmentProblem, match=r"ended while starting.*libtorch\.so"):
        host.peak_memory_bytes()


def babbling(log) -> Child:
    child = started(log)
    child.process.kill()
    child.process.wait()
    read, write = os.pipe()
    os.write(write, b"\x05\0\0\0\0\0\0\0noise")
    os.close(write)
    return Child(process=child.process, requests=child.requests, replies=os.fdopen(read, "rb"))


def test_a_child_that_says_something_else_is_a_crash():
    with HostRuntime(babbling) as host, pytest.raises(EdgeqError, match="SIGKILL"):
        host.peak_memory_bytes()


@pytest.mark.parametrize("said", [b"", b"\x20\0\0\0", b"\x20\0\0\0\0\0\0\0{"])
def test_a_child_that_stops_in_the_middle_of_an_answer_is_ended(monkeypatch, said):
    program = f"import sys, time; sys.stdout.buffer.write({said!r}); sys.stdout.flush(); time.sleep(600)"
    monkeypatch.setattr("edgeq.verify.host._START_S", 1.0)
    with HostRuntime(lambda _: talking(program)) as host:
        with pytest.raises(VerificationError, match="no complete answer within 1 s while starting the runtime"):
            host.peak_memory_bytes()
        assert host._child.process.wait() == -signal.SIGKILL


def test_a_child_that_reads_no_more_is_ended(monkeypatch):
    ready = b'{"ready": true, "arrays": []}'
    said = len(ready).to_bytes(8, "little") + ready
    program = f"import sys, time; sys.stdout.buffer.write({said!r}); sys.stdout.flush(); time.sleep(600)"
    monkeypatch.setattr("edgeq.verify.host._ANSWER_S", 1.0)
    with HostRuntime(lambda _: talking(program)) as host:
        with pytest.raises(VerificationError, match="no complete answer within 1 s while running the artifact"):
            host.run([np.zeros(10**6, np.float32)])  # more than a pipe holds
        assert host._child.process.wait() == -signal.SIGKILL
