"""A quick part of `scripts/zoo`, and that its harness tells what it is there to tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import zoo_checks  # noqa: E402
import zoo_models  # noqa: E402
import zoo_run  # noqa: E402
import zoo_table  # noqa: E402

# of what requirements.lock has, each on one target: all targets, convolutions, attention, detection, sound, words
QUICK = {
    "torchvision.squeezenet1_1": "linux-x86_64-ort",
    "torchvision.vit": "linux-x86_64-x86",
    "cases.centernet.model": "android-arm64-xnnpack",
    "cases.views.then": "linux-x86_64-openvino",
    "cases.stft.rfft": "linux-x86_64-x86",
    "cases.tied.lm": "android-arm64-qnnpack",
    "cases.jit.scripted": "linux-x86_64-x86",
}


def script(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts/zoo_run.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_models_of_all_kinds_are_ok_on_all_targets(tmp_path):
    names = [name for name in QUICK if name in zoo_models.zoo()]
    assert len(names) == len(QUICK) or zoo_models.CASES is None
    for name in names:
        zoo_run.run_model(name, [QUICK[name]], tmp_path / "rows.jsonl")
    rows = zoo_table.read_rows(tmp_path / "rows.jsonl")
    assert set(rows) == {(name, QUICK[name]) for name in names}
    assert {pair: row["reason"] for pair, row in rows.items() if row["verdict"] != "ok"} == {}


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped_and_ends_what_takes_too_long(tmp_path):
    results, model = tmp_path / "rows.jsonl", "torchvision.squeezenet1_1"
    done = {"model": model, "target": "linux-x86_64-ort", "scheme": "static-int8", "verdict": "ok", "db": 20.0}
    zoo_run.append(results, done)
    with results.open("a") as file:
        file.write('{"model": "torchvision.squee')  # what a kill leaves
    came = script(
        model, "--targets", "linux-x86_64-ort,linux-x86_64-x86", "--results", str(results), "--timeout", "0.01"
    )
    assert came.returncode == 1, came.stderr
    assert zoo_table.read_rows(results)[model, "linux-x86_64-ort"] == done
    row = zoo_table.read_rows(results)[model, "linux-x86_64-x86"]
    assert (row["verdict"], row["reason"]) == ("wrong", "no result after 0 s")
    assert "1 ok, 0 failed, 0 refused, 1 wrong" in came.stdout


def test_an_artifact_that_lost_the_model_is_wrong_and_one_that_is_far_worse_than_the_recipe():
    import numpy as np

    rng = np.random.default_rng(0)
    right = rng.normal(size=(12, 10)) + 5
    assert zoo_checks.sqnr_db(right, right + 0.1 * rng.normal(size=right.shape)) == pytest.approx(20, abs=2)
    assert zoo_checks.sqnr_db(right, np.broadcast_to(right.mean(0), right.shape)) == pytest.approx(0)
    assert zoo_checks.sqnr_db(right, right * np.nan) == -np.inf

    row = {"scheme": "static-int8", "fp32_bytes": 4000, "bytes": 1000, "reason": "int8_macs: 80%", "db": None}
    recipe = {"db": 20.0, "bytes": 1100}

    def verdict(row: dict, own_db: float | None = None, **figures: float) -> str:
        return zoo_run.beside({**row, "db": own_db}, "static", {**recipe, **figures})["verdict"]

    passed = {**row, "verdict": "ok"}
    assert [verdict(passed, 8.0), verdict(passed, 18.0), verdict(passed, 8.0, bytes=2000)] == ["wrong", "ok", "ok"]
    for outcome in ("failed", "refused"):
        other = {**row, "verdict": outcome}
        assert [verdict(other, db=2.0), verdict(other, bytes=200_000), verdict(other)] == [outcome, outcome, "wrong"]
        assert zoo_run.beside(other, "static", "RuntimeError: no") == other
        reason = zoo_run.beside(other, "static", recipe)["reason"]
        assert reason.startswith(f"{outcome} wrongly: the documented recipe (static int8) makes 20.0 dB, 1,100 bytes")


def test_the_page_shows_every_row():
    rows = [
        {"model": "timm.a", "target": "linux-x86_64-ort", "scheme": "static-int8", "verdict": "ok", "db": 21.4},
        {"model": "timm.a", "target": "linux-x86_64-x86", "scheme": "", "verdict": "refused", "db": None},
    ]
    rows = [{**row, "date": "2026-11-30", "library": "timm 1.0", "reason": "(3) `a` | b\nc"} for row in rows]
    page = "\n".join(zoo_table.markdown([json.loads(json.dumps(row)) for row in rows]))
    assert "1 models on 2 targets, 2 pairs, run from 2026-11-30 to 2026-11-30: 1 ok (50.0%)" in page
    assert "| timm.a | - | refused | static-int8 21 dB | - | - |" in page
    assert r"| timm.a | linux-x86_64-x86 | - | refused | (3) a \| b c |" in page
