"""A client's view of a channel: python-tuf's workflow, with a message of its own for each kind of refusal."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.core.errors import EdgeqError, IntegrityError, first_line
from edgeq.deliver.ota.channel import ISSUED
from edgeq.deliver.ota.fetch import Missing, Source
from edgeq.deliver.ota.index import Index, parse_index

if TYPE_CHECKING:
    from tuf.ngclient import FetcherInterface, Updater


_BASE = "edgeq:/"  # python-tuf joins names to a URL; only the part behind it is used

_TELL = "do not use the channel; report this to its operator"

# a clock that is further behind the index's own time of signing is wrong, not slow
_SKEW = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The newest metadata that a device has verified, kept apart from python-tuf's files, which are not fsynced.

    Attributes:
        issued: when the newest index was signed; it replaces the clock of a device without one.
        repeats: how many times in a row a device without a clock received the same index.
    """

    root: int = 0
    timestamp: int = 0
    snapshot: int = 0
    targets: int = 0
    issued: str = ""
    repeats: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """A verified index.

    Attributes:
        by_clock: whether expiry was judged by the device's clock.
    """

    index: Index
    seen: Seen
    by_clock: bool


def refresh(
    source: Source, folder: Path, root: bytes, seen: Seen, *, clock: datetime.datetime | None, most_repeats: int
) -> Trusted:
    """Read a channel's index, and verify it: signatures, then versions, then expiry.

    Args:
        source: the channel.
        folder: python-tuf's files, kept between runs.
        root: the root that the app ships with.
        seen: the newest metadata that was verified before.
        clock: the device's time; None where it has no clock. Then, or where the clock stands before the time at which
            the last index was signed, expiry is judged by that time, and the same index is taken `most_repeats` times.
        most_repeats: how many times a device without a clock accepts the same index.

    Raises:
        IntegrityError: rollback, freeze, mix-and-match, endless or slow data, a wrong or revoked key, a broken index.
        UnsupportedError: the index is a newer edgeq's.
        EnvironmentProblem: the channel cannot be reached, or is incomplete.
    """
    from tuf.ngclient import Updater

    folder.mkdir(parents=True, exist_ok=True)
    by_clock = clock is not None and (not seen.issued or clock >= _time(seen.issued) - _SKEW)
    fetcher = _fetcher(source)
    try:
        updater = Updater(str(folder), _BASE, fetcher=fetcher, bootstrap=root)
        # python-tuf asks the system's clock when it is made
        updater._trusted_set.reference_time = clock if by_clock and clock else _time(seen.issued)
        updater.refresh()
    except Exception as err:
        raise _translated(err, source) from err
    now = _newest_seen(updater, seen, by_clock)
    for name in ("root", "timestamp", "snapshot", "targets"):
        old, new = getattr(seen, name), getattr(now, name)
        if new < old:
            raise _rollback(f"{name} is version {new}, this device has seen {old}")
    if not by_clock and now.repeats > most_repeats:
        what = f"freeze: the channel has shown the same index {now.repeats} times, and this device has no clock"
        raise IntegrityError(
            what, "set the device's clock, or check that the channel's index is still signed regularly"
        )
    return Trusted(index=parse_index(updater._trusted_set.targets.targets), seen=now, by_clock=by_clock)


def _newest_seen(updater: Updater, before: Seen, by_clock: bool) -> Seen:
    trusted = updater._trusted_set
    version = trusted.timestamp.version
    issued = str(trusted.timestamp.unrecognized_fields.get(ISSUED, ""))
    _time(issued)
    repeats = 0 if by_clock or version != before.timestamp else before.repeats + 1
    return Seen(
        root=trusted.root.version,
        timestamp=version,
        snapshot=trusted.snapshot.version,
        targets=trusted.targets.version,
        issued=max(issued, before.issued),  # equal formats sort by time
        repeats=repeats,
    )


def _rollback(why: str) -> IntegrityError:
    return IntegrityError(f"rollback: the channel shows an older index than before: {why}", _TELL)


def _time(text: str) -> datetime.datetime:
    if not text:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError as err:
        raise IntegrityError(
            (f"the index says that it was signed at {text[:40]!r}, which is not a valid time"), _TELL
        ) from err


def _fetcher(source: Source) -> FetcherInterface:
    from tuf.api.exceptions import DownloadHTTPError
    from tuf.api.metadata import Metadata
    from tuf.api.serialization.json import JSONSerializer
    from tuf.ngclient import FetcherInterface

    class Fetcher(FetcherInterface):
        """Reads metadata through a source."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            chunks = source.chunks(f"metadata/{url.removeprefix(_BASE)}", 0)
            try:  # the first one now: python-tuf asks for the next root until there is none
                first = next(chunks, b"")
            except Missing as err:
                raise DownloadHTTPError(err.what, 404) from err
            return _chained(first, chunks)

        def fetch(self, url: str) -> Iterator[bytes]:
            return self._fetch(url)  # python-tuf's own would hide our errors in its own

        def download_bytes(self, url: str, max_length: int) -> bytes:
            data: bytes = super().download_bytes(url, max_length)
            # refuse bytes that are not those that edgeq wrote, even where a change in them would change no meaning
            metadata: Metadata[Any] = Metadata.from_bytes(data)
            # signatures are over canonical JSON, so that spaces and the case of digits are not covered by them
            exact = metadata.to_bytes(JSONSerializer(compact=False)) == data
            if not exact or any(one.signature != one.signature.lower() for one in metadata.signatures.values()):
                raise IntegrityError(
                    f"the channel's index was tampered with: {url.removeprefix(_BASE)} differs from the signed file",
                    _TELL,
                )
            return data

    return Fetcher()


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _translated(err: Exception, source: Source) -> EdgeqError | OSError:
    """Return what python-tuf refused, in the words of the threat."""
    from tuf.api import exceptions as tuf

    if isinstance(err, EdgeqError | OSError):
        return err
    said = first_line(err, 200)
    if isinstance(err, tuf.ExpiredMetadataError):
        what = f"freeze: the channel's index has expired ({said.rstrip('.')})"
        return IntegrityError(what, "check this device's clock; otherwise the channel must be signed again")
    if isinstance(err, tuf.BadVersionNumberError):
        return _rollback(said)
    if isinstance(err, tuf.UnsignedMetadataError):
        what = f"a wrong or revoked key: the channel's index is not signed by the keys that this device trusts: {said}"
        return IntegrityError(what, _TELL)
    if isinstance(err, tuf.LengthOrHashMismatchError):
        return IntegrityError(f"mix-and-match: the channel's index combines files of several indexes: {said}", _TELL)
    if isinstance(err, tuf.DownloadLengthMismatchError):
        return IntegrityError(f"endless data: {said}", _TELL)
    if isinstance(err, tuf.DownloadHTTPError):
        return Missing(f"{source.says()}: {said}", "check the channel's location; it may be incomplete")
    return IntegrityError(f"the channel's index is damaged or was tampered with: {said}", _TELL)
