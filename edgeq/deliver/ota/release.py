"""The index's entries of a release: its files, the older files that stay, and the checks that refuse a release."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.core.errors import IntegrityError, UsageError
from edgeq.core.files import disk_errors, lock_dir, sha256_bytes
from edgeq.core.manifest import Bundle
from edgeq.deliver.install import check_releasable
from edgeq.deliver.ota.bom import bill_of_materials
from edgeq.deliver.ota.channel import FILES, METADATA, VALID_DAYS, Channel, open_channel, publish, tidy
from edgeq.deliver.ota.index import KEY, BomFacts, BundleEntry, BundleFacts, DeltaFacts, bundle_facts, parse_index
from edgeq.deliver.ota.keys import KeyRing
from edgeq.deliver.ota.patch import Patch, make_patch, pack, scratch_dir, unzip

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile


KEPT_RELEASES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A release that devices may have, and that a patch starts from."""

    label: str
    plain: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A patch of a release, and the name of its base."""

    label: str
    patch: Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A bundle that may be released: exactly the bytes that would be published.

    Attributes:
        archive: the ZIP of the full download.
        plain: its plain form, which patches lead to.
        deltas: from each base; those that save nothing are measured but not published.
    """

    bundle: Bundle
    archive: bytes
    plain: bytes
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a release is signed and addressed.

    Attributes:
        now: the time of signing.
        clock: the time on the clients' clocks: an index that would already be expired then is refused. None signs it
            anyway.
        runtimes: runtime and version of the app builds in the field against which it was checked.
        devices: the only devices that it is for; none for all.
        licence: the model's, an SPDX expression.
        valid_days: after how many days clients refuse the index, unless it is signed again.
    """

    now: datetime.datetime
    clock: datetime.datetime | None = None
    runtimes: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = ()
    licence: str | None = None
    valid_days: int = VALID_DAYS
    kept: int = KEPT_RELEASES


def shipped(channel: Channel | None, model: str, target: str) -> tuple[BundleEntry, ...]:
    """Return the releases of a model for a target, the newest first; withdrawn ones too."""
    if channel is None:
        return ()
    return tuple(one for one in channel.index.bundles if (one.facts.model, one.facts.target) == (model, target))


def entries_of(item: Prepared, facts: BundleFacts, terms: Terms) -> tuple[dict[str, TargetFile], dict[str, bytes]]:
    """Return the index's entries of a bundle with its patches and its bill, and their contents."""
    stem = f"{facts.model}.{facts.target}.{facts.release}"
    shared = {"model": facts.model, "target": facts.target, "release": facts.release}
    bom = bill_of_materials(item.bundle.manifest, item.bundle.digest, now=terms.now, licence=terms.licence)
    files = {f"{stem}.zip": item.archive, f"{stem}.cdx.json": bom}
    said: dict[str, BundleFacts | DeltaFacts | BomFacts] = {
        f"{stem}.zip": facts,
        f"{stem}.cdx.json": BomFacts.model_validate(shared),
    }
    for delta in item.deltas:
        patch = delta.patch
        if len(patch.data) >= len(item.archive):
            continue
        name = f"{stem}.from-{patch.base_sha256[:12]}.patch"
        files[name] = patch.data
        said[name] = DeltaFacts(
            **shared,  # type: ignore[arg-type]  # mypy sees one type for all three
            algorithm=patch.algorithm,
            base_sha256=patch.base_sha256,
            output_sha256=patch.output_sha256,
            output_bytes=patch.output_bytes,
        )
    return {name: target_file(name, data, said[name]) for name, data in files.items()}, files


def target_file(name: str, data: bytes, facts: BundleFacts | DeltaFacts | BomFacts) -> TargetFile:
    """Return TUF's entry of a file, with edgeq's facts in its custom field."""
    from tuf.api.metadata import TargetFile

    made = TargetFile.from_data(name, data, ["sha256"])
    made.unrecognized_fields["custom"] = {KEY: facts.model_dump(mode="json")}
    return made


def next_release(before: Channel | None) -> int:
    """Return the number of the next release."""
    return 1 + max((entry.facts.release for entry in before.index.bundles), default=0) if before else 1


def kept_entries(before: Channel | None, count: int, changed: set[tuple[str, str]]) -> dict[str, TargetFile]:
    """Return the entries that stay: the newest bundles of each pair, with patches and bills where nothing changes."""
    if before is None:
        return {}
    index = before.index
    pairs = {(one.facts.model, one.facts.target) for one in index.bundles}
    names = {one.file.name for pair in pairs for one in shipped(before, *pair)[:count]}
    names |= {one.name for one in index.entries if (one.facts.model, one.facts.target) not in changed}
    return {name: target for name, target in before.targets.signed.targets.items() if name in names}


def newest(channel: Channel, entry: BundleEntry) -> BundleEntry:
    """Return the newest release of an entry's model and target."""
    return shipped(channel, entry.facts.model, entry.facts.target)[0]


def mark_withdrawn(kept: dict[str, TargetFile], entry: BundleEntry) -> None:
    """Mark a release as withdrawn in the index."""
    from tuf.api.metadata import TargetFile

    facts = entry.facts.model_copy(update={"withdrawn": True})
    before = kept[entry.file.name]
    custom = {"custom": {KEY: facts.model_dump(mode="json")}}
    kept[entry.file.name] = TargetFile(before.length, before.hashes, before.path, custom)


def check_distinct(items: Sequence[Prepared], before: Channel | None) -> None:
    """Check that no bundle has been released already, and that no two names collide on a server.

    Raises:
        UsageError: a bundle was released, or two names collide.
    """
    seen: set[tuple[str, str]] = set()
    for item in items:
        manifest = item.bundle.manifest
        pair = (manifest.model.name, manifest.target.name)
        if tuple(part.lower() for part in pair) in seen:
            raise UsageError(f"two bundles of {pair[0]} for {pair[1]}", "release one of them")
        seen.add((pair[0].lower(), pair[1].lower()))
        for entry in before.index.bundles if before else ():
            known = (entry.facts.model, entry.facts.target)
            if known != pair and tuple(map(str.lower, known)) == tuple(map(str.lower, pair)):
                what = f"the channel has {' for '.join(known)}, which differs from {' for '.join(pair)} only in case"
                raise UsageError(what, "use the name that is in the channel")
        last = next(iter(shipped(before, *pair)), None)
        if last is not None and last.facts.digest == item.bundle.digest and not last.facts.withdrawn:
            what = f"{pair[0]} for {pair[1]} is already release {last.facts.release}: the bundles are equal"
            raise UsageError(what, "package the change, or omit this bundle")


# --- Releases: what goes out, its patches, and the index that names it. Nothing is written before `publish`.


_WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A channel after a release.

    Attributes:
        files: names of the new files, with their sizes.
        root_version: the root that clients now follow.
        expires: the time from which clients refuse the index.
    """

    release: int
    files: tuple[tuple[str, int], ...]
    root_version: int
    trust: Path
    expires: datetime.datetime


def prepare(folder: Path, bases: Sequence[Base]) -> Prepared:
    """Read a bundle, and make its download and its patches in memory.

    Raises:
        UsageError: the folder is not a bundle.
        VerificationError: a gate failed when it was packaged, or its weights are random.
        IntegrityError: its files are not those that it lists, or changed while it was read.
        UnsupportedError: a newer edgeq wrote it.
    """
    bundle = read_bundle(folder)
    check_releasable(bundle)
    plain, archive = pack(folder), bundle_zip(folder)
    with scratch_dir() as copy:
        # the very bytes that are published are those that were checked: each was read by itself
        if unzip(archive, copy, most_bytes=len(plain)).digest != bundle.digest or pack(copy) != plain:
            raise IntegrityError(f"{folder} changed while it was released", "run again when it is complete")
    distinct = {sha256_bytes(base.plain): base for base in bases}
    distinct.pop(sha256_bytes(plain), None)
    deltas = tuple(Delta(label=base.label, patch=make_patch(base.plain, plain)) for base in distinct.values())
    return Prepared(bundle=bundle, archive=archive, plain=plain, deltas=deltas)


def extract(channel: Channel, entry: BundleEntry, folder: Path) -> Bundle:
    """Write a released bundle into an empty folder.

    Raises:
        IntegrityError: the channel's file is missing or damaged.
    """
    return unzip(channel.read(entry.file.name), folder, most_bytes=entry.facts.plain_bytes)


def bases(channel: Channel | None, entries: Iterable[BundleEntry]) -> list[Base]:
    """Return released bundles as bases for patches."""
    found = []
    for entry in entries:
        with scratch_dir() as folder:
            if channel is not None:
                extract(channel, entry, folder)
                found.append(Base(label=f"release {entry.facts.release}", plain=pack(folder)))
    return found


def add_release(
    folder: Path, before: Channel | None, ring: KeyRing, items: Sequence[Prepared], terms: Terms
) -> Published:
    """Publish prepared bundles together, under the channel's next release number.

    Raises:
        UsageError: two bundles for one model and target, one that is already released, or an index that would already
            be expired.
        IntegrityError: the keys are not this channel's, or it changed since it was read.
        EnvironmentProblem: a key is not available, or a write failed.
    """
    with _locked(folder, before):
        check_distinct(items, before)
        release = next_release(before)
        pairs = {(item.bundle.manifest.model.name, item.bundle.manifest.target.name) for item in items}
        kept = kept_entries(before, terms.kept, pairs)
        files: dict[str, bytes] = {}
        for item in items:
            facts = bundle_facts(
                item.bundle.manifest,
                release=release,
                digest=item.bundle.digest,
                plain_sha256=sha256_bytes(item.plain),
                plain_bytes=len(item.plain),
            )
            runtimes = tuple(version for name, version in terms.runtimes if name == facts.runtime) or facts.runtimes
            update = {"devices": terms.devices, "runtimes": runtimes}
            new, data = entries_of(item, facts.model_copy(update=update), terms)
            kept |= new
            files |= data
        return _published(folder, before, ring, kept, files, release, terms)


def withdraw(folder: Path, ring: KeyRing, release: int, terms: Terms) -> Published:
    """Publish the previous release again under a higher number; devices receive it like any other release.

    Raises:
        UsageError: there is no such release, none before it, or the index would already be expired.
        IntegrityError: the keys are not this channel's, or a file of it is damaged.
        EnvironmentProblem: a key is not available, or a write failed.
    """
    channel = open_channel(folder)
    if channel is None:
        raise UsageError(f"{folder} is not a channel", "give the folder that `edgeq ota release` wrote")
    gone = [one for one in channel.index.bundles if one.facts.release == release]
    if not gone:
        known = ", ".join(str(number) for number in sorted({one.facts.release for one in channel.index.bundles}))
        raise UsageError(f"{folder} has no release {release}", f"its releases: {known}")
    with _locked(folder, channel):
        pairs = {(entry.facts.model, entry.facts.target) for entry in gone}
        kept = kept_entries(channel, terms.kept + 1, pairs)
        files: dict[str, bytes] = {}
        number = next_release(channel)
        for entry in gone:
            mark_withdrawn(kept, entry)
            if entry.file.name != newest(channel, entry).file.name:
                continue  # devices have a newer one; it only must not come back
            new, data = _restored(channel, entry, number, terms)
            kept |= new
            files |= data
        # of a release that devices have left behind nothing is published anew
        return _published(folder, channel, ring, kept, files, number if files else number - 1, terms)


def refresh(folder: Path, ring: KeyRing, terms: Terms) -> Published:
    """Sign a channel's index again with its present keys, so that it does not expire.

    Raises:
        UsageError: the folder is not a channel, or the index would already be expired.
        IntegrityError: the keys are not this channel's.
        EnvironmentProblem: a key is not available, or a write failed.
    """
    channel = open_channel(folder)
    if channel is None:
        raise UsageError(f"{folder} is not a channel", "give the folder that `edgeq ota release` wrote")
    with _locked(folder, channel):
        return _published(
            folder, channel, ring, dict(channel.targets.signed.targets), {}, next_release(channel) - 1, terms
        )


@contextlib.contextmanager
def _locked(folder: Path, before: Channel | None) -> Iterator[None]:
    """Hold the channel's lock, once it is seen that the channel is still what was read."""
    with disk_errors(folder), lock_dir(folder, wait_s=_WAIT_S):
        versions = [state and state.timestamp.signed.version for state in (before, open_channel(folder))]
        if versions[0] != versions[1]:
            raise UsageError(f"{folder} changed while it was read", "run again")
        if before is not None:
            tidy(before)  # what a killed run left goes, whatever becomes of this one
        yield


def _published(
    folder: Path,
    before: Channel | None,
    ring: KeyRing,
    targets: dict[str, TargetFile],
    files: dict[str, bytes],
    release: int,
    terms: Terms,
) -> Published:
    parse_index(targets)  # what a client would refuse is not signed
    after = publish(
        folder,
        before,
        ring,
        targets=targets,
        files=files,
        now=terms.now,
        valid_days=terms.valid_days,
        clock=terms.clock,
    )
    sizes = tuple((f"{FILES}/{targets[name].hashes['sha256']}.{name}", len(data)) for name, data in files.items())
    trust = folder / METADATA / "1.root.json"
    return Published(
        release=release,
        files=sizes,
        root_version=after.roots[-1].signed.version,
        trust=trust,
        expires=min(after.roots[-1].signed.expires, after.timestamp.signed.expires),
    )


def _restored(
    channel: Channel, gone: BundleEntry, number: int, terms: Terms
) -> tuple[dict[str, TargetFile], dict[str, bytes]]:
    older = [one for one in shipped(channel, gone.facts.model, gone.facts.target) if not one.facts.withdrawn]
    older = [one for one in older if one.facts.release < gone.facts.release]
    if not older:
        facts = gone.facts
        what = f"release {facts.release} is the channel's first for {facts.model} on {facts.target}"
        raise UsageError(what, "release a corrected bundle instead")
    with scratch_dir() as folder:
        item = prepare_released(channel, older[0], bases(channel, [gone]), folder)
    update = {"release": number, "withdrawn": False}
    return entries_of(item, older[0].facts.model_copy(update=update), terms)


def prepare_released(channel: Channel, entry: BundleEntry, starts: Sequence[Base], folder: Path) -> Prepared:
    """Return a released bundle as it was published, with patches from `starts`."""
    bundle = extract(channel, entry, folder)
    plain = pack(folder)
    deltas = tuple(Delta(label=base.label, patch=make_patch(base.plain, plain)) for base in starts)
    return Prepared(bundle=bundle, archive=channel.read(entry.file.name), plain=plain, deltas=deltas)
