from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from edgeq.core.errors import VerificationError
from edgeq.verify.emulate.runner import DTYPES, read_samples, write_samples

ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: arrays_of.arrays(
        np.dtype(name), arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
SAMPLES = st.lists(st.lists(ARRAYS, max_size=3).map(tuple), max_size=3).map(tuple)
ANY_FOLDER = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@ANY_FOLDER
@given(samples=SAMPLES)
def test_round_trip(tmp_path, samples):
    path = tmp_path / "samples"
    write_samples(path, samples)
    back = read_samples(path)
    assert [len(sample) for sample in back] == [len(sample) for sample in samples]
    for left, right in zip((a for s in samples for a in s), (a for s in back for a in s), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()


@ANY_FOLDER
@given(samples=SAMPLES, cut=st.floats(0, 1, exclude_max=True))
def test_a_torn_file_is_refused(tmp_path, samples, cut):
    path = tmp_path / "samples"
    write_samples(path, samples)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(VerificationError, match="not a container of samples"):
        read_samples(path)


@ANY_FOLDER
@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_read(tmp_path, noise):
    path = tmp_path / "samples"
    path.write_bytes(b"EDGEQT1\n" + noise)
    with contextlib.suppress(VerificationError):  # and nothing else
        read_samples(path)


def test_what_no_model_takes_is_an_error_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="complex"):
        write_samples(tmp_path / "samples", ((np.zeros(3, np.complex64),),))
