"""Connections to a device: the commands of ssh and adb, and the meaning of their errors.

Both run a line of POSIX shell on the device and return its exit status; neither ever asks for a password.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeq.core.errors import EnvironmentProblem, UsageError

CONNECT_S = 10

# no prompts; a connection that is silent for 15 s is given up
_SSH_OPTIONS = ("BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "ServerAliveInterval=5", "ServerAliveCountMax=3")

SSH_BROKEN = 255  # what ssh exits with when it, and not the command, failed

_PORT = re.compile(r":(\d+)$")

_ADB_BROKEN = 255

_ADB_FIX = "check `adb devices`, then try again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A command of this host that copies files.

    Attributes:
        command: with its arguments.
        stdin: a file that it reads; None for nothing.
        stdout: a file that it writes; None where it does that itself.
    """

    command: tuple[str, ...]
    stdin: Path | None = None
    stdout: Path | None = None


class Link(Protocol):
    """A connection to a device."""

    @property
    def name(self) -> str:
        """The value of --on."""

    @property
    def base(self) -> str:
        """The parent of temporary folders, in the device's shell syntax."""

    @property
    def is_archived(self) -> bool:
        """Whether `push` sends one tar archive rather than a folder."""

    def shell(self, script: str) -> tuple[str, ...]:
        """Return the command that runs a script on the device."""

    def push(self, local: Path, remote: str) -> Transfer:
        """Return the transfer that copies a folder's files, or an archive's, into a folder of the device."""

    def pull(self, remote: str, local: Path) -> Transfer:
        """Return the transfer that copies a file of the device to this host."""

    def broken(self, status: int, said: str) -> EnvironmentProblem | None:
        """Return the error of the connection itself; None where the command on the device failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """A board that runs Linux.

    Attributes:
        host: as ssh takes it: a name of its configuration, or [user@]host[:port].
    """

    host: str
    base: str = '"${TMPDIR:-/tmp}"'
    is_archived: bool = True

    @property
    def name(self) -> str:
        """The value of --on."""
        return f"ssh:{self.host}"

    def shell(self, script: str) -> tuple[str, ...]:
        """Return the command; the login shell only needs to support single quotes."""
        options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
        return (_tool("ssh", "openssh-client"), "-T", *options, self._where(), f"exec sh -c {shlex.quote(script)}")

    def _where(self) -> str:
        """Return the host as ssh takes it, which a port makes a URL."""
        return f"ssh://{self.host}" if _PORT.search(self.host) else self.host

    def push(self, local: Path, remote: str) -> Transfer:
        """Send a tar archive through the shell: not every board has sftp."""
        return Transfer(command=self.shell(f"cd {remote} && tar -xf -"), stdin=local)

    def pull(self, remote: str, local: Path) -> Transfer:
        """Fetch a file through the shell."""
        return Transfer(command=self.shell(f"cat {remote}"), stdout=local)

    def broken(self, status: int, said: str) -> EnvironmentProblem | None:
        """Distinguish ssh's own failures from those of the command."""
        if status != SSH_BROKEN:
            return None
        last = _last_line(said)
        if "Host key verification failed" in said:
            what = f"{self.name}: its host key is unknown or has changed"
            return EnvironmentProblem(what, f"ssh {self._where()} true")
        if "Permission denied" in said or "Too many authentication failures" in said:
            what = f"{self.name} refused the authentication, and edgeq does not ask for passwords: {last}"
            host, port = _PORT.sub("", self.host), _PORT.search(self.host)
            copy = f"ssh-copy-id -p {port[1]} {host}" if port else f"ssh-copy-id {host}"
            return EnvironmentProblem(what, f"{copy}, or add the key with ssh-add")
        what = f"{self.name} cannot be reached, or the connection broke: {last}"
        return EnvironmentProblem(what, f"check that this works: ssh -o BatchMode=yes {self._where()} true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adb:
    """An Android phone.

    Attributes:
        serial: as `adb devices` lists it; "" where there is only one.
    """

    serial: str = ""
    base: str = "/data/local/tmp"
    is_archived: bool = False

    @property
    def name(self) -> str:
        """The value of --on."""
        return f"adb:{self.serial}" if self.serial else "adb"

    def _adb(self) -> tuple[str, ...]:
        return (_tool("adb", "adb"), *(("-s", self.serial) if self.serial else ()))

    def shell(self, script: str) -> tuple[str, ...]:
        """Return the command; adb hands the line to the phone's sh as it is."""
        return (*self._adb(), "shell", "-T", script)

    def push(self, local: Path, remote: str) -> Transfer:
        """Push a folder's content."""
        return Transfer(command=(*self._adb(), "push", f"{local}/.", f"{remote}/"))

    def pull(self, remote: str, local: Path) -> Transfer:
        """Pull a file."""
        return Transfer(command=(*self._adb(), "pull", remote, str(local)))

    def broken(self, status: int, said: str) -> EnvironmentProblem | None:
        """Distinguish adb's own failures from those of the command by their messages: both exit with 1."""
        if status == _ADB_BROKEN:
            return EnvironmentProblem(f"{self.name}: the connection broke: {_last_line(said)}", _ADB_FIX)
        for pattern, what, fix in _ADB_SAYS:
            if status and re.search(pattern, said):
                return EnvironmentProblem(f"{self.name}: {what}", fix)
        return None


_ADB_SAYS = (
    (
        r"no devices/emulators found",
        "adb finds no device",
        "connect a phone, allow USB debugging in its developer options, and see `adb devices`",
    ),
    (r"more than one device", "several devices are connected", "run `adb devices`, then choose one: --on adb:SERIAL"),
    (
        r"device unauthorized|device still authorizing",
        "the phone has not authorized this computer",
        "unlock the phone, accept the key prompt, and try again",
    ),
    (r"device '[^']*' not found", "no device has this serial number", "adb devices"),
    (r"device offline|device .*disconnected|error: closed|protocol fault", "the connection broke", _ADB_FIX),
    (r"cannot connect to daemon|failed to start daemon", "adb's server does not start", "adb kill-server"),
    (r"unknown option -T", "this adb is too old for `shell -T`", "apt-get install adb"),
)


def is_link(text: str) -> bool:
    """Whether a value of --on names a device."""
    return text == "adb" or text.partition(":")[0] in ("ssh", "adb")


def parse_link(text: str) -> Link:
    """Return the connection that a value of --on names.

    Raises:
        UsageError: the host or serial number is missing or not valid.
    """
    kind, _, rest = text.partition(":")
    # a leading dash would be an option of ssh or adb
    if not re.fullmatch(r"[A-Za-z0-9_\[][^\s'\"\\;&|<>$`]*", rest) and text != "adb":
        raise UsageError(f"--on {text!r} does not name a device", "use ssh:HOST, ssh:USER@HOST:PORT, adb or adb:SERIAL")
    return Ssh(host=rest) if kind == "ssh" else Adb(serial=rest)


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise EnvironmentProblem(f"{name} is missing; edgeq needs it to reach the device", f"apt-get install {package}")
    return found


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def joined(parts: Sequence[str]) -> str:
    """Return the words of a shell command as one line."""
    return " ".join(shlex.quote(part) for part in parts)
