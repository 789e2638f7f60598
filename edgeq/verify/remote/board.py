"""A device that runs Linux or Android: what it says of itself, and the folder that is held there for a while.

A process on the device holds the folder. It waits for its standard input to end, which it does when edgeq ends the
stay, and as well when edgeq is killed or the connection breaks; then it kills what still runs and removes the folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from edgeq.errors import EnvironmentProblem
from edgeq.verify.emulate.runtimes import Arch
from edgeq.verify.remote.link import CONNECT_S, Link

_GREET_S = 60.0
_LEAVE_S = 15.0
_ARCHES: dict[str, Arch] = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "x86_64", "amd64": "x86_64"}

# what the process that holds the folder does; the facts are key=value lines
_HOLD = """\
d=$(mktemp -d {base}/edgeq-XXXXXX) || exit 91
trap '' HUP INT TERM
echo "folder=$d"
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
echo "kernel=$(uname -r)"
echo "cores=$(grep -c '^processor' /proc/cpuinfo)"
if command -v getprop >/dev/null 2>&1; then
  echo "android=$(getprop ro.build.version.release)"
  echo "virtual=$(getprop ro.kernel.qemu)$(getprop ro.boot.qemu)"
  echo "model=$(getprop ro.product.manufacturer) $(getprop ro.product.model)"
elif [ -r /proc/device-tree/model ]; then
  echo "model=$(tr -d '\\000' </proc/device-tree/model)"
else
  echo "model=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)"
fi
echo "end="
cat >/dev/null
: >"$d/over"
for p in "$d"/*.pid; do [ -f "$p" ] && kill -9 "$(cat "$p")"; done 2>/dev/null
rm -rf "$d"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What a device says of itself.

    Attributes:
        name: the way to it, as --on has it.
        model: as its vendor, or its kernel, calls it; "" where neither does.
        platform: in the words of target profiles.
        os: the operating system with its version.
        is_virtual: whether it is an emulator, such as Android's.
        folder: where the runner lies on it.
    """

    name: str
    model: str
    platform: str
    os: str
    arch: Arch
    cores: int
    is_virtual: bool
    folder: str

    @property
    def title(self) -> str:
        """Model and way, for people."""
        return f"{self.model} ({self.name})" if self.model else self.name


@contextmanager
def hold(link: Link) -> Iterator[Board]:
    """Make a temporary folder on a device, and remove it, and end what runs in it, whatever happens.

    Raises:
        EnvironmentProblem: ssh or adb is missing, the device cannot be reached, refuses, or is no device of these.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            link.shell(_HOLD.format(base=link.base)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            start_new_session=True,  # Ctrl-C is edgeq's to handle
        )
        try:
            yield _board(link, process, errors)
        finally:
            _leave(process)


def environment() -> dict[str, str]:
    """Return this process's environment, with messages in English: they are looked at."""
    return {**os.environ, "LC_ALL": "C"}


def _board(link: Link, process: subprocess.Popen[bytes], errors: IO[bytes]) -> Board:
    facts = _facts(process)
    if "end" not in facts:
        try:
            status = process.wait(timeout=CONNECT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
        problem = link.broken(status, said)
        if problem is None and "No space left" in said:
            problem = EnvironmentProblem(f"{link.name} has no space left for a temporary folder", "free some there")
        lines = said.strip().splitlines() or ["no answer in time" if status < 0 else f"status {status}"]
        what = f"{link.name} gave no temporary folder: {lines[-1][:200]}"
        raise problem or EnvironmentProblem(what, "see that its shell works, and that there is space left")
    if not re.fullmatch(r"/[A-Za-z0-9_./-]+", facts["folder"]):
        what = f"{link.name} has its temporary files in {facts['folder']!r}, which shells would misread"
        raise EnvironmentProblem(what, "set TMPDIR there to a plain path, such as /tmp")
    arch = _ARCHES.get(facts["machine"])
    if arch is None or facts["system"] != "Linux":
        found = f"{facts['system']} on {facts['machine']}"
        what = f"{link.name} is {found}: edgeq has runners for Linux on arm64 and x86_64"
        raise EnvironmentProblem(what, "name another device, or verify on this host: --on host")
    return Board(
        name=link.name,
        model=facts["model"].strip()[:80],
        platform="android" if "android" in facts else "linux",
        os=(f"Android {facts['android']}" if "android" in facts else f"Linux {facts.get('kernel', '')}").strip()[:80],
        arch=arch,
        cores=int(facts["cores"]) if facts["cores"].isdigit() else 0,
        is_virtual=facts.get("virtual", "").strip() not in ("", "0", "00"),
        folder=facts["folder"],
    )


def _facts(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Read the key=value lines up to the last one, which is `end`."""
    facts: dict[str, str] = {}
    patience = threading.Timer(_GREET_S, process.kill)
    patience.start()
    for line in process.stdout or ():
        key, _, value = line.decode(errors="replace").strip().partition("=")
        facts[key] = value
        if key == "end":
            break
    patience.cancel()
    return facts


def _leave(process: subprocess.Popen[bytes]) -> None:
    """End the process that holds the folder by its input's end, and wait until it has cleaned up."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=_LEAVE_S)
    except subprocess.TimeoutExpired:  # the connection hangs; the device cleans up when it notices
        process.kill()
        process.wait()
