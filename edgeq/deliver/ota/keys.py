"""Signing keys: Ed25519 through securesystemslib's signers. Private keys never leave their file, variable or KMS.

A key folder holds `keys.json` (public keys, thresholds and the place of each private key). Private keys without an
external place are PEM files of mode 0600 in the same folder. A private key's place is `file:NAME` (beside keys.json),
`env:VARIABLE` (PEM text) or a URI of securesystemslib's (`awskms:…`, `gcpkms://…`, `azurekms://…`, `hsm:…`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError, first_line, nearest
from edgeq.core.files import canonical_json, disk_errors, lock_dir, write_atomic
from edgeq.core.marks import is_public_key

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer


RoleName = Literal["root", "targets", "snapshot", "timestamp"]

ROLES: tuple[RoleName, ...] = ("root", "targets", "snapshot", "timestamp")

FILE_NAME = "keys.json"

NO_KEY = "no-key"  # what a worker of a cluster trusts: its coordinator has asked the shared caches

_LOCK_S = 30.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyEntry(_Strict):
    """A key: its public part, and where the private one is."""

    keyid: str = Field(pattern=r"^[0-9a-f]{64}$")
    public: dict[str, Any]
    uri: str


class RoleKeys(_Strict):
    """The keys of a role."""

    threshold: int = Field(ge=1, le=16)
    keys: tuple[KeyEntry, ...] = Field(min_length=1, max_length=16)


class KeyFile(_Strict):
    """keys.json."""

    schema_version: Literal[1] = 1
    roles: dict[RoleName, RoleKeys]
    retired: dict[RoleName, tuple[KeyEntry, ...]] = Field(
        default_factory=dict, description="replaced keys, which sign once more so that clients accept the change"
    )

    def model_post_init(self, _context: object) -> None:
        """Check the roles and their thresholds, which no single field can check."""
        if set(self.roles) != set(ROLES):
            raise ValueError(f"expected the roles {', '.join(ROLES)}")
        for role, keys in self.roles.items():
            count = len({canonical_json(key.public.get("keyval")) for key in keys.keys})
            if keys.threshold > count:
                raise ValueError(f"{role}: the threshold is {keys.threshold}, and there are {count} keys")


class KeyRing:
    """The keys in a folder."""

    def __init__(self, folder: Path, file: KeyFile) -> None:
        self.folder = folder
        self.file = file

    def signers(self, role: RoleName) -> list[Signer]:
        """Return the signers of a role whose private keys are available: at least its threshold.

        Raises:
            EnvironmentProblem: fewer than the threshold are available.
            IntegrityError: other users may read a private key, or it belongs to another public key.
        """
        keys = self.file.roles[role]
        found = [signer for key in keys.keys if (signer := self._signer(key)) is not None]
        if len(found) < keys.threshold:
            places = ", ".join(_safe(key.uri) for key in keys.keys)
            what = f"{len(found)} private keys for {role} are available, {keys.threshold} must sign (places: {places})"
            raise EnvironmentProblem(what, "provide the key file or set the variable, and run again")
        return found

    def retired_signers(self, role: RoleName) -> list[Signer]:
        """Return the signers of a role's replaced keys that are still available."""
        keys = self.file.retired.get(role, ())
        return [signer for key in keys if (signer := self._signer(key)) is not None]

    def public(self, role: RoleName) -> list[Key]:
        """Return a role's public keys."""
        return [_public(key) for key in self.file.roles[role].keys]

    def _signer(self, key: KeyEntry) -> Signer | None:
        """Return the key's signer; None where its file or variable is not there."""
        scheme, _, place = key.uri.partition(":")
        if scheme == "env":
            text = os.environ.get(place)
            return None if not text else _from_pem(text.encode(), key)
        if scheme == "file":
            data = _read_private(self.folder / place)
            return None if data is None else _from_pem(data, key)
        return _from_uri(key)


def load_keys(folder: Path) -> KeyRing:
    """Return the keys in a folder.

    Raises:
        UsageError: the folder has no keys.
        IntegrityError: keys.json does not have edgeq's format.
    """
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as err:
        what = f"no keys in {folder}: {path.name}: {err.strerror}"
        raise UsageError(what, f"create keys with `edgeq keys new {folder}`, or give their folder with --keys") from err
    try:
        return KeyRing(folder, KeyFile.model_validate_json(data))
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        what = f"{path} does not have edgeq's format: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(what, "restore it from a backup") from err


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Keys that must sign.

    Attributes:
        threshold: how many of them.
    """

    threshold: int
    keys: tuple[Key, ...]

    def have_signed(self, content: bytes, signatures: Sequence[str]) -> bool:
        """Whether enough of the keys made one of the signatures each; a key that is listed twice counts once."""
        from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
        from securesystemslib.signer import Signature

        signers = set()
        for key in self.keys:
            for signature in signatures:
                with contextlib.suppress(UnverifiedSignatureError, VerificationError, ValueError, KeyError, TypeError):
                    key.verify_signature(Signature(key.keyid, signature), content)
                    signers.add(canonical_json(key.keyval))
                    break
        return len(signers) >= self.threshold


def trusted_signers(names: Iterable[str]) -> list[Trusted]:
    """Return whom the names of `--cache-trust` trust, each by itself.

    A name is a public key in hexadecimal, a folder, whose keys for targets count with their threshold, or NO_KEY.

    Raises:
        UsageError: a folder has no keys.
        IntegrityError: a key is not valid.
    """
    found: list[Trusted] = []
    for name in names:
        if name == NO_KEY:
            found.append(Trusted(threshold=1, keys=()))
        elif is_public_key(name):
            scheme = "ed25519"
            public = {"keytype": scheme, "scheme": scheme, "keyval": {"public": name}}
            found.append(Trusted(threshold=1, keys=(_public(KeyEntry(keyid=name, public=public, uri="")),)))
        else:
            ring = load_keys(Path(name))
            threshold = ring.file.roles["targets"].threshold
            found.append(Trusted(threshold=threshold, keys=tuple(ring.public("targets"))))
    return found


def new_keys(folder: Path, *, counts: Mapping[RoleName, tuple[int, int]], places: Mapping[RoleName, str]) -> KeyRing:
    """Make a key for each role, and write them.

    Args:
        folder: takes keys.json and the private keys; must not have any yet.
        counts: threshold and number of keys, for roles that need more than one.
        places: the URI of an existing external private key, by role.

    Raises:
        UsageError: the folder already has keys, or a place is not valid.
        EnvironmentProblem: it cannot be written to.
    """
    with disk_errors(folder), lock_dir(folder, wait_s=_LOCK_S):
        if (folder / FILE_NAME).exists():
            raise UsageError(f"{folder} has keys already", "choose another folder, or see `edgeq keys rotate`")
        folder.chmod(0o700)
        roles = {}
        for role in ROLES:
            threshold, count = counts.get(role, (1, 1))
            elsewhere = places.get(role)
            keys = tuple(
                _external_key(elsewhere, role) if elsewhere is not None else _generate(folder, f"{role}-{number}")
                for number in range(1, count + 1)
            )
            roles[role] = RoleKeys(threshold=threshold, keys=keys)
        return save_keys(folder, KeyFile(roles=roles))


def rotated(ring: KeyRing, role: RoleName) -> KeyRing:
    """Replace a role's keys by new ones, and keep the old ones to sign the change with; the caller publishes it.

    Raises:
        EnvironmentProblem: the folder cannot be written to.
    """
    old = ring.file.roles[role]
    with disk_errors(ring.folder), lock_dir(ring.folder, wait_s=_LOCK_S):
        first = 1 + max(_numbers(ring.folder, role), default=0)
        new = tuple(_generate(ring.folder, f"{role}-{first + i}") for i in range(len(old.keys)))
        file = ring.file.model_copy(
            update={
                "roles": {**ring.file.roles, role: RoleKeys(threshold=old.threshold, keys=new)},
                "retired": {**ring.file.retired, role: (*ring.file.retired.get(role, ()), *old.keys)},
            }
        )
        return save_keys(ring.folder, file)


def forget_retired(ring: KeyRing) -> KeyRing:
    """Drop replaced keys, and their files, once a channel no longer names them."""
    gone = [key for keys in ring.file.retired.values() for key in keys]
    with disk_errors(ring.folder), lock_dir(ring.folder, wait_s=_LOCK_S):
        kept = save_keys(ring.folder, ring.file.model_copy(update={"retired": {}}))
        for key in gone:
            if key.uri.startswith("file:"):
                (ring.folder / key.uri.removeprefix("file:")).unlink(missing_ok=True)
    return kept


def save_keys(folder: Path, file: KeyFile) -> KeyRing:
    """Write keys.json; it holds no secret."""
    write_atomic(folder / FILE_NAME, canonical_json(file.model_dump(mode="json")))
    return KeyRing(folder, file)


def _numbers(folder: Path, role: str) -> list[int]:
    stems = (path.stem.removeprefix(f"{role}-") for path in folder.glob(f"{role}-*.pem"))
    return [int(stem) for stem in stems if stem.isdecimal()]


def _generate(folder: Path, name: str) -> KeyEntry:
    from securesystemslib.signer import CryptoSigner

    signer = CryptoSigner.generate_ed25519()
    path = folder / f"{name}.pem"
    path.unlink(missing_ok=True)  # of a run that was killed before it wrote keys.json
    # created with its final mode: there is no moment in which others could read it
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(signer.private_bytes)
        file.flush()
        os.fsync(file.fileno())
    return _entry(signer.public_key, f"file:{path.name}")


def _entry(public: Key, uri: str) -> KeyEntry:
    return KeyEntry(keyid=public.keyid, public=public.to_dict(), uri=uri)


def _external_key(uri: str, role: str) -> KeyEntry:
    """Return the entry of a key that is in a variable or a KMS; the public part is asked from there."""
    scheme, _, place = uri.partition(":")
    if scheme == "env":
        text = os.environ.get(place)
        if not text:
            raise UsageError(f"{role}: the variable {place} is not set", "set it to the key's PEM text")
        return _entry(_signer_of(text.encode(), uri).public_key, uri)
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME

    if scheme not in SIGNER_FOR_URI_SCHEME or scheme == "file2":
        known = ("env", *sorted(set(SIGNER_FOR_URI_SCHEME) - {"file2"}))
        what = f"{role}: unknown place {_safe(uri)!r} for a private key.{nearest(scheme, known)}"
        raise UsageError(what, f"use env:VARIABLE, or one of securesystemslib's: {', '.join(known)}")
    try:
        # KMS signers import by the part after the scheme; their libraries are not edgeq's dependencies
        _, public = SIGNER_FOR_URI_SCHEME[scheme].import_(place.removeprefix("//"))  # type: ignore[attr-defined]
    except Exception as err:  # each KMS has errors of its own
        what = f"{role}: cannot reach the key at {_safe(uri)}: {type(err).__name__}"
        raise EnvironmentProblem(what, "check the credentials, and install the library that the signer needs") from err
    return _entry(public, uri)


def _public(entry: KeyEntry) -> Key:
    from securesystemslib.signer import Key

    try:
        return Key.from_dict(entry.keyid, dict(entry.public))
    except Exception as err:  # KeyError, ValueError and the library's own
        raise IntegrityError(f"keys.json: the public key {entry.keyid[:8]} is not valid", "restore the file") from err


def _read_private(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise EnvironmentProblem(f"cannot read the key {path}: {err.strerror}", "check who owns it") from err
    with os.fdopen(fd, "rb") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise IntegrityError(
                (f"the private key {path} is readable by other users"), f"chmod 600 {path}, or make new keys"
            )
        return file.read(65_536)


def _signer_of(data: bytes, place: str) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        return CryptoSigner(load_pem_private_key(data, None))
    except Exception:  # nothing of a key may reach a message, so neither does the cause
        what = f"the private key at {_safe(place)} is not a PEM private key"
    raise IntegrityError(what, "restore it, or make new keys")


def _from_pem(data: bytes, key: KeyEntry) -> Signer:
    signer = _signer_of(data, key.uri)
    if signer.public_key.keyval != _public(key).keyval:
        what = f"the private key at {_safe(key.uri)} does not belong to the public key {key.keyid[:8]}"
        raise IntegrityError(what, "provide the matching private key")
    signer.public_key.keyid = key.keyid
    found: Signer = signer
    return found


def _from_uri(key: KeyEntry) -> Signer:
    from securesystemslib.signer import Signer

    try:
        return Signer.from_priv_key_uri(key.uri, _public(key))
    except Exception as err:  # each KMS has errors of its own
        what = f"cannot sign with {_safe(key.uri)}: {type(err).__name__}: {first_line(err, 120)}"
        raise EnvironmentProblem(what, "check the credentials, and install the library that the signer needs") from err


def _safe(uri: str) -> str:
    """Return a place without a query, which may hold a PIN."""
    return uri.partition("?")[0][:120]
