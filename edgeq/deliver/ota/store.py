"""A device's store: its two files, and how one state follows from another."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import EdgeqError, EnvironmentProblem, IntegrityError, UsageError, VerificationError
from edgeq.core.files import canonical_json, lock_dir, recover_dir, write_atomic
from edgeq.core.manifest import Bundle, Count, Sha256, Slug
from edgeq.deliver.ota.index import DeviceId, Release
from edgeq.deliver.ota.trusted import Seen

MAX_TRIES = 3

MAX_STARTS = 3

_MOST_BAD = 100

_DEFERRED_FOR = datetime.timedelta(days=1)

UPDATE_LOCK = ".edgeq.update.lock"

_LOCK_S = 30.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DeviceFacts(_Strict):
    """device.json."""

    schema_version: Literal[1] = 1
    device_id: DeviceId
    model: Slug
    target: Slug
    runtime: str | None = Field(description="the runtime version of the app build; None where it is not known")


class Slot(_Strict):
    """A release on the device."""

    release: Release
    digest: Sha256


class Current(Slot):
    """The release that the app loads."""

    healthy: bool = False
    starts: Count = 0


class Trying(Slot):
    """A release whose first load has started."""

    tries: Count


class Deferred(_Strict):
    """A release whose self-test did not run to its end: killed, or no memory. That does not count against it."""

    release: Annotated[int, Field(ge=1)]
    since: str = Field(description="by the device's clock; without one, the time at which the index was signed")
    runtime: str | None = Field(description="of the app build; with a new one the release is tried again")


class SeenFacts(_Strict):
    """The newest metadata that was verified; see `trusted.Seen`."""

    root: Count = 0
    timestamp: Count = 0
    snapshot: Count = 0
    targets: Count = 0
    issued: str = ""
    repeats: Count = 0


class State(_Strict):
    """state.json."""

    schema_version: Literal[1] = 1
    current: Current | None = None
    previous: Slot | None = None
    trying: Trying | None = None
    bad: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), description="releases that failed here")
    patching: Sha256 | None = Field(
        default=None, description="of the patch that was started and has given no release yet"
    )
    seen: SeenFacts = SeenFacts()
    deferred: Deferred | None = None


def with_seen(state: State, seen: Seen) -> State:
    """Return the state with the newest verified metadata."""
    return state.model_copy(update={"seen": SeenFacts(**dataclasses.asdict(seen))})


def seen_of(state: State) -> Seen:
    """Return the newest verified metadata."""
    return Seen(**state.seen.model_dump())


def switched(state: State, slot: Slot) -> State:
    """Return the state after a release passed its self-test: the previous one is kept."""
    before = state.current
    current = Current(release=slot.release, digest=slot.digest)
    keeps = before if before is not None and before.healthy else state.previous or before
    previous = Slot(release=keeps.release, digest=keeps.digest) if keeps is not None else None
    return state.model_copy(
        update={"current": current, "previous": previous, "trying": None, "patching": None, "deferred": None}
    )


def given_up(state: State, release: int) -> State:
    """Return the state after a release failed too often: it is not tried again."""
    bad = (*(one for one in state.bad if one != release), release)[-_MOST_BAD:]
    return state.model_copy(update={"trying": None, "bad": bad})


def deferred(state: State, release: int, *, now: str, runtime: str | None) -> State:
    """Return the state after the self-test of a release could not run several times: it is tried again after a day."""
    until = Deferred(release=release, since=now, runtime=runtime)
    return state.model_copy(update={"trying": None, "deferred": until})


def is_deferred(state: State, release: int, *, now: str, runtime: str | None) -> bool:
    """Return whether a release still has to wait: a day has not passed, and the app's runtime is the same."""
    kept = state.deferred
    if kept is None or kept.release != release or kept.runtime != runtime:
        return False
    try:
        waited = datetime.datetime.fromisoformat(now) - datetime.datetime.fromisoformat(kept.since)
    except (TypeError, ValueError):
        return False
    return abs(waited) < _DEFERRED_FOR  # a clock that was set back must not defer it for long


def rolled_back(state: State, why: str) -> State:
    """Return the state with the previous release current again; the present one is not tried again.

    Raises:
        VerificationError: there is no previous release.
    """
    if state.current is None or state.previous is None:
        raise VerificationError(f"{why}, and there is no previous release to go back to", "use the app's own model")
    before = state.previous
    current = Current(release=before.release, digest=before.digest, healthy=True)
    bad = (*state.bad, state.current.release)[-_MOST_BAD:]
    return state.model_copy(update={"current": current, "previous": None, "trying": None, "bad": bad})


def healthy(state: State) -> State:
    """Return the state after the app reported that the current release works.

    Raises:
        UsageError: there is no current release.
    """
    if state.current is None:
        raise UsageError("the store has no release yet", "run `edgeq ota update` first")
    current = state.current.model_copy(update={"healthy": True, "starts": 0})
    return state.model_copy(update={"current": current})


def current_of(state: State) -> Current:
    """Return the current release.

    Raises:
        UsageError: there is none.
    """
    if state.current is None:
        raise UsageError("the store has no release yet", "run `edgeq ota update` first")
    return state.current


# --- How a device keeps releases: the contract that the reference client and the Android app share.


_STATE, _DEVICE, _TRUST, _SLOTS, _DOWNLOAD = "state.json", "device.json", "trust.json", "slots", "download"

_TUFS_ROOT = re.compile(r"root_history/[0-9]+\.root\.json")

_MOST_STATE_BYTES = 1_000_000

_Model = TypeVar("_Model", bound=BaseModel)


class Store:
    """A device's store. Every change holds its lock; an update also holds UPDATE_LOCK from start to end.

    Raises:
        IntegrityError: a folder or file of the store is a link, so that a write or removal would happen outside of the
            store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trusted = folder / "trusted"
        self.downloads = folder / _DOWNLOAD
        self._refuse_links()

    def slot(self, release: int) -> Path:
        """Return a release's folder. Its name is a number, so nothing from an index becomes a path."""
        return self.folder / _SLOTS / f"{int(release)}"

    def state(self) -> State:
        """Return the content of state.json.

        Raises:
            IntegrityError: state.json is damaged.
        """
        return self._read(_STATE, State) or State()

    def save(self, state: State) -> None:
        """Replace state.json by one rename."""
        facts = state.model_dump(mode="json")
        if state.deferred is None:  # an older edgeq does not know it
            del facts["deferred"]
        write_atomic(self.folder / _STATE, canonical_json(facts))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock: while files change, never while waiting for the network or a self-test."""
        with lock_dir(self.folder, wait_s=_LOCK_S):
            yield

    def change(self, how: Callable[[State], State]) -> State:
        """Apply a change to the state under the lock; it starts from the file, since an app may have changed it."""
        with self.locked():
            state = how(self.state())
            self.save(state)
        return state

    def recover_between_updates(self) -> None:
        """Recover, unless an update is running, which would lose its newly written files."""
        with contextlib.suppress(EnvironmentProblem), lock_dir(self.folder, wait_s=0, name=UPDATE_LOCK):
            self.recover()

    def device(self) -> DeviceFacts | None:
        """Return the device that owns this store, or None for a new store."""
        return self._read(_DEVICE, DeviceFacts)

    def claim(self, device: DeviceFacts) -> None:
        """Write the device that owns this store."""
        write_atomic(self.folder / _DEVICE, canonical_json(device.model_dump(mode="json")))

    def trust(self) -> bytes | None:
        """Return the root that the store started with, or None for a new store."""
        try:
            return (self.folder / _TRUST).read_bytes()
        except FileNotFoundError:
            return None

    def begin_trust(self, root: bytes) -> None:
        """Keep the root that the app shipped with."""
        write_atomic(self.folder / _TRUST, root)

    def recover(self) -> None:
        """Remove leftovers of killed runs: incomplete slots, slots that the state does not name, temporary files."""
        state = self.state()
        named = {slot.release for slot in (state.current, state.previous, state.trying) if slot is not None}
        slots = self.folder / _SLOTS
        for folder in (self.folder, self.trusted, self.trusted / "root_history", slots):
            self._sweep(folder)
        if slots.is_dir():
            for path in sorted(slots.iterdir()):
                if path.name.isdecimal() and int(path.name) not in named:
                    remove_tree(path)

    def drop_downloads(self, keep: str | None = None) -> None:
        """Remove all downloads except the one with hash `keep`."""
        if self.downloads.is_dir():
            for path in self.downloads.iterdir():
                if path.name != f"{keep}.part":
                    path.unlink(missing_ok=True)
            if keep is None:
                self.downloads.rmdir()

    def bundle(self, slot: Slot) -> Bundle:
        """Return a slot's bundle, every hash checked.

        Raises:
            IntegrityError: it is missing, changed, or not the one in the state.
        """
        folder = self.slot(slot.release)
        if folder.is_symlink():
            raise IntegrityError(f"{folder} is a link, expected a folder", "update again")
        try:
            bundle = read_bundle(folder)
        except UsageError as err:
            raise IntegrityError(f"release {slot.release} is missing in {self.folder}", "update again") from err
        if bundle.digest != slot.digest:
            what = f"{folder} holds a different bundle from the one that was installed"
            raise IntegrityError(what, "update again")
        return bundle

    def _refuse_links(self) -> None:
        # slots/N is left to `bundle`, which takes a link for damage, and to `recover`, which removes the link
        places = [self.folder / name for name in (_STATE, _DEVICE, _TRUST, _SLOTS)]
        for folder in (self.trusted, self.trusted / "root_history", self.downloads):
            places.append(folder)
            if folder.is_symlink():
                break
            if folder.is_dir():
                places += sorted(folder.iterdir())
        for path in places:
            link = str(path.readlink()) if path.is_symlink() else ""
            # the one link that python-tuf makes
            tufs = path == self.trusted / "root.json" and _TUFS_ROOT.fullmatch(link)
            if link and not tufs:
                what = f"{path} is a link; a store holds regular files and folders only"
                raise IntegrityError(what, "remove the link, find out who created it, then update again")

    def _sweep(self, folder: Path) -> None:
        if not folder.is_dir():
            return
        for path in sorted(folder.iterdir()):
            name = path.name
            if path.is_dir() and not path.is_symlink() and folder.name == _SLOTS and name.isdecimal():
                recover_dir(path)
            # write_atomic's, staged_dir's and python-tuf's temporary names
            elif (name.startswith(".") and name.endswith(".tmp")) or (
                folder == self.trusted and name.startswith("tmp")
            ):
                remove_tree(path)

    def _read(self, name: str, model: type[_Model]) -> _Model | None:
        path = self.folder / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            data = file.read(_MOST_STATE_BYTES)
        try:
            return model.model_validate_json(data)
        except ValidationError as err:
            first = err.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{part}: " for part in first["loc"])
            what = f"{path} is damaged: {where}{first['msg'][:120]}"
            raise IntegrityError(what, "remove the store's folder, and update again with --trust") from err


def remove_tree(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that it never looks complete when partly removed."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.parent / f".{path.name.strip('.')}.{secrets.token_hex(4)}.tmp"
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def started(store: Store) -> tuple[State, Bundle, str | None]:
    """Choose the bundle that the app loads now, and count the start of a release that is not yet known to be healthy.

    Returns:
        The state as written, the bundle to load, and the reason if it is an older one.

    Raises:
        UsageError: there is no release yet.
        IntegrityError: the current release is damaged, and there is no previous one.
        VerificationError: it failed too often, and there is no previous one.
    """
    state = store.state()
    if state.current is None:
        raise UsageError("the store has no release yet", "run `edgeq ota update` first")
    current = state.current
    why: str | None = None
    if not current.healthy and current.starts >= MAX_STARTS:
        why = f"release {current.release} was started {current.starts} times and never became healthy"
    else:
        try:
            bundle = store.bundle(current)
        except EdgeqError as err:
            if state.previous is None:
                raise
            why = f"release {current.release} is damaged: {err.what}"
    if why is not None:
        state = rolled_back(state, why)
        bundle = store.bundle(current_of(state))
    elif not current.healthy:
        counted = current.model_copy(update={"starts": current.starts + 1})
        state = state.model_copy(update={"current": counted})
    store.save(state)
    return state, bundle, why
