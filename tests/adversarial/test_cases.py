"""Models that got "verdict ok" while they were useless, from the command line, each with what is right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from platformdirs import user_cache_path

pytestmark = pytest.mark.slow
MODELS = Path(__file__).parent / "hard_models.py"
X86, XNNPACK, ORT = "linux-x86_64-x86", "linux-x86_64-xnnpack", "linux-x86_64-ort"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    shutil.copy(MODELS, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    # the devices' runtimes are those of the user's own cache: fetching them takes minutes
    shared = user_cache_path("edgeq") / "emulator"
    shared.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/emulator").symlink_to(shared)
    return tmp_path


def here(name: str) -> str:
    """Return a model or data of this folder as the command line takes it."""
    return f"{MODELS.name}:{name}"


@dataclass(frozen=True)
class Done:
    """What a run of `edgeq` came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgeq(capfd) -> Callable[..., Done]:
    """Run the command line in this process, where torch is imported once for all tests."""
    from edgeq.cli.main import run

    def call(*args: str) -> Done:
        capfd.readouterr()
        code = run(args)
        out, err = capfd.readouterr()
        return Done(int(code), out, err)

    return call


@pytest.fixture
def package(edgeq) -> Callable[..., tuple[int, dict[str, dict[str, Any]]]]:
    """Package a model of this folder whose input x has a shape; return the exit code and the gates by name."""

    def call(name: str, shape: str, target: str, *args: str) -> tuple[int, dict[str, dict[str, Any]]]:
        done = edgeq("package", here(name), "--input", f"x={shape}", "-t", target, *args, "-o", "out", "--json")
        document = json.loads(done.out)
        assert document.get("error") is None, document["error"]
        return done.code, {gate["name"]: gate for gate in document["rows"][0]["gates"]}

    return call


@pytest.mark.parametrize("target", [X86, XNNPACK])
def test_objectness_that_boxes_drown(place, package, target):
    data = (
        "--calibration-data",
        here("detector_calib"),
        "--eval-data",
        here("detector_evals"),
        "--limit",
        "sqnr=30dB",
    )
    code, gates = package("detector", "1x3x32x32", target, *data)
    # the artifact keeps the score, or the gates name its channel
    if gates["fidelity"]["outcome"] == "ok":
        worst_db = float(re.search(r"output 0, channel \d: (-?[\d.]+) dB", gates["fidelity"]["measured"])[1])
        assert worst_db > 15
        assert code == 0 or "output 0, channel" in gates["sqnr"]["detail"]
    else:
        assert code == 5
        assert "output 0, channel 4: " in gates["fidelity"]["detail"]
        assert "output 0, channel 4" in gates["sqnr"]["detail"]


def test_one_layer_for_boxes_and_scores_is_refused_with_advice_that_works(place, package):
    data = ("--calibration-data", here("detector_calib"), "--eval-data", here("detector_evals"))
    code, gates = package("one_head", "1x3x32x32", X86, *data)
    assert code == 5
    assert "output 0, channel 4: " in gates["fidelity"]["detail"]
    assert "--keep-fp32" in gates["fidelity"]["detail"]
    code, gates = package("one_head", "1x3x32x32", X86, *data, "--keep-fp32", "head", "--limit", "sqnr=20dB")
    assert code == 0, gates


def test_a_second_output_that_is_noise(place, edgeq):
    data = (
        "--calibration-data",
        here("two_heads_calib"),
        "--eval-data",
        here("two_heads_evals"),
        "--limit",
        "accuracy_drop=1.5pp",
    )
    done = edgeq("package", here("two_heads"), "--input", "x=1x1x16x16", "-t", XNNPACK, *data, "-o", "out")
    assert done.code == 5
    assert "on 64 samples, output 1 is more error than signal on each of them; it was not lowered" in done.err
    assert not Path("out/two_heads").exists()


def test_a_branch_that_tracing_froze(place, edgeq):
    options = ("--input", "x=1x16", "--scheme", "fp32", "--eval-data", here("branch_evals"), "-o", "out", "--json")
    done = edgeq("package", here("branch"), "-t", X86, *options)
    assert done.code in (3, 5)  # refused with the line, or failed by the floor
    if done.code == 5:
        gates = {gate["name"]: gate["outcome"] for gate in json.loads(done.out)["rows"][0]["gates"]}
        assert gates["parity"] == gates["fidelity"] == "failed"


def test_batches_that_are_sorted_by_class(place, package):
    common = (
        "--scheme",
        "dynamic-int8",
        "--eval-data",
        here("sorted_by_loudness"),
        "--limit",
        "accuracy_drop=1pp",
    )
    code, gates = package("halves", "16x32", X86, *common)
    assert code == 5
    assert gates["accuracy_drop"]["outcome"] == "failed"
    assert "depends on the other samples of its batch" in gates["outputs"]["detail"]
    code, gates = package("halves", "1x32", ORT, *common, "--dynamic-batch")
    assert code == 7
    assert "depends on the other samples of its batch" in gates["outputs"]["detail"]


def test_repeats_and_a_rare_class(place, package):
    common = ("--limit", "accuracy_drop=0.5pp", "--calibration-data")
    for twelve in ("twelve_a_hundred_times", "twelve_with_noise"):
        code, gates = package("common", "1x8", XNNPACK, *common, here("clear_calib"), "--eval-data", here(twelve))
        assert code == 7
        assert "12 distinct samples" in gates["accuracy_drop"]["detail"]
    code, gates = package("common", "1x8", XNNPACK, *common, here("rare_calib"), "--eval-data", here("rare_evals"))
    assert code == 5
    assert "class 1: 0 right of 10 samples" in gates["class_drop"]["detail"]


@pytest.mark.parametrize("target", [X86, "android-arm64-qnnpack"])
def test_an_artifact_that_writes_to_its_callers_tensor(place, package, target):
    code, gates = package("in_place", "1x8", target, "--scheme", "fp32", "--on", "host")
    assert (code == 0) == (gates["outputs"]["outcome"] == "ok")
    assert code in (0, 7)
    if code:
        assert "overwrites its input 'x'" in gates["outputs"]["detail"]


def test_preprocessing_that_nothing_went_through(place, package):
    data = (
        "--calibration-data",
        here("floats_calib"),
        "--eval-data",
        here("floats_evals"),
        "--preprocess",
        "imagenet",
    )
    code, gates = package("brightness", "1x3x16x16", XNNPACK, *data)
    assert code == 7
    assert "to which --preprocess was not applied" in gates["preprocessing"]["detail"]
    code, gates = package("brightness", "1x3x16x16", XNNPACK, *data, "--allow-unmeasured", "preprocessing")
    assert code == 0
    assert gates["preprocessing"]["outcome"] == "allowed"


def test_images_of_kinds_that_are_not_read(place, edgeq):
    for name in ("dark", "light"):
        (place / "set" / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng(i).integers(0, 60, (16, 16, 3)) + (120 if name == "light" else 0)
            image = Image.fromarray(noise.astype(np.uint8))
            image.save(place / "set" / name / f"{i}.png")
            image.save(place / "set" / name / f"{i}.tif")
    options = ("--input", "x=1x3x16x16", "--scheme", "fp32", "--preprocess", "unit", "--eval-data", "set", "-o", "out")
    done = edgeq("package", here("brightness"), "-t", X86, *options)
    assert done.code == 2
    assert "12 of 24 images have formats that edgeq does not read: 12 .tif" in done.err


def test_a_report_that_was_edited(place, package, edgeq):
    code, _ = package("common", "1x8", X86, "--scheme", "fp32", "--limit", "size=1B")
    assert code == 4
    folder = next((place / "out" / "rejected").rglob("manifest.json")).parent
    before = edgeq("report", str(folder))
    assert before.code == 0  # it tells, and judges nothing
    assert "failed" in before.out
    path = folder / "report.json"
    report = json.loads(path.read_text())
    for gate in report["row"]["checked"]["gates"]:
        gate["outcome"] = "ok"
    path.write_text(json.dumps(report))
    done = edgeq("report", str(folder))
    assert done.code == 8
    assert "contradicts the manifest" in done.err
