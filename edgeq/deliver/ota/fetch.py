"""Where a client reads a channel: a folder or a web server. Sizes are bounded, slow data is given up."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError, first_line
from edgeq.core.files import sha256_file
from edgeq.deliver.ota.index import Entry

_CHUNK_BYTES = 1 << 16

_SCHEMES = ("http://", "https://")


class Missing(EnvironmentProblem):
    """The channel has no such file (exit code 9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slow data may come.

    Attributes:
        gap_s: the longest wait for the next byte.
        grace_s: after so many seconds the average counts.
        least_bytes_per_s: the least average.
    """

    gap_s: float = 15.0
    grace_s: float = 20.0
    least_bytes_per_s: float = 1024.0


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
        """Return the channel's place, for messages."""


def open_source(place: str, pace: Pace | None = None) -> Source:
    """Return the source for a URL or a folder.

    Raises:
        UsageError: neither of the two.
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
                raise IntegrityError(f"{place} is no plain file", "do not use the channel; tell whoever runs it")
            file.seek(start)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


class WebSource:
    """A channel on a web server."""

    def __init__(self, url: str, pace: Pace) -> None:
        import urllib3

        self._url = url.rstrip("/")
        self._pace = pace
        timeout = urllib3.Timeout(connect=pace.gap_s, read=pace.gap_s)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=urllib3.Retry(2, redirect=3, status=0))

    def says(self) -> str:
        """Return the URL."""
        return self._url

    def chunks(self, path: str, start: int) -> Iterator[bytes]:
        """Yield a file's bytes from `start` on, as fast as `Pace` asks."""
        import urllib3

        # what is deflated on the way would have another length
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        try:
            response = self._pool.request(
                "GET", f"{self._url}/{quote(path)}", headers=headers, preload_content=False, decode_content=False
            )
            with contextlib.closing(response):
                yield from self._paced(response, start, path)
        except urllib3.exceptions.ReadTimeoutError as err:
            raise _slow(path, f"no byte within {self._pace.gap_s:g} s") from err
        except urllib3.exceptions.MaxRetryError as err:
            # one that never connected is no slow server
            if isinstance(err.reason, urllib3.exceptions.ReadTimeoutError):
                raise _slow(path, f"no answer within {self._pace.gap_s:g} s") from err
            raise self._unreachable(err) from err
        except (urllib3.exceptions.HTTPError, OSError) as err:
            raise self._unreachable(err) from err

    def _paced(self, response: object, start: int, path: str) -> Iterator[bytes]:
        from urllib3.response import BaseHTTPResponse

        assert isinstance(response, BaseHTTPResponse)  # noqa: S101  # for mypy: request() is untyped in part
        if response.status in (403, 404):
            raise Missing(f"the channel has no {path}", "try again later; the channel may be incomplete")
        if response.status not in (200, 206):
            what = f"{self._url} answered {response.status} for {path}"
            raise EnvironmentProblem(what, "try again later, or check the URL")
        skip = start if response.status == 200 else 0  # a server without ranges sends it all again
        began, came = time.monotonic(), 0
        while chunk := response.read1(_CHUNK_BYTES):
            came += len(chunk)
            took = time.monotonic() - began
            if took > self._pace.grace_s and came < took * self._pace.least_bytes_per_s:
                raise _slow(path, f"{came} bytes in {took:.0f} s")
            yield chunk[min(skip, len(chunk)) :]
            skip = max(0, skip - len(chunk))

    def _unreachable(self, err: BaseException) -> EnvironmentProblem:
        reason = getattr(err, "reason", None) or err
        what = f"cannot read {self._url}: {type(reason).__name__}: {first_line(reason, 160)}"
        return EnvironmentProblem(what, "check the network, and try again; what came so far is kept")


def _slow(path: str, why: str) -> IntegrityError:
    return IntegrityError(f"slow data: {path}: {why}", "try again; what came so far is kept")


def endless(path: str, most_bytes: int) -> IntegrityError:
    """Return the error of a file that has more bytes than it may."""
    what = f"endless data: {path} has more than the {most_bytes} bytes that it may have"
    return IntegrityError(what, "do not use the channel; tell whoever runs it")


def download(source: Source, entry: Entry, folder: Path) -> Path:
    """Return the path of a whole, verified download; a part of an earlier try is continued.

    The file is named after its hash, not after anything that the channel says.

    Raises:
        IntegrityError: endless or slow data, or bytes that are not the signed ones.
        EnvironmentProblem: the source cannot be reached or read.
        OSError: the disk refused a write.
    """
    path = folder / f"{entry.sha256}.part"
    remote = f"targets/{entry.sha256}.{entry.name}"
    resumed = _have(path, entry.size_bytes)
    _append(source, remote, path, resumed, entry.size_bytes)
    if path.stat().st_size == entry.size_bytes and sha256_file(path) == entry.sha256:
        return path
    size_bytes = path.stat().st_size
    if size_bytes < entry.size_bytes:
        what = f"the download broke off: {remote} has {size_bytes} of {entry.size_bytes} bytes"
        raise EnvironmentProblem(what, "try again; what came so far is kept")
    path.unlink()
    if resumed:  # the part may have been damaged on this disk: once more, from the start
        return download(source, entry, folder)
    what = f"{remote} is not the file that was signed: its SHA-256 differs"
    raise IntegrityError(what, "do not use the channel; tell whoever runs it")


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
