"""Records of a model with state: sequences, their labels, and the first value of each state."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.config import DataConfig
from edgeq.core.errors import UsageError
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import LoadedModel, TensorSpec, VaryingSize
from edgeq.core.samples import unrolled
from edgeq.load.dataset import open_dataset
from edgeq.load.inputs import parse_states, random_sequences, with_states
from edgeq.load.live import LiveObjects
from edgeq.load.live import open_dataset as open_live
from edgeq.load.records import Reading, to_sample

X = TensorSpec(name="x", dtype="float32", shape=(1, 3))
H = TensorSpec(name="h", dtype="float32", shape=(2, 1, 4))
SPECS = (X, TensorSpec(name="h", dtype="float32", shape=(2, 1, 4), fed_from=1))
READING = Reading(specs=SPECS, preprocess=None)


def frames(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 3)])
def test_a_sequence_has_whole_steps_and_starts_from_zero(shape):
    sample = to_sample({"x": frames(*shape)}, None, "s", READING)
    assert [array.shape for array in sample.inputs] == [(5, 1, 3), (2, 1, 4)]
    assert not sample.inputs[1].any()
    steps = list(unrolled(data_of(sample), SPECS, None))
    assert [float(one.inputs[0][0, 0]) for one in steps] == [0, 3, 6, 9, 12]
    assert all(raw is ready for one in steps for raw, ready in zip(one.raw, one.inputs, strict=True))


def data_of(sample):
    from edgeq.core.samples import Dataset

    return Dataset(origin="one", count=1, read=lambda _: sample)


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4)])
def test_data_may_give_the_first_state(shape):
    sample = to_sample({"x": frames(5, 3), "h": np.ones(shape)}, None, "s", READING)
    assert sample.inputs[1].shape == (2, 1, 4)
    assert sample.inputs[1].all()
    assert sample.digest != to_sample({"x": frames(5, 3)}, None, "s", READING).digest


@pytest.mark.parametrize(
    ("record", "label", "text"),
    [
        ({"x": frames(3)}, None, r"input 'x' expects a sequence of steps, \[steps, 3\], got \[3\]"),
        ({"x": frames(5, 2)}, None, r"s step 0: input 'x' expects \[3\] per sample, got \[2\]"),
        ({"x": frames(0, 3)}, None, "expected as many steps of every input, at least one, got x: 0"),
        ({"x": frames(5, 3)}, 1, "expected a label for each of 5 steps, got one for all"),
        ({"x": frames(5, 3)}, np.zeros(4), "expected a label for each of 5 steps, got 4"),
        ({"x": frames(5, 3), "h": np.ones((2, 5))}, None, r"input 'h' expects \[2, 1, 4\], got \[2, 5\]"),
        ({"x": frames(5, 3).astype(np.int16)}, None, "input 'x' expects float32, got int16"),
    ],
)
def test_what_is_not_a_sequence_is_named(record, label, text):
    with pytest.raises(UsageError, match=text):
        to_sample(record, label, "s", READING)


def test_images_are_preprocessed_step_by_step():
    specs = (TensorSpec(name="image", dtype="float32", shape=(1, 3, 4, 4)), SPECS[1])
    sample = to_sample(
        {"image": np.full((2, 4, 4, 3), 255, np.uint8)}, None, "s", Reading(specs=specs, preprocess=Preprocess())
    )
    first, second = unrolled(data_of(sample), specs, None)
    assert first.inputs[0].shape == second.inputs[0].shape == (1, 3, 4, 4)
    assert first.raw[0].shape == (4, 4, 3)


def test_files_functions_and_live_data_give_sequences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"specs": SPECS, "preprocess": None, "options": DataConfig(), "limit": None, "seed": 0}
    np.savez("d.npz", x=frames(4, 6, 3), y=np.zeros((4, 6), int))
    data, _ = open_dataset("d.npz", role="evaluation", **options)
    assert (data.count, data.labelled, data.read(1).label) == (4, True, (0,) * 6)
    (tmp_path / "f.py").write_text(
        "import numpy as np\ndef pairs():\n    return [(np.zeros((n, 3), np.float32), [1] * n) for n in (2, 7)]\n"
    )
    data, _ = open_dataset("f.py:pairs", role="evaluation", **options)
    assert [len(one.inputs[0]) for one in data] == [2, 7]
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="a model with --state takes sequences, but images is a folder"):
        open_dataset("images", role="calibration", **options)
    with LiveObjects() as live:
        # as many axes as the model's input: of another model it would be a batch
        name = live.add_data("evaluation", [frames(5, 3), frames(6, 3)])
        assert [len(one.inputs[0]) for one in open_live(name, role="evaluation", **options)[0]] == [5, 6]


def test_random_sequences_are_seeded_and_start_from_zero():
    one, other = (random_sequences(SPECS, 2, 3, seed, None) for seed in (0, 1))
    assert one.read(1).digest == random_sequences(SPECS, 2, 3, 0, None).read(1).digest != other.read(1).digest
    assert one.read(0).inputs[0].shape == (3, 1, 3)
    assert not one.read(0).inputs[1].any()


@pytest.mark.parametrize("text", ["h", "h=", "=h_out", ""])
def test_a_state_names_an_input_and_an_output(text):
    with pytest.raises(UsageError, match=r"expected the name of an input, =, and the name or index of an output"):
        parse_states([text])
    with pytest.raises(UsageError, match="'h' is fed from 1 already"):
        parse_states(["h=1", "h=2"])


def model(*specs, names=()):
    return LoadedModel(
        name="m",
        kind="module",
        model=None,
        inputs=specs,
        weights="own",
        fp32_bytes=0,
        source_sha256="0" * 64,
        output_names=names,
    )


OUTPUTS = (
    TensorSpec(name="output0", dtype="float32", shape=(1, 2)),
    TensorSpec(name="output1", dtype="float32", shape=(2, 1, 4)),
)


@pytest.mark.parametrize(("text", "names"), [("h=1", ()), ("h=output1", ()), ("h=h_out", ("y", "h_out"))])
def test_states_are_marked(text, names):
    marked = with_states(model(X, H, names=names), [text], OUTPUTS)
    assert [spec.fed_from for spec in marked.inputs] == [None, 1]


@pytest.mark.parametrize(
    ("specs", "texts", "text"),
    [
        ((X, H), ["g=1"], "the model has no input 'g'"),
        ((X, H), ["h=h_outt"], "the model has no output 'h_outt'"),
        ((X, H), ["h=2"], "the model has no output '2'"),
        ((X, H), ["h=0"], r"the input takes float32 \[2, 1, 4\], but the output is float32 \[1, 2\]"),
        ((X, TensorSpec(name="h", dtype="int64", shape=(2, 1, 4))), ["h=1"], "takes int64"),
        ((H,), ["h=1"], "--state names every input"),
        (
            (
                TensorSpec(
                    name="x", dtype="float32", shape=(1, 9), varying=(VaryingSize(axis=1, name="t", least=2, most=9),)
                ),
                H,
            ),
            ["h=1"],
            "--state needs inputs of one size, but t varies",
        ),
    ],
)
def test_wrong_states_are_refused(specs, texts, text):
    with pytest.raises(UsageError, match=text):
        with_states(model(*specs), texts, OUTPUTS)
