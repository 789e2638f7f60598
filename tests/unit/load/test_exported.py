from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeq.core.errors import ExitCode, UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.demo import digits
from edgeq.load.model import load_model

FIXTURES = sorted(Path("tests/fixtures").glob("digits_torch*.pt2"))


def load(path, inputs=()):
    return load_model(str(path), weights=None, inputs=inputs, name=None, seed=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image, tokens):
        return self.norm(self.conv(image)) + tokens.sum()


IMAGE, TOKENS = torch.rand(2, 3, 8, 8), torch.tensor([[1, 40]])


def save(path, *args, kwargs=None, train=False, dynamic=None, memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    net = Net().train(train).to(memory_format=memory_format)
    program = torch.export.export(net, args or (IMAGE, TOKENS), kwargs, dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return net


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_programs_that_older_torch_wrote_give_the_same_outputs(path, caplog):
    model = load(path)
    assert model.kind == "exported"
    assert model.inputs == (TensorSpec(name="image", dtype="float32", shape=(1, 1, 32, 32)),)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.model.module()(image), digits.model()(image), rtol=1e-5, atol=1e-5)
    assert not [record for record in caplog.records if "error" in record.message.lower()]


def test_three_versions_of_torch_are_covered():
    assert len(FIXTURES) == 3


def test_only_that_logger_is_silenced_and_only_for_the_load():
    logging.getLogger("torch.export").setLevel(logging.INFO)
    load(FIXTURES[0])
    assert logging.getLogger("torch.export").level == logging.INFO
    logging.getLogger("torch.export").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"\0" * len(data), lambda data: data[:100]],
)
def test_a_damaged_program_is_the_users_error(tmp_path, damage):
    path = tmp_path / "model.pt2"
    path.write_bytes(damage(FIXTURES[-1].read_bytes()))
    with pytest.raises(UsageError, match=r"model\.pt2 is not a valid exported program") as caught:
        load(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "torch.export.save" in caught.value.fix


def test_a_dynamic_shape_is_a_range(tmp_path):
    save(tmp_path / "m.pt2", dynamic=({0: torch.export.Dim("batch", min=2, max=8)}, None))
    image, tokens = load(tmp_path / "m.pt2").inputs
    assert image.varying == (VaryingSize(axis=0, name="size0_0", least=2, most=8),)
    assert image.shape[0] == 8
    assert tokens.varying == ()


def test_a_dynamic_shape_without_a_bound_needs_one(tmp_path):
    save(tmp_path / "m.pt2", dynamic=({0: torch.export.Dim("batch")}, None))
    with pytest.raises(UsageError, match="sizes of input 'image' have no upper bound") as caught:
        load(tmp_path / "m.pt2")
    assert "--input image=float32:{size0_0=" in caught.value.fix
    assert "..MOST}x3x8x8" in caught.value.fix
    assert load(tmp_path / "m.pt2", ["image={batch=2..4}x3x8x8"]).inputs[0].shape == (4, 3, 8, 8)


def test_training_mode_is_refused_since_its_statistics_would_move(tmp_path):
    save(tmp_path / "m.pt2", train=True)
    with pytest.raises(UnsupportedError, match="exported in training mode"):
        load(tmp_path / "m.pt2")


def test_inputs_by_keyword_are_refused(tmp_path):
    save(tmp_path / "m.pt2", IMAGE, kwargs={"tokens": TOKENS})
    with pytest.raises(UnsupportedError, match="takes keyword inputs"):
        load(tmp_path / "m.pt2")


def test_channels_last_weights_are_put_right(tmp_path):
    net = save(tmp_path / "m.pt2", memory_format=torch.channels_last)
    assert not net.conv.weight.is_contiguous()
    program = load(tmp_path / "m.pt2").model
    assert all(tensor.is_contiguous() for tensor in program.state_dict.values())
    with torch.no_grad():
        torch.testing.assert_close(program.module()(IMAGE, TOKENS), net(IMAGE, TOKENS))


def test_the_range_of_integers_comes_from_the_example_or_from_the_command_line(tmp_path):
    save(tmp_path / "m.pt2")
    assert load(tmp_path / "m.pt2").inputs[1] == TensorSpec(name="tokens", dtype="int64", shape=(1, 2), high=40.0)
    named = load(tmp_path / "m.pt2", ["tokens=int64:1x2:5..99"]).inputs
    assert (named[1].low, named[1].high) == (5.0, 99.0)
    by_place = load(tmp_path / "m.pt2", ["2x3x8x8:-1..1"]).inputs
    assert (by_place[0].low, by_place[0].high) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2x3x9x9", "does not fit"),
        ("image=float64:2x3x8x8", "does not fit"),
        ("imagee=2x3x8x8", "Did you mean 'image'?"),
    ],
)
def test_inputs_that_the_program_does_not_take(tmp_path, text, told):
    save(tmp_path / "m.pt2")
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "m.pt2", [text])
    assert told in caught.value.what
