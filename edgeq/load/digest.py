"""What identifies a sample and a set of samples, whatever file they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.samples import Dataset


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
    """Return `dataset` without the samples whose digest is among `digests`; it reads every sample once."""
    kept = tuple(i for i, sample in enumerate(dataset) if sample.digest not in digests)
    return replace(dataset, count=len(kept), read=lambda i: dataset.read(kept[i]))
