"""A board by ssh: this host's own sshd, on a free port of loopback, with keys and settings in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSH = shutil.which("ssh")
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")


@dataclass(frozen=True)
class Server:
    """An sshd, and the folder of its board's temporary files."""

    folder: Path
    port: int

    @property
    def temporary(self) -> Path:
        return self.folder / "device"

    @property
    def host(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start sshd; skip where it is missing, or does not start for this user."""
    if SSHD is None or SSH is None:
        pytest.skip("sshd or ssh is missing: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "device").mkdir()
    for name in ("host", "user", "stranger"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin yes\nSetEnv TMPDIR={folder}/device\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, as root, empties its rights
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait(process, port, folder)
        yield Server(folder=folder, port=port)
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-300:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"sshd does not answer: {(folder / 'log').read_text()[-300:]}")


@pytest.fixture
def board(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server with a client that has its key; no run may leave anything on it."""
    client(server, tmp_path, monkeypatch)
    yield server
    assert left(server) == []


def client(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, *, key: str = "user", known: bool = True
) -> None:
    """Put an `ssh` first on the path that is the real one with settings of its own."""
    public = (server.folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{server.port} {public}" if known else "")
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\n"
        f"IdentityFile {server.folder}/{key}\nIdentitiesOnly yes\nIdentityAgent none\n"
    )
    program(folder, "ssh", f'exec {SSH} -F {folder}/ssh_config "$@"\n', monkeypatch)


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script first on the path."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    (place / name).write_text("#!/bin/sh\n" + script)
    (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


def left(server: Server, seconds: float = 60) -> list[Path]:
    """Return what lies in the board's temporary folder, after it had the time to clean up."""
    end = time.monotonic() + seconds
    while list(server.temporary.iterdir()) and time.monotonic() < end:
        time.sleep(0.1)
    return list(server.temporary.iterdir())
