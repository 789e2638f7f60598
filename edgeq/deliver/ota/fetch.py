"""Sources of a channel for clients: a folder or a web server. Sizes are bounded; slow transfers are aborted."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urljoin, urlsplit

from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError, first_line
from edgeq.core.files import sha256_file
from edgeq.deliver.ota.index import Entry

if TYPE_CHECKING:
    import urllib3
    from urllib3.response import BaseHTTPResponse

_CHUNK_BYTES = 1 << 16

_WATCH_S = 0.1

_MOST_ANSWERS = 4

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_SCHEMES = ("http://", "https://")


class Missing(EnvironmentProblem):
    """The channel has no such file (exit code 9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slow a transfer may be.

    Attributes:
        answer_s: time limit until the headers arrive, including redirects and retries.
        gap_s: the longest wait for the next byte of a file.
        grace_s: seconds after which the average rate is checked.
        least_bytes_per_s: the lowest average rate that is accepted.
        most_wait_s: how long to wait where the server asks for it (Retry-After).
    """

    answer_s: float = 30.0
    gap_s: float = 15.0
    grace_s: float = 20.0
    least_bytes_per_s: float = 1024.0
    most_wait_s: float = 10.0


class Source(Protocol):
    """A channel that can be read."""

    def chunks(self, path: str, start: int) -> Iterator[bytes]:
        """Yield a file's bytes from `start` on.

        Raises:
            Missing: there is no such file.
            EnvironmentProblem: the source cannot be reached or read.
            IntegrityError: data comes too slowly.
        """

    def says(self) -> str:
        """Return the channel's location, for messages."""


def open_source(place: str, pace: Pace | None = None) -> Source:
    """Return the source for a URL or a folder.

    Raises:
        UsageError: `place` is neither of the two.
    """
    if place.startswith(_SCHEMES):
        return WebSource(place, pace or Pace())
    if "://" in place:
        raise UsageError(f"cannot read a channel from {place.partition('://')[0]}", f"use {' or '.join(_SCHEMES)}")
    folder = Path(place)
    if not folder.is_dir():
        raise UsageError(f"no channel at {place}: no such folder", "give a folder, or a URL with http:// or https://")
    return FolderSource(folder)


class FolderSource:
    """A channel in a folder; links are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def says(self) -> str:
        """Return the folder."""
        return str(self._folder)

    def chunks(self, path: str, start: int) -> Iterator[bytes]:
        """Yield a file's bytes from `start` on."""
        place = self._folder / path
        try:
            fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as err:
            raise Missing(f"the channel has no {path}", "try again later; the channel may be incomplete") from err
        except OSError as err:
            raise EnvironmentProblem(f"cannot read {place}: {err.strerror}", "check the channel") from err
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise IntegrityError(
                    f"{place} is not a regular file", "do not use the channel; report this to its operator"
                )
            file.seek(start)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


class _Watch:
    """Ends a request that is too slow, whatever the server sends meanwhile: it shuts the connection down.

    A socket's own timeout starts anew with each byte, so that a server could drip headers, chunk sizes or trailers.

    Attributes:
        why: what was too slow; "" so far.
    """

    def __init__(self, pace: Pace) -> None:
        self.why = ""
        self._pace = pace
        self._began, self._came = time.monotonic(), 0
        self._body_began: float | None = None
        self._waits_since: float | None = None
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def follow(self, connection: socket.socket) -> socket.socket:
        """Watch a connection through a copy of its descriptor, since TLS takes over the socket."""
        with self._lock:
            self._sockets.append(connection.dup())
        return connection

    def left_s(self) -> float:
        """Return the seconds left for the answer."""
        return self._began + self._pace.answer_s - time.monotonic()

    def reads(self) -> None:
        """Record that the caller waits for data."""
        self._waits_since = time.monotonic()
        self._body_began = self._body_began or self._waits_since

    def got(self, size_bytes: int) -> None:
        """Record that data arrived; the time in which the caller processes it does not count."""
        self._came += size_bytes
        self._waits_since = None

    def close(self) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()
        for connection in self._sockets:
            connection.close()

    def _run(self) -> None:
        while not self._done.wait(_WATCH_S):
            self.why = self.why or self._too_slow(time.monotonic())
            if self.why:
                with self._lock:
                    for connection in self._sockets:
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_RDWR)

    def _too_slow(self, now: float) -> str:
        if self._body_began is None:
            return "" if now - self._began < self._pace.answer_s else f"no answer within {self._pace.answer_s:g} s"
        if self._waits_since is None:
            return ""
        took = now - self._body_began
        if now - self._waits_since > self._pace.gap_s:
            return f"no byte within {self._pace.gap_s:g} s"
        if took > self._pace.grace_s and self._came < took * self._pace.least_bytes_per_s:
            return f"{self._came} bytes in {took:.0f} s"
        return ""


class WebSource:
    """A channel on a web server."""

    def __init__(self, url: str, pace: Pace) -> None:
        self._url = url.rstrip("/")
        self._pace = pace

    def says(self) -> str:
        """Return the URL."""
        return self._url

    def chunks(self, path: str, start: int) -> Iterator[bytes]:
        """Yield a file's bytes from `start` on; `Pace` bounds how slowly."""
        import urllib3

        watch = _Watch(self._pace)
        try:
            with contextlib.closing(self._answer(watch, path, start)) as response:
                skip = start if response.status == 200 else 0  # a server without ranges sends it all again
                while True:
                    watch.reads()
                    chunk = response.read1(_CHUNK_BYTES)
                    watch.got(len(chunk))
                    if watch.why:
                        raise _slow(path, watch.why)
                    if not chunk:
                        return
                    yield chunk[min(skip, len(chunk)) :]
                    skip = max(0, skip - len(chunk))
        except (urllib3.exceptions.HTTPError, OSError) as err:
            if watch.why:
                raise _slow(path, watch.why) from err
            reason = getattr(err, "reason", None) or err
            # one that never connected is no slow server
            if isinstance(reason, urllib3.exceptions.ReadTimeoutError):
                raise _slow(path, f"no byte within {self._pace.gap_s:g} s") from err
            what = f"cannot read {self._url}: {type(reason).__name__}: {first_line(reason, 160)}"
            raise EnvironmentProblem(
                what, "check the network and try again; the bytes received so far are kept"
            ) from err
        finally:
            watch.close()

    def _answer(self, watch: _Watch, path: str, start: int) -> BaseHTTPResponse:
        """Return the answer with a file's bytes, after redirects and the waits that the server asks for."""
        import urllib3

        # what is deflated on the way would have another length
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        pool = _watched_pool(watch, self._pace)
        url = f"{self._url}/{quote(path)}"
        retries = urllib3.Retry(2, status=0, respect_retry_after_header=False)
        for _ in range(_MOST_ANSWERS):
            response: BaseHTTPResponse = pool.request(
                "GET",
                url,
                headers=headers,
                redirect=False,
                retries=retries,
                preload_content=False,
                decode_content=False,
            )
            if watch.why:  # the headers may have been cut off
                response.close()
                raise _slow(path, watch.why)
            if response.status in (200, 206):
                return response
            response.close()
            if response.status in (403, 404):
                raise Missing(f"the channel has no {path}", "try again later; the channel may be incomplete")
            if response.status in _REDIRECTS and response.headers.get("Location"):
                url = self._redirected(url, response.headers["Location"])
                continue
            what = f"{self._url} answered {response.status} for {path}"
            wait_s = _retry_after_s(response.headers.get("Retry-After")) if response.status in (429, 503) else None
            if wait_s is None:
                raise EnvironmentProblem(what, "try again later, or check the URL")
            if wait_s > min(self._pace.most_wait_s, watch.left_s()):
                raise EnvironmentProblem(
                    f"{what}, and asks the client to wait {wait_s:.0f} s", "try again after that time"
                )
            time.sleep(wait_s)
        what = f"{self._url} gave no file for {path} after {_MOST_ANSWERS} redirects or requests to wait"
        raise EnvironmentProblem(what, "try again later, or check the URL")

    def _redirected(self, url: str, location: str) -> str:
        """Return where a redirect leads: to https, or to the channel's own host by the channel's own scheme."""
        to = urljoin(url, location)
        own, other = urlsplit(self._url), urlsplit(to)
        if other.scheme == "https" or (other.scheme, other.hostname) == (own.scheme, own.hostname):
            return to
        what = f"{self._url} redirects to {first_line(ValueError(to), 160)}, which is neither https nor the same host"
        raise IntegrityError(what, "do not use the channel; report this to its operator")


def _watched_pool(watch: _Watch, pace: Pace) -> urllib3.PoolManager:
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return watch.follow(super()._new_conn())

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return watch.follow(super()._new_conn())

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    # of three tries at most
    timeout = urllib3.Timeout(connect=min(pace.gap_s, pace.answer_s / 3), read=pace.gap_s)
    pool = urllib3.PoolManager(timeout=timeout)
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pool


def _retry_after_s(text: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait (RFC 9110, 10.2.3); None where it says nothing."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        return None
    return max(0.0, (at - datetime.datetime.now(datetime.UTC)).total_seconds())


def _slow(path: str, why: str) -> IntegrityError:
    return IntegrityError(f"slow data: {path}: {why}", "try again; the bytes received so far are kept")


def endless(path: str, most_bytes: int) -> IntegrityError:
    """Return the error for a file with more bytes than the index states."""
    what = f"endless data: {path} has more than the {most_bytes} bytes that it may have at most"
    return IntegrityError(what, "do not use the channel; report this to its operator")


def download(source: Source, entry: Entry, folder: Path) -> Path:
    """Return the path of a whole, verified download; a partial download of an earlier attempt is continued.

    The file is named after its hash, not after anything that the channel says.

    Raises:
        IntegrityError: endless or slow data, or bytes that are not the signed ones.
        EnvironmentProblem: the source cannot be reached or read.
        OSError: a write failed.
    """
    path = folder / f"{entry.sha256}.part"
    remote = f"targets/{entry.sha256}.{entry.name}"
    resumed = _have(path, entry.size_bytes)
    _append(source, remote, path, resumed, entry.size_bytes)
    if path.stat().st_size == entry.size_bytes and sha256_file(path) == entry.sha256:
        return path
    size_bytes = path.stat().st_size
    if size_bytes < entry.size_bytes:
        what = f"the download was cut off: {remote} has {size_bytes} of {entry.size_bytes} bytes"
        raise EnvironmentProblem(what, "try again; the bytes received so far are kept")
    path.unlink()
    if resumed:  # the part may have been damaged on this disk: once more, from the start
        return download(source, entry, folder)
    what = f"{remote} is not the file that was signed: its SHA-256 differs"
    raise IntegrityError(what, "do not use the channel; report this to its operator")


def _have(path: Path, size_bytes: int) -> int:
    try:
        have = path.stat().st_size
    except FileNotFoundError:
        return 0
    if have > size_bytes:
        path.unlink()
        return 0
    return have


def _append(source: Source, remote: str, path: Path, start: int, size_bytes: int) -> None:
    if start == size_bytes and start:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "ab") as file:
        for chunk in source.chunks(remote, start):
            if file.tell() + len(chunk) > size_bytes:
                file.close()
                path.unlink()
                raise endless(remote, size_bytes)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
