"""The real ssh to a real sshd, with this host as the board."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from boards import Server, client, left, program

from edgeq.core.errors import EnvironmentProblem, UsageError, VerificationError
from edgeq.report.progress import Quiet
from edgeq.verify.emulate.install import Installed, ensure_installed, find_wheels
from edgeq.verify.emulate.runner import TooSlow, Work, run, run_all
from edgeq.verify.emulate.selftest import Machine, hold_all
from edgeq.verify.remote.device import RUNS, measure, open_session
from edgeq.verify.remote.link import Ssh

SELFTEST = Path(__file__).parents[4] / "edgeq" / "verify" / "emulate" / "selftest"
ARCH = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), "")


@pytest.fixture(scope="session")
def native() -> Installed:
    """The runtime for this very host."""
    if not ARCH:
        pytest.skip(f"no runtime for {platform.machine()}")
    wheels, _ = find_wheels("executorch", ("1.5",), ARCH)
    return ensure_installed(wheels[0], Quiet())


@pytest.fixture
def digits() -> np.ndarray:
    with np.load(SELFTEST / "digits.npz") as arrays:
        return arrays["inputs"]


@pytest.fixture
def work(native: Installed, digits: np.ndarray) -> Work:
    samples = tuple((row[None],) for row in digits)
    return Work(runtime=native, cpu=None, model=SELFTEST / "digits.pte", samples=samples, where="the board")


def test_a_board_runs_the_known_artifact_and_is_timed(board: Server, work: Work) -> None:
    done: list[int] = []
    with open_session(Ssh(host=board.host)) as session:
        assert (session.board.platform, session.board.arch) == ("linux", ARCH)
        assert session.board.cores == os.cpu_count()
        assert not session.board.is_virtual
        machine = Machine(runtime=work.runtime, cpu=None, device="board")
        assert list(hold_all((machine,), session)) == [machine]
        (ran,) = run_all((work,), timeout_s=60, launcher=session, on_sample=lambda: done.append(1))
        took = measure(session, work.runtime, work.model, work.samples[0], threads=2, timeout_s=60)
        assert len(list(board.temporary.iterdir())) == 1
    assert len(done) == len(ran.outputs) == len(work.samples)
    with np.load(SELFTEST / "digits.npz") as arrays:
        assert np.array_equal(np.concatenate([outputs[0] for outputs in ran.outputs]), arrays["outputs_pte"])
    assert (took.runs, took.threads, took.arch) == (RUNS, 2, ARCH)
    assert 0 < took.p50_ms <= took.p90_ms
    assert took.load_ms > 0
    assert took.peak_memory_bytes > 0
    assert left(board) == []


def test_a_runtime_of_this_hosts_own_kind_needs_no_qemu(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ARM64 host runs the ARM64 runtimes in this very way; here it is this host's kind."""
    monkeypatch.setenv("PATH", "")
    ran = run(work, timeout_s=60)
    with np.load(SELFTEST / "digits.npz") as arrays:
        assert np.array_equal(np.concatenate([outputs[0] for outputs in ran.outputs]), arrays["outputs_pte"])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ("model", VerificationError, "the board"),
        ("inputs", UsageError, "input 0 wants"),
    ],
)
def test_the_runners_own_errors_come_through(
    board: Server, work: Work, tmp_path: Path, change: str, error: type[Exception], text: str
) -> None:
    (tmp_path / "broken.pte").write_bytes(b"no program" * 100)
    other = {"model": {"model": tmp_path / "broken.pte"}, "inputs": {"samples": ((np.zeros(3, np.float32),),)}}[change]
    changed = Work(**{name: getattr(work, name) for name in Work.__slots__} | other)
    with open_session(Ssh(host=board.host)) as session, pytest.raises(error, match=text):
        run_all((changed,), timeout_s=60, launcher=session)


def slow(work: Work) -> Work:
    return Work(runtime=work.runtime, cpu=None, model=work.model, samples=work.samples, runs=1_000_000)


def started(board: Server) -> int:
    """Return the number of the first run's process, once there is one."""
    for _ in range(600):
        for path in board.temporary.glob("*/run-1.pid"):
            if text := path.read_text().strip():
                return int(text)
        time.sleep(0.1)
    raise AssertionError("nothing was started on the board")


def runners(board: Server) -> list[str]:
    """Return what runs in the board's folders; other boards of this host are none of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if (process / "cwd").readlink().is_relative_to(board.temporary):
                found.append((process / "cmdline").read_text())
    return found


def still_running(board: Server) -> list[str]:
    """Return what still runs there, after it had the time to end."""
    end = time.monotonic() + 60
    while runners(board) and time.monotonic() < end:
        time.sleep(0.1)
    return runners(board)


def test_the_time_limit_ends_the_run_on_the_board_too(board: Server, work: Work) -> None:
    with open_session(Ssh(host=board.host)) as session, pytest.raises(TooSlow, match=r"ssh:.* did not end within 2 s"):
        run_all((slow(work),), timeout_s=2, launcher=session)
    assert left(board) == []
    assert still_running(board) == []


def test_ctrl_c_ends_the_run_on_the_board_too(board: Server, work: Work) -> None:
    def interrupt() -> None:
        started(board)
        assert runners(board)  # else the run goes on to its time limit
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), open_session(Ssh(host=board.host)) as session:
        run_all((slow(work),), timeout_s=60, launcher=session)
    assert left(board) == []
    assert still_running(board) == []


def test_a_runner_killed_on_the_board_is_told_with_its_signal(board: Server, work: Work) -> None:
    threading.Thread(target=lambda: os.kill(started(board), signal.SIGSEGV)).start()
    with open_session(Ssh(host=board.host)) as session, pytest.raises(VerificationError, match="SIGSEGV"):
        run_all((slow(work),), timeout_s=60, launcher=session)


def test_a_connection_that_breaks_leaves_nothing(board: Server, work: Work) -> None:
    def cut() -> None:
        started(board)
        said = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
        for line in said.splitlines():
            if f"ssh://{board.host}" in line:
                os.kill(int(line.split()[0]), signal.SIGKILL)

    threading.Thread(target=cut).start()
    broke = "connection (broke|was closed)"
    with pytest.raises(EnvironmentProblem, match=broke), open_session(Ssh(host=board.host)) as session:
        run_all((slow(work),), timeout_s=60, launcher=session)
    assert left(board) == []
    assert still_running(board) == []


def opened(host: str) -> EnvironmentProblem:
    with pytest.raises(EnvironmentProblem) as caught, open_session(Ssh(host=host)):
        pass
    return caught.value


def test_a_refused_key_asks_for_no_password(board: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(board, tmp_path, monkeypatch, key="stranger")
    problem = opened(board.host)
    assert "refused the authentication" in problem.what
    assert f"ssh-copy-id -p {board.port} {board.host.partition(':')[0]}, or" in problem.fix


def test_an_unknown_host_key_is_not_accepted(board: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(board, tmp_path, monkeypatch, known=False)
    assert "host key is unknown" in opened(board.host).what


@pytest.mark.parametrize(
    ("host", "where"), [("127.0.0.1:1", "ssh://127.0.0.1:1"), ("no-such-host.invalid", "no-such-host.invalid")]
)
def test_a_board_that_is_not_there(board: Server, host: str, where: str) -> None:
    problem = opened(host)
    assert "cannot be reached" in problem.what
    assert f"ssh -o BatchMode=yes {where} true" in problem.fix


def test_without_ssh_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    problem = opened("board")
    assert (problem.what, problem.fix) == (
        "ssh is missing; edgeq needs it to reach the device",
        "apt-get install openssh-client",
    )


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo mktemp: No space left on device >&2; exit 91", "no space left"),
        ("echo hello", "no temporary folder"),
        ("exec >&-; exec sleep 600", "no answer"),
        ("printf 'folder=/tmp/x\\nsystem=Linux\\nmachine=riscv64\\ncores=4\\nmodel=x\\nend=\\n'", "riscv64"),
        ("printf 'folder=/tmp/x\\nsystem=Darwin\\nmachine=arm64\\ncores=\\nmodel=x\\nend=\\n'", "Darwin on arm64"),
        (
            "printf 'folder=/a b\\nsystem=Linux\\nmachine=arm64\\ncores=\\nmodel=x\\nend=\\n'",
            "needs quoting in a shell",
        ),
    ],
)
def test_a_device_that_is_none_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    program(tmp_path, "ssh", script + "\n", monkeypatch)
    monkeypatch.setattr("edgeq.verify.remote.device.CONNECT_S", 1)
    assert text in opened("board").what


def test_a_full_board_is_told_as_such(
    board: Server, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = (tmp_path / "bin" / "ssh").read_text().partition("\n")[2]
    check = 'case "$*" in *"tar -xf"*) echo "tar: write: No space left on device" >&2; exit 2;; esac\n'
    program(tmp_path, "ssh", check + real, monkeypatch)
    with pytest.raises(EnvironmentProblem, match="no space left"), open_session(Ssh(host=board.host)) as session:
        run_all((work,), timeout_s=60, launcher=session)


def test_wrong_runner_output_is_no_result(
    board: Server, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = (tmp_path / "bin" / "ssh").read_text().partition("\n")[2]
    program(tmp_path, "ssh", 'case "$*" in *"cat /"*"/outputs"*) echo garbage; exit 0;; esac\n' + real, monkeypatch)
    with (
        pytest.raises(VerificationError, match="outputs is not a container"),
        open_session(Ssh(host=board.host)) as session,
    ):
        run_all((work,), timeout_s=60, launcher=session)


def test_a_wheel_for_x86_is_known_and_torch_is_not() -> None:
    assert find_wheels("executorch", ("1.5",), "x86_64")[0][0].arch == "x86_64"
    assert find_wheels("torchscript", ("2.1",), "x86_64") == ((), ("2.1",))
