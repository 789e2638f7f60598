"""Bringing a release onto a device: by a patch where one fits, else by the full download, into a slot of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from edgeq._io import sha256_bytes, staged_dir
from edgeq.bundle.reader import Bundle, read_bundle
from edgeq.deliver.ota.facts import BundleEntry, DeltaEntry, Index, disagreement
from edgeq.deliver.ota.fetch import Source, download
from edgeq.deliver.ota.patch import Patch, apply_patch
from edgeq.deliver.ota.plain import pack, unpack
from edgeq.deliver.ota.state import Slot, State
from edgeq.deliver.ota.store import Store, remove_tree
from edgeq.deliver.ota.unzip import unzip
from edgeq.errors import EdgeqError, EnvironmentProblem, IntegrityError

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
    """Bring a release into its slot, every byte checked against the signed index.

    Returns:
        How it came, and how many bytes were fetched.

    Raises:
        IntegrityError: bytes that are not the signed ones, or more than the device takes.
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
    with _patch_counted(store, state, delta), staged_dir(place) as staging:
        if delta is not None and base is not None:
            unpack(_patched(delta, base, data), staging)
            bundle = read_bundle(staging)
        else:
            bundle = unzip(data, staging, most_bytes=chosen.facts.plain_bytes)
            _check_plain(chosen, staging)
        _check_same(chosen, bundle)
    return ("patch" if delta else "full download"), file.size_bytes


@contextlib.contextmanager
def _patch_counted(store: Store, state: State, delta: DeltaEntry | None) -> Iterator[None]:
    """Write that a patch is begun before it is, so that one that is refused or ends the process is not begun again."""
    if delta is None:
        yield
        return
    store.save(state.model_copy(update={"patching": delta.file.sha256}))
    try:
        yield
    except (OSError, EnvironmentProblem):
        store.save(state)  # a full disk says nothing against the patch
        raise


def _is_there(store: Store, slot: Slot, place: Path) -> bool:
    """Whether an earlier try brought the release whole; what is damaged is removed."""
    if not place.is_dir():
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


def _patched(delta: DeltaEntry, base: bytes, data: bytes) -> bytes:
    facts = delta.facts
    patch = Patch(
        algorithm=facts.algorithm,
        data=data,
        base_sha256=facts.base_sha256,
        output_sha256=facts.output_sha256,
        output_bytes=facts.output_bytes,
    )
    return apply_patch(patch, base)


def _check_sizes(store: Store, chosen: BundleEntry, download_bytes: int, most_bytes: int) -> None:
    """Refuse what is too large before anything is fetched."""
    size_bytes = chosen.facts.plain_bytes
    if max(size_bytes, download_bytes) > most_bytes:
        what = f"release {chosen.facts.release} has {size_bytes} bytes, this device takes {most_bytes}"
        raise IntegrityError(what, "release a smaller one, or raise the device's limit")
    needed = size_bytes + download_bytes + _LEAST_FREE_BYTES
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        what = f"no space left on the disk that holds {store.folder}: the update needs {needed} bytes, {free} are free"
        raise EnvironmentProblem(what, "free some space, and run again")


def _check_plain(chosen: BundleEntry, folder: Path) -> None:
    if sha256_bytes(pack(folder)) != chosen.facts.plain_sha256:
        what = f"mix-and-match: release {chosen.facts.release} holds another bundle than the index says"
        raise IntegrityError(what, "do not use the channel; tell whoever runs it")


def _check_same(chosen: BundleEntry, bundle: Bundle) -> None:
    other = disagreement(chosen.facts, bundle.manifest, bundle.digest)
    if other is not None:
        what = f"mix-and-match: the bundle of release {chosen.facts.release} has {other}"
        raise IntegrityError(what, "do not use the channel; tell whoever runs it")
