"""Inputs and outputs in containers: every form is flattened, and gives what the module itself gives."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch
import torchvision
from torch import nn

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.load.inputs import parse_input
from edgeq.load.structure import adapted, call_with_examples, call_with_specs, sized_by_data, with_bounds

X, H, C = torch.rand(2, 3), torch.rand(1, 4), torch.rand(1, 5)

Pair = collections.namedtuple("Pair", "hidden cell")  # as torch's own are


@dataclasses.dataclass
class Detection:
    boxes: torch.Tensor
    scores: torch.Tensor | None = None


class Answer(nn.Module):
    """Answers with what a function makes of its arguments."""

    def __init__(self, function, forward):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function
        type(self).forward = forward


def positional(self, x, mask=None, lengths=None, *, scale=None):
    return self.function(x, mask, lengths, scale)


def nested(self, batch, state):
    return self.function(batch, state)


def anything(self, *args, **kwargs):
    return self.function(*args, **kwargs)


def made(function, forward):
    kind = type("Answer", (Answer,), {})
    return kind(function, forward).eval()


@pytest.mark.parametrize(
    ("forward", "examples", "names"),
    [
        (positional, X, ("x",)),
        (positional, (X, H), ("x", "mask")),
        (positional, {"x": X, "lengths": H}, ("x", "lengths")),
        (positional, (X, None, H), ("x", "lengths")),
        (positional, ((X,), {"scale": H}), ("x", "scale")),
        (
            positional,
            (
                X,
                H,
                C,
            ),
            ("x", "mask", "lengths"),
        ),
        (nested, ({"imu": X, "gps": H}, (H, C)), ("imu", "gps", "state_0", "state_1")),
        (nested, {"batch": {"state": X}, "state": Pair(H, C)}, ("batch_state", "state_0", "state_1")),
        (nested, ([X, {"a": H}], [{"a": C}, 3, True]), ("batch_0", "batch_1_a", "state_0_a")),
        (nested, (collections.OrderedDict({"a b": X, "class": C}), H), ("a_b", "_class", "state")),
        (anything, (X, H), ("input0", "input1")),
        (anything, {"x": X, "y": H}, ("x", "y")),
    ],
)
def test_each_form_of_inputs_reaches_forward_as_it_was(forward, examples, names):
    seen = []
    module = made(lambda *args, **kwargs: seen.append((args, kwargs)) or X, forward)
    call = call_with_examples(module, examples, "net.py:model")
    assert tuple(spec.name for spec in call.specs) == names
    given = [torch.full(spec.shape, float(i)) for i, spec in enumerate(call.specs)]
    flat, _ = adapted(module, call, 0)
    flat(*given)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(seen[-1]) if isinstance(leaf, torch.Tensor)]
    assert len(leaves) == len(given)
    assert all(torch.equal(leaf, value) for leaf, value in zip(leaves, given, strict=True))


def test_the_containers_stay_what_they_were():
    seen = []
    module = made(lambda batch, state: seen.append((batch, state)) or X, nested)
    call = call_with_examples(module, ({"imu": X}, Pair(H, C)), "net.py:model")
    adapted(module, call, 0)[0](X, H, C)
    batch, state = seen[-1]
    assert list(batch) == ["imu"]
    assert torch.equal(state.cell, C)


@pytest.mark.parametrize(
    ("result", "names", "count"),
    [
        (lambda x: x, (), 1),
        (lambda x: (x, (x + 1, x + 2)), (), 3),
        (lambda x: (x, None), (), 1),
        (lambda x: {"logits": x, "loss": None}, ("logits",), 1),
        (lambda x: {"logits": x, "hidden": (x + 1, x + 2)}, ("logits", "hidden_0", "hidden_1"), 3),
        (lambda x: Detection(x, x + 1), ("boxes", "scores"), 2),
        (lambda x: Detection(x), ("boxes",), 1),
        (lambda x: Pair(x, x + 1), ("hidden", "cell"), 2),
        (lambda x: [Detection(x), Detection(x + 1)], ("_0_boxes", "_1_boxes"), 2),
        (lambda x: {"x": x, "y": x + 1}, ("x_output", "y"), 2),
        (lambda x: {"logits": x, "aux": {"maps": [x + 1, x + 2]}}, ("logits", "aux_maps_0", "aux_maps_1"), 3),
        (lambda x: [x, (x + 1, x + 2)], (), 3),
    ],
)
def test_each_form_of_outputs_becomes_tensors_with_their_names(result, names, count):
    module = made(lambda x, *_: result(x), positional)
    expected = [X, X + 1, X + 2][:count]
    flat, found = adapted(module, call_with_examples(module, X, "net.py:model"), 0)
    assert found == names
    came = torch.utils._pytree.tree_leaves(flat(X))
    assert len(came) == count
    assert all(torch.equal(one, other) for one, other in zip(came, expected, strict=True))
    traced = torch.jit.trace(flat, X, strict=False)  # TorchScript's lists and dicts hold values of one type
    assert all(map(torch.equal, torch.utils._pytree.tree_leaves(traced(X)), expected))


def test_a_module_of_plain_tensors_stays_itself():
    module = nn.Sequential(nn.Linear(3, 2))
    kind = type(module)
    flat, names = adapted(module, call_with_examples(module, X, "net.py:model"), 0)
    assert flat is module
    assert type(flat) is kind
    assert names == ()


def test_layers_keep_their_names_and_the_graph_can_be_captured():
    module = made(lambda x, *_: {"logits": x}, positional)
    module.function = lambda batch, state: {"logits": module.layer(batch["imu"]), "rest": None, "state": state}
    type(module).forward = nested
    flat, names = adapted(module, call_with_examples(module, ({"imu": X}, H), "net.py:model"), 0)
    assert names == ("logits", "state_output")
    assert "layer.weight" in flat.state_dict()
    program = torch.export.export(flat, (X, H))
    assert [node.name for node in program.graph.nodes if node.op == "placeholder"][-2:] == ["imu", "state"]
    traced = torch.jit.trace(flat, (X, H))
    assert torch.equal(traced(X, H)[0], module.layer(X))


def test_a_value_that_is_not_a_tensor_is_named():
    module = made(lambda x, *_: {"boxes": x, "count": 3}, positional)
    with pytest.raises(UnsupportedError, match="returns a value of type int as 'count'"):
        adapted(module, call_with_examples(module, X, "net.py:model"), 0)


def test_complex_results_are_refused_with_what_to_return_instead():
    module = made(lambda x, *_: {"spectrum": torch.fft.rfft(x)}, positional)
    with pytest.raises(UnsupportedError, match="values of complex64, expected real ones") as caught:
        adapted(module, call_with_examples(module, X, "net.py:model"), 0)
    assert "view_as_real" in caught.value.fix


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["x=2x3"], ("x",)),
        (["lengths=int64:1:0..9", "x=2x3"], ("x", "lengths")),
        (["x=2x3", "scale=1x4"], ("x", "scale")),
        (["2x3", "1x4"], ("x", "mask")),
    ],
)
def test_optional_arguments_are_given_by_name(texts, names):
    seen = {}

    def keep(x, mask, lengths, scale):
        seen.update(x=x, mask=mask, lengths=lengths, scale=scale)
        return x

    module = made(keep, positional)
    specs = [parse_input(text, i) for i, text in enumerate(texts)]
    call = call_with_specs(module, specs, named="=" in texts[0])
    assert tuple(spec.name for spec in call.specs) == names
    flat, _ = adapted(module, call, 0)
    flat(*(torch.full(spec.shape, float(i)) for i, spec in enumerate(call.specs)))
    assert {name for name, value in seen.items() if value is not None} == {*names}
    assert all(float(seen[name].flatten()[0]) == i for i, name in enumerate(names))


def test_inputs_in_containers_are_given_by_their_paths():
    seen = []
    module = made(lambda batch, state: seen.append((batch, state)) or batch["imu"], nested)
    specs = [parse_input(text, 0) for text in ("state.0=1x4", "state.1=1x5", "batch.imu=2x3")]
    call = call_with_specs(module, specs, named=True)
    assert tuple(spec.name for spec in call.specs) == ("imu", "state_0", "state_1")
    adapted(module, call, 0)[0](X, H, C)
    assert torch.equal(seen[-1][0]["imu"], X)
    assert isinstance(seen[-1][1], tuple)
    assert torch.equal(seen[-1][1][1], C)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["mask=1x4"], "not 'x', which forward needs"),
        (["y=1x4"], "no input 'y'"),
        (["x=1x4", "x=1x4"], "gives 'x' twice"),
    ],
)
def test_wrong_names_of_inputs(texts, told):
    module = made(lambda x, *_: x, positional)
    with pytest.raises(UsageError, match=told):
        call_with_specs(module, [parse_input(text, i) for i, text in enumerate(texts)], named=True)


def test_examples_that_forward_does_not_take_are_refused():
    with pytest.raises(UsageError, match="does not take the example inputs"):
        call_with_examples(made(lambda x, *_: x, positional), (X, X, X, X), "net.py:model")


class Sized(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x)


@pytest.mark.parametrize(
    ("how", "is_found"),
    [
        (lambda x: x[x > 0.5], True),
        (lambda x: x.nonzero(), True),
        (lambda x: torchvision.ops.nms(x.reshape(-1, 1).expand(-1, 4), x.flatten(), 0.5), True),
        (lambda x: torch.where(x > 0.5, x, 0), False),
        (lambda x: x[:, [0, 1]], False),
        (lambda x: x if x.sum() > 0 else -x, False),
    ],
)
def test_what_has_as_many_values_as_the_data_decide_is_named_with_its_line(how, is_found):
    place = sized_by_data(Sized(how), [parse_input("2x3", 0)])
    assert (f" at {__file__}:" in place) == is_found
    assert bool(place) == is_found


def test_a_library_is_named_where_no_line_is_the_users_own():
    place = sized_by_data(torchvision.ops.StochasticDepth(0.5, "row"), [parse_input("2x4", 0)])
    assert place == ""
    torch.manual_seed(0)
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    place = sized_by_data(detector.eval(), [parse_input("1x3x64x64", 0)])
    assert "torchvision/models/detection/ssd.py:" in place
    assert place.endswith(" in SSD.postprocess_detections")


class Masked(nn.Module):
    """Hides what is behind a length, as torchaudio's Conformer does: of one sequence it takes the whole length only."""

    def forward(self, x, lengths):
        steps = torch.arange(int(lengths.max()))
        hidden = steps.expand(len(lengths), len(steps)) >= lengths.unsqueeze(1)
        return x.masked_fill(hidden.unsqueeze(-1), 0.0).cumsum(1), lengths


def test_a_length_of_one_value_that_python_reads_is_a_constant_of_every_capture():
    x, lengths = torch.rand(1, 6, 3), torch.tensor([6])
    call = with_bounds(Masked(), call_with_examples(Masked(), (x, lengths), "net.py:model"))
    assert call.specs[1].only == 6
    (remark,) = call.remarks
    assert remark.startswith(f"input 'lengths' takes 6 only, and Python reads it at {__file__}:")
    flat, _ = adapted(Masked(), call, 0)
    for captured in (
        torch.export.export(flat, (x, lengths)).module(),
        torch.jit.trace(flat, (x, lengths)),
        torch.fx.symbolic_trace(flat),
    ):
        found = captured(x, lengths)
        assert torch.equal(found[0], x.cumsum(1))
        assert found[1].tolist() == [6]


@pytest.mark.parametrize(
    ("lengths", "forward"),
    [
        (torch.tensor([6, 6]), lambda x, lengths: x[:, : int(lengths.max())] + torch.zeros(1, 6, 3)),  # or [6, 4]
        (torch.tensor([6]), lambda x, lengths: x[:, : int(lengths.max())] + torch.zeros(1, 6, 3)),  # or 7
        (torch.tensor([6]), lambda x, lengths: x[:, : int(lengths.max())]),
        (torch.tensor([6]), lambda x, lengths: x + torch.zeros(6)[lengths - 1]),  # no value is read
    ],
)
def test_other_lengths_stay_inputs(lengths, forward):
    module = made(forward, lambda self, x, lengths: self.function(x, lengths))
    call = with_bounds(module, call_with_examples(module, (torch.rand(1, 6, 3), lengths), "net.py:model"))
    assert call.remarks == ()
    assert adapted(module, call, 0)[0] is module
