"""`edgeq build --dry-run`: what each model has wrong, of all models at once, with the exit code of the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeq.cli.main import run

MODELS = """
import torch


def net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))


def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)


def samples():
    raise RuntimeError("called")
"""

HEAD = """\
targets = ["linux-x86_64-x86"]
schemes = ["static-int8"]
data.preprocess = "small.toml"
"""

SIX = {
    "factory": '''source = "models.py:nett"
data.calibration = "train"''',
    "weights": '''source = "models.py:net"
weights = "gone.pt"
data.calibration = "train"''',
    "classes": '''source = "models.py:net"
weights = "five.pt"
data.calibration = "train"''',
    "unlabelled": '''source = "models.py:net"
data.calibration = "train"
data.evaluation = "flat"
limit.accuracy_drop = "1pp"''',
    "key": '''source = "models.py:net"
data.calibrtion = "train"''',
    "calibration": '''source = "models.py:net"''',
}

GOOD = '''source = "models.py:net"
data.calibration = "models.py:samples"'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    Path("models.py").write_text(MODELS)
    Path("small.toml").write_text('color = "rgb"\nresize = 8\ncrop = [8, 8]\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n')
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5)).state_dict(), "five.pt")
    rng = np.random.default_rng(0)
    for name in ("train/a/0.png", "train/b/0.png", "flat/0.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(name)


def write(models: dict[str, str], head: str = HEAD) -> None:
    Path("edgeq.toml").write_text(
        head + "".join(f'\n[[model]]\nname = "{name}"\n{text}\n' for name, text in models.items())
    )


def errors(text: str) -> list[str]:
    return [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]


def test_all_models_are_shown_at_once_at_their_lines(capfd: pytest.CaptureFixture[str]) -> None:
    write(SIX)
    assert run(["build", "--dry-run", "--sarif", "found.sarif", "--github"]) == 2
    told = capfd.readouterr().err
    found = errors(told)
    assert [line.partition(":")[0] for line in found[1:]] == [name for name in SIX if name != "key"]
    assert found[0].startswith("edgeq.toml: model 'key': unknown key 'data.calibrtion'. Did you mean 'calibration'?")
    assert [line.partition(": ")[2] for line in found[1:]] == [
        "MODEL: no 'nett' in models.py. Did you mean 'net'?",
        "--weights: no such file or folder: gone.pt",
        "five.pt: 1.weight has shape [5, 192], the model expects [2, 192] (and 1 more do not fit)",
        "--limit accuracy_drop cannot be measured: flat has no labels",
        "int8 ranges need real samples, but no calibration data was given",
    ]
    lines = Path("edgeq.toml").read_text().splitlines()
    (ran,) = json.loads(Path("found.sarif").read_text())["runs"]
    at = [one["locations"][0]["physicalLocation"]["region"]["startLine"] for one in ran["results"]]
    assert [lines[line - 1].partition(" ")[0] for line in at] == [
        "data.calibrtion",
        "source",
        "weights",
        "weights",
        "limit.accuracy_drop",
        "[[model]]",
    ]
    assert [one["ruleId"] for one in ran["results"]] == ["usage"] * 4 + ["verification", "usage"]
    assert [
        f"line={line}," in note
        for line, note in zip(at, told.partition("error: edgeq")[0].split("::error ")[1:], strict=True)
    ]
    assert not Path("out").exists()


def test_the_exit_code_is_that_of_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    write({"unlabelled": SIX["unlabelled"]})
    codes = [run(["build", "-q", *dry]) for dry in ([], ["--dry-run"])]
    assert codes == [7, 7]
    write({"both": SIX["unlabelled"] + '\nweights = "five.pt"'})
    codes = [run(["build", "-q", *dry]) for dry in ([], ["--dry-run", "--sarif", "found.sarif"])]
    assert codes == [7, 7]  # the run ends before it reads the weights, whose error has another code
    (ran,) = json.loads(Path("found.sarif").read_text())["runs"]
    assert [one["ruleId"] for one in ran["results"]] == ["verification", "usage"]
    assert ran["invocations"][0]["exitCode"] == 7
    write({name: SIX[name] for name in ("unlabelled", "classes")})
    codes = [run(["build", "-q", *dry]) for dry in ([], ["--dry-run"])]
    assert codes == [2, 2]
    assert "five.pt" in capfd.readouterr().err


def test_a_broken_file_builds_nothing_and_tells_what_else_is_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    write({"good": GOOD, "key": SIX["key"], "factory": SIX["factory"]})
    assert run(["build"]) == 2
    told = errors(capfd.readouterr().err)
    assert [line[:12] for line in told] == ["edgeq.toml: ", "factory: MOD"]
    assert not Path("out").exists()


def test_what_all_models_share_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    two = {"one": SIX["calibration"], "two": SIX["calibration"]}
    write(two)
    assert run(["build", "--dry-run"]) == 2
    assert errors(capfd.readouterr().err) == ["int8 ranges need real samples, but no calibration data was given"]
    write(two, HEAD + 'limit.size = "1MX"\nlimit.latency = "1"\n')
    assert run(["build", "--dry-run"]) == 2
    told = errors(capfd.readouterr().err)
    assert [line.partition(": ")[2].partition(":")[0] for line in told] == ["limit size", "limit latency"]


def test_a_good_project_is_planned_without_calling_what_makes_its_data(capfd: pytest.CaptureFixture[str]) -> None:
    write({"good": GOOD, "other": GOOD})
    assert run(["build", "--dry-run", "--sarif", "found.sarif"]) == 0
    assert capfd.readouterr().out.startswith("plan for 2 models, 2 bundles; nothing is written\n")
    assert run(["build", "--dry-run", "--verbose"]) == 0
    assert capfd.readouterr().out.count("plan for models.py:net; nothing is written") == 2
    (ran,) = json.loads(Path("found.sarif").read_text())["runs"]
    assert (ran["results"], ran["invocations"][0]["exitCode"]) == ([], 0)
    assert not Path("out").exists()


def test_the_plan_of_several_models_says_once_what_they_share(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    other = '\nlimit.size = "2MB"\ntargets = ["android-arm64-xnnpack", "linux-x86_64-x86"]\ndevice.on = "host"'
    write({"good": GOOD + '\nlimit.size = "1MB"', "other": GOOD + other}, HEAD + 'limit.latency = "7ms"\n')
    assert run(["build", "--dry-run", "-q"]) == 0
    told = capfd.readouterr().out
    lines = told.splitlines()
    assert lines[0] == "plan for 2 models, 3 bundles; nothing is written"
    assert max(map(len, lines)) <= 80
    table, *sections = told.split("\n\n")[1:-1]
    assert table.split("\n")[0].split() == ["model", "check", "scheme"]
    assert [line.split()[:4] for line in table.splitlines()[2:4]] == [
        ["good", "size", "<=", "1.00"],
        ["other", "size", "<=", "2.00"],
    ]
    assert [section.split("\n")[0] for section in sections] == [
        "all",
        "linux-x86_64-x86, static-int8",
        "android-arm64-xnnpack, static-int8",
    ]
    assert "  check      latency <= 7.00 ms, int8_macs >= 95%\n" in sections[0]
    assert "  bundle     out/MODEL/TARGET" in sections[0]
    assert ["quantize   FX" in section for section in sections] == [False, True, False]
    # no part of a step is lost or said of another bundle
    assert told.count("size <= ") == 2
    for once in ("models.py:net", "models.py:samples", "XNNPACK quantizer", "delegated_macs"):
        assert told.count(once) == 1, once
