"""Servers that keep a device waiting or send it elsewhere; an app's start beside an update."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edgeq.core.errors import EdgeqError, EnvironmentProblem, IntegrityError
from edgeq.core.safe_load import Untrusted
from edgeq.deliver.ota.fetch import Pace, WebSource
from edgeq.deliver.ota.store import MAX_TRIES, Store
from tests.unit.conftest import item
from tests.unit.deliver.ota.conftest import DAY, NOW, Device, Publisher, device, master_keys, publisher

__all__ = ["device", "item", "master_keys", "publisher"]  # fixtures

PACE = Pace(answer_s=1.0, gap_s=0.8, grace_s=0.6, least_bytes_per_s=1000, most_wait_s=1.5)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def serving(answer: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Serve connections, each with its number."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            connection.recv(65536)
            answer(connection, number)

    def serve() -> None:
        with suppress(OSError):
            for number in range(100):
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection, number), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def dripping(first: bytes, drop: bytes) -> Callable[[socket.socket, int], None]:
    def answer(connection: socket.socket, _: int) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(drop)
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED, b"0"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", b"X-Trailer: y\r\n"),
        (CHUNKED + b"5\r\nhello\r\n0\r\nX: ", b"y"),
        (CHUNKED, b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    ],
)
def test_a_server_that_drips(first: bytes, drop: bytes) -> None:
    with serving(dripping(first, drop)) as url:
        began = time.monotonic()
        with pytest.raises(IntegrityError, match="slow data"):
            list(WebSource(url, PACE).chunks("f", 0))
        assert time.monotonic() - began < 4


def test_a_reader_that_is_slow_itself_is_no_slow_server() -> None:
    def answer(connection: socket.socket, _: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000))

    with serving(answer) as url:
        came = 0
        for chunk in WebSource(url, PACE).chunks("f", 0):
            came += len(chunk)
            if came < 150_000:
                time.sleep(1)
        assert came == 200_000


def once(first: bytes) -> Callable[[socket.socket, int], None]:
    def answer(connection: socket.socket, number: int) -> None:
        body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        connection.sendall(first if number == 0 else body)

    return answer


def said(status: str, header: str) -> bytes:
    return f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def test_a_redirect_on_the_same_host_is_followed() -> None:
    with serving(once(said("302 Found", "Location: /elsewhere"))) as url:
        assert b"".join(WebSource(url, PACE).chunks("f", 0)) == b"ok"


@pytest.mark.parametrize(
    "to", ["http://localhost:1/f", "http://169.254.169.254/latest", "file:///etc/passwd", "//other/f"]
)
def test_a_redirect_to_another_host_is_refused(to: str) -> None:
    with (
        serving(once(said("302 Found", f"Location: {to}"))) as url,
        pytest.raises(IntegrityError, match="redirects to"),
    ):
        list(WebSource(url, PACE).chunks("f", 0))


def test_redirects_in_a_circle_end() -> None:
    def answer(connection: socket.socket, _: int) -> None:
        connection.sendall(said("302 Found", "Location: /f"))

    with serving(answer) as url, pytest.raises(EnvironmentProblem, match="after 4 redirects"):
        list(WebSource(url, PACE).chunks("f", 0))


def test_retry_after_within_bounds() -> None:
    patient = Pace(answer_s=5, most_wait_s=1.5)
    with serving(once(said("503 Busy", "Retry-After: 1"))) as url:
        began = time.monotonic()
        assert b"".join(WebSource(url, patient).chunks("f", 0)) == b"ok"
        assert time.monotonic() - began >= 1


@pytest.mark.parametrize("wait", ["3600", "99999999999999999999", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_retry_after_beyond_bounds(wait: str) -> None:
    with serving(once(said("429 Too Many", f"Retry-After: {wait}"))) as url:
        began = time.monotonic()
        with pytest.raises(EnvironmentProblem, match="asks the client to wait"):
            list(WebSource(url, PACE).chunks("f", 0))
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("where", ["network", "self-test"])
def test_an_app_starts_while_an_update_waits(publisher: Publisher, device: Device, where: str) -> None:
    publisher.release(publisher.bundle("1"))
    device.update()
    publisher.release(publisher.bundle("2"))
    waits, go = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def hold(*_: object) -> None:
        waits.set()
        assert go.wait(60)

    def answer(connection: socket.socket, _: int) -> None:
        hold()
        connection.sendall(said("500 No", "X: y"))

    def run() -> None:
        try:
            if where == "network":
                device.update(source=WebSource(url, Pace()))
            else:
                device.self_test = hold
                device.update()
        except EnvironmentProblem as err:
            errors.append(err)

    with serving(answer) as url:
        thread = threading.Thread(target=run)
        thread.start()
        assert waits.wait(30)
        code = (
            "import sys, time; from pathlib import Path; from edgeq.cli.ota_device import start\n"
            "import edgeq.deliver.ota.store, edgeq.report.text\n"
            "began = time.monotonic(); start(Path(sys.argv[1])); assert time.monotonic() - began < 1\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, str(device.store)], capture_output=True, text=True, check=True
        )
        assert Path(ran.stdout.strip()) == device.store / "slots/1"
        go.set()
        thread.join()
    state = Store(device.store).state()
    assert bool(errors) == (where == "network")
    assert state.current is not None
    assert state.current.release == (1 if where == "network" else 2)


@pytest.mark.parametrize(
    "problem",
    [EnvironmentProblem("killed", "free memory"), Untrusted(Path("model.ptl"), "it was killed, and may run code")],
)
def test_a_self_test_that_did_not_run_is_tried_again_after_a_day(
    publisher: Publisher, device: Device, problem: EdgeqError
) -> None:
    publisher.release(publisher.bundle("1"))

    def not_run(_: Path) -> None:
        raise problem

    device.self_test = not_run
    for _ in range(MAX_TRIES):
        with pytest.raises(type(problem), match="killed"):
            device.update()
    device.self_test = lambda _: None
    with pytest.raises(EnvironmentProblem, match="tried again after a day"):
        device.update(now=NOW + DAY / 2)
    assert Store(device.store).state().bad == ()
    assert device.update(now=NOW + DAY).release == 1
    assert Store(device.store).state().deferred is None


def test_or_with_a_new_runtime(publisher: Publisher, device: Device) -> None:
    publisher.release(publisher.bundle("1"))

    def no_memory(_: Path) -> None:
        raise EnvironmentProblem("killed", "free memory")

    device.self_test = no_memory
    for _ in range(MAX_TRIES):
        with pytest.raises(EnvironmentProblem, match="killed"):
            device.update()
    device.self_test = lambda _: None
    with pytest.raises(EnvironmentProblem, match="tried again after a day"):
        device.update()
    assert device.update(runtime="99.0").release == 1
