"""A channel: a folder of signed metadata and files that any static server can hold.

`metadata/` holds TUF's roles (`N.root.json`, `N.targets.json`, `N.snapshot.json`, `timestamp.json`), `targets/` the
files, named after their hashes. Every file except `timestamp.json` is written once under its own name, and
`timestamp.json` is renamed into place after all that it leads to: a reader, and a run that is killed, sees the old
channel or the new one.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.core.errors import IntegrityError, UsageError, first_line
from edgeq.core.files import disk_errors, sha256_bytes, write_atomic
from edgeq.deliver.ota.index import Index, parse_index
from edgeq.deliver.ota.keys import ROLES, KeyRing, RoleName

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp


METADATA, FILES = "metadata", "targets"

ISSUED = "x-edgeq-issued"  # when the index was signed: the clock of devices that have none

VALID_DAYS = 30

_OURS = re.compile(r"\d+\.(?:targets|snapshot)\.json|\..+\.[a-z0-9_]{8}\.tmp")

_OUR_FILE = re.compile(r"[0-9a-f]{64}\..+|\..+\.[a-z0-9_]{8}\.tmp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel, read from its own metadata with every signature checked.

    Attributes:
        roots: all versions of the root, the first one first.
    """

    folder: Path
    roots: tuple[Metadata[Root], ...]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]

    @property
    def index(self) -> Index:
        """The files of the channel."""
        return parse_index(self.targets.signed.targets)

    def read(self, name: str) -> bytes:
        """Return a file of the channel.

        Raises:
            IntegrityError: it is missing, or not the one that was signed.
        """
        from tuf.api.exceptions import LengthOrHashMismatchError

        target = self.targets.signed.targets[name]
        path = self.folder / FILES / f"{target.hashes['sha256']}.{name}"
        try:
            data = path.read_bytes()
            target.verify_length_and_hashes(data)
        except (OSError, LengthOrHashMismatchError) as err:
            what = f"{path} is not the file that was released: {first_line(err)}"
            raise IntegrityError(what, "restore it from a copy of the channel") from err
        return data


def open_channel(folder: Path) -> Channel | None:
    """Return the channel in a folder, or None if there is none yet.

    Raises:
        UsageError: the folder holds something else.
        IntegrityError: its metadata is damaged, or not signed by its own keys.
    """
    place = folder / METADATA
    if not (place / "1.root.json").exists():
        strange = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        if set(strange) - {METADATA, FILES}:
            what = f"{folder} is not a channel: it holds {sorted(strange)[0]}"
            raise UsageError(what, "give an empty folder, or one that does not exist yet")
        return None
    try:
        return _opened(folder, place)
    except IntegrityError:
        raise
    except Exception as err:  # python-tuf raises several kinds on damaged metadata
        what = f"the channel {folder} is damaged, or signed with other keys: {first_line(err)}"
        raise IntegrityError(what, "restore it from a copy") from err


def _opened(folder: Path, place: Path) -> Channel:
    from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

    roots: list[Metadata[Root]] = []
    while (path := place / f"{len(roots) + 1}.root.json").exists():
        root = Metadata[Root].from_bytes(path.read_bytes())
        if root.signed.version != len(roots) + 1:
            raise ValueError(f"{path.name} has version {root.signed.version}")
        for judge in (*roots[-1:], root):
            judge.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        roots.append(root)
    judge = roots[-1]
    timestamp = Metadata[Timestamp].from_bytes((place / "timestamp.json").read_bytes())
    judge.signed.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
    meta = timestamp.signed.snapshot_meta
    data = (place / f"{meta.version}.snapshot.json").read_bytes()
    meta.verify_length_and_hashes(data)
    snapshot = Metadata[Snapshot].from_bytes(data)
    judge.signed.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
    meta = snapshot.signed.meta["targets.json"]
    data = (place / f"{meta.version}.targets.json").read_bytes()
    meta.verify_length_and_hashes(data)
    targets = Metadata[Targets].from_bytes(data)
    judge.signed.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    return Channel(folder=folder, roots=tuple(roots), timestamp=timestamp, snapshot=snapshot, targets=targets)


def publish(
    folder: Path,
    before: Channel | None,
    ring: KeyRing,
    *,
    targets: Mapping[str, TargetFile],
    files: Mapping[str, bytes],
    now: datetime.datetime,
    valid_days: int = VALID_DAYS,
    clock: datetime.datetime | None = None,
) -> Channel:
    """Sign a channel's next state and write it; the caller holds the folder's lock.

    Args:
        folder: the channel.
        before: its state now, None for a new one.
        ring: the keys. Where they differ from the channel's root, a new root is published too.
        targets: all files of the new index, by name.
        files: the contents of those that are new, by name.
        now: the time of signing.
        valid_days: after how many days clients refuse the index, unless it is signed again.
        clock: the time on the clients' clocks; None where it is not known.

    Raises:
        UsageError: the index or the root would already have expired at `clock`.
        IntegrityError: the keys are not this channel's.
        EnvironmentProblem: a private key is not available, or a write failed.
    """
    soon = now + datetime.timedelta(days=valid_days)
    root = next_root(before, ring, now)
    _check_lasting(root or (before.roots[-1] if before else None), soon, now=now, clock=clock)
    new = {folder / FILES / f"{targets[name].hashes['sha256']}.{name}": data for name, data in files.items()}
    index, timestamp = _index(before, ring, targets, soon=soon, now=now)
    new |= {folder / METADATA / name: data for name, data in index.items()}
    with disk_errors(folder):
        _switch(new, folder / METADATA / "timestamp.json", timestamp)
        # last: until now the old root, whose keys signed as well, led to all of this
        if root is not None:
            write_atomic(folder / METADATA / f"{root.signed.version}.root.json", _bytes(root))
    opened = open_channel(folder)
    if opened is None:
        raise IntegrityError(f"{folder} disappeared while it was written", "check the disk that holds it")
    tidy(opened)
    return opened


def _check_lasting(
    root: Metadata[Root] | None,
    soon: datetime.datetime,
    *,
    now: datetime.datetime,
    clock: datetime.datetime | None,
) -> None:
    """Refuse to sign what every client with a clock refuses: the time of signing may be SOURCE_DATE_EPOCH."""
    ends = {"index": soon} | ({"root": root.signed.expires} if root else {})
    for name, end in ends.items():
        if clock is not None and end <= clock:
            what = f"signed as of {now:%Y-%m-%d} (SOURCE_DATE_EPOCH), the {name} would have expired on {end:%Y-%m-%d}:"
            fix = "unset SOURCE_DATE_EPOCH for this command; `edgeq ota release --allow-expired` writes it anyway"
            raise UsageError(f"{what} every client would refuse the channel", fix)


def _index(
    before: Channel | None,
    ring: KeyRing,
    targets: Mapping[str, TargetFile],
    *,
    soon: datetime.datetime,
    now: datetime.datetime,
) -> tuple[dict[str, bytes], bytes]:
    """Return the next targets and snapshot by file name, and the timestamp that leads to them, all signed."""
    from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

    def described(version: int, data: bytes) -> MetaFile:
        return MetaFile(version, len(data), {"sha256": sha256_bytes(data)})

    listed = Metadata(Targets(_after(before.targets if before else None), expires=soon, targets=dict(targets)))
    listed_data = _signed(listed, ring, "targets")
    meta = {"targets.json": described(listed.signed.version, listed_data)}
    snapshot = Metadata(Snapshot(_after(before.snapshot if before else None), expires=soon, meta=meta))
    snapshot_data = _signed(snapshot, ring, "snapshot")
    timestamp = Metadata(
        Timestamp(
            _after(before.timestamp if before else None),
            expires=soon,
            snapshot_meta=described(snapshot.signed.version, snapshot_data),
            unrecognized_fields={ISSUED: now.strftime("%Y-%m-%dT%H:%M:%SZ")},
        )
    )
    files = {
        f"{listed.signed.version}.targets.json": listed_data,
        f"{snapshot.signed.version}.snapshot.json": snapshot_data,
    }
    return files, _signed(timestamp, ring, "timestamp")


def _switch(new: Mapping[Path, bytes], timestamp: Path, data: bytes) -> None:
    """Write files that nothing leads to yet, then what leads to them; unless that is in place, none stays."""
    written: list[Path] = []
    try:
        for path, content in new.items():
            if not path.exists():
                written.append(path)
            write_atomic(path, content)
        write_atomic(timestamp, data)
    except BaseException:
        if not timestamp.exists() or timestamp.read_bytes() != data:
            for path in written:
                path.unlink(missing_ok=True)
        raise


def tidy(channel: Channel) -> None:
    """Remove files that no reader needs: those of states older than the previous one, and leftovers of killed runs."""
    place = channel.folder / METADATA
    numbers = {"targets": channel.targets.signed.version, "snapshot": channel.snapshot.signed.version}
    metadata = {f"{number - back}.{role}.json" for role, number in numbers.items() for back in (0, 1)}
    states = [channel.targets, *_previous_targets(place / f"{numbers['targets'] - 1}.targets.json")]
    names = {f"{target.hashes['sha256']}.{name}" for state in states for name, target in state.signed.targets.items()}
    with disk_errors(channel.folder):
        _remove_others(place, metadata, _OURS)
        _remove_others(channel.folder / FILES, names, _OUR_FILE)


def _previous_targets(path: Path) -> list[Metadata[Targets]]:
    """Return the index before this one, which readers that came a moment earlier still follow."""
    from tuf.api.metadata import Metadata, Targets
    from tuf.api.serialization import DeserializationError

    try:
        return [Metadata[Targets].from_bytes(path.read_bytes())]
    except (OSError, DeserializationError):
        return []


def _remove_others(folder: Path, kept: set[str], ours: re.Pattern[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in kept and ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink()


def _after(before: Metadata[Any] | None) -> int:
    return 1 if before is None else before.signed.version + 1


def _signed(metadata: Metadata[Any], ring: KeyRing, role: RoleName) -> bytes:
    # replaced keys sign too, since clients read this before they know the new root
    for signer in (*ring.signers(role), *ring.retired_signers(role)):
        metadata.sign(signer, append=True)
    return _bytes(metadata)


def _bytes(metadata: Metadata[Any]) -> bytes:
    from tuf.api.serialization.json import JSONSerializer

    return metadata.to_bytes(JSONSerializer(compact=False, validate=True))


# --- A channel's next root: which keys clients follow from now on, signed so that they can.


_ROOT_DAYS = 730

_ROOT_RENEWED_DAYS = 180


def next_root(before: Channel | None, ring: KeyRing, now: datetime.datetime) -> Metadata[Root] | None:
    """Return the next root, signed by the old one's keys and its own, or None where the present one stays valid.

    Raises:
        IntegrityError: the keys are not this channel's, or too few of the replaced ones are available.
        EnvironmentProblem: a private key is not available.
    """
    from tuf.api.exceptions import UnsignedMetadataError
    from tuf.api.metadata import Metadata, Root

    expires = now + datetime.timedelta(days=_ROOT_DAYS)
    new = Root(1, expires=expires, consistent_snapshot=True)
    for role in ROLES:
        for key in ring.public(role):
            new.add_key(key, role)
        new.roles[role].threshold = ring.file.roles[role].threshold
    if before is not None:
        old = before.roots[-1].signed
        _check_ours(before, ring)
        _check_not_revoked(before, ring)
        lasting = old.expires - now > datetime.timedelta(days=_ROOT_RENEWED_DAYS)
        if lasting and all(_role(old, role) == _role(new, role) for role in ROLES):
            return None
        new.version = old.version + 1
    root = Metadata(new)
    for signer in (*ring.signers("root"), *ring.retired_signers("root")):
        root.sign(signer, append=True)
    # before anything is written that clients will follow
    try:
        for judge in (*(before.roots[-1:] if before else ()), root):
            judge.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except UnsignedMetadataError as err:
        what = "the channel's root keys did not sign the change: too few of the replaced keys are available"
        raise IntegrityError(
            what, "provide the replaced keys; clients accept a new root only when the old root's keys signed it"
        ) from err
    return root


def _check_ours(before: Channel, ring: KeyRing) -> None:
    """Refuse keys of another channel before they sign anything."""
    old = before.roots[-1].signed
    known = {key.keyid for key in ring.file.roles["root"].keys}
    known |= {key.keyid for key in ring.file.retired.get("root", ())}
    if not known & set(old.roles["root"].keyids):
        theirs = ", ".join(keyid[:8] for keyid in old.roles["root"].keyids)
        what = f"the keys in {ring.folder} are not those of {before.folder}, whose root keys are {theirs}"
        raise IntegrityError(what, "give the channel's own keys with --keys")


def _check_not_revoked(before: Channel, ring: KeyRing) -> None:
    """Refuse an older copy of the keys, which would put keys in charge again that a rotation took out."""
    now = before.roots[-1].signed
    for role in ROLES:
        present = set(now.roles[role].keyids)
        earlier = {keyid for root in before.roots[:-1] for keyid in root.signed.roles[role].keyids}
        if revoked := sorted({key.keyid for key in ring.file.roles[role].keys} & (earlier - present)):
            what = (
                f"revoked key: {before.folder} replaced the {role} key {revoked[0][:8]}, which {ring.folder} still has"
            )
            raise IntegrityError(what, "give the keys as they are after the rotation, not an older copy")


def _role(root: Root, role: RoleName) -> tuple[int, frozenset[str]]:
    return root.roles[role].threshold, frozenset(root.roles[role].keyids)
