"""Child processes for runtimes: forked from a fresh process that has just imported torch, or started anew.

A fork shares torch with its parent and is ready at once. It is only safe before torch has started threads of its own
(libgomp hangs in the child otherwise), so a process that already used torch starts its children anew.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Protocol

# How often a thread of OpenMP looks for work before it sleeps. By default (300,000, a millisecond) the threads of two
# processes on the same cores wait for each other's waiting: digits took 30 to 100 times longer on busy cores. With
# 10,000 a layer's threads still find the next layer's work awake; no spinning at all made most models slower when idle.
_OPENMP = {"GOMP_SPINCOUNT": "10000"}


def calm_openmp() -> None:
    """Let OpenMP's threads give cores back soon; before torch is imported. What the user has set stays."""
    for name, value in _OPENMP.items():
        os.environ.setdefault(name, value)


class Process(Protocol):
    """What edgeq needs of a child process."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Wait for its end and return the exit status."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process that serves requests.

    Attributes:
        requests: frames are written here.
        replies: and read from here.
    """

    process: Process
    requests: IO[bytes]
    replies: IO[bytes]

    def close(self) -> None:
        """End the process and close the pipes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.replies):
            with contextlib.suppress(BrokenPipeError):  # what was never sent to a child that crashed
                pipe.close()


def started(log: Path) -> Child:
    """Start a new interpreter, which imports torch while the caller goes on.

    Args:
        log: takes its standard error.
    """
    env = {**_OPENMP, **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeq.verify.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
            start_new_session=True,  # Ctrl-C is edgeq's to handle; it then ends the child itself
        )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the child was started without pipes")
    return Child(process=process, requests=process.stdin, replies=process.stdout)


def forked(log: Path) -> Child:
    """Fork this process, which has imported torch but not used it.

    Args:
        log: takes the child's standard error.
    """
    read_requests, write_requests = os.pipe()
    read_replies, write_replies = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve,
        args=((read_requests, write_replies), (write_requests, read_replies), log, os.getpid()),
        daemon=True,
    )
    process.start()
    os.close(read_requests)
    os.close(write_replies)
    return Child(
        process=_Forked(process=process),
        requests=os.fdopen(write_requests, "wb"),
        replies=os.fdopen(read_replies, "rb"),
    )


def _serve(own: tuple[int, int], parents: tuple[int, int], log: Path, parent: int) -> None:
    from edgeq.verify import worker

    worker.end_with_parent(parent)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in parents:
        os.close(descriptor)
    # new objects too: a thread of the parent may have held the old ones' locks in the moment of the fork
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    sys.stderr = sys.stdout = os.fdopen(errors, "w", buffering=1)
    worker.serve(os.fdopen(own[0], "rb"), os.fdopen(own[1], "wb"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forked:
    """multiprocessing's process in the words of subprocess."""

    process: BaseProcess

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode or 0

    def kill(self) -> None:
        self.process.kill()
