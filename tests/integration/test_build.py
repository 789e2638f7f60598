"""`edgeq build`: several models in worker processes, one exit code, only what changed made anew, and kills."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import X86, Project
from .processes import descendants, finish, start, wait_for, wait_until_dead

pytestmark = pytest.mark.slow

PROJECT = f"""
targets = ["{X86}"]
schemes = ["fp32"]
device.on = "host"
data.evaluation = "evaluation.npz"

[app]
limit.size = "10MB"
runtime_size.linux-x86_64.torchscript = "1MB"

[[model]]
name = "good"
source = "quarters.py:model"

[[model]]
name = "large"
source = "quarters.py:model"
limit.size = "1kB"

[[model]]
name = "broken"
source = "broken.py:model"
"""
BROKEN = """
def model():
    raise RuntimeError("no such thing")
"""


@pytest.fixture
def several(project: Project) -> Project:
    (project.root / "edgeq.toml").write_text(PROJECT)
    (project.root / "broken.py").write_text(BROKEN)
    return project


def digests(project: Project) -> dict[str, str]:
    folders = {path.parent for path in project.out.rglob("manifest.json")}
    return {str(folder.relative_to(project.out)): read_bundle(folder).digest for folder in folders}


def test_one_that_fails_does_not_stop_the_others(several: Project) -> None:
    first = finish(start("build", "--json", "--junit", "junit.xml", "--markdown", "summary.md"))
    document = json.loads(first.out)
    good, large, broken = document["models"]
    assert (good["exit_code"], large["exit_code"], broken["exit_code"]) == (0, 4, 2)
    assert "no such thing" in broken["error"]["what"]
    assert first.code == document["exit_code"] == 2
    assert [gate["outcome"] for gate in document["app"]] == ["unverified"]
    assert set(digests(several)) == {f"good/{X86}", f"rejected/large/{X86}"}
    suites = ElementTree.parse(several.root / "junit.xml").getroot()  # noqa: S314  # our own
    assert (suites.get("failures"), suites.get("errors")) == ("2", "1")
    assert "1 of 3 models could not be built" in (several.root / "summary.md").read_text()
    page = (several.out / "report.html").read_text()
    assert f'href="good/{X86}/report.html"' in page
    assert f'href="rejected/large/{X86}/report.html"' in page
    assert "1 of 2 bundles rejected, 1 model could not be built" in page
    before = digests(several)
    again = json.loads(finish(start("build", "--json", "good", "large")).out)
    assert [row["cached"] for model in again["models"] for row in model["rows"]] == [True, True]
    assert (again["exit_code"], again["app"]) == (4, [])
    assert digests(several) == before
    finish(start("build", "--json", "large"))
    page = (several.out / "report.html").read_text()
    assert "1 of 1 bundle rejected" in page
    assert f'href="good/{X86}/report.html"' in page.partition('id="earlier"')[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_kill_leaves_every_bundle_whole(several: Project, number: signal.Signals) -> None:
    process = start("build", "good", "large")
    wait_for(process, "good: verify")
    children = descendants(process.pid)
    assert len(children) >= 3  # the process that workers are forked from, and workers
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=300)
    assert wait_until_dead(children) == set()
    assert digests(several) == {}
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-2:] == ["error: interrupted", "  fix: run the same command again"], err
        assert not several.out.exists()
    result = finish(start("build", "good", "large"))
    assert result.code == 4
    assert set(digests(several)) == {f"good/{X86}", f"rejected/large/{X86}"}
    assert Path("out/report.html").exists()
