"""A channel on a web server: ranges, broken, slow and endless answers."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError
from edgeq.deliver.ota.fetch import Pace, WebSource, open_source
from tests.unit.deliver.ota.conftest import Device, Publisher

PACE = Pace(gap_s=1.5, grace_s=0.5, least_bytes_per_s=20_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `mode` says how badly."""

    daemon_threads = True
    root: Path
    mode = "good"
    ranges: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.server.root / self.path.lstrip("/")
        mode = self.server.mode if "targets/" in self.path else "good"
        if mode == "500" or not path.is_file():
            self.send_error(500 if mode == "500" else 404)
            return
        data = path.read_bytes()
        asked = self.headers.get("Range")
        start = 0
        if asked:
            self.server.ranges.append(asked)
            if mode != "no ranges":
                start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if mode != "endless":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self._body(data[start:], mode)

    def _body(self, data: bytes, mode: str) -> None:
        try:
            if mode == "silent":
                time.sleep(4)
            elif mode == "slow":
                for at in range(len(data)):
                    self.wfile.write(data[at : at + 1])
                    time.sleep(0.005)
            elif mode == "broken":
                self.wfile.write(data[: len(data) // 2])
            elif mode == "endless":
                self.wfile.write(data)
                while True:
                    self.wfile.write(bytes(10_000))
            else:
                self.wfile.write(data)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(publisher: Publisher) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.root, made.ranges = publisher.channel, []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def source(server: Server, pace: Pace | None = None) -> WebSource:
    return WebSource(f"http://127.0.0.1:{server.server_address[1]}/", pace or Pace())


def test_updates_from_a_server(publisher: Publisher, device: Device, server: Server) -> None:
    publisher.release(publisher.bundle("1"))
    assert device.update(source=source(server)).via == "full download"
    publisher.release(publisher.bundle("2"))
    assert device.update(source=source(server)).via == "patch"


@pytest.mark.parametrize("mode", ["good", "no ranges"])
def test_a_broken_download_is_continued(publisher: Publisher, device: Device, server: Server, mode: str) -> None:
    publisher.release(publisher.bundle("1"))
    server.mode = "broken"
    with pytest.raises(EnvironmentProblem, match="the bytes received so far are kept"):
        device.update(source=source(server))
    (part,) = (device.store / "download").iterdir()
    had = part.stat().st_size
    assert had > 1000
    server.mode = mode
    assert device.update(source=source(server)).release == 1
    assert server.ranges == [f"bytes={had}-"]


@pytest.mark.parametrize("mode", ["silent", "slow"])
def test_slow_data(publisher: Publisher, device: Device, server: Server, mode: str) -> None:
    publisher.release(publisher.bundle("1"))
    server.mode = mode
    start = time.monotonic()
    with pytest.raises(IntegrityError, match="slow data"):
        device.update(source=source(server, PACE))
    assert time.monotonic() - start < 60
    server.mode = "good"
    assert device.update(source=source(server)).release == 1


def test_endless_data(publisher: Publisher, device: Device, server: Server) -> None:
    publisher.release(publisher.bundle("1"))
    server.mode = "endless"
    with pytest.raises(IntegrityError, match="endless data"):
        device.update(source=source(server))
    assert sum(path.stat().st_size for path in device.store.rglob("*") if path.is_file()) < 30_000


def test_a_server_that_fails(publisher: Publisher, device: Device, server: Server) -> None:
    publisher.release(publisher.bundle("1"))
    server.mode = "500"
    patient = WebSource(f"http://127.0.0.1:{server.server_address[1]}", Pace())
    with pytest.raises(EnvironmentProblem, match="answered 500 for targets/"):
        device.update(source=patient)
    with pytest.raises(EnvironmentProblem, match="cannot read http"):
        device.update(source=WebSource("http://127.0.0.1:9", Pace()))


def test_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read a channel from ftp"):
        open_source("ftp://host/x")
    with pytest.raises(UsageError, match="no such folder"):
        open_source(str(tmp_path / "none"))
    (tmp_path / "f").write_bytes(b"12345")
    assert b"".join(open_source(str(tmp_path)).chunks("f", 0)) == b"12345"
