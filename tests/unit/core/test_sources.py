"""What a source is called: models of one file have names of their own, and a checkout may lie anywhere."""

from __future__ import annotations

import pytest

from edgeq.core.sources import GENERIC_FACTORIES, factory_model_name, origin


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("models.py:plain", "plain"),
        ("a/models.py:reg", "reg"),
        ("models.py:_small", "small"),
        ("models.py:Model", "models"),
        ("dir.d/faces.py:model", "faces"),
        ("a/models:build", "models"),
        ("pkg.faces:get_model", "faces"),
        ("pkg.faces:small", "small"),
        ("edgeq.demo.digits:model", "digits"),
    ],
)
def test_the_function_names_the_model_unless_it_is_generic(source, name):
    assert factory_model_name(source) == name


def test_a_generic_function_leaves_the_name_to_the_file():
    assert {factory_model_name(f"faces.py:{function}") for function in GENERIC_FACTORIES} == {"faces"}


def test_sources_of_one_name_are_told_apart(tmp_path, monkeypatch):
    sources = ["a/model.py:build", "b/model.py:build", "a/model.py:net", "a/model.pt2", "b/model.pt2", "model.x:build"]
    told = []
    for checkout in ("here", "there"):
        (tmp_path / checkout).mkdir()
        monkeypatch.chdir(tmp_path / checkout)
        told.append([origin(source) for source in [*sources, "torchvision:resnet18", "digits"]])
    assert told[0] == told[1]
    assert len(set(told[0])) == 8
    assert told[0][0] == origin(str(tmp_path / "here" / "a" / "model.py") + ":build")
