from __future__ import annotations

import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from edgeq.core.errors import EnvironmentProblem, ExitCode, UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.load.model import load_model

SMALL = "torchvision:squeezenet1_1"
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, image, scale=None, shift=None):
        return self.drop(self.conv(image))

kept = Net()

def make():
    return Net()

def the_same():
    return kept
"""


def load(source, *, weights=None, inputs=(), name=None, seed=0):
    return load_model(source, weights=weights, inputs=inputs, name=name, seed=seed)


def test_a_torchvision_model_is_random_and_the_same_for_the_same_seed():
    first, again, other = (load(SMALL, seed=seed) for seed in (0, 0, 1))
    assert first.weights == "random"
    assert first.name == "squeezenet1_1"
    assert first.inputs == (TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224)),)
    assert first.fp32_bytes == 4 * sum(p.numel() for p in first.model.parameters())
    assert first.source_sha256 == again.source_sha256 != other.source_sha256


def test_the_seed_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(SMALL, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_from_a_file_replace_the_random_ones(tmp_path):
    trained = torchvision.models.squeezenet1_1()
    save_file(trained.state_dict(), tmp_path / "net.safetensors")
    model = load(SMALL, weights=str(tmp_path / "net.safetensors"))
    assert model.weights == "file"
    assert torch.equal(model.model.classifier[1].weight, trained.classifier[1].weight)


@pytest.mark.parametrize("name", ["IMAGENET1K_V2", "imagenet1k_v1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_unknown_torchvision_weights_offer_the_nearest(name):
    with pytest.raises(UsageError, match="neither a file nor weights of squeezenet1_1") as caught:
        load(SMALL, weights=name)
    assert "Did you mean 'IMAGENET1K_V1'?" in caught.value.what or "IMAGENET1K_V1" in caught.value.fix


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1", "DEFAULT"])
@pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")])
def test_a_failed_download_is_the_environments_and_says_what_to_do(monkeypatch, tmp_path, name, error):
    def no_network(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(EnvironmentProblem, match="could not download the weights") as caught:
        load(SMALL, weights=name)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "--weights FILE" in caught.value.fix


def test_an_unknown_torchvision_model_offers_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'mobilenet_v2'"):
        load("torchvision:mobilenet_v22")


def test_a_factory_in_a_file_and_in_a_package(script):
    in_file = load(f"{script(NET)}:make", inputs=["1x3x8x8"])
    assert (in_file.name, in_file.weights, in_file.kind) == ("user", "own", "module")
    assert in_file.inputs[0].name == "image"
    in_package = load("torchvision.models:squeezenet1_1", inputs=["1x3x64x64"])
    assert in_package.name == "squeezenet1_1"
    assert load(f"{script(NET)}:make", inputs=["1x3x8x8"], name="mine").name == "mine"


def test_a_factory_draws_its_random_weights_from_the_seed(script):
    source = f"{script(NET)}:make"
    first, again, other = (load(source, inputs=["1x3x8x8"], seed=seed) for seed in (0, 0, 1))
    assert first.source_sha256 == again.source_sha256 != other.source_sha256


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def make():\n    raise KeyError('layers')", "raised KeyError at user.py:2"),
        ("def make():\n    return {'weight': 1}", "returned dict, expected a torch.nn.Module"),
        ("def mak():\n    pass", "Did you mean 'mak'?"),
        ("import no_such_thing", "no_such_thing"),
    ],
)
def test_factories_that_do_not_work(script, source, told):
    with pytest.raises(UsageError) as caught:
        load(f"{script(source)}:make", inputs=["1x3"])
    assert told in str(caught.value)


def test_the_users_module_is_put_right_in_a_copy(script):
    path = script(NET)
    own = load(f"{path}:the_same", inputs=["1x3x8x8"]).model  # imports the file
    import sys

    kept = next(m for name, m in sys.modules.items() if name.startswith("_edgeq_user_") and hasattr(m, "kept")).kept
    kept.train().to(memory_format=torch.channels_last)
    own = load(f"{path}:the_same", inputs=["1x3x8x8"]).model
    assert not own.training
    assert not own.drop.training
    assert own.conv.weight.is_contiguous()
    assert not own.conv.weight.requires_grad
    assert kept.training
    assert kept.conv.weight.requires_grad
    assert not kept.conv.weight.is_contiguous()
    own.conv.weight.fill_(0)
    assert kept.conv.weight.abs().sum() > 0


def test_example_inputs_beside_the_factory_and_as_a_method(script):
    beside = NET + "\ndef example_inputs():\n    return (torch.zeros(2, 3, 8, 8), torch.tensor([-3, 7]))\n"
    specs = load(f"{script(beside)}:make").inputs
    assert specs[0] == TensorSpec(name="image", dtype="float32", shape=(2, 3, 8, 8))
    assert specs[1] == TensorSpec(name="scale", dtype="int64", shape=(2,), low=-3.0, high=7.0)
    method = NET.replace(
        "    def forward", "    def example_inputs(self):\n        return torch.zeros(1, 3, 9, 9)\n\n    def forward"
    )
    assert load(f"{script(method)}:make").inputs[0].shape == (1, 3, 9, 9)
    assert load(f"{script(method)}:make", inputs=["1x3x5x5"]).inputs[0].shape == (1, 3, 5, 5)


@pytest.mark.parametrize(
    ("returned", "kind", "told"),
    [
        ("[[1.0]]", UsageError, "is list, expected a tensor"),
        ("__import__('numpy').zeros((1, 3, 8, 8))", UsageError, "is ndarray, expected a tensor"),
        ("torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)", UnsupportedError, "bfloat16"),
    ],
)
def test_example_inputs_that_do_not_work(script, returned, kind, told):
    text = f"{NET}\ndef example_inputs():\n    return {returned}\n"
    with pytest.raises(kind) as caught:
        load(f"{script(text)}:make")
    assert told in caught.value.what


def test_without_inputs_the_message_says_how_to_give_them(script):
    with pytest.raises(UsageError, match="are not known") as caught:
        load(f"{script(NET)}:make")
    assert "--input" in caught.value.fix


def test_inputs_by_name_follow_the_order_of_forward(script):
    specs = load(f"{script(NET)}:make", inputs=["scale=1x2", "image=1x3x8x8"]).inputs
    assert [(spec.name, spec.shape) for spec in specs] == [("image", (1, 3, 8, 8)), ("scale", (1, 2))]
    unnamed = load(f"{script(NET)}:make", inputs=["1x3x8x8", "int64:1x2:0..5"]).inputs
    assert [(spec.name, spec.dtype, spec.high) for spec in unnamed] == [
        ("image", "float32", 1.0),
        ("scale", "int64", 5.0),
    ]


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (["imag=1x3x8x8"], "Did you mean 'image'?"),
        (["image=1x3x8x8", "image=1x3x9x9"], "gives 'image' twice"),
        (["scale=1x2", "shift=1x2"], "gives 'shift' but not 'image', which forward needs"),
    ],
)
def test_wrong_input_names(script, inputs, told):
    with pytest.raises(UsageError) as caught:
        load(f"{script(NET)}:make", inputs=inputs)
    assert told in caught.value.what


def test_an_optional_input_may_be_left_out(script):
    model = load(f"{script(NET)}:make", inputs=["image=1x3x8x8", "shift=1x2"])
    assert [spec.name for spec in model.inputs] == ["image", "shift"]


WRAPPED = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 2)).eval()

def plain():
    return net()

def compiled():
    return torch.compile(net())

def compiled_in_place():
    module = net()
    module.compile()
    return module

def part():
    module = net()
    module[0] = torch.compile(module[0])
    return module

def parallel():
    return nn.DataParallel(torch.compile(net()))

def scripted():
    return torch.jit.script(net())

def traced():
    return torch.jit.trace(net(), torch.zeros(1, 3, 8))

def frozen():
    return torch.jit.freeze(torch.jit.script(net()))

def meta():
    with torch.device("meta"):
        return net()
"""


@pytest.mark.parametrize("kind", ["compiled", "compiled_in_place", "part", "parallel", "scripted", "traced", "frozen"])
def test_what_wraps_a_module_is_taken_off(script, kind):
    path = script(WRAPPED)
    plain, wrapped = (load(f"{path}:{name}", inputs=["1x3x8"]) for name in ("plain", kind))
    x = torch.rand(1, 3, 8)
    assert torch.allclose(wrapped.model(x), plain.model(x), atol=1e-6)
    assert "_orig_mod" not in "".join(wrapped.model.state_dict())
    assert torch.export.export(wrapped.model, (x,))


@pytest.mark.parametrize("suffix", [".pt", ".torchscript"])
def test_an_archive_of_torchscript_is_a_source(tmp_path, suffix):
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    torch.jit.script(module).save(tmp_path / f"net{suffix}")
    model = load(str(tmp_path / f"net{suffix}"), inputs=["input=1x3"])
    assert (model.name, model.kind, model.inputs[0].name) == ("net", "module", "input")
    x = torch.rand(1, 3)
    assert torch.equal(model.model(x), module(x))
    with pytest.raises(UsageError, match=r"inputs of .* are not known"):
        load(str(tmp_path / f"net{suffix}"))


def test_weights_as_a_source_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"not an archive of torch\.jit\.save") as caught:
        load(str(tmp_path / "net.pt"), inputs=["1x3"])
    assert "--weights" in caught.value.fix


def test_a_module_on_the_meta_device_gets_its_weights_from_a_file(script, tmp_path):
    path = script(WRAPPED)
    plain = load(f"{path}:plain", inputs=["1x3x8"])
    with pytest.raises(UsageError, match=r"0\.weight is on the meta device"):
        load(f"{path}:meta", inputs=["1x3x8"])
    torch.save(plain.model.state_dict(), tmp_path / "net.pt")
    model = load(f"{path}:meta", inputs=["1x3x8"], weights=str(tmp_path / "net.pt"))
    x = torch.rand(1, 3, 8)
    assert torch.equal(model.model(x), plain.model(x))


def test_a_forward_of_any_inputs_takes_any_names(script):
    text = NET.replace("image, scale=None, shift=None", "*images").replace("self.conv(image)", "self.conv(images[0])")
    specs = load(f"{script(text)}:make", inputs=["left=1x3x8x8", "right=1x3x8x8"]).inputs
    assert [spec.name for spec in specs] == ["left", "right"]


def test_a_module_with_state_that_is_no_tensor_loads(script):
    text = NET.replace(
        "    def forward", "    def get_extra_state(self):\n        return {'version': 2}\n\n    def forward"
    )
    assert load(f"{script(text)}:make", inputs=["1x3x8x8"]).fp32_bytes == 4 * (3 * 4 * 9 + 4)


@pytest.mark.parametrize("suffix", [".pt2", ".pte", ".ptl"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(UsageError, match=f"no file .*model{suffix}"):
        load(str(tmp_path / f"model{suffix}"))


@pytest.mark.parametrize("suffix", [".pte", ".ptl"])
def test_artifacts_are_taken_as_they_are(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"an artifact")
    model = load(str(path), inputs=["x=1x3"])
    assert (model.kind, model.model, model.name, model.fp32_bytes) == (suffix[1:], path, "mine", 0)
    assert model.inputs == (TensorSpec(name="x", dtype="float32", shape=(1, 3)),)
    path.write_bytes(b"another")
    assert load(str(path)).source_sha256 != model.source_sha256
    with pytest.raises(UnsupportedError, match="contains its own weights"):
        load(str(path), weights="w.pt")


def test_a_model_that_cannot_be_copied_is_the_users(script):
    text = NET + "\n    def __deepcopy__(self, memo):\n        raise TypeError('holds a socket')\n"
    text = text.replace("kept = Net()", "").replace("def the_same", "def unused")
    text = (
        text.replace("\n    def __deepcopy__", "\n\nclass Bad(Net):\n    def __deepcopy__")
        + "\ndef bad():\n    return Bad()\n"
    )
    with pytest.raises(UsageError, match="holds a socket"):
        load(f"{script(text)}:bad", inputs=["1x3x8x8"])


@pytest.mark.parametrize("norm", ["utils.spectral_norm", "utils.weight_norm", "utils.parametrizations.weight_norm"])
def test_a_model_with_a_computed_weight_can_be_copied(script, norm):
    text = f"""
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layer = nn.{norm}(nn.Conv2d(3, 4, 3))
    layer(torch.zeros(1, 3, 8, 8))  # leaves a weight that a gradient belongs to
    return nn.Sequential(layer, nn.ReLU())
"""
    model = load(f"{script(text)}:net", inputs=["1x3x8x8"])
    with torch.no_grad():
        assert model.model(torch.ones(1, 3, 8, 8)).shape == (1, 4, 6, 6)


TIED = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.table(tokens))


def untied():
    net = Tied()
    net.head.weight = nn.Parameter(net.table.weight.detach().clone())
    return net
"""


def test_a_tied_weight_counts_once_among_the_float_bytes(script):
    sizes = [load(f"{script(TIED)}:{name}", inputs=["1x4:0..49"]).fp32_bytes for name in ("Tied", "untied")]
    assert sizes == [4 * (50 * 8 + 50), 4 * (2 * 50 * 8 + 50)]
