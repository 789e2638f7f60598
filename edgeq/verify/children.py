"""Child processes for runtimes: forked from a process that has only imported torch, or started as a new interpreter.

Importing torch takes more than a second. A process that has not used torch forks its children itself (`forked`); one
that has, such as a notebook, asks a fork server (`from_server`), since a fork of a process with threads can hang.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Protocol

from edgeq.verify import worker

_used: bool | None = None  # whether this process has used torch, and not only imported it; None for unknown


def use_torch() -> None:
    """Record that this process uses torch from now on: a fork of it could hang, so a server forks the children."""
    global _used
    _used = True


def torch_is_unused() -> None:
    """Record that this process has torch from the one that it was forked from, which only imported it."""
    global _used
    _used = False


def can_fork() -> bool:
    """Return whether this process can fork children that use torch: it has not used torch itself."""
    return _used is False or (_used is None and "torch" not in sys.modules)


# How often a thread of OpenMP looks for work before it sleeps. By default (300,000, a millisecond) the threads of two
# processes on the same cores wait for each other's waiting: digits took 30 to 100 times longer on busy cores. With
# 10,000 a layer's threads still find the next layer's work awake; no spinning at all made most models slower when idle.
_OPENMP = {"GOMP_SPINCOUNT": "10000"}


def calm_openmp() -> None:
    """Make OpenMP's idle threads release their cores soon; call before torch is imported. The user's settings stay."""
    for name, value in _OPENMP.items():
        os.environ.setdefault(name, value)


class Process(Protocol):
    """The methods that edgeq needs of a child process."""

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
    """Start a new interpreter, which imports torch while the caller continues.

    Args:
        log: takes its standard error.
    """
    env = {**_OPENMP, **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _python_path()}
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
        target=worker.serve_forked,
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


# Libraries read these when they are loaded: a server that was started under others would give other children.
_READ_WHEN_LOADED = ("CUDA", "GOMP_", "KMP_", "LD_", "MKL_", "OMP_", "PYTORCH_", "TORCH")

_NUMBER = struct.Struct("<i")


def from_server(log: Path) -> Child:
    """Have this process's fork server fork a child; the first call starts the server, which imports torch.

    The child has this process's current folder and environment, as if it were started as a new interpreter.

    Args:
        log: takes the child's standard error.
    """
    if sys.platform != "linux":
        return started(log)  # elsewhere a process that has imported torch may have threads already
    settings = frozenset((name, value) for name, value in os.environ.items() if name.startswith(_READ_WHEN_LOADED))
    with _lock:
        server = _servers.get(settings)
        if server is not None and server.is_running():
            with contextlib.suppress(ConnectionError):  # it was killed this moment
                return server.fork(log)
        server = _servers[settings] = _ForkServer()
        return server.fork(log)


class _ForkServer:
    """A process that imports torch once, and forks a child for each request (`worker.fork_server`).

    It ends when its socket does, which also happens when this process is killed; its children end with it.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        # packets keep the file descriptors of one request together
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgeq.verify.worker", worker.FORK_SERVER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**_OPENMP, **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _python_path()},
                pass_fds=(theirs.fileno(),),
                # a group of its own, which Ctrl-C does not reach; in this session, since the kernel continues and ends
                # a stopped group (one whose times would disturb another's) only where its parent's death orphans it
                process_group=0,
            )
        atexit.register(self.close)

    def is_running(self) -> bool:
        """Return whether it runs, and is this process's own: a fork of this process has a copy that is not."""
        return self._owner == os.getpid() and self._process.poll() is None

    def fork(self, log: Path) -> Child:
        """Return a new child."""
        read_requests, write_requests = os.pipe()
        read_replies, write_replies = os.pipe()
        read_status, write_status = os.pipe()
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        given = (read_requests, write_replies, errors, write_status)
        try:
            # a memory file, since an environment can be larger than a packet
            with os.fdopen(os.memfd_create("edgeq-environment"), "wb+") as environment:
                state = {"folder": str(Path.cwd()), "variables": dict(os.environ), "path": sys.path}
                environment.write(json.dumps(state).encode())
                environment.seek(0)
                socket.send_fds(self._socket, [b"fork"], [*given, environment.fileno()])
        except OSError:
            for descriptor in (write_requests, read_replies, read_status):
                os.close(descriptor)
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)
        return Child(
            process=_ServerChild(status=read_status),
            requests=os.fdopen(write_requests, "wb"),
            replies=os.fdopen(read_replies, "rb"),
        )

    def close(self) -> None:
        """End the server and its children; a forked copy of this process only drops its own end."""
        self._socket.close()
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()


# by the settings that they were started under; an old one stays for the children that it has
_servers: dict[frozenset[tuple[str, str]], _ForkServer] = {}

_lock = threading.Lock()


def _python_path() -> str:
    return os.pathsep.join(filter(None, sys.path))


@dataclass(slots=True, kw_only=True)
class _ServerChild:
    """A child of the server, which writes its process ID to a pipe and then, when it ends, its status."""

    status: int
    _pid: int | None = field(default=None, init=False)
    _code: int | None = field(default=None, init=False)

    def poll(self) -> int | None:
        return self._read(wait=False)

    def wait(self) -> int:
        code = self._read(wait=True)
        if code is None:
            raise RuntimeError("the pipe of a child's status ended without one")
        return code

    def kill(self) -> None:
        if self.pid and self._read(wait=False) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Its process ID, as soon as the server has forked it; 0 if the server ended before."""
        if self._pid is None:
            self._pid = self._number() or 0
        return self._pid

    def _read(self, *, wait: bool) -> int | None:
        while self._code is None and (wait or select.select([self.status], [], [], 0)[0]):
            if self._pid is None:
                self._pid = self._number() or 0
                continue
            number = self._number()
            self._code = -signal.SIGKILL if number is None else number  # None: the server was killed, and so was this
            os.close(self.status)
        return self._code

    def _number(self) -> int | None:
        data = os.read(self.status, _NUMBER.size)
        return _NUMBER.unpack(data)[0] if len(data) == _NUMBER.size else None
