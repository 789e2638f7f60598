"""`edgeq init` finds out what it can, and what it writes is a file that `edgeq build` reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.cli.init import init
from edgeq.config.project_file import read_models
from edgeq.core.errors import UsageError

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
    init(["net.py", "torchvision:resnet18", "torchvision:resnet18"], OUTPUT, force=False)
    found = read_models(OUTPUT, ())
    assert found.names == ("net", "resnet18", "resnet18-2")
    assert [model.source for model in found.models] == ["net.py:model", *["torchvision:resnet18"] * 2]
    for model in found.models:
        assert model.data.calibration == "data/train"
        assert model.data.evaluation == "data/val"
        assert model.install_into == (Path("phone"),)


def test_what_was_not_found_stays_a_comment(folder):
    init(["digits"], OUTPUT, force=False)
    text = OUTPUT.read_text()
    assert "# calibration = " in text
    assert "# install_into = " in text
    (model,) = read_models(OUTPUT, ()).models
    assert model.data.calibration is None
    # each commented key is one that may be given
    keys = [line[2:] for line in text.splitlines() if line.startswith("# ") and " = " in line and "runtime" not in line]
    assert len(keys) >= 7


def test_every_commented_key_can_be_uncommented(folder):
    init(["digits"], OUTPUT, force=False)
    skipped = ("install_into", "preprocess", "schemes", "inputs")
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
        init(["digits"], OUTPUT, force=False)
    assert OUTPUT.read_text() == "mine"
    init(["digits"], OUTPUT, force=True)
    assert "[[model]]" in OUTPUT.read_text()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def one():\n    ...\ndef two():\n    ...\n", "which function returns the model.*one, two"),
        ("def f(x):\n    ...\n", "it has no functions without arguments"),
        ("def f(:\n", "cannot read net.py"),
    ],
)
def test_a_factory_that_cannot_be_told_is_asked_for(folder, code, told):
    (folder / "net.py").write_text(code)
    with pytest.raises(UsageError, match=told):
        init(["net.py"], OUTPUT, force=False)
    assert not OUTPUT.exists()
