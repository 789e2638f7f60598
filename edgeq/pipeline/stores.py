"""Shared caches: folders and object stores that several machines read and write, by fsspec.

Layout below the URL: `v1/<key>/<name>.json`, what an entry says of itself, and `v1/<key>/<sha256>.zip`, its bundle.
The ZIP is written first, under the hash of its content, and the JSON after it, each in one step, so that two runs on
one key cannot disturb each other and a killed one leaves nothing that is read. An entry that is there stays, unless it
was found bad: then it is replaced. Nothing that a store gives back is trusted: sizes are bounded here, and
`pipeline/cache.py` checks every hash and signature again.

A store that fails is left alone for the rest of the run, with a warning: a build does not need it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import io
import json
import os
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeq.core.config import LOCAL, BuildConfig
from edgeq.core.errors import EnvironmentProblem, UsageError, first_line
from edgeq.core.files import sha256_file
from edgeq.core.system import install_command
from edgeq.deliver.ota.keys import load_keys, trusted_signers
from edgeq.pipeline.installed import unnoted

_VERSION = "v1"

_MOST_ENTRY_BYTES = 8 << 20

_MOST_ENTRIES = 1_000  # of one key: the newest ones count

_BATCH_BYTES = 32 << 20  # of entries that are in memory at once

_MOST_BUNDLE_BYTES = 16 << 30

_COPIES = 4  # of a bundle on the disk while it is fetched: the ZIP, what it holds, the result, and the local entry

_MOST_DIRECTORY_BYTES = 1 << 20  # of a ZIP's list of files; a bundle has some ten

_TIMEOUT_S = 10

# what brings a protocol's driver
_EXTRAS = {"s3": "s3", "s3a": "s3"}

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An entry as a store has it.

    Attributes:
        version: what a conditional put names it by; None where the store has no such thing.
    """

    data: bytes
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a store has of one entry, or of a file that belongs to none.

    Attributes:
        paths: of its files in the store.
        changed_s: when it was written, in seconds since 1970.
    """

    paths: tuple[str, ...]
    size_bytes: int
    changed_s: float


class Store:
    """One shared cache.

    Attributes:
        url: as it was given.
        warnings: what went wrong in this process.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.warnings: list[str] = []
        self._is_down = False

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path in it.

        Raises:
            EnvironmentProblem: the protocol's driver is not installed.
            UsageError: there is no such protocol.
        """
        with unnoted():
            import fsspec

            protocol = self.url.partition("://")[0]
            options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
            if protocol in ("s3", "s3a"):
                limits = {"connect_timeout": _TIMEOUT_S, "read_timeout": 6 * _TIMEOUT_S, "retries": {"max_attempts": 2}}
                options["config_kwargs"] = limits
            try:
                system, path = fsspec.core.url_to_fs(self.url, **options)
            except ImportError as err:
                what = f"--cache {self.url}: {first_line(err)}"
                extra, package = _EXTRAS.get(protocol), _PACKAGES.get(protocol, "the driver")
                raise EnvironmentProblem(what, install_command(extra) if extra else f"pip install {package}") from err
            except ValueError as err:
                what = f"--cache {self.url}: {first_line(err)}"
                raise UsageError(what, "give s3://BUCKET/PREFIX, gs://…, az://… or file:///FOLDER") from err
            if protocol in ("s3", "s3a"):
                system.retries = 2  # s3fs tries again by itself too
            return system, f"{path.rstrip('/')}/{_VERSION}"

    def check(self) -> None:
        """Raise an error if the URL cannot be used at all; the store itself is not asked."""
        _ = self._place

    def entries(self, key: str, known: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
        """Yield the names and the JSON of a key's entries, the newest first, without those in `known`."""
        listed: list[dict[str, Any]] = []
        if self._is_down:
            return
        with self._guarded("read"):
            system, root = self._place
            with contextlib.suppress(FileNotFoundError):
                listed = system.ls(f"{root}/{key}", detail=True)
        entries = [one for one in listed if one["name"].endswith(".json") and _stem(one["name"]) not in known]
        entries.sort(key=_changed_s, reverse=True)
        for batch in _batches(entries[:_MOST_ENTRIES]):
            found: dict[str, bytes] = {}
            with self._guarded("read"):
                found = self._read(batch)
            for path, data in found.items():
                yield _stem(path), data

    def _read(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Read entries, at most one byte more of each than an entry may have; one that is gone is left out."""
        system, _ = self._place
        ends = [_MOST_ENTRY_BYTES + 1] * len(paths)
        contents = system.cat_ranges(list(paths), [0] * len(paths), ends, on_error="return")
        found = {}
        for path, content in zip(paths, contents, strict=True):
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
            if isinstance(content, bytes):
                found[path] = content if len(content) <= _MOST_ENTRY_BYTES else b""
        return found

    def fetch(self, key: str, sha256: str, size_bytes: int, folder: Path) -> bool:
        """Unpack an entry's bundle into a folder; False, with a warning, where the store does not have it as it was.

        Args:
            key: of the entry.
            sha256: of the ZIP, as the entry states it.
            size_bytes: of the ZIP, likewise: no more is read or unpacked.
            folder: takes the folder `bundle`.
        """
        archive = folder / "bundle.zip"
        if size_bytes > _MOST_BUNDLE_BYTES or size_bytes * _COPIES > shutil.disk_usage(folder).free:
            what = f"the disk of {folder.parent} has no room for an entry of {self.url} of {size_bytes} bytes"
            self.warn(f"{what}, and it is not used ({key[:12]})")
            return False
        with self._guarded("read"):
            system, root = self._place
            place = f"{root}/{key}/{sha256}.zip"
            try:
                if system.size(place) != size_bytes:
                    raise _OtherSizeError
                system.get_file(place, str(archive), callback=_bound(size_bytes))
            except FileNotFoundError:
                self.warn(f"an entry of {self.url} has lost its bundle, and is not used ({key[:12]})")
                return False
            except _OtherSizeError:
                archive.unlink(missing_ok=True)
                self._warn_of_other_bytes(key)
                return False
        if not archive.is_file():
            return False
        if sha256_file(archive) != sha256:
            self._warn_of_other_bytes(key)
            return False
        bundle = folder / "bundle"
        bundle.mkdir()
        try:
            _unpack(archive, bundle)
        except (zipfile.BadZipFile, zlib.error, ValueError, FileExistsError, RuntimeError, EOFError) as err:
            self.warn(f"an entry of {self.url} is not a bundle, and is not used ({key[:12]}: {first_line(err)})")
            return False
        archive.unlink()
        return True

    def _warn_of_other_bytes(self, key: str) -> None:
        self.warn(f"{self.url} gave back other bytes than were stored, and the entry is not used ({key[:12]})")

    def held(self, key: str, name: str) -> Held | None:
        """Return what the store has under an entry's name; None for nothing."""
        if self._is_down:
            return None
        found: Held | None = None
        with self._guarded("written to"):
            system, root = self._place
            path = f"{root}/{key}/{name}.json"
            with contextlib.suppress(FileNotFoundError):
                facts = system.info(path)
                data = self._read([path]).get(path, b"") if facts["size"] else b""
                found = Held(data=data, version=facts.get("ETag"))
        return found

    def put(self, key: str, name: str, entry: bytes, archive: Path, *, instead_of: Held | None = None) -> None:
        """Add an entry; a failure is a warning.

        Another run's entry stays, unless it is the bad one that `held` returned: in an object store by a conditional
        put, in a folder by a link or a rename.

        Args:
            key: its key.
            name: what tells it apart from the key's others.
            entry: what it says of itself.
            archive: its bundle, as `pack` wrote it.
            instead_of: the entry that it replaces.
        """
        if self._is_down:
            return
        with self._guarded("written to"):
            _, root = self._place
            self._put(f"{root}/{key}/{sha256_file(archive)}.zip", archive)
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another run was faster
                self._put(f"{root}/{key}/{name}.json", entry, instead_of=instead_of, is_new=instead_of is None)

    def _put(self, place: str, source: Path | bytes, *, instead_of: Held | None = None, is_new: bool = False) -> None:
        """Write a file so that readers see the whole of it or nothing.

        Raises:
            FileExistsError: `is_new`, and it is there; or it is another one than `instead_of`.
        """
        system, _ = self._place
        if not self._is_folder:
            if isinstance(source, Path):
                system.put_file(str(source), place)  # named by its hash: what is there has this content or a bad one
                return
            condition = {"IfNoneMatch": "*"} if is_new else {}
            if instead_of is not None and instead_of.version:
                condition = {"IfMatch": instead_of.version}
            try:
                system.pipe_file(place, source, **(condition if self._is_s3 else {}))
            except OSError as err:
                if condition and _status(err) == _NOT_IMPLEMENTED:
                    system.pipe_file(place, source)
                elif condition and _status(err) == _PRECONDITION_FAILED:
                    raise FileExistsError(place) from err
                else:
                    raise
            return
        parent, _, name = place.rpartition("/")
        target = f"{parent}/.{name}.{secrets.token_hex(4)}.tmp"
        system.makedirs(parent, exist_ok=True)
        try:
            if isinstance(source, Path):
                system.put_file(str(source), target)
            else:
                system.pipe_file(target, source)
            try:
                os.link(target, place) if is_new else os.replace(target, place)
            except OSError as err:
                if err.errno not in _CANNOT_LINK:
                    raise
                os.replace(target, place)
        finally:
            with contextlib.suppress(OSError):
                Path(target).unlink()

    @property
    def _is_folder(self) -> bool:
        return "file" in self._protocols

    @property
    def _is_s3(self) -> bool:
        return "s3" in self._protocols

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self._place[0].protocol
        return protocol if isinstance(protocol, tuple) else (protocol,)

    def stored(self) -> list[Stored]:
        """Return what the store has.

        Raises:
            EnvironmentProblem: it cannot be read.
        """
        found: dict[str, list[Any]] = {}
        bundles: dict[str, str] = {}
        with self._asked():
            system, root = self._place
            system.invalidate_cache()
            try:
                files = system.find(root, detail=True)
            except FileNotFoundError:
                files = {}
            for path, facts in files.items():
                found[path] = [path, facts["size"] or 0, _changed_s(facts)]
            for batch in _batches([facts for path, facts in files.items() if path.endswith(".json")]):
                for path, data in self._read(batch).items():
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        bundles[path] = f"{path.rpartition('/')[0]}/{json.loads(data)['facts']['bundle']}.zip"
        of_entries = {path for path in bundles.values() if path in found}
        return [
            Stored(
                paths=tuple(one for one in (path, bundles.get(path)) if one in found),
                size_bytes=size + (found[bundles[path]][1] if bundles.get(path) in found else 0),
                changed_s=changed,
            )
            for path, size, changed in found.values()
            if path not in of_entries
        ]

    def remove(self, several: Sequence[Stored]) -> None:
        """Remove entries: what says of them first, so that no reader finds one without its bundle.

        Raises:
            EnvironmentProblem: the store cannot be written to.
        """
        with self._asked():
            system, _ = self._place
            for one in several:
                for path in one.paths:
                    with contextlib.suppress(FileNotFoundError):
                        system.rm_file(path)

    def warn(self, text: str) -> None:
        """Note what went wrong, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    @contextlib.contextmanager
    def _guarded(self, verb: Literal["read", "written to"]) -> Iterator[None]:
        """Turn a failure of the store into a warning; the store is not asked again."""
        try:
            with unnoted():
                yield
        except (EnvironmentProblem, UsageError):  # a driver that is missing
            raise
        except Exception as err:  # each driver has errors of its own
            self._is_down = True
            self.warn(f"the shared cache {self.url} could not be {verb}: {type(err).__name__}: {first_line(err, 200)}")

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            with unnoted():
                yield
        except (EnvironmentProblem, UsageError):
            raise
        except Exception as err:  # each driver has errors of its own
            what = f"the shared cache {self.url} failed: {type(err).__name__}: {first_line(err, 200)}"
            raise EnvironmentProblem(what, "check the address, the network and the credentials") from err


class _OtherSizeError(Exception):
    """A store sends another number of bytes than an entry states."""


def _bound(most_bytes: int) -> Any:
    """Return what stops a driver that is sent more bytes."""
    import fsspec

    class Bound(fsspec.Callback):  # type: ignore[misc]  # fsspec has no types
        def call(self, hook_name: str | None = None, **kwargs: Any) -> None:  # noqa: ARG002
            if max(self.size or 0, self.value) > most_bytes:
                raise _OtherSizeError

    return Bound()


def _status(err: BaseException) -> int | None:
    """Return the HTTP status in an error of an object store's."""
    response = getattr(err.__cause__, "response", None) or getattr(err, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


_PRECONDITION_FAILED, _NOT_IMPLEMENTED = 412, 501  # RFC 9110

_CANNOT_LINK = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


def _batches(listed: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yield the paths of entries so that each batch fits into memory; one too large to be an entry is left out."""
    batch: list[str] = []
    size = 0
    for one in listed:
        of_this = one["size"] or 0
        if of_this > _MOST_ENTRY_BYTES or not of_this:
            continue
        if size + of_this > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(one["name"])
        size += of_this
    if batch:
        yield batch


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _changed_s(facts: Any) -> float:
    """Return when a file was written, in the words of any driver; now where it does not tell."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        found = facts.get(name)
        if isinstance(found, datetime.datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
        if isinstance(found, str):
            with contextlib.suppress(ValueError):
                return datetime.datetime.fromisoformat(found).timestamp()
    return time.time()


def pack(folder: Path, archive: Path) -> None:
    """Write a flat folder's files into a ZIP, equal for equal files."""
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED) as packed:
        for path in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(path.name, (1980, 1, 1, 0, 0, 0))
            with path.open("rb") as source, packed.open(info, "w", force_zip64=True) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


class _ShortReads(io.FileIO):
    """A file of which nobody gets much at once: `zipfile` reads the list of a ZIP's files whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = _MOST_DIRECTORY_BYTES + 1
        data = super().read(most if size is None or size < 0 else min(size, most)) or b""
        if len(data) == most:
            raise zipfile.BadZipFile(f"its list of files has more than {_MOST_DIRECTORY_BYTES} bytes")
        return data


def _unpack(archive: Path, folder: Path) -> None:
    """Write a ZIP's files into a flat folder.

    Raises:
        ValueError: a name leads out of it, a file is compressed, which a bundle's are not, or two share their bytes.
        zipfile.BadZipFile: it is no ZIP.
    """
    left_bytes = archive.stat().st_size
    with _ShortReads(archive) as file, zipfile.ZipFile(file) as packed:
        for info in packed.infolist():
            plain = info.filename == Path(info.filename).name and info.filename not in ("", ".", "..")
            left_bytes -= info.file_size
            if not plain or info.compress_type != zipfile.ZIP_STORED or left_bytes < 0:
                raise ValueError(f"{info.filename!r} is not a file of a bundle")
            with packed.open(info) as source, (folder / info.filename).open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


@functools.cache
def open_stores(urls: tuple[str, ...]) -> tuple[Store, ...]:
    """Return the shared caches among the levels of `[build] cache`; one for each address in this process."""
    return tuple(Store(url) for url in urls if url != LOCAL)


def check_shared(build: BuildConfig) -> None:
    """Refuse shared caches, and keys for them, that cannot be used, before a long run.

    Raises:
        UsageError: an unknown kind of address, or a folder without keys.
        EnvironmentProblem: an address whose driver is not installed, or a private key that is not there.
        IntegrityError: keys that are damaged, or that others may read.
    """
    for store in open_stores(build.cache):
        store.check()
    trusted_signers(build.cache_trust)
    if build.cache_key is not None and not build.cache_read_only:
        load_keys(build.cache_key).signers("targets")
