"""The CI recipes of examples/ci, run as their services would, without the steps that set a machine up.

Nothing here builds the Dockerfile, which takes 6 GB: its sources, its user and its extras are checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeq.deliver.ota.keys import new_keys

from .conftest import X86, Project

ROOT = Path(__file__).parents[2]
PROJECT = f"""
targets = ["{X86}"]
schemes = ["fp32"]
device.on = "host"
[[model]]
name = "good"
source = "quarters.py:model"
[[model]]
name = "large"
source = "quarters.py:model"
limit.size = "1kB"
"""


def shell(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-ec", text], capture_output=True, text=True, env=environment)


@pytest.fixture
def prepared(project: Project) -> Project:
    (project.root / "edgeq.toml").write_text(PROJECT)
    new_keys(project.root / "ci-keys", counts={}, places={})
    return project


def filled(value: Any, event: str, shard: int) -> str:
    """Return a text with GitHub's expressions of these recipes replaced."""
    text = re.sub(
        r"\$\{\{ github\.event_name == 'push' && '?([^'|]*?)'? \|\| '([^']*)' \}\}",
        lambda match: match[1] if event == "push" else match[2],
        str(value),
    )
    found = text.replace("${{ matrix.shard }}", str(shard))
    assert "${{" not in found
    return found


@pytest.mark.slow
def test_a_matrix_builds_and_the_last_job_has_the_exit_code(prepared: Project, tmp_path: Path) -> None:
    """GitHub's with a push, which signs what it keeps, then with a pull request, then GitLab's, which both take it."""
    workflow = yaml.safe_load((ROOT / "examples/ci/github.yml").read_text())
    jobs, cache = workflow["jobs"], f"file://{tmp_path}/shared"

    def github(event: str) -> tuple[int, int]:
        cached = 0
        for shard in jobs["build"]["strategy"]["matrix"]["shard"]:
            (step,) = (step for step in jobs["build"]["steps"] if step.get("name") == "build")
            variables = {name: filled(value, event, shard) for name, value in step["env"].items()}
            variables |= {"EDGEQ_CACHE": cache, "EDGEQ_CACHE_DIR": str(tmp_path / f"runner-{event}-{shard}")}
            ran = shell(filled(step["run"], event, shard), **variables)
            assert ran.returncode == 0, ran.stderr
            cached += ran.stdout.count("(cached)")
            shutil.copytree("out", f"shards/shard-{shard}")
            shutil.rmtree("out")
        (step,) = (step for step in jobs["collect"]["steps"] if step.get("name") == "collect")
        merged = shell(step["run"])
        assert "large" in merged.stdout
        shutil.rmtree("shards")
        return merged.returncode, cached

    assert github("push") == (4, 0)
    kept = sorted((tmp_path / "shared").rglob("*.*"))
    assert len(kept) == 4
    assert github("pull_request") == (4, 2)
    assert {path.name for path in Path("out").iterdir()} == {"good", "rejected", "report.html"}

    pipeline = yaml.safe_load((ROOT / "examples/ci/gitlab.yml").read_text())
    count = pipeline["build"]["parallel"]
    for index in range(1, count + 1):
        variables = {"CI_NODE_INDEX": str(index), "CI_NODE_TOTAL": str(count), "EDGEQ_CI_KEY": ""}
        variables["EDGEQ_CACHE_DIR"] = str(tmp_path / f"gitlab-{index}")
        ran = shell("\n".join(pipeline["build"]["script"]), EDGEQ_CACHE=cache, **variables)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("verdict") == ran.stdout.count("(cached)")
    merged = shell("\n".join(pipeline["collect"]["script"]))
    assert merged.returncode == 4, merged.stderr
    assert Path("junit.xml").exists()
    assert sorted((tmp_path / "shared").rglob("*.*")) == kept


def test_the_dockerfile_copies_what_there_is_installs_known_extras_and_drops_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert sources
    assert all((ROOT / source).exists() and f"!{source}" in ignored for source in sources)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"/opt/edgeq\[([^]]+)\]", "\n".join(lines))
    assert set(asked.split(",")) <= set(extras)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["1000"]
    assert [line for line in lines if line.startswith(("ENTRYPOINT", "CMD"))][-1] == 'CMD ["doctor"]'
