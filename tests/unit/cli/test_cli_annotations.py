"""Where annotations stand: the lines of an edgeq.toml, and what the templates for CI services call."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from edgeq.cli.main import app, run
from edgeq.config.project_file import lines_of

ROOT = Path(__file__).parents[3]
PROJECT = """\
targets = ["linux-x86_64-x86"]
schemes = ["fp32"]
device.on = "host"

[limit]
size = "1kB"   # of each

[[model]]
name = "one" # the first
source = "models.py:net"

[[model]]
source = "models.py:net"
name = 'two'
limit.size = "1MB"
[model.data]
calibration = "x"
[model.limit]
accuracy_drop = "1pp"
"""
NET = """
import torch


def net():
    return torch.nn.Linear(16, 100)


def example_inputs():
    return (torch.zeros(1, 16),)
"""


def test_each_key_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "edgeq.toml").write_text(PROJECT)
    found = lines_of(tmp_path / "edgeq.toml")
    assert {key: found[key] for key in [("", "targets"), ("", "limit.size"), ("one", ""), ("two", "")]} == {
        ("", "targets"): 1,
        ("", "limit.size"): 6,
        ("one", ""): 8,
        ("two", ""): 12,
    }
    assert (found["two", "limit.size"], found["two", "limit.accuracy_drop"]) == (15, 19)


def test_a_failed_limit_is_annotated_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "edgeq.toml").write_text(PROJECT.partition("\n[[model]]\nsource")[0])
    (folder / "models.py").write_text(NET)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (folder / "before").mkdir()
    command = ["build", "--github", "--against", "before", "--no-cache", "-q"]
    assert run([*command, "--markdown", "comment.md", "--sarif", "edgeq.sarif"]) == 4
    assert "::error file=models/edgeq.toml,line=6,title=edgeq%3A one linux-x86_64-x86 fp32::failed: size" in (
        capfd.readouterr().err
    )
    failed, *_ = json.loads((folder / "edgeq.sarif").read_text())["runs"][0]["results"]
    assert (failed["ruleId"], failed["level"]) == ("size", "error")
    assert failed["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "models/edgeq.toml"},
        "region": {"startLine": 6},
    }
    for path in (tmp_path / "summary.md", folder / "comment.md"):
        assert "### Against the base branch" in path.read_text()
    # in a process that has built nothing
    shown = [sys.executable, "-m", "edgeq", "report", "out", "--format", "sarif"]
    done = subprocess.run(
        shown, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert json.loads(done.stdout)["runs"][0]["results"][0]["ruleId"] == "size"
    assert run(["report", "out", "--format", "badge", "-o", "badge.svg"]) == 0
    assert "0 of 1 pass, size failed" in (folder / "badge.svg").read_text()


def test_what_the_base_branch_built_must_be_a_folder(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "edgeq.toml").write_text(PROJECT.partition("\n[[model]]\nsource")[0])
    (tmp_path / "models.py").write_text(NET)
    args = ["--config", str(tmp_path / "edgeq.toml"), "--against", str(tmp_path / "missing"), "--markdown", "x.md"]
    assert run(["build", "--dry-run", *args]) == 2
    assert "invalid value for '--against'" in capfd.readouterr().err


@pytest.mark.parametrize("template", ["action.yml", "ci/gitlab.yml"])
def test_the_templates_name_commands_and_options_that_exist(template: str) -> None:
    text = re.sub(r" *\\\n *", " ", (ROOT / template).read_text())
    text = re.sub(r"\n +(?=--)", " ", text)
    called = [line[line.index("edgeq ") :] for line in text.splitlines() if re.search(r"\bedgeq (build|report) ", line)]
    assert len(called) == 2
    for line in called:
        words = shlex.split(re.split(r" [>|;]", line)[0])
        command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known
