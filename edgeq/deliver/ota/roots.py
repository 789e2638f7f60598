"""A channel's next root: which keys clients follow from now on, signed so that they can."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from edgeq.deliver.ota.keys import ROLES, KeyRing, RoleName
from edgeq.errors import IntegrityError

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root

    from edgeq.deliver.ota.channel import Channel

_ROOT_DAYS = 730
_ROOT_RENEWED_DAYS = 180


def next_root(before: Channel | None, ring: KeyRing, now: datetime.datetime) -> Metadata[Root] | None:
    """Return the next root, signed by the old one's keys and its own, or None where the present one stays.

    Raises:
        IntegrityError: the keys are not this channel's, or too few of the replaced ones are at hand.
        EnvironmentProblem: a private key is not at hand.
    """
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
    _check_chain(before, root)
    return root


def _check_chain(before: Channel | None, root: Metadata[Root]) -> None:
    """Check before anything is written that clients will follow."""
    from tuf.api.exceptions import UnsignedMetadataError

    try:
        for judge in (*(before.roots[-1:] if before else ()), root):
            judge.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except UnsignedMetadataError as err:
        what = "the channel's root keys did not sign the change: too few of the replaced ones are at hand"
        raise IntegrityError(
            what, "bring them; clients follow a new root only when the old one's keys signed it"
        ) from err


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
            raise IntegrityError(what, "give the keys as they are since the rotation, not an older copy of them")


def _role(root: Root, role: RoleName) -> tuple[int, frozenset[str]]:
    return root.roles[role].threshold, frozenset(root.roles[role].keyids)
