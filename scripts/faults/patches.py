"""Patches by both algorithms: round trips are byte-exact; mutated ones and wrong bases are refused, or byte-exact."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .tally import Outcome, Row, Trials

if TYPE_CHECKING:
    from edgeq.deliver.ota.patch import Patch

_KEPT = 50  # patches that are mutated again and again


@contextlib.contextmanager
def _round_trips(_root: Path, _count: int | None) -> Iterator[Trials]:
    def trial(number: int) -> Outcome:
        from edgeq.deliver.ota.patch import apply_patch

        patch, base, new = _made(number)
        right = apply_patch(patch, base) == new
        return Outcome(seen=f"{patch.algorithm}, byte-exact") if right else Outcome(seen="WRONG", wrong="other bytes")

    yield Trials(run=trial)


@contextlib.contextmanager
def _mutated(_root: Path, _count: int | None) -> Iterator[Trials]:
    made = [one for one in map(_made, range(_KEPT)) if one[0].data]
    yield Trials(run=lambda number: _trial(*made[number % len(made)], random.Random(f"patch-{number}")))


def _trial(patch: Patch, base: bytes, new: bytes, rng: random.Random) -> Outcome:
    from edgeq.core.errors import EdgeqError
    from edgeq.deliver.ota.patch import apply_patch

    kind = rng.randrange(6)
    data, start = bytearray(patch.data), base
    if kind == 0:
        start = rng.choice(
            (base + b"x", base[1:] if base else b"x", bytes(len(base)) if any(base) else b"x", new + b"y")
        )
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if kind == 1:
            del data[rng.randrange(len(data)) :]
    what = "wrong base" if kind == 0 else f"mutated {patch.algorithm}"
    try:
        right = apply_patch(dataclasses.replace(patch, data=bytes(data)), start) == new
    except EdgeqError as err:
        return Outcome(seen=f"{what}: refused, exit {int(err.exit_code)}")
    return Outcome(seen=f"{what}: byte-exact") if right else Outcome(seen="WRONG", wrong=f"{what}: other bytes")


def _made(number: int) -> tuple[Patch, bytes, bytes]:
    """Return a patch with its base and output: pieces put in and out, or, every other time, values a step away."""
    from edgeq.deliver.ota.patch import make_patch

    rng = random.Random(f"round-trip-{number}")
    base = bytes(int(rng.gauss(0, 20)) & 255 for _ in range(rng.choice((0, 1, 100, 3000, 20_000))))
    new = bytearray(base)
    if number % 2:  # as a model that was tuned a little: what bsdiff4 is best at
        for at in rng.sample(range(len(new)), len(new) // 12):
            new[at] = (new[at] + rng.choice((-1, 1))) & 255
    else:
        for _ in range(rng.randrange(60)):
            at = rng.randrange(len(new) + 1)
            new[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return make_patch(base, bytes(new)), base, bytes(new)


ROWS = (
    Row(name="round-trips", full=1000, open=_round_trips),
    Row(name="patches", full=5000, open=_mutated),
)
