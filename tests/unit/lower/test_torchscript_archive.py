"""Archives compacted: smaller, and the same model."""

from __future__ import annotations

import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from scheme_models import TOKENS, Language
from small_models import IMAGE, dataset, forward, loaded, quantized, small_net
from torch import nn
from torch.jit.mobile import _load_for_lite_interpreter

from edgeq.core.samples import batches
from edgeq.lower.layers import archive_elements
from edgeq.lower.torchscript_archive import compacted, strip_archive
from edgeq.quantize.fx import engine


def plain(graph, specs, backend, path):
    """Write an archive as PyTorch does, in the lite form where the suffix says so."""
    inputs = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs)
    with engine(backend):
        module = torch.jit.freeze(torch.jit.trace(graph, inputs, strict=False, check_trace=False).eval())
        lite = path.suffix == ".ptl"
        path.write_bytes(module._save_to_buffer_for_lite_interpreter() if lite else module.save_to_buffer())
    return path


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def compact(path):
    small = path.with_name(f"small{path.suffix}")
    small.write_bytes(path.read_bytes())
    strip_archive(small)
    return small


def outputs(load, path, specs, backend):
    with engine(backend):  # which packs the weights when they are loaded
        module = load(str(path))
    return [forward(module, backend)(batch) for batch in batches(dataset(specs, 3), specs)]


def assert_same(load, before, after, specs, backend):
    pairs = zip(*(outputs(load, path, specs, backend) for path in (before, after)), strict=True)
    for one, other in pairs:
        assert all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))
        assert all(np.ptp(array) > 0 for array in one)


@pytest.mark.parametrize(
    ("backend", "suffix"), [("x86", ".pt"), ("fbgemm", ".pt"), ("x86", ".ptl"), ("qnnpack", ".ptl")]
)
def test_outputs_are_equal_bit_by_bit_in_both_forms(tmp_path, backend, suffix):
    graph = quantized(small_net(), backend=backend).graph
    before = plain(graph, (IMAGE,), backend, tmp_path / f"model{suffix}")
    after = compact(before)
    assert after.stat().st_size < before.stat().st_size
    assert_same(torch.jit.load, before, after, (IMAGE,), backend)
    if suffix == ".ptl":
        assert_same(_load_for_lite_interpreter, before, after, (IMAGE,), backend)


def test_recurrent_layers_hold_layers_in_one_another(tmp_path):
    model = loaded(Language(nn.LSTM), TOKENS)
    before = plain(
        quantized(model, scheme="dynamic-int8", backend="x86").graph, (TOKENS,), "x86", tmp_path / "model.pt"
    )
    assert_same(torch.jit.load, before, compact(before), (TOKENS,), "x86")


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2))

    def forward(self, x):
        return self.up(self.down(x))


def test_settings_of_layers_that_differ_stay_their_own(tmp_path):
    graph = quantized(loaded(Transposed), backend="qnnpack").graph
    before = plain(graph, (IMAGE,), "qnnpack", tmp_path / "model.ptl")
    after = compact(before)
    assert_same(_load_for_lite_interpreter, before, after, (IMAGE,), "qnnpack")
    # four layers, of them two pairs: stride and groups differ between and in them
    assert dict(archive_elements(before))["int16"] == 2 * 4 * 11
    assert dict(archive_elements(after))["int16"] == 3 * 11


def test_what_is_repeated_is_stored_once(tmp_path):
    before = plain(quantized(small_net(), backend="x86").graph, (IMAGE,), "x86", tmp_path / "model.pt")
    was, now = (dict(archive_elements(path)) for path in (before, compact(before)))
    channels = 8 + 8 + 16 + 5
    assert (was["float64"], was["int64"], was["float32"]) == (channels, channels + 1, channels + 1)
    assert (now["int64"], now["float32"]) == (1 + 1, 2 * channels + 1)  # that of the input, one for all weights
    assert "float64" not in now
    assert now["int8"] == was["int8"]
    entries = Counter(data for name, data in contents(compact(before)).items() if "/constants/" in name)
    assert max(entries.values()) <= 2  # a zero point of the input may be 0 as well


class Twice(nn.Module):
    """A head that forward calls on two levels, as detectors do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.body(x)
        return self.head(y), self.head(nn.functional.avg_pool2d(y, 2))


@pytest.mark.parametrize(("backend", "suffix"), [("x86", ".pt"), ("qnnpack", ".ptl")])
def test_a_layer_that_is_called_twice_has_its_weights_once(tmp_path, backend, suffix):
    before = plain(quantized(loaded(Twice), backend=backend).graph, (IMAGE,), backend, tmp_path / f"model{suffix}")
    after = compact(before)
    assert_same(torch.jit.load, before, after, (IMAGE,), backend)
    if suffix == ".ptl":
        assert_same(_load_for_lite_interpreter, before, after, (IMAGE,), backend)
    assert dict(archive_elements(before))["int8"] == 8 * 9 * (3 + 2 * 8)
    assert dict(archive_elements(after))["int8"] == 8 * 9 * (3 + 8)


class Weighted(nn.Module):
    """A weight quantized by channel, beside the very tensors that say how."""

    def __init__(self, scales, zero_points):
        super().__init__()
        values = torch.linspace(-1, 1, 12).reshape(3, 4)
        weight = torch.quantize_per_channel(values, torch.tensor(scales), torch.tensor(zero_points), 0, torch.qint8)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", weight.q_per_channel_scales())
        self.register_buffer("zero_points", weight.q_per_channel_zero_points())

    def forward(self, x):
        weight = self.weight.dequantize()
        return x.mean((1, 2, 3))[:, None, None] * weight, self.scales / 3, self.zero_points + 0


THIRD = 1 / 3  # in no float32


@pytest.mark.parametrize(
    ("scales", "zero_points", "elements"),
    [  # the tensors beside the weight keep their dtypes: 3 float64, 3 int64
        ([0.5, 0.25, 0.125], [0, 0, 0], {"float32": 3, "float64": 3, "int64": 1 + 3}),
        ([0.5, 0.25, 0.125], [7, 7, 7], {"float32": 3, "float64": 3, "int64": 1 + 3}),
        ([0.5, 0.25, 0.125], [0, 1, 0], {"float32": 3, "float64": 3, "int64": 3 + 3}),
        ([THIRD, 0.25, 0.125], [0, 0, 0], {"float64": 3 + 3, "int64": 1 + 3}),
    ],
)
def test_only_what_is_exact_is_said_otherwise(tmp_path, scales, zero_points, elements):
    before = plain(Weighted(np.array(scales), zero_points), (IMAGE,), "x86", tmp_path / "model.pt")
    after = compact(before)
    results = (torch.jit.load(str(path))(torch.ones(1, 3, 2, 2)) for path in (before, after))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert dict(archive_elements(after)) == elements | {"int8": 12}


def test_it_is_deterministic_and_done_once(tmp_path):
    graph = quantized(small_net(), backend="x86").graph
    entries = contents(plain(graph, (IMAGE,), "x86", tmp_path / "model.pt"))
    small = compacted(entries)
    assert small == compacted(entries)
    assert list(small) == list(compacted(entries))
    assert compacted(small) == small


def test_an_archive_without_int8_layers_is_left_alone(tmp_path):
    entries = contents(plain(small_net().model, (IMAGE,), "x86", tmp_path / "model.pt"))
    assert compacted(entries) is entries
