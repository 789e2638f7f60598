from __future__ import annotations

import hashlib

import numpy as np

from edgeq.load.selection import dataset_sha256, exclude, sample_digest


def test_digest_is_of_dtype_shape_and_bytes():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    expected = hashlib.sha256(b"int16[2, 3];" + array.astype("<i2").tobytes()).hexdigest()
    assert sample_digest([array]) == expected
    assert sample_digest([array.astype(">i2")]) == expected
    assert sample_digest([np.asfortranarray(array)]) == expected
    others = [array.reshape(3, 2), array.astype(np.int32), array + 1, np.zeros((0,), np.int16)]
    assert len({expected, *(sample_digest([other]) for other in others), sample_digest([array, array])}) == 6


def test_dataset_digest_depends_on_the_order(in_memory):
    arrays = [np.full(3, i, np.float32) for i in range(3)]
    assert dataset_sha256(in_memory(arrays)) == dataset_sha256(in_memory(arrays, title="other"))
    assert dataset_sha256(in_memory(arrays)) != dataset_sha256(in_memory(arrays[::-1]))


def test_exclude_drops_samples_by_digest(in_memory):
    data = in_memory([np.full(3, i, np.float32) for i in range(4)], labels=[0, 1, 2, 3])
    left = exclude(data, {data.read(0).digest, data.read(2).digest})
    assert [sample.label for sample in left] == [1, 3]
    assert left.count == 2
    assert left.labelled
    assert exclude(data, {data.read(i).digest for i in range(4)}).count == 0
