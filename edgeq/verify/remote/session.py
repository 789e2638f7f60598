"""A stay on a device: the runner and its libraries go into a temporary folder there, runs, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from edgeq.errors import EnvironmentProblem, VerificationError
from edgeq.verify.emulate.build import LOADERS, system_libraries
from edgeq.verify.emulate.runtimes import RECORD_NAME
from edgeq.verify.emulate.work import Work, arguments
from edgeq.verify.remote.board import Board, environment, hold
from edgeq.verify.remote.link import Link, Transfer, joined

_TRANSFER_S = 600.0
_SYSTEM = "system"  # the folder of the C and C++ libraries: Android has others, and an old board older ones

# not exec: the shell tells a signal as 128 + its number, which ssh would not. A runner that starts while the stay ends
# either has its number in a file that `_HOLD` reads, or sees here that it is over
_RUN = """\
cd {folder} && chmod 755 {loader} || exit 126
{command} &
echo $! >{name}.pid && [ ! -e over ] && [ -d {name} ] || kill -9 $!
wait $!
s=$?
rm -f {name}.pid
exit $s
"""


class Session:
    """A stay on a device; a `Launcher` for `run_all`, one process at a time."""

    def __init__(self, link: Link, board: Board) -> None:
        self._link = link
        self.board = board
        self.name = f"the run on {board.name}"
        self._sent: dict[Path, str] = {}
        self._runs = 0

    def command(self, work: Work, place: Path) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Send what the work needs and the device does not have yet, and return what runs it there.

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
        script = _RUN.format(folder=self.board.folder, loader=loader, command=joined(command), name=name)
        return self._link.shell(script), environment()

    def finish(self, work: Work, place: Path, status: int) -> int:
        """Bring the results; return the runner's status, negative for a signal.

        Raises:
            EnvironmentProblem: the connection broke, or the device cannot run it at all.
        """
        said = (place / "stderr").read_text(errors="replace")
        problem = self._link.broken(status, said)
        if problem is not None:
            raise problem
        if status < 0:  # ssh or adb themselves were killed
            raise EnvironmentProblem(f"{self.board.name}: the connection was ended", "try again")
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
                _copy(path, staging / self._sent[path])
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
            raise EnvironmentProblem(told, f"free some there, or set TMPDIR to a larger disk; {_needs()}")
        lines = said.strip().splitlines() or [f"status {status}"]
        if what == "pull":
            raise VerificationError(f"the runner on {self.board.name} left no results: {lines[-1][:200]}", "run again")
        told = f"{self.board.name} did not take the files: {lines[-1][:200]}"
        raise EnvironmentProblem(told, f"see that it has tar, and a temporary folder to write to; {_needs()}")


@contextmanager
def open_session(link: Link) -> Iterator[Session]:
    """Stay on a device until the block ends.

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


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns(RECORD_NAME))
    else:
        shutil.copy(path, target)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _needs() -> str:
    return "the runner and its libraries take 13 MB for ExecuTorch, 250 MB for torch"
