"""The reference client: a device's store follows a channel. Order matters; each step trusts only those before it.

signature → version, expiry, device → sizes and free space → patch → sha256 → load and self-test in a child process →
switch by rename → keep the previous one; the app's health mark, or its absence, decides whether it stays.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeq._io import disk_errors, fsync_tree, lock_dir
from edgeq.deliver.ota import state as states
from edgeq.deliver.ota.device import check_device, choose, described
from edgeq.deliver.ota.facts import BundleEntry, Index
from edgeq.deliver.ota.fetch import Source
from edgeq.deliver.ota.place import placed
from edgeq.deliver.ota.state import MAX_TRIES, DeviceFacts, Slot, State, Trying
from edgeq.deliver.ota.store import Store
from edgeq.deliver.ota.trusted import Trusted, refresh
from edgeq.errors import EdgeqError, EnvironmentProblem, IntegrityError, VerificationError
from edgeq.units import counted

MOST_BYTES = 1_000_000_000
MOST_REPEATS = 30
_WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a device asks for.

    Attributes:
        device: whose store it is; model, target and runtime may be left to what the store knows, or has no choice of.
        trust: the root that the app ships with; needed for a new store.
        clock: the device's time; None where it has no clock.
        most_bytes: the largest bundle that the device takes.
    """

    source: Source
    store: Path
    device_id: str
    model: str | None = None
    target: str | None = None
    runtime: str | None = None
    trust: bytes | None = None
    clock: datetime.datetime | None = None
    most_bytes: int = MOST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update did.

    Attributes:
        action: whether a release was installed, or there was nothing newer.
        via: how it came.
        downloaded_bytes: of the patch or the ZIP; 0 where nothing was fetched.
        notes: what else to tell.
    """

    action: Literal["installed", "up to date"]
    release: int
    previous: int | None
    model_version: str
    place: Path
    via: Literal["patch", "full download", "an earlier try", "nothing"]
    downloaded_bytes: int
    notes: tuple[str, ...] = ()


def update(request: Request, self_test: Callable[[Path], None]) -> Update:
    """Bring a store to the channel's newest release for this device, whole or not at all.

    Args:
        request: the device and the channel.
        self_test: loads a bundle's folder in a child process and runs its golden samples; raises an `EdgeqError`.

    Raises:
        UsageError: the store is another device's, or what the device is was not told.
        UnsupportedError: the channel has nothing for this target, ABI or runtime.
        IntegrityError: no trust, a refused index, or bytes that are not the signed ones.
        VerificationError: the release failed its self-test; the one before stays.
        EnvironmentProblem: the channel cannot be reached, or the disk is full.
    """
    with disk_errors(request.store), lock_dir(request.store, wait_s=_WAIT_S):
        store = Store(request.store)
        device_before = store.device()
        check_device(device_before, device_id=request.device_id, model=request.model, target=request.target)
        store.recover()
        state = _capped(store)
        trusted = _trusted(store, state, request)
        state = states.with_seen(state, trusted.seen)
        store.save(state)
        device = described(
            device_before,
            trusted.index,
            device_id=request.device_id,
            model=request.model,
            target=request.target,
            runtime=request.runtime,
        )
        notes = () if trusted.by_clock else ("no clock to judge by: expiry was judged by when the index was signed",)
        return _followed(store, state, device, trusted.index, request, self_test, notes)


def _trusted(store: Store, state: State, request: Request) -> Trusted:
    """Return the channel's verified index; the store keeps what it verified, and the root from its first time on."""
    root = _root(store, request)
    trusted = refresh(
        request.source,
        store.trusted,
        root,
        states.seen_of(state),
        clock=request.clock,
        most_repeats=MOST_REPEATS,
    )
    if store.trust() is None:
        store.begin_trust(root)
    fsync_tree(store.trusted)
    return trusted


def _followed(
    store: Store,
    state: State,
    device: DeviceFacts,
    index: Index,
    request: Request,
    self_test: Callable[[Path], None],
    notes: tuple[str, ...],
) -> Update:
    chosen = choose(index, device)
    if device != store.device():
        store.claim(device)
    release = chosen.facts.release
    current = state.current
    if current is not None and release < current.release:
        what = f"rollback: the channel's newest release is {release}, this device has {current.release}"
        raise IntegrityError(what, "withdraw a release with `edgeq ota withdraw`, which gives the old one a new number")
    if current is not None and (release == current.release or chosen.facts.digest == current.digest):
        _check_whole(store, current)
        store.drop_downloads()  # of a run that was killed after the switch
        return _up_to_date(store, current.release, state, chosen, notes)
    if release in state.bad:
        what = f"release {release} failed on this device before, and is not tried again"
        raise VerificationError(what, "release a bundle that is good; the device keeps what it has")
    slot = Slot(release=release, digest=chosen.facts.digest)
    via, fetched = placed(store, state, slot, chosen, index, source=request.source, most_bytes=request.most_bytes)
    _tried(store, state, slot, self_test)
    store.drop_downloads()
    store.recover()
    return Update(
        action="installed",
        release=release,
        previous=current.release if current else None,
        model_version=chosen.facts.model_version,
        place=store.slot(release),
        via=via,
        downloaded_bytes=fetched,
        notes=notes,
    )


def _up_to_date(store: Store, release: int, state: State, chosen: BundleEntry, notes: tuple[str, ...]) -> Update:
    return Update(
        action="up to date",
        release=release,
        previous=state.previous.release if state.previous else None,
        model_version=chosen.facts.model_version,
        place=store.slot(release),
        via="nothing",
        downloaded_bytes=0,
        notes=notes,
    )


def _check_whole(store: Store, current: Slot) -> None:
    """Refuse to call a damaged release up to date."""
    try:
        store.bundle(current)
    except EdgeqError as err:
        what = f"release {current.release} is current, and damaged on this device: {err.what}"
        raise IntegrityError(
            what, "go back with `edgeq ota rollback`, or remove the store and update with --trust"
        ) from err


def _root(store: Store, request: Request) -> bytes:
    """Return the root that the app ships with; a store that has one keeps it."""
    kept = store.trust()
    if kept is not None:
        return kept
    if request.trust is None:
        what = f"the store {request.store} trusts nobody yet"
        raise IntegrityError(what, "give --trust ROOT.json, the channel's first root, from a place that you trust")
    return request.trust


def _capped(store: Store) -> State:
    """Give up a release whose first load was begun too often, by runs that may have been killed in it."""
    state = store.state()
    if state.trying is None or state.trying.tries < MAX_TRIES:
        return state
    state = states.given_up(state, state.trying.release)
    store.save(state)
    store.recover()
    return state


def _tried(store: Store, state: State, slot: Slot, self_test: Callable[[Path], None]) -> None:
    """Load a release for the first time, counted before it is loaded, and switch to it if it works."""
    same = state.trying is not None and state.trying.release == slot.release
    tries = 1 + (state.trying.tries if same and state.trying else 0)
    state = state.model_copy(update={"trying": Trying(release=slot.release, digest=slot.digest, tries=tries)})
    store.save(state)
    try:
        self_test(store.slot(slot.release))
    except EnvironmentProblem:
        raise  # the host could not test it: the try counts, and says nothing against the release by itself
    except EdgeqError as err:
        left = MAX_TRIES - tries
        if not left:
            store.save(states.given_up(state, slot.release))
            store.recover()
        again = counted(left, "more try") if left else "it is not tried again"
        what = f"release {slot.release} failed its self-test ({again}): {err.what}"
        raise VerificationError(what, "the device keeps what it has; release a bundle that is good") from err
    store.save(states.switched(state, slot))
