"""A fine-tuned torchvision model has as many classes as its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from edgeq.core.errors import UsageError
from edgeq.load.model import load_model


def load(name: str, weights: Path) -> Any:
    return load_model(f"torchvision:{name}", weights=str(weights), inputs=("1x3x64x64",), name=None, seed=0)


@pytest.mark.parametrize(
    ("name", "prefix", "wrapped"),
    [
        ("mobilenet_v3_small", "", False),
        ("mobilenet_v3_small", "module.", True),
        ("squeezenet1_1", "", False),
        ("resnet18", "model.", True),
    ],
)
def test_the_checkpoint_gives_the_number_of_classes(tmp_path: Path, name: str, prefix: str, wrapped: bool) -> None:
    torch.manual_seed(0)
    trained = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state} if wrapped else state, tmp_path / "tuned.pt")
    found = load(name, tmp_path / "tuned.pt")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(found.model.eval()(x), trained(x))
    assert found.weights == "file"
    assert found.notes == ("built with the 5 classes of the weights",)
    assert found.remarks == ()  # it is no warning


def test_published_numbers_of_classes_need_no_note(tmp_path: Path) -> None:
    trained = torchvision.models.get_model("squeezenet1_1", weights=None)
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    assert load("squeezenet1_1", tmp_path / "plain.pt").notes == ()


def test_another_architecture_is_still_refused(tmp_path: Path) -> None:
    trained = torchvision.models.get_model("squeezenet1_0", weights=None, num_classes=5)
    torch.save(trained.state_dict(), tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt"):
        load("squeezenet1_1", tmp_path / "other.pt")
    own = torchvision.models.get_model("squeezenet1_1", weights=None).state_dict()
    own["classifier.1.weight"] = torch.zeros(5, 99, 1, 1)
    torch.save(own, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="the model expects"):
        load("squeezenet1_1", tmp_path / "other.pt")
