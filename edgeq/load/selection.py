"""Which samples of a larger set are taken: seeded, so that the same command takes the same ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from edgeq.core.errors import UsageError
from edgeq.core.lazy import NDArray, np
from edgeq.core.samples import Dataset


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Return the random generator of a seed; each `stream` of it is independent of the others.

    Raises:
        UsageError: the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"expected a seed of 0 or more, got {seed}", "give a --seed of 0 or more")
    return np.random.default_rng([seed, *stream])


def choose(
    count: int,
    *,
    limit: int | None,
    seed: int,
    classes: Sequence[Hashable] | None,
    usable: Callable[[int], bool] = lambda _: True,
) -> tuple[int, ...]:
    """Return the indices of at most `limit` usable samples in rising order, the classes as even as they can be.

    Args:
        count: how many samples there are.
        limit: how many are wanted; None for all.
        seed: picks them where there are more than wanted.
        classes: the class of each sample, or None where there are no classes.
        usable: asked for a sample before it is taken; once it refuses, the next one takes its place.

    Raises:
        UsageError: `limit` is not positive, or the seed is negative.
    """
    if limit is None or limit >= count > 0:
        return tuple(i for i in range(count) if usable(i))
    if limit < 1:
        raise UsageError(f"expected at least 1 sample, got {limit}", "give a number of 1 or more")
    taken: list[int] = []
    for i in _priority(count, seed, classes):
        if len(taken) == limit:
            break
        if usable(i):
            taken.append(i)
    return tuple(sorted(taken))


def _priority(count: int, seed: int, classes: Sequence[Hashable] | None) -> list[int]:
    """Shuffle; then the first of every class, the second of every class, and so on."""
    order: list[int] = generator(seed).permutation(count).tolist()
    if classes is None:
        return order
    seen: Counter[Hashable] = Counter()
    turn: dict[int, int] = {}
    for i in order:
        turn[i] = seen[classes[i]]
        seen[classes[i]] += 1
    return sorted(order, key=turn.__getitem__)


# --- What identifies a sample and a set of samples, whatever file they came in.


def sample_digest(raw: Iterable[NDArray[Any]]) -> str:
    """Return the SHA-256 of a sample's raw arrays: dtype, shape and bytes (little-endian) of each, in order."""
    digest = hashlib.sha256()
    for array in raw:
        digest.update(f"{array.dtype.name}{list(array.shape)};".encode())
        digest.update(np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").tobytes())
    return digest.hexdigest()


def dataset_sha256(dataset: Dataset) -> str:
    """Return the SHA-256 over the samples' digests, in order, since histogram observers depend on the order."""
    digest = hashlib.sha256()
    for sample in dataset:
        digest.update(bytes.fromhex(sample.digest))
    return digest.hexdigest()


def exclude(dataset: Dataset, digests: Collection[str]) -> Dataset:
    """Return `dataset` without the samples whose digest, or whose sequence's, is among `digests`; it reads all once."""
    kept = tuple(i for i, one in enumerate(dataset) if one.digest not in digests and one.source not in digests)
    return replace(dataset, count=len(kept), read=lambda i: dataset.read(kept[i]))
