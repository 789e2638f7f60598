"""Which rows are repeats of others, and which only look like it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import sample

from edgeq.core.samples import Batch
from edgeq.verify.metrics import Repeats

few = settings(max_examples=15, deadline=None)


def keys_of(inputs, outputs, *, size=64):
    """Run the rows of inputs and outputs as samples of their own, in batches; outputs may be None."""
    repeats = Repeats()
    for start in range(0, len(inputs[0]), size):
        part = [array[start : start + size] for array in inputs]
        samples = tuple(sample(*rows) for rows in zip(*part, strict=True))
        given_ = None if outputs is None else tuple(array[start : start + size] for array in outputs)
        assert len(repeats.add(Batch(inputs=tuple(part), samples=samples), given_)) == len(samples)
    return repeats.keys()


def distinct(inputs, outputs):
    return len(set(keys_of(inputs, outputs)))


def logits(x, classes=2):
    """Scores of a seeded linear model."""
    flat = x.reshape(len(x), -1)
    return (flat @ np.random.default_rng(7).normal(size=(flat.shape[1], classes))).astype(np.float32)


def clusters(seed, count, times, width, scale=1.0):
    """Return random rows, each `times` times, and the number of each one's cluster."""
    x = np.random.default_rng(seed).uniform(-scale, scale, (count, width)).astype(np.float32)
    return np.tile(x, (times, 1)), np.tile(np.arange(count), times)


def noised(x, kind, strength=1e-6):
    noise = np.random.default_rng(3).normal(0, strength, x.shape)
    return (x * (1 + noise) if kind == "relative" else x + noise).astype(np.float32)


@few
@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 20),
    width=st.sampled_from([4, 33, 5000]),
    scale=st.sampled_from([1.0, 10.0, 255.0]),
    kind=st.sampled_from(["none", "relative", "absolute"]),
)
def test_copies_with_noise_that_no_model_sees_are_copies(seed, count, width, scale, kind):
    x, of = clusters(seed, count, 8, width, scale)
    x = x if kind == "none" else noised(x, kind)
    assert distinct([x], [logits(x)]) == len(set(of))


@few
@given(seed=st.integers(0, 99))
def test_the_order_of_the_samples_does_not_matter(seed):
    x, of = clusters(0, 12, 10, 8, 10.0)
    x = noised(x, "relative")
    order = np.random.default_rng(seed).permutation(len(x))
    keys = keys_of([x[order]], [logits(x[order])])
    assert len({*zip(keys, of[order].tolist(), strict=True)}) == len(set(keys)) == 12


def test_a_chain_of_small_steps_is_not_one_sample():
    x = np.ones((2000, 4), np.float32) * np.linspace(0, 1, 2000, dtype=np.float32)[:, None] ** 2 + 1
    assert distinct([x], [logits(x)]) > 1000


@few
@given(seed=st.integers(0, 99), inputs=st.sampled_from(["time", "pressure", "walk", "one-hot", "faint", "plain"]))
def test_honest_samples_with_saturated_scores_are_distinct(seed, inputs):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 32))
    if inputs == "time":
        x[:, 0] = 1.7e9 + 60 * np.arange(200)
    elif inputs == "pressure":
        x = 101325 + 5 * x
    elif inputs == "walk":
        steps = 20 + np.cumsum(rng.normal(0, 0.02, 300))
        x = np.stack([steps[i : i + 32] for i in range(200)])
    elif inputs == "one-hot":
        x = np.eye(200)[rng.permutation(200)]
    elif inputs == "faint":
        x *= np.where(np.arange(200) % 2, 1e-7, 1.0)[:, None]
    scores = np.tile(np.float32([0, 1]), (200, 1))
    assert distinct([x.astype(np.float32)], [scores]) == 200


def test_a_column_that_outweighs_all_is_left_to_the_outputs():
    x = np.full((300, 4), 1e6, np.float32)
    x[:, 0] += np.arange(300)
    x[:, 1] = 1e-3 * np.linspace(-1, 1, 300)
    assert distinct([x], [(1000 * x[:, 1:2] * [1, -1]).astype(np.float32)]) == 300


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_are_equal_or_not(dtype):
    tokens = (np.arange(2)[:, None] * np.eye(2, dtype=np.int64)).astype(dtype).repeat(50, axis=0)
    x = noised(np.ones((100, 4), np.float32), "relative")
    same = np.ones((100, 2), np.float32)
    assert distinct([x, tokens], [same]) == distinct([x], [same, tokens]) == 2
    assert distinct([tokens], [same]) == 2


def test_without_outputs_only_equal_bytes_are_copies():
    x = np.tile(np.float32([[1, 2], [3, 4]]), (4, 1))
    assert distinct([x], None) == 2
    assert distinct([np.float32([[1, 2], [1, 2.000001]])], None) == 2


def test_values_that_are_not_finite_hide_no_copies_of_others():
    x, _ = clusters(0, 6, 10, 8)
    x[::6, 3], x[1::6, 4] = np.nan, np.inf
    x = noised(x, "relative")
    assert distinct([x], [logits(np.nan_to_num(x, posinf=9.0))]) == 6


def test_rows_of_whole_samples_and_what_they_share():
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    repeats = Repeats()
    for time in (0.0, 0.0, 1.0):
        inputs = (noised(rows, "relative", 1e-6 * (1 + time)), np.float32([time]))
        batch = Batch(inputs=inputs, samples=(sample(*inputs),))
        assert len(repeats.add(batch, (logits(rows),))) == 3
    keys = repeats.keys()
    assert keys[:3] == keys[3:6]
    assert len(set(keys)) == 6


def test_padding_is_no_sample():
    x = np.float32([[1, 2], [3, 4], [3, 4]])
    repeats = Repeats()
    assert repeats.add(Batch(inputs=(x,), samples=(sample(x[0]), sample(x[1]))), (logits(x),)) == range(2)
    assert len(repeats.keys()) == 2


def images(count, shape=(3, 16, 16), seed=0):
    """Return smooth random pictures, uint8 [count, channels, H, W], all different."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, shape[0], shape[1] // 4, shape[2] // 4))
    return coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.uint8)


def one_step(x, share, seed=1):
    rng = np.random.default_rng(seed)
    moved = x + rng.choice([-1, 1], x.shape) * (rng.uniform(size=x.shape) < share)
    return np.clip(moved, 0, 255).astype(np.uint8)


def scores_of(x):
    return logits(x.astype(np.float64) / 255)


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 20])
def test_an_image_one_step_off_is_a_copy(share, count):
    x = np.concatenate([one_step(images(count), share, seed) for seed in range(6)])
    assert distinct([x], [scores_of(x)]) == count


def test_an_image_with_another_detail_or_another_answer_is_no_copy():
    x = np.concatenate([images(1)] * 2)
    x[1, :, 4:7, 4:7] ^= 0x40
    assert distinct([x], [np.ones((2, 2), np.float32)]) == 2
    near = np.concatenate([images(1), one_step(images(1), 1.0)])
    assert distinct([near], [np.float32([[1, 0], [0, 1]])]) == 2


@few
@given(seed=st.integers(0, 99), kind=st.sampled_from(["sensor", "table", "quiet", "classes", "pictures"]))
def test_honest_8_bit_samples_with_saturated_scores_are_distinct(seed, kind):
    rng = np.random.default_rng(seed)
    x = {
        "sensor": lambda: rng.integers(100, 104, (200, 32, 6)),
        "table": lambda: rng.permutation(2**16)[:200, None] >> np.arange(0, 16, 8) & 255,
        "quiet": lambda: 50 * np.arange(6) + (rng.uniform(size=(200, 32, 6)) < 0.05),
        "classes": lambda: rng.integers(0, 5, (200, 1, 16, 16)),
        "pictures": lambda: images(200, seed=seed),
    }[kind]().astype(np.uint8)
    assert distinct([x], [np.tile(np.float32([0, 1]), (200, 1))]) == 200


def test_ids_behind_the_end_of_a_mask_do_not_count():
    tokens = np.int64([[5, 6, 0, 0], [5, 6, 0, 9], [5, 6, 7, 0]]).repeat(2, axis=0)
    mask = np.int64([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).repeat(2, axis=0)
    same = np.ones((6, 2), np.float32)
    assert distinct([tokens, mask], [same]) == 2
    assert distinct([tokens], [same]) == 3
    # token types begin with 0, and every token counts
    assert distinct([tokens, 1 - mask], [same]) == 3
    seen = same + np.float32([0, 0, 1, 1, 0, 0])[:, None]
    assert distinct([tokens, mask], [seen]) == 3
