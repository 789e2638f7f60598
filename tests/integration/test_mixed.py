"""mixed-int8 and the ranking of layers from the command line."""

from __future__ import annotations

import json

import pytest

from .conftest import X86, XNNPACK, Project, Run

pytestmark = pytest.mark.slow

MIXED = ("--scheme", "mixed-int8", "--num-search-samples", "32")


def test_both_routes_search_on_samples_of_their_own(project: Project, package: Run) -> None:
    result = package(*MIXED, "--limit", "sqnr=1dB", "--target", XNNPACK, "--json")
    assert result.code == 0, result.err
    for row, target in enumerate((X86, XNNPACK)):
        assert result.gate("search", row)["outcome"] == "ok"
        assert result.gate("sqnr", row)["outcome"] == "ok"
        found = json.loads(result.out)["rows"][row]["search"]
        assert found["kept_fp32"] == []
        assert found["attempts"][found["chosen"]]["meets"]
        facts = project.manifest(target)["provenance"]
        assert facts["calibration_samples"] + facts["search"]["samples"] == 64
        assert facts["search"]["data_sha256"] != facts["calibration_sha256"]
        page = (project.out / "quarters" / target / "report.html").read_text()
        assert "Layers kept in float" in page
    assert not list(project.cache.rglob("*.state"))


def test_an_accuracy_out_of_reach_is_told_with_the_nearest(project: Project, package: Run) -> None:
    result = package(*MIXED, "--limit", "sqnr=150dB")
    assert result.code == 5
    assert "search: limit sqnr >= 150.00 dB" in result.out
    assert "nearest" in result.out
    assert not (project.out / "quarters" / X86).exists()
    report = json.loads((project.out / "rejected" / "quarters" / X86 / "report.json").read_text())
    assert len(report["row"]["search"]["attempts"]) > 1


def test_search_samples_of_the_evaluation_are_an_error(package: Run) -> None:
    package(*MIXED, "--limit", "sqnr=1dB", "--search-data", "evaluation.npz").fails(
        2, "shared-with-evaluation", "search"
    )


def test_the_ranking_alone_writes_nothing(project: Project, edgeq: Run) -> None:
    options = ("--target", X86, "--calibration-data", "calibration.npz", "--quiet")
    result = edgeq("sensitivity", "quarters.py:model", *options, "--json")
    assert result.code == 0, result.err
    layers = result.json["layers"]
    assert {layer["layer"] for layer in layers} == {"features.0", "head"}
    assert [layer["alone_db"] for layer in layers] == sorted(layer["alone_db"] for layer in layers)
    assert not project.out.exists()
    assert result.json["metric"] is None
    assert result.json["keep_fp32"] in ("features.0", "head", None)
    edgeq("sensitivity", "quarters.py:model", *options, "--target", XNNPACK).fails(2, "needs exactly one target")
    onnx = ("--target", "linux-x86_64-ort", *options[2:])
    edgeq("sensitivity", "quarters.py:model", *onnx).fails(3, "for linux-x86_64-ort: runtime onnx")


def test_a_ranking_by_score_and_its_page(project: Project, edgeq: Run) -> None:
    (project.root / "judge.py").write_text(
        "def zero(outputs, label):\n    return float(1 / (1 + 2.0 ** outputs[0][0]))\n"
    )
    options = ("--target", X86, "--calibration-data", "calibration.npz", "--quiet", "--html", "layers.html", "--json")
    data = ("--eval-data", "evaluation.npz")
    result = edgeq("sensitivity", "quarters.py:model", *options, *data, "--metric", "judge.py:zero")
    assert result.code == 0, result.err
    assert result.json["metric"] == "zero"
    assert result.json["measured_on"] == 100
    scores = [layer["alone_score"] for layer in result.json["layers"]]
    assert scores == sorted(scores)
    assert 0 < result.json["fp32_score"] < 1
    page = (project.root / "layers.html").read_text()
    assert "zero, only this layer" in page
    assert ("--keep-fp32 " in page) == (result.json["keep_fp32"] is not None)
    metric = ("--metric", "judge.py:zero")
    edgeq("sensitivity", "quarters.py:model", *options, *metric).fails(2, "--metric")


def test_a_ranking_needs_calibration_data(edgeq: Run) -> None:
    edgeq("sensitivity", "quarters.py:model", "--target", X86).fails(2, "no calibration data")
