"""What a device's store says of itself: its two files, and how one state follows from another. No I/O."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeq.deliver.ota.facts import DeviceId, Release
from edgeq.deliver.ota.trusted import Seen
from edgeq.errors import UsageError, VerificationError
from edgeq.manifest import Count, Sha256, Slug

MAX_TRIES = 3
MAX_STARTS = 3
_MOST_BAD = 100


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DeviceFacts(_Strict):
    """device.json."""

    schema_version: Literal[1] = 1
    device_id: DeviceId
    model: Slug
    target: Slug
    runtime: str | None = Field(description="the runtime version of the app build; None: not told")


class Slot(_Strict):
    """A release on the device."""

    release: Release
    digest: Sha256


class Current(Slot):
    """The release that the app loads."""

    healthy: bool = False
    starts: Count = 0


class Trying(Slot):
    """A release whose first load was begun."""

    tries: Count


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
    patching: Sha256 | None = Field(default=None, description="of the patch that was begun, and gave no release yet")
    seen: SeenFacts = SeenFacts()


def with_seen(state: State, seen: Seen) -> State:
    """Return the state with what was verified last."""
    return state.model_copy(update={"seen": SeenFacts(**dataclasses.asdict(seen))})


def seen_of(state: State) -> Seen:
    """Return what was verified last."""
    return Seen(**state.seen.model_dump())


def switched(state: State, slot: Slot) -> State:
    """Return the state after a release passed its self-test: the one before is kept."""
    before = state.current
    current = Current(release=slot.release, digest=slot.digest)
    keeps = before if before is not None and before.healthy else state.previous or before
    previous = Slot(release=keeps.release, digest=keeps.digest) if keeps is not None else None
    return state.model_copy(update={"current": current, "previous": previous, "trying": None, "patching": None})


def given_up(state: State, release: int) -> State:
    """Return the state after a release failed too often: it is not tried again."""
    bad = (*(one for one in state.bad if one != release), release)[-_MOST_BAD:]
    return state.model_copy(update={"trying": None, "bad": bad})


def rolled_back(state: State, why: str) -> State:
    """Return the state with the previous release current again, and the present one never tried again.

    Raises:
        VerificationError: there is none to go back to.
    """
    if state.current is None or state.previous is None:
        raise VerificationError(f"{why}, and there is no previous release to go back to", "use the app's own model")
    before = state.previous
    current = Current(release=before.release, digest=before.digest, healthy=True)
    bad = (*state.bad, state.current.release)[-_MOST_BAD:]
    return state.model_copy(update={"current": current, "previous": None, "trying": None, "bad": bad})


def healthy(state: State) -> State:
    """Return the state after the app said that the current release works.

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
