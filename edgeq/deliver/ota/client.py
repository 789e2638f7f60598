"""The reference client: a device's store follows a channel. Order matters; each step trusts only those before it.

signature → version, expiry, device → sizes and free space → patch → sha256 → load and self-test in a child process →
switch by rename → keep the previous one; the app's health mark, or its absence, decides whether it stays.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import (
    EdgeqError,
    EnvironmentProblem,
    IntegrityError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from edgeq.core.files import disk_errors, fsync_tree, lock_dir, sha256_bytes, staged_dir
from edgeq.core.manifest import Bundle
from edgeq.core.units import counted
from edgeq.deliver.ota import store as states
from edgeq.deliver.ota.fetch import Source, download
from edgeq.deliver.ota.index import BundleEntry, BundleFacts, DeltaEntry, Index, disagreement
from edgeq.deliver.ota.patch import Patch, apply_patch, pack, unpack, unzip
from edgeq.deliver.ota.store import MAX_TRIES, UPDATE_LOCK, DeviceFacts, Slot, State, Store, Trying, remove_tree
from edgeq.deliver.ota.trusted import Trusted, refresh

MOST_BYTES = 1_000_000_000

MOST_REPEATS = 30

_WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a device asks for.

    Attributes:
        device: whose store it is; model, target and runtime may be None where the store knows them, or the channel has
            only one.
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
        via: how it was transferred.
        downloaded_bytes: of the patch or the ZIP; 0 where nothing was fetched.
        notes: further remarks for the person who reads the result.
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
    """Update a store to the channel's newest release for this device; a failed update changes nothing.

    Args:
        request: the device and the channel.
        self_test: loads a bundle's folder in a child process and runs its golden samples; raises an `EdgeqError`.

    Raises:
        UsageError: the store belongs to another device, or the request does not say what the device is.
        UnsupportedError: the channel has nothing for this target, ABI or runtime.
        IntegrityError: no trust, a refused index, or bytes that are not the signed ones.
        VerificationError: the release failed its self-test; the previous one stays current.
        EnvironmentProblem: the channel cannot be reached, or the disk is full.
    """
    with disk_errors(request.store), lock_dir(request.store, wait_s=_WAIT_S, name=UPDATE_LOCK):
        store = Store(request.store)
        device_before = store.device()
        check_device(device_before, device_id=request.device_id, model=request.model, target=request.target)
        with store.locked():
            store.recover()
            state = _capped(store, request)
        trusted = _trusted(store, state, request)
        state = store.change(lambda now: states.with_seen(now, trusted.seen))
        device = described(
            device_before,
            trusted.index,
            device_id=request.device_id,
            model=request.model,
            target=request.target,
            runtime=request.runtime,
        )
        notes = (
            ()
            if trusted.by_clock
            else (("the device has no clock: expiry was judged against the time at which the index was signed"),)
        )
        chosen = choose(trusted.index, device)
        if device != store.device():
            store.claim(device)
        release = chosen.facts.release
        current = state.current
        if current is not None and release < current.release:
            what = f"rollback: the channel's newest release is {release}, this device has {current.release}"
            raise IntegrityError(
                what, "withdraw a release with `edgeq ota withdraw`, which gives the old one a new number"
            )
        if current is not None and (release == current.release or chosen.facts.digest == current.digest):
            _check_whole(store, current)
            store.drop_downloads()  # of a run that was killed after the switch
            return Update(
                action="up to date",
                release=current.release,
                previous=state.previous.release if state.previous else None,
                model_version=chosen.facts.model_version,
                place=store.slot(current.release),
                via="nothing",
                downloaded_bytes=0,
                notes=notes,
            )
        if release in state.bad:
            what = f"release {release} failed on this device before and is not tried again"
            raise VerificationError(what, "release a corrected bundle; the device keeps its current release")
        if states.is_deferred(state, release, now=_now(state, request), runtime=device.runtime):
            what = (
                f"release {release} could not be tested on this device in {MAX_TRIES} attempts; it is tried again "
                "after a day"
            )
            raise EnvironmentProblem(what, "free memory, update again after a day, or update the app's runtime")
        slot = Slot(release=release, digest=chosen.facts.digest)
        via, fetched = placed(
            store, state, slot, chosen, trusted.index, source=request.source, most_bytes=request.most_bytes
        )
        _run_self_test(store, slot, self_test, now=_now(state, request), runtime=device.runtime)
        store.drop_downloads()
        with store.locked():
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
        what = f"the store {request.store} has no trusted root yet"
        raise IntegrityError(what, "give --trust ROOT.json: the channel's first root, from a source that you trust")
    return request.trust


def _now(state: State, request: Request) -> str:
    """Return the device's time, or where it has no clock that of the newest index."""
    return request.clock.isoformat() if request.clock is not None else state.seen.issued


def _capped(store: Store, request: Request) -> State:
    """Defer a release whose first load was begun too often, by runs that were killed in it."""
    state = store.state()
    if state.trying is None or state.trying.tries < MAX_TRIES:
        return state
    device = store.device()
    runtime = request.runtime or (device.runtime if device else None)
    state = states.deferred(state, state.trying.release, now=_now(state, request), runtime=runtime)
    store.save(state)
    store.recover()
    return state


def _run_self_test(
    store: Store, slot: Slot, self_test: Callable[[Path], None], *, now: str, runtime: str | None
) -> None:
    """Load a release for the first time, counted before it is loaded, and switch to it if it works."""

    def begun(state: State) -> State:
        before = state.trying
        tries = 1 + (before.tries if before is not None and before.release == slot.release else 0)
        return state.model_copy(update={"trying": Trying(release=slot.release, digest=slot.digest, tries=tries)})

    state = store.change(begun)
    tries = state.trying.tries if state.trying is not None else 1
    try:
        self_test(store.slot(slot.release))
    except (EnvironmentProblem, UsageError):
        # the host could not test it, or may not (--trust-source), which says nothing against the release
        if tries >= MAX_TRIES:
            store.change(lambda state: states.deferred(state, slot.release, now=now, runtime=runtime))
        raise
    except EdgeqError as err:
        left = MAX_TRIES - tries
        if not left:
            store.change(lambda state: states.given_up(state, slot.release))
            with store.locked():
                store.recover()
        again = counted(left, "more try") if left else "it is not tried again"
        what = f"release {slot.release} failed its self-test ({again}): {err.what}"
        raise VerificationError(what, "the device keeps its current release; release a corrected bundle") from err
    store.change(lambda state: states.switched(state, slot))


# --- What a device is, and which release is for it.


def check_device(known: DeviceFacts | None, *, device_id: str, model: str | None, target: str | None) -> None:
    """Refuse a store that belongs to another device.

    Raises:
        IntegrityError: it is.
    """
    if known is None:
        return
    for name, told in (("device_id", device_id), ("model", model), ("target", target)):
        had = getattr(known, name)
        if told is not None and told != had:
            what = f"wrong device: the store is for {name.replace('_', ' ')} {had}, not {told}"
            raise IntegrityError(what, "give each device, and each model, a store of its own")


def described(
    known: DeviceFacts | None,
    index: Index,
    *,
    device_id: str,
    model: str | None,
    target: str | None,
    runtime: str | None,
) -> DeviceFacts:
    """Return the facts of the device; those that the request leaves out come from the channel where it has only one.

    Raises:
        UsageError: an invalid name, or the request leaves out a fact that the channel has several values for.
        UnsupportedError: the channel has nothing at all.
    """
    if runtime is not None and _version(runtime) is None:
        what = f"--runtime {runtime!r} is not a version"
        raise UsageError(what, "give major and minor version, such as 1.5")
    if known is not None:
        return known.model_copy(update={"runtime": runtime}) if runtime else known
    offered = [(one.facts.model, one.facts.target) for one in index.bundles]
    # where nothing fits what was told, `choose` says what is wrong with it
    models = sorted({one for one, on in offered if on == target} or {one for one, _ in offered})
    targets = sorted({on for one, on in offered if one == model} or {on for _, on in offered})
    try:
        return DeviceFacts(
            device_id=device_id,
            model=model or _only(models, "model"),
            target=target or _only(targets, "target"),
            runtime=runtime,
        )
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        raise UsageError(what, "use letters, digits and the characters . _ : -") from err


def _only(names: list[str], what: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise UnsupportedError(
            "the channel has no release that fits", "check --model and --target, or release a bundle for them"
        )
    raise UsageError(f"the channel has several {what}s: {', '.join(names[:8])}", f"choose one with --{what}")


def choose(index: Index, device: DeviceFacts) -> BundleEntry:
    """Return the newest release for a device.

    Raises:
        UnsupportedError: none is for its model, target, runtime or id; the message names which.
    """
    bundles = [one for one in index.bundles if one.facts.model == device.model]
    if not bundles:
        known = ", ".join(sorted({one.facts.model for one in index.bundles})) or "none"
        raise UnsupportedError(f"the channel has no model {device.model}", f"its models: {known}")
    fitting = [one for one in bundles if one.facts.target == device.target]
    if not fitting:
        known = ", ".join(sorted({f"{one.facts.target} ({one.facts.arch})" for one in bundles}))
        what = f"wrong target or ABI: the channel has nothing for {device.target}"
        raise UnsupportedError(what, f"its targets: {known}")
    offered = [one for one in fitting if not one.facts.withdrawn]
    addressed = [one for one in offered if not one.facts.devices or device.device_id in one.facts.devices]
    if not addressed:
        what = f"wrong device: no release of the channel is for {device.device_id}"
        raise UnsupportedError(what, "release one for all devices, or name this one with --device")
    newest = addressed[0]
    needs = _needs(newest.facts)
    if device.runtime is not None and needs and (_version(device.runtime) or needs) < needs:
        what = (
            f"wrong runtime: release {newest.facts.release} was written by {newest.facts.runtime}"
            f" {newest.facts.exported_with}, for {' and '.join(newest.facts.runtimes) or 'no older one'};"
            f" this device has {device.runtime}"
        )
        raise UnsupportedError(what, "update the app first, or release one for its runtime")
    return newest


def _needs(facts: BundleFacts) -> tuple[int, int] | None:
    """Return the oldest runtime that loads a release."""
    # by bytecode or opset, which a newer writer may keep old: it was released for these
    if facts.runtime in ("torchscript", "onnx"):
        return min(filter(None, map(_version, facts.runtimes)), default=None)
    return _version(facts.exported_with)


def _version(text: str) -> tuple[int, int] | None:
    """Return (major, minor): an artifact runs on the runtime that wrote it, or on a newer one."""
    parts = text.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal() else None


# --- Bringing a release onto a device: by a patch where one fits, else by the full download, into a slot of its
# own.


_LEAST_FREE_BYTES = 1_000_000


def placed(
    store: Store,
    state: State,
    slot: Slot,
    chosen: BundleEntry,
    index: Index,
    *,
    source: Source,
    most_bytes: int,
) -> tuple[Literal["patch", "full download", "an earlier try"], int]:
    """Write a release into its slot; every byte is checked against the signed index.

    Returns:
        How it was transferred, and how many bytes were downloaded.

    Raises:
        IntegrityError: bytes that are not the signed ones, or more than the device accepts.
        EnvironmentProblem: the channel cannot be reached, or the disk is full.
    """
    place = store.slot(slot.release)
    if _is_there(store, slot, place):
        return "an earlier try", 0
    delta, base = _delta(store, state, chosen, index)
    file = delta.file if delta else chosen.file
    _check_sizes(store, chosen, file.size_bytes, most_bytes)
    store.downloads.mkdir(exist_ok=True)
    store.drop_downloads(keep=file.sha256)
    store.downloads.mkdir(exist_ok=True)
    data = download(source, file, store.downloads).read_bytes()
    with _patch_counted(store, state, delta), staged_dir(place, below=store.folder) as staging:
        if delta is not None and base is not None:
            facts = delta.facts
            patch = Patch(
                algorithm=facts.algorithm,
                data=data,
                base_sha256=facts.base_sha256,
                output_sha256=facts.output_sha256,
                output_bytes=facts.output_bytes,
            )
            unpack(apply_patch(patch, base), staging)
            bundle = read_bundle(staging)
        else:
            bundle = unzip(data, staging, most_bytes=chosen.facts.plain_bytes)
            if sha256_bytes(pack(staging)) != chosen.facts.plain_sha256:
                what = (
                    f"mix-and-match: release {chosen.facts.release} holds a different bundle from the one in the index"
                )
                raise IntegrityError(what, "do not use the channel; report this to its operator")
        _check_same(chosen, bundle)
    return ("patch" if delta else "full download"), file.size_bytes


@contextlib.contextmanager
def _patch_counted(store: Store, state: State, delta: DeltaEntry | None) -> Iterator[None]:
    """Write that a patch is begun before it is, so that one that is refused or ends the process is not begun again."""
    if delta is None:
        yield
        return
    store.change(lambda now: now.model_copy(update={"patching": delta.file.sha256}))
    try:
        yield
    except (OSError, EnvironmentProblem):
        store.change(
            lambda now: now.model_copy(update={"patching": state.patching})
        )  # a full disk says nothing against the patch
        raise


def _is_there(store: Store, slot: Slot, place: Path) -> bool:
    """Whether an earlier try brought the release whole; what is damaged is removed."""
    if not os.path.lexists(place):
        return False
    try:
        store.bundle(slot)
    except EdgeqError:
        remove_tree(place)
        return False
    return True


def _delta(store: Store, state: State, chosen: BundleEntry, index: Index) -> tuple[DeltaEntry | None, bytes | None]:
    """Return the patch from what the device has, and that in its plain form.

    Neither where a patch saves nothing, or was begun before and gave no release.
    """
    if state.current is None:
        return None, None
    try:
        store.bundle(state.current)
        base = pack(store.slot(state.current.release))
    except EdgeqError:  # damaged: a full download mends it
        return None, None
    sha256 = sha256_bytes(base)
    for delta in index.deltas:
        ends = (delta.facts.base_sha256, delta.facts.output_sha256)
        saves = delta.file.size_bytes < chosen.file.size_bytes and delta.file.sha256 != state.patching
        if saves and ends == (sha256, chosen.facts.plain_sha256):
            return delta, base
    return None, None


def _check_sizes(store: Store, chosen: BundleEntry, download_bytes: int, most_bytes: int) -> None:
    """Refuse what is too large before anything is fetched."""
    size_bytes = chosen.facts.plain_bytes
    if max(size_bytes, download_bytes) > most_bytes:
        what = f"release {chosen.facts.release} has {size_bytes} bytes, this device accepts at most {most_bytes}"
        raise IntegrityError(what, "release a smaller one, or raise the device's limit")
    needed = size_bytes + download_bytes + _LEAST_FREE_BYTES
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        what = f"no space left on the disk that holds {store.folder}: the update needs {needed} bytes, {free} are free"
        raise EnvironmentProblem(what, "free some space, and run again")


def _check_same(chosen: BundleEntry, bundle: Bundle) -> None:
    other = disagreement(chosen.facts, bundle.manifest, bundle.digest)
    if other is not None:
        what = f"mix-and-match: the bundle of release {chosen.facts.release} has {other}"
        raise IntegrityError(what, "do not use the channel; report this to its operator")
