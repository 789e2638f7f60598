"""Targets that stand for several, from the command line: what is built, timed and kept, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import edgeq
from edgeq.bundle.reader import read_bundle

from .conftest import FBGEMM, X86, Project, Run

pytestmark = pytest.mark.slow

GROUP = f"""
name = "ours"
description = "both engines of TorchScript, and a runtime with other schemes"
candidates = ["{FBGEMM}", "linux-x86_64-openvino", "{X86}"]
"""


@pytest.fixture
def ours(project: Project) -> Path:
    path = project.root / "ours.toml"
    path.write_text(GROUP)
    return path


def command(target: Path | str, *more: str) -> tuple[str, ...]:
    data = ("--calibration-data", "calibration.npz", "--eval-data", "evaluation.npz", "--on", "host", "--quiet")
    return ("package", "quarters.py:model", "--target", str(target), *data, *more)


def test_the_fastest_that_passes_is_the_bundle_that_its_target_makes(project: Project, edgeq: Run, ours: Path) -> None:
    asked = command(ours, "--scheme", "pretrained", "--scheme", "fp32", "--limit", "accuracy_drop=5pp", "--json")
    result = edgeq(*asked, "--junit", "junit.xml")
    rows = {row["scheme"]: row for row in result.json["rows"]}
    (refused,) = result.json["refused"]
    assert (result.code, refused["target"], refused["scheme"]) == (3, "ours", "pretrained")
    assert "linux-x86_64-openvino does not support the scheme pretrained" in refused["error"]
    row = rows["fp32"]
    found = row["fastest"]
    assert [one["target"] for one in found["candidates"]] == [FBGEMM, "linux-x86_64-openvino", X86]
    assert found["turns"] == 15
    assert all(one["passed"] and one["latency_ms"] > 0 for one in found["candidates"])
    assert row["target"] == found["candidates"][found["chosen"]]["target"]
    bundle = read_bundle(project.out / "quarters" / "ours@fp32")
    assert (bundle.manifest.target.name, bundle.digest) == (row["target"], row["digest"])
    assert "How the target was chosen" in (bundle.folder / "report.html").read_text()
    suites = ElementTree.parse("junit.xml").getroot()  # noqa: S314  # our own
    (told,) = [one for one in suites if one.get("name") == "quarters ours fp32"]
    assert next(one.get("value") for one in told.iter("property")) == row["target"]
    again = edgeq(*asked)
    assert [one["cached"] for one in again.json["rows"]] == [True]
    assert again.json["rows"][0]["fastest"] == found, "the choice is kept for this kind of machine"
    alone = edgeq(*command(row["target"], "--scheme", "fp32", "--limit", "accuracy_drop=5pp", "--json"))
    (single,) = alone.json["rows"]
    assert (single["digest"], single["cached"], single["fastest"]) == (row["digest"], True, None)


def test_a_candidate_that_fails_ends_nothing_and_all_that_fail_end_with_their_code(
    project: Project, edgeq: Run, ours: Path
) -> None:
    # OpenVINO's files are the largest
    sizes = {}
    for row in edgeq(*command(ours, "--scheme", "fp32", "--json")).json["rows"][0]["fastest"]["candidates"]:
        sizes[row["target"]] = row["size_bytes"]
    assert sizes["linux-x86_64-openvino"] > sizes[X86]
    most = f"size={max(sizes[X86], sizes[FBGEMM])}B"
    result = edgeq(*command(ours, "--scheme", "fp32", "--limit", most))
    assert result.code == 0, result.err
    assert "linux-x86_64-openvino: fp32, " in result.out
    assert "refused: size: " in result.out
    assert "candidates that passed every gate, timed in 15 turns on " in result.out
    result = edgeq(*command(ours, "--scheme", "fp32", "--limit", "size=10B"))
    assert result.code == 4, result.err
    assert "none of 3 candidates passed every gate" in result.out
    assert not (project.out / "quarters" / "ours").exists()
    assert (project.out / "rejected" / "quarters" / "ours").exists()


def test_python_and_edgeq_toml_take_it_too(project: Project, edgeq: Run, ours: Path) -> None:
    # both are built in worker processes; only one measures at a time
    entry = f'targets = ["{ours.name}", "{X86}"]\nschemes = ["fp32"]\ndevice.on = "host"\n'
    models = "".join(f'[[model]]\nname = "{name}"\nsource = "quarters.py:model"\n' for name in ("a", "b"))
    Path("edgeq.toml").write_text(entry + models)
    report = edgeq_build()
    assert {(row.model, row.named_target) for row in report.rows} == {(m, t) for m in "ab" for t in ("ours", X86)}
    assert report.ok
    row = report["a"]["ours"]
    assert row.bundle.manifest.target.name == row.target
    assert (project.out / "a" / X86).exists()
    cached = edgeq("build", "--json", "--quiet")
    assert cached.code == 0
    assert all(row["cached"] for model in cached.json["models"] for row in model["rows"])
    with pytest.raises(KeyError, match="no result for 'linux-x86_64-openvino'"):
        report["a"]["linux-x86_64-openvino"]
    edgeq("build", "--shard", "1/2").fails(2, "--shard: ours is chosen by times of one machine")
    edgeq("build", "--cluster", "tcp://localhost:1", "--dry-run", "--quiet").fails(2, "a cluster's workers build here")


def edgeq_build():
    return edgeq.build("edgeq.toml", progress=False)


def test_a_plan_names_all_candidates_and_who_is_left_out(project: Project, edgeq: Run, ours: Path) -> None:
    result = edgeq(*command(ours, "--scheme", "dynamic-int8", "--dry-run"))
    assert result.code == 0, result.err
    assert f"the fastest on this host that passes every gate: {FBGEMM}, {X86}\n" in result.out
    assert "leave out  linux-x86_64-openvino does not support the scheme dynamic-int8; its schemes: " in result.out
    assert f"\nours: {X86}, dynamic-int8\n" in result.out
    document = json.loads(edgeq(*command(ours, "--scheme", "dynamic-int8", "--dry-run", "--json")).out)
    (planned,) = document["plan"]["targets"]
    assert [one["target"] for one in planned["candidates"]] == [FBGEMM, X86]
    assert not project.out.exists()
    edgeq(*command(ours, "--scheme", "bf16")).fails(3, "no candidate of ours supports the scheme bf16")
    edgeq(*command(ours, "--latency-cpu", "No Such CPU")).fails(2, "only those of another kind of machine count")
    edgeq("sensitivity", "quarters.py:model", "--target", str(ours)).fails(2, "a ranking needs exactly one target")
