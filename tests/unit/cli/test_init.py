"""`edgeq init` finds out what it can, and what it writes is a file that `edgeq build` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from edgeq.cli.init import init
from edgeq.config.project_file import read_models
from edgeq.core.errors import UsageError
from edgeq.core.preprocess import load_preprocess

OUTPUT = Path("edgeq.toml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_data_apps_and_factories_are_found(folder):
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "data" / "val").mkdir()
    (folder / "phone").mkdir()
    (folder / "phone" / "settings.gradle.kts").write_text("")
    (folder / "net.py").write_text(
        "def helper(x):\n    ...\ndef model(width=1):\n    ...\ndef example_inputs():\n    ...\n"
    )
    init(["net.py", "torchvision:resnet18", "torchvision:resnet18"], OUTPUT, weights=None, force=False)
    found = read_models(OUTPUT, ())
    assert found.names == ("net", "resnet18", "resnet18-2")
    assert [model.source for model in found.models] == ["net.py:model", *["torchvision:resnet18"] * 2]
    for model in found.models:
        assert model.data.calibration == "data/train"
        assert model.data.evaluation == "data/val"
        assert model.install_into == (Path("phone"),)


def test_what_was_not_found_stays_a_comment(folder):
    init(["digits"], OUTPUT, weights=None, force=False)
    text = OUTPUT.read_text()
    assert "# calibration = " in text
    assert "# install_into = " in text
    (model,) = read_models(OUTPUT, ()).models
    assert model.data.calibration is None
    # each commented key is one that may be given
    keys = [line[2:] for line in text.splitlines() if line.startswith("# ") and " = " in line and "runtime" not in line]
    assert len(keys) >= 7


def test_every_commented_key_can_be_uncommented(folder):
    init(["digits"], OUTPUT, weights=None, force=False)
    skipped = ("install_into", "preprocess", "schemes", "inputs", "store_limits", "app_size")
    lines = [
        line[2:]
        if line.startswith("# ") and (" = " in line or line == "# [app]") and not line[2:].startswith(skipped)
        else line
        for line in OUTPUT.read_text().splitlines()
    ]
    OUTPUT.write_text("\n".join(lines))
    found = read_models(OUTPUT, ())
    assert dict(found.models[0].gates.limits) == {"size": 5e6, "accuracy_drop": 1.0, "latency": 40.0}
    assert found.app.download_bytes == 2 * 10**7


def test_a_file_that_is_there_is_not_replaced(folder):
    OUTPUT.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        init(["digits"], OUTPUT, weights=None, force=False)
    assert OUTPUT.read_text() == "mine"
    init(["digits"], OUTPUT, weights=None, force=True)
    assert "[[model]]" in OUTPUT.read_text()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def one():\n    ...\ndef two():\n    ...\n", "which function returns the model.*one, two"),
        ("def f(x):\n    ...\n", "it has no functions without arguments, and no such modules"),
        ("def f(:\n", "cannot read net.py"),
    ],
)
def test_a_factory_that_cannot_be_told_is_asked_for(folder, code, told):
    (folder / "net.py").write_text(code)
    with pytest.raises(UsageError, match=told):
        init(["net.py"], OUTPUT, weights=None, force=False)
    assert not OUTPUT.exists()


NET = """
from torch import nn
from torchvision import models


class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.body = models.mobilenet_v3_small(num_classes=classes)
"""


def test_a_module_its_weights_and_its_preprocessing_are_found(folder):
    (folder / "net.py").write_text(NET)
    torch.save({"state_dict": {"body.conv.weight": torch.zeros(8, 3, 3, 3)}}, "best.ckpt")
    init(["net.py"], OUTPUT, weights="best.ckpt", force=False)
    (model,) = read_models(OUTPUT, ()).models
    assert (model.source, model.weights, model.inputs) == ("net.py:Net", "best.ckpt", ("1x3x224x224",))
    assert model.data.preprocess == "imagenet"
    assert "MobileNet_V3_Small_Weights.IMAGENET1K_V1" in OUTPUT.read_text()


def test_preprocessing_that_is_no_preset_has_a_file_of_its_own(folder):
    init(["torchvision:efficientnet_b1"], OUTPUT, weights=None, force=False)
    (model,) = read_models(OUTPUT, ()).models
    assert model.data.preprocess == "efficientnet_b1.preprocess.toml"
    spec = load_preprocess(model.data.preprocess)
    assert (spec.resize, spec.crop, spec.mean) == (255, (240, 240), (0.485, 0.456, 0.406))


def test_the_processor_of_a_transformers_folder_is_read(folder):
    (folder / "vit").mkdir()
    (folder / "vit/config.json").write_text("{}")
    told = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "vit/preprocessor_config.json").write_text(json.dumps(told))
    init(["hf:vit"], OUTPUT, weights=None, force=False)
    (model,) = read_models(OUTPUT, ()).models
    spec = load_preprocess(model.data.preprocess)
    assert (spec.resize, spec.crop, spec.mean, spec.std) == ((32, 32), None, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"0.weight": torch.zeros(8, 1, 3, 3), "2.weight": torch.zeros(2, 8)}, ("1x1x32x32",)),
        ({"0.weight": torch.zeros(8, 16), "2.weight": torch.zeros(2, 8)}, ("1x16",)),
        ({"embedding.weight": torch.zeros(100, 16)}, ()),
        ({"conv.weight": torch.zeros(8, 4, 3)}, ()),
    ],
)
def test_inputs_are_proposed_from_the_first_layer_and_the_images(folder, state, expected):
    (folder / "train").mkdir()
    Image.new("L", (32, 32)).save(folder / "train/one.png")
    (folder / "net.py").write_text("def model():\n    ...\n")
    torch.save(state, "net.pt")
    init(["net.py"], OUTPUT, weights="net.pt", force=False)
    (model,) = read_models(OUTPUT, ()).models
    assert model.inputs == expected


def test_the_stores_limit_is_that_of_an_app_that_was_built(folder):
    (folder / "phone/app/build/outputs/apk/release").mkdir(parents=True)
    (folder / "phone/settings.gradle.kts").write_text("")
    init(["digits"], OUTPUT, weights=None, force=False)
    assert read_models(OUTPUT, ()).models[0].gates.store_limits == ()
    (folder / "phone/app/build/outputs/apk/release/app.apk").write_bytes(bytes(5000))
    init(["digits"], OUTPUT, weights=None, force=True)
    gates = read_models(OUTPUT, ()).models[0].gates
    assert (gates.store_limits, gates.app_size_bytes) == (("play-base-module",), 5000)


def test_the_proposed_checkpoint_is_the_one_of_the_models_name(folder):
    (folder / "nets.py").write_text("def cat():\n    ...\ndef dog():\n    ...\ndef train_cat():\n    ...\n")
    for name in ("ant.pth", "dog.pth", "cat.pth"):
        (folder / name).touch()
    with pytest.raises(UsageError, match=r"which function returns the model\? those that need no argument: cat, dog\n"):
        init(["nets.py"], OUTPUT, weights=None, force=False)
    init(["nets.py:cat", "nets.py:dog", "nets.py:train_cat", "torchvision:resnet18"], OUTPUT, weights=None, force=False)
    proposed = [line.partition("#")[2].split()[2] for line in OUTPUT.read_text().splitlines() if "# weights" in line]
    assert proposed == ['"cat.pth"', '"dog.pth"', '"weights.safetensors"']


def test_weights_are_those_of_one_model_and_exist(folder):
    with pytest.raises(UsageError, match="--weights was given with 2 models"):
        init(["digits", "digits"], OUTPUT, weights="a.pt", force=False)
    with pytest.raises(UsageError, match=r"no such file: a\.pt"):
        init(["digits"], OUTPUT, weights="a.pt", force=False)


def test_the_number_of_classes_is_shown_where_the_checkpoint_has_its_own(folder, capfd):
    tuned = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=5)
    torch.save(tuned.state_dict(), "best.pth")
    init(["torchvision:squeezenet1_1"], OUTPUT, weights="best.pth", force=False)
    assert 'weights = "best.pth"  # 5 classes\n' in OUTPUT.read_text()
    assert "squeezenet1_1: 5 classes, as best.pth has\n" in capfd.readouterr().out
    (model,) = read_models(OUTPUT, ()).models
    assert model.weights == "best.pth"
    torch.save(torchvision.models.get_model("squeezenet1_1", weights=None).state_dict(), "plain.pth")
    init(["torchvision:squeezenet1_1"], OUTPUT, weights="plain.pth", force=True)
    assert 'weights = "plain.pth"\n' in OUTPUT.read_text()
