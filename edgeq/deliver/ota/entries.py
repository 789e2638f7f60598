"""The index's entries of a release: which files it has, which of the older ones stay, what must not be released."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeq.bundle.reader import Bundle
from edgeq.deliver.ota.bom import bill_of_materials
from edgeq.deliver.ota.channel import VALID_DAYS, Channel
from edgeq.deliver.ota.facts import KEY, BomFacts, BundleEntry, BundleFacts, DeltaFacts
from edgeq.deliver.ota.patch import Patch
from edgeq.errors import UsageError

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

KEPT_RELEASES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a device may have, and a patch starts from."""

    label: str
    plain: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A patch of a release, and what it starts from in words."""

    label: str
    patch: Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A bundle that may be released: the very bytes that would be published.

    Attributes:
        archive: the ZIP of the full download.
        plain: its plain form, which patches lead to.
        deltas: from each base; those that save nothing are measured, and not published.
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
        clock: the time that clients go by: what they would refuse by then as expired is not signed. None signs it.
        runtimes: runtime and version of the app builds in the field that it was checked for.
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
    """Return the entries that stay: each pair's newest bundles; patches and bills where nothing changes."""
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
    """Say in the index that a release is not to be used."""
    from tuf.api.metadata import TargetFile

    facts = entry.facts.model_copy(update={"withdrawn": True})
    before = kept[entry.file.name]
    custom = {"custom": {KEY: facts.model_dump(mode="json")}}
    kept[entry.file.name] = TargetFile(before.length, before.hashes, before.path, custom)


def check_distinct(items: Sequence[Prepared], before: Channel | None) -> None:
    """Refuse bundles that are released already, or that would share a name on some server.

    Raises:
        UsageError: one is.
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
                what = f"the channel has {' for '.join(known)}, which differs from {' for '.join(pair)} in case only"
                raise UsageError(what, "name the model as it was")
        last = next(iter(shipped(before, *pair)), None)
        if last is not None and last.facts.digest == item.bundle.digest and not last.facts.withdrawn:
            what = f"{pair[0]} for {pair[1]} is release {last.facts.release} already: the bundles are equal"
            raise UsageError(what, "package what changed, or leave it out")
