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
import yaml

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
    command = ["build", "--github", "--against", "before", "--no-cache", "--json"]
    assert run([*command, "--markdown", "comment.md", "--sarif", "edgeq.sarif"]) == 4
    printed = capfd.readouterr()
    assert "::error file=models/edgeq.toml,line=6,title=edgeq%3A one linux-x86_64-x86 fp32::failed: size" in printed.err
    # stdout is for machines, and a job's log shows people stderr
    assert json.loads(printed.out)["exit_code"] == 4
    log = printed.err.splitlines()
    assert any(line.startswith("failed: linux-x86_64-x86 fp32: size: limit <= 1.00 kB, measured ") for line in log)
    assert any(line.startswith("next: linux-x86_64-x86 fp32: the largest layer is ") for line in log)
    assert "verdict" in printed.err
    failed, *_ = json.loads((folder / "edgeq.sarif").read_text())["runs"][0]["results"]
    assert (failed["ruleId"], failed["level"]) == ("size", "error")
    assert failed["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "models/edgeq.toml"},
        "region": {"startLine": 6},
    }
    for path in (tmp_path / "summary.md", folder / "comment.md"):
        assert "### Against the base branch\n\nThere are no bundles of the base branch" in path.read_text()
        assert "### What to try next\n\n- linux-x86\\_64-x86 fp32: the largest layer is " in path.read_text()
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


def yaml_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.yml", "*.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


@pytest.mark.parametrize("path", yaml_files())
def test_every_yaml_file_can_be_loaded(path: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / path).read_text()), dict)


def test_the_templates_are_among_them() -> None:
    expected = {"action.yml", "ci/gitlab.yml", "examples/ci/github.yml", "examples/ci/gitlab.yml"}
    assert expected | {".github/workflows/ci.yml", ".pre-commit-config.yaml"} <= set(yaml_files())


def test_the_action_uses_what_it_declares_and_names_a_shell_for_each_command() -> None:
    text = (ROOT / "action.yml").read_text()
    action = yaml.safe_load(text)
    assert set(re.findall(r"\binputs\.([\w-]+)", text)) == set(action["inputs"])
    assert all(isinstance(one["default"], str) and one["description"] for one in action["inputs"].values())
    steps = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        assert ("shell" in step) == ("run" in step)
        assert "@" in step.get("uses", "@")
    assert set(re.findall(r"\bsteps\.([\w-]+)", text)) <= {step.get("id") for step in steps}


def test_a_red_build_leaves_a_cache() -> None:
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    ends = [(step["uses"], step.get("if", "")) for step in steps if ".edgeq-cache" in str(step.get("with", {}))]
    assert [uses.partition("@")[0] for uses, _ in ends] == ["actions/cache/restore", "actions/cache/save"]
    assert ends[1][1].startswith("always()")
    # both ends name the same cache, and a second attempt of a job saves under a name of its own
    keys = {step["with"]["key"] for step in steps if ".edgeq-cache" in str(step.get("with", {}))}
    assert len(keys) == 1
    assert keys.pop().endswith("${{ github.run_attempt }}")
    job = yaml.safe_load((ROOT / "ci/gitlab.yml").read_text())["edgeq"]
    assert {one["key"]: one.get("when") for one in job["cache"]}["edgeq"] == "always"


def test_gitlab_runs_the_job_where_there_is_a_merge_request_to_write_in() -> None:
    job = yaml.safe_load((ROOT / "ci/gitlab.yml").read_text())["edgeq"]
    assert job["rules"][0]["if"] == '$CI_PIPELINE_SOURCE == "merge_request_event"'
    assert [one["variables"]["EDGEQ_BUNDLES"] for one in job["rules"]] == ["pull", "pull-push"]


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub's runner does, with commands that only print what they were called with."""
    (folder / "bin").mkdir()
    for name in ("python", "uv", "gh"):
        stub = folder / "bin" / name
        stub.write_text(f"#!/bin/sh\nprintf '%s|' {name} \"$@\"; echo; [ {name} != gh ]\n")
        stub.chmod(0o755)
    env = {**variables, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"EXTRAS": "onnx", "REQUIREMENTS": "a.txt b.txt", "TORCH_BACKEND": "cpu"},
            "--torch-backend|cpu|/e[onnx]|--requirement|a.txt|--requirement|b.txt|",
        ),
        ({"EXTRAS": "", "REQUIREMENTS": "", "TORCH_BACKEND": ""}, "/e|"),
    ],
)
def test_the_action_installs_the_models_requirements_with_torch_for_the_cpu(
    tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["inputs"]["torch-backend"]["default"] == "cpu"
    (script,) = (step["run"] for step in action["runs"]["steps"] if "uv pip" in step.get("run", ""))
    done = shell(script, tmp_path, FROM="/e", **given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"uv|pip|install|--quiet|--system|{expected}"


def test_a_comment_that_cannot_be_written_does_not_fail_the_job(tmp_path: Path) -> None:
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    (script,) = (step["run"] for step in steps if "gh pr comment" in step.get("run", ""))
    done = shell(script, tmp_path, NUMBER="12")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith("gh|pr|comment|12|")
    assert done.stdout.splitlines()[1].startswith("::warning title=edgeq::no comment was written")
