"""Shared caches: folders and object stores that several machines read and write, by fsspec.

Layout below the URL: `v1/<key>/<name>.json`, what an entry says of itself, and `v1/<key>/<sha256>.zip`, its bundle.
The ZIP is written first, under the hash of its content, and the JSON after it, each in one step, so that two runs on
one key cannot disturb each other and a killed one leaves nothing that is read. Nothing that a store gives back is
trusted: `pipeline/cache.py` checks every hash and signature again.

A store that fails is left alone for the rest of the run, with a warning: a build does not need it.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import json
import os
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeq.core.config import LOCAL
from edgeq.core.errors import EnvironmentProblem, UsageError, first_line
from edgeq.core.files import canonical_json, sha256_file
from edgeq.core.system import install_command
from edgeq.pipeline.installed import unnoted

_VERSION = "v1"

_MOST_ENTRY_BYTES = 8 << 20

_TIMEOUT_S = 10

# what brings a protocol's driver
_EXTRAS = {"s3": "s3", "s3a": "s3"}

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


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
        """Yield the names and the JSON of a key's entries, without those in `known`."""
        found: dict[str, bytes] = {}
        if self._is_down:
            return
        with self._guarded("read"):
            system, root = self._place
            try:
                listed = system.ls(f"{root}/{key}", detail=True)
            except FileNotFoundError:
                return
            names = [
                one["name"]
                for one in listed
                if one["name"].endswith(".json") and (one["size"] or 0) <= _MOST_ENTRY_BYTES
            ]
            names = [name for name in names if _stem(name) not in known]
            found = system.cat(names, on_error="omit") if names else {}
        for name, data in sorted(found.items()):
            yield _stem(name), data

    def fetch(self, key: str, sha256: str, folder: Path) -> bool:
        """Unpack an entry's bundle into a folder; False, with a warning, where the store does not have it as it was."""
        archive = folder / "bundle.zip"
        with self._guarded("read"):
            system, root = self._place
            try:
                system.get_file(f"{root}/{key}/{sha256}.zip", str(archive))
            except FileNotFoundError:
                self.warn(f"an entry of {self.url} has lost its bundle, and is not used ({key[:12]})")
                return False
        if not archive.is_file():
            return False
        if sha256_file(archive) != sha256:
            self.warn(f"{self.url} gave back other bytes than were stored, and the entry is not used ({key[:12]})")
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

    def put(self, key: str, name: str, entry: dict[str, Any], bundle: Path, work: Path) -> None:
        """Add an entry, unless it is there; a failure is a warning.

        Args:
            key: its key.
            name: what tells it apart from the key's others.
            entry: what it says of itself; `bundle`, the hash of its ZIP, is added.
            bundle: its files.
            work: a folder for the ZIP.
        """
        if self._is_down:
            return
        with self._guarded("written to"):
            system, root = self._place
            place = f"{root}/{key}/{name}.json"
            if system.exists(place):
                return
            archive = work / f"{secrets.token_hex(8)}.zip"
            try:
                _pack(bundle, archive)
                sha256 = sha256_file(archive)
                self._put(f"{root}/{key}/{sha256}.zip", archive)
            finally:
                archive.unlink(missing_ok=True)
            self._put(place, io.BytesIO(canonical_json({**entry, "bundle": sha256})))

    def _put(self, place: str, source: Path | io.BytesIO) -> None:
        """Write a file so that readers see the whole of it or nothing."""
        system, _ = self._place
        is_folder = "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))
        parent, _, name = place.rpartition("/")
        # a put is one step in an object store; in a folder the rename is
        target = f"{parent}/.{name}.{secrets.token_hex(4)}.tmp" if is_folder else place
        if is_folder:
            system.makedirs(parent, exist_ok=True)
        try:
            if isinstance(source, Path):
                system.put_file(str(source), target)
            else:
                system.pipe_file(target, source.getvalue())
            if is_folder:
                os.replace(target, place)
        except BaseException:
            with contextlib.suppress(OSError):
                if is_folder:
                    system.rm_file(target)
            raise

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
            entries = [path for path in found if path.endswith(".json")]
            for path, data in (system.cat(entries, on_error="omit") if entries else {}).items():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    bundles[path] = f"{path.rpartition('/')[0]}/{json.loads(data)['bundle']}.zip"
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


def _pack(folder: Path, archive: Path) -> None:
    """Write a flat folder's files into a ZIP, equal for equal files."""
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED) as packed:
        for path in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(path.name, (1980, 1, 1, 0, 0, 0))
            with path.open("rb") as source, packed.open(info, "w", force_zip64=True) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def _unpack(archive: Path, folder: Path) -> None:
    """Write a ZIP's files into a flat folder.

    Raises:
        ValueError: a name leads out of it or a file is compressed, which a bundle's are not.
        zipfile.BadZipFile: it is no ZIP.
    """
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            plain = info.filename == Path(info.filename).name and info.filename not in ("", ".", "..")
            if not plain or info.compress_type != zipfile.ZIP_STORED or info.file_size > archive.stat().st_size:
                raise ValueError(f"{info.filename!r} is not a file of a bundle")
            with packed.open(info) as source, (folder / info.filename).open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


@functools.cache
def open_stores(urls: tuple[str, ...]) -> tuple[Store, ...]:
    """Return the shared caches among the levels of `[build] cache`; one for each address in this process."""
    return tuple(Store(url) for url in urls if url != LOCAL)
