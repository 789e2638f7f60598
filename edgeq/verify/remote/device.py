"""A device that runs Linux or Android: its own description, and a temporary folder on it.

A process on the device owns the folder. It waits for the end of its standard input, which comes when edgeq finishes, is
killed, or loses the connection; then it kills the runners and removes the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgeq.core.errors import EnvironmentProblem, VerificationError
from edgeq.core.results.measured import DeviceMeasures
from edgeq.verify.emulate.install import LOADERS, RECORD_NAME, Arch, Installed, system_libraries
from edgeq.verify.emulate.runner import Arrays, Work, arguments, run_all
from edgeq.verify.metrics import percentile_ms
from edgeq.verify.remote.link import CONNECT_S, Link, Transfer, joined

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
    """A device's own description.

    Attributes:
        name: the value of --on.
        model: the name from the vendor or the kernel; "" where neither gives one.
        platform: in the words of target profiles.
        os: the operating system with its version.
        is_virtual: whether it is an emulator, such as Android's.
        folder: the runner's folder on the device.
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
        """Model and connection, as text."""
        return f"{self.model} ({self.name})" if self.model else self.name


@contextmanager
def hold(link: Link) -> Iterator[Board]:
    """Make a temporary folder on a device; afterwards end its processes and remove it in every case.

    Raises:
        EnvironmentProblem: ssh or adb is missing, the device cannot be reached, refuses, or is not a supported device.
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
            # end the process that holds the folder by its input's end, and wait until it has cleaned up
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                process.wait(timeout=_LEAVE_S)
            except subprocess.TimeoutExpired:  # the connection hangs; the device cleans up when it notices
                process.kill()
                process.wait()


def environment() -> dict[str, str]:
    """Return this process's environment, with messages in English: edgeq parses them."""
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
            problem = EnvironmentProblem(
                f"{link.name} has no space left for a temporary folder", "free some space there"
            )
        lines = said.strip().splitlines() or ["no answer in time" if status < 0 else f"status {status}"]
        what = f"{link.name} gave no temporary folder: {lines[-1][:200]}"
        raise problem or EnvironmentProblem(what, "check that its shell works and that it has free space")
    missing = [key for key in ("folder", "machine", "system", "model", "cores") if key not in facts]
    if missing:
        what = f"{link.name} did not report its {', '.join(missing)}"
        raise EnvironmentProblem(what, "check that its shell has uname, mktemp and cat, or choose another device")
    if not re.fullmatch(r"/[A-Za-z0-9_./-]+", facts["folder"]):
        what = f"{link.name} has its temporary folder at {facts['folder']!r}, which needs quoting in a shell"
        raise EnvironmentProblem(what, "set TMPDIR there to a plain path, such as /tmp")
    arch = _ARCHES.get(facts["machine"])
    if arch is None or facts["system"] != "Linux":
        found = f"{facts['system']} on {facts['machine']}"
        what = f"{link.name} is {found}: edgeq has runners for Linux on arm64 and x86_64"
        raise EnvironmentProblem(what, "choose another device, or verify on this host: --on host")
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


# --- A stay on a device: the runner and its libraries go into a temporary folder there, runs, and nothing left
# behind.


_TRANSFER_S = 600.0

_ENDED = 125  # the stay ended while the runner ran

_SYSTEM = "system"  # the folder of the C and C++ libraries: Android has others, and an old board older ones

# not exec: the shell tells a signal as 128 + its number, which ssh would not. A runner that starts while the stay ends
# either has its number in a file that `_HOLD` reads, or sees here that it is over
_RUN = """\
cd {folder} && chmod 755 {loader} || exit 126
{command} &
echo $! >{name}.pid && [ ! -e over ] && [ -d {name} ] || kill -9 $!
wait $!
s=$?
[ ! -e over ] && [ -d {name} ] || exit {ended}
rm -f {name}.pid
exit $s
"""


class Session:
    """A session on a device: a `Launcher` for `run_all`, one process at a time."""

    def __init__(self, link: Link, board: Board) -> None:
        self._link = link
        self.board = board
        self.name = f"the run on {board.name}"
        self._sent: dict[Path, str] = {}
        self._runs = 0

    def command(self, work: Work, place: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Send the files that the work needs and the device lacks, and return the command that runs it there.

        Raises:
            EnvironmentProblem: the connection broke, or the device has no space left.
        """
        self._runs += 1
        name = f"run-{self._runs}"
        with tempfile.TemporaryDirectory(prefix="edgeq-send-") as staging:
            home, model = self._stage(Path(staging), work, place, name)
            self._push(Path(staging))
        loader = f"{_SYSTEM}/{LOADERS[work.runtime.wheel.arch]}"
        folders = (_SYSTEM, f"{home}/{work.runtime.wheel.build.library_folder}")
        command = [f"./{loader}", "--library-path", ":".join(folders), f"./{home}/runner"]
        command += arguments(work, PurePosixPath(model), PurePosixPath(name))
        script = _RUN.format(folder=self.board.folder, loader=loader, command=joined(command), name=name, ended=_ENDED)
        return self._link.shell(script), environment()

    def finish(self, work: Work, place: Path, status: int) -> int:
        """Fetch the results; return the runner's status, negative for a signal.

        Raises:
            EnvironmentProblem: the connection broke, or the device cannot run it at all.
        """
        said = (place / "stderr").read_text(errors="replace")
        problem = self._link.broken(status, said)
        if problem is not None:
            raise problem
        # ssh or adb themselves were killed, or what held the device was, whose end killed the runner there
        if status < 0 or status == _ENDED:
            raise EnvironmentProblem(f"{self.board.name}: the connection was closed", "try again")
        if status in (126, 127):  # the shell's: not executable, not found
            what = f"{self.board.name} cannot run programs in {self.board.folder}: {said.strip()[-200:]}"
            raise EnvironmentProblem(what, "set TMPDIR there to a folder that is not mounted noexec")
        if status > 128:
            return 128 - status
        if status == 0:
            for name in ("outputs", "report", *(("trace",) if work.trace else ())):
                self._transfer(self._link.pull(f"{self.board.folder}/run-{self._runs}/{name}", place / name), "pull")
        return status

    def _stage(self, staging: Path, work: Work, place: Path, name: str) -> tuple[str, str]:
        """Lay out what is still to be sent; return the names of the runtime and of the model there."""
        if not self._sent:
            (staging / _SYSTEM).mkdir()
            for library in system_libraries(work.runtime.wheel.arch):
                shutil.copy(library, staging / _SYSTEM / library.name)
        for path in (work.runtime.folder, work.model):
            if path not in self._sent:
                self._sent[path] = f"file-{len(self._sent)}"
                target = staging / self._sent[path]
                if path.is_dir():
                    shutil.copytree(path, target, ignore=shutil.ignore_patterns(RECORD_NAME))
                else:
                    shutil.copy(path, target)
        (staging / name).mkdir()
        shutil.copy(place / "inputs", staging / name / "inputs")
        return self._sent[work.runtime.folder], self._sent[work.model]

    def _push(self, staging: Path) -> None:
        if not self._link.is_archived:
            self._transfer(self._link.push(staging, self.board.folder), "push")
            return
        with tempfile.TemporaryDirectory(prefix="edgeq-send-") as scratch:
            archive = Path(scratch) / "files.tar"
            with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
                tar.add(staging, arcname=".", filter=_anonymous)
            self._transfer(self._link.push(archive, self.board.folder), "push")

    def _transfer(self, transfer: Transfer, what: str) -> None:
        status, said = _run(transfer, self.board.name)
        if not status:
            return
        problem = self._link.broken(status, said)
        if problem is not None:
            raise problem
        if "No space left" in said:
            told = f"{self.board.name} has no space left in {self.board.folder}"
            raise EnvironmentProblem(told, f"free some space there, or set TMPDIR to a larger disk; {_needs()}")
        lines = said.strip().splitlines() or [f"status {status}"]
        if what == "pull":
            raise VerificationError(f"the runner on {self.board.name} left no results: {lines[-1][:200]}", "run again")
        told = f"the files could not be copied to {self.board.name}: {lines[-1][:200]}"
        raise EnvironmentProblem(told, f"check that it has tar and a writable temporary folder; {_needs()}")


@contextmanager
def open_session(link: Link) -> Iterator[Session]:
    """Open a session on a device for the duration of the block.

    Raises:
        EnvironmentProblem: as `hold`.
    """
    with hold(link) as board:
        yield Session(link, board)


def _run(transfer: Transfer, name: str) -> tuple[int, str]:
    stdin = transfer.stdin.open("rb") if transfer.stdin else None
    stdout = transfer.stdout.open("wb") if transfer.stdout else None
    try:
        done = subprocess.run(
            transfer.command,
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=_TRANSFER_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as err:
        what = f"{name}: a transfer took more than {_TRANSFER_S:.0f} s"
        raise EnvironmentProblem(what, "check the connection") from err
    finally:
        for file in (stdin, stdout):
            if file is not None:
                file.close()
    return done.returncode, done.stderr.decode(errors="replace")


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _needs() -> str:
    return "the runner and its libraries take 13 MB for ExecuTorch, 250 MB for torch"


# --- What one inference takes on a real device.


WARMUP, RUNS = 5, 50


def measure(
    session: Session, runtime: Installed, artifact: Path, sample: Arrays, *, threads: int, timeout_s: float
) -> DeviceMeasures:
    """Time one sample in a separate process, whose load is cold for the runtime, though not for the disk cache.

    Raises:
        EdgeqError: as `run_all`, or the connection broke.
    """
    board = session.board
    work = Work(
        runtime=runtime,
        cpu=None,
        model=artifact,
        samples=(sample,),
        warmup=WARMUP,
        runs=RUNS,
        threads=threads,
        where=board.name,
    )
    (ran,) = run_all((work,), timeout_s=timeout_s, parallel=1, launcher=session)
    (latencies,) = ran.latencies_ms
    return DeviceMeasures(
        device=board.title,
        platform=board.platform,
        os=board.os,
        arch=board.arch,
        cores=board.cores,
        is_virtual=board.is_virtual,
        runtime=runtime.wheel.title,
        threads=ran.threads,
        warmup=WARMUP,
        runs=len(latencies),
        p50_ms=percentile_ms(latencies, 0.5),
        p90_ms=percentile_ms(latencies, 0.9),
        load_ms=ran.load_ms,
        peak_memory_bytes=ran.peak_memory_bytes,
        latencies_ms=latencies,
    )
