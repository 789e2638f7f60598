"""`edgeq build --shard` and `edgeq report merge` come to what one machine would, with one exit code."""

from __future__ import annotations

import json

import pytest

from .conftest import X86, Project
from .processes import finish, start

pytestmark = pytest.mark.slow

PROJECT = f"""
targets = ["{X86}"]
schemes = ["fp32"]
device.on = "host"
data.evaluation = "evaluation.npz"

[app]
limit.size = "1kB"
runtime_size.linux-x86_64.torchscript = "1MB"

[[model]]
name = "good"
source = "quarters.py:model"

[[model]]
name = "also-good"
source = "quarters.py:model"
"""


def test_two_shards_and_their_report_are_one_build(project: Project) -> None:
    (project.root / "edgeq.toml").write_text(PROJECT)
    for index in (1, 2):
        assert finish(start("build", "--shard", f"{index}/2", "-o", f"shard{index}", "--quiet")).code == 0
    alone = finish(start("report", "merge", "shard1", "--json"))
    assert alone.code == 2
    assert "of 2 shards, 1 are missing: 2/2" in alone.out + alone.err
    merged = finish(start("report", "merge", "shard1", "shard2", "--out", "all", "--json", "--junit", "j.xml"))
    document = json.loads(merged.out)
    assert merged.code == document["exit_code"] == 4, "of the app as a whole, which no shard can judge"
    whole = json.loads(finish(start("build", "-o", "whole", "--json")).out)
    assert _digests(document) == _digests(whole)
    assert document["app"] == whole["app"]
    assert sorted(path.name for path in (project.root / "all").iterdir()) == ["also-good", "good", "report.html"]
    outside = finish(start("build", "--shard", "3/2"))
    outside.fails(2, "the shards of 2 are 1/2 to 2/2")


def _digests(document: dict) -> list[str]:
    return [row["digest"] for model in document["models"] for row in model["rows"]]
