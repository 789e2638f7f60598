"""Every limit that passes and that fails, and what becomes of a bundle that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle

from .conftest import FBGEMM, MODEL, QNNPACK, X86, XNNPACK, Project, Run, arguments, bright_quarters, command, write_set

pytestmark = pytest.mark.slow

LIMITS = ("size=1MB", "download=1MB", "accuracy_drop=5pp", "latency=1000ms", "peak_memory=4GB", "load=60s")


def limits(*texts: str) -> Iterator[str]:
    for text in texts:
        yield from ("--limit", text)


def test_a_good_model_passes_every_gate_and_is_put_in_place(package: Run, project: Project) -> None:
    result = package("--json", *limits(*LIMITS))
    assert result.code == 0, result.out
    row = result.json["rows"][0]
    assert {gate["name"]: gate["outcome"] for gate in row["gates"]} == dict.fromkeys(
        (
            *("parity", "outputs", "fidelity", "class_drop", "int8_macs", "runtime"),
            *("size", "download", "accuracy_drop", "latency", "peak_memory", "load"),
        ),
        "ok",
    )
    bundle = read_bundle(project.out / "quarters" / X86)
    assert bundle.manifest.accepted
    assert bundle.digest == row["digest"]
    assert row["path"] == f"out/quarters/{X86}"
    assert row["download_bytes"] == len(bundle_zip(bundle.folder))
    report = json.loads((bundle.folder / "report.json").read_text())["row"]
    assert report["digest"] == row["digest"]
    assert report["verified"]["timing"]["p50_ms"] == row["verified"]["timing"]["p50_ms"]
    assert row["size_bytes"] == bundle.artifact.stat().st_size
    files = sorted(f"quarters/{X86}/{path.name}" for path in bundle.folder.iterdir())
    assert project.names() == ["quarters", f"quarters/{X86}", *files]


def test_every_limit_can_fail_and_the_lowest_code_wins(package: Run, project: Project) -> None:
    Path("old.toml").write_text(f'extends = "{X86}"\nname = "old"\n[app]\nruntimes = ["1.13.1", "2.15.0"]\n')
    write_set(Path("few.npz"), 20, seed=5)
    broken = limits(
        *("size=1kB", "download=1kB", "accuracy_drop=1pp"),
        *("latency=0.000001ms", "peak_memory=1B", "load=0.000001ms"),
    )
    args = ("--scheme", "fp32", "--eval-data", "few.npz", *broken)
    result = package("--target", "old.toml", *args, "--json")
    assert result.code == 3  # of the second target; all of both are evaluated
    first, second = ({gate["name"]: gate for gate in row["gates"]} for row in result.json["rows"])
    assert {name: gate["exit_code"] for name, gate in first.items() if gate["outcome"] == "failed"} == {
        "size": 4,
        "download": 4,
        "latency": 6,
        "peak_memory": 6,
        "load": 6,
    }
    # 20 samples can neither prove nor disprove a point
    assert first["accuracy_drop"]["outcome"] == "unverified"
    assert "needs about" in first["accuracy_drop"]["detail"]
    assert first["parity"]["outcome"] == first["outputs"]["outcome"] == first["runtime"]["outcome"] == "ok"
    assert "1.13.1" in second["runtime"]["detail"]
    assert [row["exit_code"] for row in result.json["rows"]] == [4, 3]
    assert sorted(path.name for path in project.out.iterdir()) == ["rejected", "report.html"]
    assert not project.manifest(model="rejected/quarters")["accepted"]


@pytest.mark.parametrize("judged_by", ["interval", "point"])
def test_a_few_samples_prove_a_small_drop_only_by_the_estimate(package: Run, judged_by: str) -> None:
    write_set(Path("few.npz"), 20, seed=5)
    broken = limits("accuracy_drop=1pp", "latency=0.000001ms")
    result = package("--scheme", "fp32", "--eval-data", "few.npz", "--limit-on", judged_by, *broken)
    assert result.code == 6  # of the latency; a drop that is not proven has a higher code
    assert ("accuracy_drop" in result.out) == (judged_by == "interval")
    assert "latency: limit" in result.out
    assert f"rejected: out/rejected/quarters/{X86}" in result.out


def test_what_cannot_be_measured_here_fails_unless_it_is_allowed(package: Run, project: Project) -> None:
    common = ("--scheme", "fp32", *limits("latency=1000ms"), "--json")
    first = package("--target", QNNPACK, *common)
    assert first.code == 7
    assert [row["exit_code"] for row in first.json["rows"]] == [0, 7]  # the x86 host can be measured
    assert first.gate("latency", row=1)["outcome"] == "unverified"
    assert (project.out / "quarters" / X86).is_dir()
    assert (project.out / "rejected" / "quarters" / QNNPACK).is_dir()
    second = package(*command(target=QNNPACK), *common, "--allow-unmeasured", "latency", base=False)
    assert second.code == 0
    assert second.gate("latency")["outcome"] == "allowed"
    assert not (project.out / "rejected").exists()
    allowed = [gate for gate in project.manifest(QNNPACK)["gates"] if gate["name"] == "latency"]
    assert allowed[0]["outcome"] == "allowed"


def test_damaged_int8_fails_on_accuracy(package: Run) -> None:
    images, labels = bright_quarters(64, 1)
    images[0] *= 3000  # one outlier, by which minmax stretches every range until the images are one step wide
    np.savez("outlier.npz", image=images, y=labels)
    args = ("--calibration-data", "outlier.npz", "--observer", "minmax", *limits("accuracy_drop=5pp"))
    package(*args).fails(5, "static-int8 loses this model", "not lowered", "calibration data")
    result = package(*args, "--limit", "sqnr=0", "--json")
    assert result.code == 5
    assert result.gate("accuracy_drop")["outcome"] == "failed"


def test_an_accuracy_limit_without_labels_ends_the_run_at_once(package: Run) -> None:
    images, _ = bright_quarters(64, 8)
    np.savez("plain.npz", image=images)
    args = ("--eval-data", "plain.npz", "--scheme", "fp32", *limits("accuracy_drop=5pp"))
    package(*args).fails(7, "--limit accuracy_drop cannot be measured: plain.npz has no labels", "labelled --eval-data")
    allowed = package(*args, "--allow-unmeasured", "accuracy_drop", "--json")
    assert allowed.code == 0
    assert allowed.gate("accuracy_drop")["outcome"] == "allowed"


def test_a_metric_of_the_outputs_alone_needs_no_labels(package: Run) -> None:
    images, _ = bright_quarters(200, 8)
    np.save("plain.npy", images)
    Path("metric.py").write_text("def sure(outputs, label):\n    return float(outputs[0].max() > 0.1)\n")
    args = ("--eval-data", "plain.npy", "--metric", "metric.py:sure", "--scheme", "fp32")
    done = package(*args, *limits("accuracy_drop=5pp"), "--json")
    assert "cannot be measured" not in done.err
    assert done.gate("accuracy_drop")["name"] == "accuracy_drop"


@pytest.mark.parametrize("target", [X86, XNNPACK, "linux-x86_64-ort"])
def test_layers_that_people_keep_in_float_are_not_missing_from_int8(package: Run, target: str) -> None:
    result = package("--target", target, "--keep-fp32", "features.0", "--json")
    (row,) = [place for place, row in enumerate(result.json["rows"]) if row["target"] == target]
    gate = result.gate("int8_macs", row)
    assert (gate["outcome"], gate["measured"]) == ("ok", "100.0%"), gate
    # the convolution has 36 MACs a pixel of 64, the head 64 in all
    assert "2.7% over all, left in float: 97.3% by --keep-fp32" in gate["detail"]
    assert any("only 2.7% of the MACs are in int8" in text for text in result.json["rows"][row]["warnings"])
    assert result.code == 0, result.out


@pytest.mark.parametrize(
    ("line", "finding"),
    [("head.bias.fill_(float('nan'))", "NaN"), ("head.weight.zero_()", "constant")],
)
def test_outputs_that_say_nothing_fail(package: Run, line: str, finding: str) -> None:
    Path("quarters.py").write_text(
        MODEL.replace("        head.bias.zero_()\n", f"        head.bias.zero_()\n        {line}\n")
    )
    result = package("--scheme", "fp32", "--json")
    assert result.code == 7
    assert finding in result.gate("outputs")["detail"]


def test_a_rejected_run_takes_the_accepted_bundle_away_and_the_other_way_round(package: Run, project: Project) -> None:
    assert package("--scheme", "fp32").code == 0
    other = project.out / "quarters" / "own.txt"
    other.write_text("a file of the user's own")
    rejected = package("--scheme", "fp32", *limits("size=1kB"), "--json")
    assert rejected.code == 4
    removed = f"the earlier bundle is removed, since this one was rejected: out/quarters/{X86}"
    assert removed in rejected.json["rows"][0]["warnings"]
    published = bundle_zip(project.out / "rejected" / "quarters" / X86)
    assert rejected.json["rows"][0]["download_bytes"] == len(published)
    assert not (project.out / "quarters" / X86).exists()
    assert other.read_text() == "a file of the user's own"
    assert (project.out / "rejected" / "quarters" / X86 / "report.json").is_file()
    assert package("--scheme", "fp32").code == 0
    assert not (project.out / "rejected").exists()
    assert other.exists()


def test_an_error_leaves_the_earlier_bundle_alone(package: Run, project: Project) -> None:
    assert package("--scheme", "fp32").code == 0
    before = project.names()
    assert package("--scheme", "fp32", "--weights", "gone.pt").code == 2
    Path("broken.py").write_text("def score(outputs, label):\n    raise ValueError('late')\n")
    late = package("--scheme", "fp32", "--metric", "broken.py:score")
    late.fails(2, "broken.py:2", "late")
    assert project.names() == before
    read_bundle(project.out / "quarters" / X86)


@pytest.mark.parametrize("kind", ["metric", "labels"])
def test_what_cannot_be_scored_is_found_before_calibration(edgeq: Run, project: Project, kind: str) -> None:
    Path("broken.py").write_text("def score(outputs, label):\n    return outputs.argmax() == label\n")
    data = np.load("evaluation.npz")
    np.savez("one_hot.npz", image=data["image"], y=np.eye(4, dtype=np.int64)[data["y"]])
    given = ("--metric", "broken.py:score") if kind == "metric" else ("--eval-data", "one_hot.npz")
    done = edgeq(*arguments(), *given)
    texts = ("broken.py:2", "evaluation.npz[0]") if kind == "metric" else ("one_hot.npz[0]", "not a class index")
    done.fails(2, "--eval-data", *texts)
    assert "read the data" in done.err
    assert "calibrat" not in done.err.partition("error: ")[0]


def test_a_metric_that_works_in_place_spoils_nothing(package: Run, project: Project) -> None:
    """Targets share the outputs of fp32, and the golden samples are made of the very arrays that are scored."""
    Path("metric.py").write_text(
        "def score(outputs, label):\n    logits = outputs[0]\n    best = float(logits.argmax() == label)\n"
        "    logits *= 0\n    return best\n"
    )
    result = package("--target", FBGEMM, "--scheme", "fp32", "--metric", "metric.py:score", "--json")
    assert result.code == 0, result.out
    for row in result.json["rows"]:
        fidelity = row["verified"]["fidelity"]
        assert (fidelity["metric"], fidelity["fp32_score"], fidelity["score"]) == ("score", 1.0, 1.0)
        assert float(fidelity["sqnr_db"]) > 100
    with np.load(project.out / "quarters" / X86 / "golden.npz") as golden:
        assert np.abs(golden["output_0"]).max() > 0.1
