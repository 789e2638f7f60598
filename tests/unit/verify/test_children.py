"""Children that a server forks: their state, their ends, and the server's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem
from edgeq.verify import children
from edgeq.verify.children import from_server, started
from edgeq.verify.host import HostRuntime


@pytest.fixture
def new_server(monkeypatch):
    """Have this test start a server of its own."""
    monkeypatch.setattr(children, "_servers", {})
    yield
    for server in children._servers.values():
        server.close()


def server_pid() -> int:
    """Return the last server's process ID."""
    return list(children._servers.values())[-1]._process.pid


def ended(pid: int) -> bool:
    """Return whether a process ends within ten seconds."""
    for _ in range(100):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_children_share_a_server():
    with HostRuntime() as one:
        one.gpu()
        first = server_pid()
        with HostRuntime() as other:
            other.gpu()
            assert server_pid() == first
            assert one._child.process.poll() is other._child.process.poll() is None


def test_a_child_has_its_callers_folder_and_environment(tmp_path, monkeypatch):
    with HostRuntime() as host:
        host.gpu()  # the server runs before anything changes
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text(
        "import os\nraise ValueError(f'in {os.getcwd()} with {os.environ.get(\"SAID\")}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAID", "so")
    Path("model.onnx").write_bytes(b"")
    with HostRuntime(trusted=True) as host, pytest.raises(Exception, match=f"in {tmp_path} with so"):
        host.load(Path("model.onnx"), runtime="onnx", backend="ort", threads=1)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM])
def test_a_childs_signal_is_its_status(number):
    with HostRuntime() as host:
        host.gpu()
        assert host._child.process.poll() is None
        os.kill(host._child.process.pid, number)
        assert host._child.process.wait() == -number
        assert host._child.process.poll() == -number


def test_a_server_that_was_killed_takes_its_children_along_and_is_replaced(new_server):
    with HostRuntime() as host:
        host.gpu()
        first = server_pid()
        os.kill(first, signal.SIGKILL)
        assert host._child.process.wait() == -signal.SIGKILL
        assert ended(first)  # its files are closed one after the other, and the child's status may be the first
    with HostRuntime() as host:
        host.gpu()
        assert server_pid() != first


def test_a_server_that_is_killed_while_it_is_asked_is_replaced(new_server, monkeypatch):
    with HostRuntime() as host:
        host.gpu()
        first = server_pid()
        os.kill(first, signal.SIGKILL)
        assert ended(first)
    with monkeypatch.context() as patch, HostRuntime() as host:
        patch.setattr(children._ForkServer, "is_running", lambda _server: True)  # as it did when that was asked
        host.gpu()
        assert server_pid() != first


def test_other_settings_of_libraries_need_another_server(new_server, monkeypatch):
    with HostRuntime() as host:
        host.gpu()
        first = server_pid()
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with HostRuntime() as other:
            other.gpu()
            assert server_pid() != first
        host.gpu()  # its server is still there


def test_a_server_ends_with_its_process_even_when_that_is_killed():
    code = (
        "from edgeq.verify import children\nfrom edgeq.verify.host import HostRuntime\nimport os, signal\n"
        "host = HostRuntime()\nhost.gpu()\n"
        "print([*children._servers.values()][0]._process.pid, host._child.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all(ended(int(pid)) for pid in done.stdout.split())


def test_a_torch_that_cannot_be_imported_is_named(new_server, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with HostRuntime() as host, pytest.raises(EnvironmentProblem, match=r"ended while starting.*libtorch\.so"):
        host.gpu()


@pytest.mark.parametrize(("own", "seen"), [(None, "10000"), ("7", "7")])
@pytest.mark.parametrize("start", [started, from_server])
def test_openmp_gives_cores_back_unless_the_user_says_otherwise(new_server, monkeypatch, start, own, seen):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    with HostRuntime(start) as host:
        host.gpu()  # a process that has just begun its program has an empty environment for a moment
        pid = host._child.process.pid if start is started else server_pid()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"GOMP_SPINCOUNT={seen}".encode() in environment


_OWNER = """
import sys
import time
from pathlib import Path

from edgeq.verify import children

children.from_server(Path(sys.argv[1]))
print(next(iter(children._servers.values()))._process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing forks")
def test_a_stopped_server_ends_when_its_owner_is_killed(tmp_path):
    """Others are stopped while one measures its times; what is stopped cannot see that its socket ended."""
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        os.kill(server, signal.SIGSTOP)
        while "\nState:\tT" not in Path(f"/proc/{server}/status").read_text():
            time.sleep(0.01)
        owner.kill()
    assert ended(server)
