"""Every limit that passes and that fails, and what becomes of a bundle that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle

from .conftest import MODEL, QNNPACK, X86, Project, Run, bright_quarters, write_set

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
            *("parity", "outputs", "int8_macs", "runtime"),
            *("size", "download", "accuracy_drop", "latency", "peak_memory", "load"),
        ),
        "ok",
    )
    bundle = read_bundle(project.out / "quarters" / X86)
    assert bundle.manifest.accepted
    assert bundle.digest == row["digest"]
    assert row["path"] == f"out/quarters/{X86}"
    assert row["size_bytes"] == bundle.artifact.stat().st_size
    assert project.names() == ["quarters", f"quarters/{X86}"] + sorted(
        f"quarters/{X86}/{path.name}" for path in bundle.folder.iterdir()
    )


@pytest.mark.parametrize(
    ("limit", "code", "name"),
    [
        ("size=1kB", 4, "size"),
        ("download=1kB", 4, "download"),
        ("latency=0.000001ms", 6, "latency"),
        ("peak_memory=1B", 6, "peak_memory"),
        ("load=0.000001ms", 6, "load"),
    ],
)
def test_a_limit_that_is_broken_rejects(package: Run, project: Project, limit: str, code: int, name: str) -> None:
    result = package("--json", "--scheme", "fp32", *limits(limit))
    assert result.code == code
    assert result.gate(name)["outcome"] == "failed"
    assert sorted(path.name for path in project.out.iterdir()) == ["rejected"]
    assert not project.manifest(model="rejected/quarters")["accepted"]


def test_all_gates_are_evaluated_and_the_lowest_code_wins(package: Run) -> None:
    result = package("--scheme", "fp32", *limits("load=0.000001ms", "size=1kB", "accuracy_drop=5pp"), "--json")
    assert result.code == 4
    outcomes = {gate["name"]: gate["outcome"] for gate in result.json["rows"][0]["gates"]}
    assert outcomes["load"] == outcomes["size"] == "failed"
    assert outcomes["accuracy_drop"] == "ok"


def test_what_cannot_be_measured_here_fails_unless_it_is_allowed(package: Run, project: Project) -> None:
    common = ("--target", QNNPACK, "--scheme", "fp32", *limits("latency=1000ms"))
    first = package(*common, "--json")
    assert first.code == 7
    assert [row["exit_code"] for row in first.json["rows"]] == [0, 7]  # the x86 host can be measured
    assert first.gate("latency", row=1)["outcome"] == "unverified"
    assert (project.out / "quarters" / X86).is_dir()
    assert (project.out / "rejected" / "quarters" / QNNPACK).is_dir()
    second = package(*common, "--allow-unmeasured", "latency", "--json")
    assert second.code == 0
    assert second.gate("latency", row=1)["outcome"] == "allowed"
    assert not (project.out / "rejected").exists()
    allowed = [gate for gate in project.manifest(QNNPACK)["gates"] if gate["name"] == "latency"]
    assert allowed[0]["outcome"] == "allowed"


def test_a_few_samples_cannot_prove_a_small_drop(package: Run) -> None:
    write_set(Path("few.npz"), 20, seed=5)
    few = ("--eval-data", "few.npz", "--json", *limits("accuracy_drop=1pp"))
    result = package(*few)
    assert result.code == 5
    assert "interval" in result.gate("accuracy_drop")["detail"]
    assert package(*few, "--limit-on", "point").code == 0


def test_damaged_int8_fails_on_accuracy(package: Run) -> None:
    images, labels = bright_quarters(64, 1)
    images[0] *= 3000  # one outlier, by which minmax stretches every range until the images are one step wide
    np.savez("outlier.npz", image=images, y=labels)
    args = ("--calibration-data", "outlier.npz", "--observer", "minmax", *limits("accuracy_drop=5pp"))
    result = package(*args, "--json")
    assert result.code == 5
    assert result.gate("accuracy_drop")["outcome"] == "failed"


def test_an_accuracy_limit_without_labels_is_unverified(package: Run) -> None:
    images, _ = bright_quarters(64, 8)
    np.savez("plain.npz", image=images)
    result = package("--eval-data", "plain.npz", "--scheme", "fp32", *limits("accuracy_drop=5pp"), "--json")
    assert result.code == 7
    assert result.gate("accuracy_drop")["outcome"] == "unverified"


def test_layers_kept_in_float_fail_the_precision_audit(package: Run) -> None:
    result = package("--keep-fp32", "features.0", "--json")
    assert result.code == 7
    gate = result.gate("int8_macs")
    assert gate["outcome"] == "failed"
    assert "short" in gate["detail"]


def test_a_target_file_may_ask_for_less(package: Run) -> None:
    text = f'extends = "{X86}"\nname = "relaxed"\n[audit.static-int8]\nint8_macs = 0.05\n'
    Path("relaxed.toml").write_text(text)
    result = package("--target", "relaxed.toml", "--keep-fp32", "features.0", "--json")
    assert [row["exit_code"] for row in result.json["rows"]] == [7, 0]  # the shipped target asks for 95%


def test_a_runtime_in_the_field_that_is_too_old_is_unsupported(package: Run) -> None:
    text = f'extends = "{X86}"\nname = "old"\n[app]\nruntimes = ["1.13.1", "2.15.0"]\n'
    Path("old.toml").write_text(text)
    result = package("--target", "old.toml", "--scheme", "fp32", "--json")
    assert result.code == 3
    assert "1.13.1" in result.gate("runtime", row=1)["detail"]


@pytest.mark.parametrize(
    ("line", "finding"),
    [("head.bias.fill_(float('nan'))", "NaN"), ("head.weight.zero_()", "constant")],
)
def test_outputs_that_say_nothing_fail(package: Run, line: str, finding: str) -> None:
    Path("quarters.py").write_text(MODEL.replace("        head.bias.zero_()\n", f"        head.bias.zero_()\n        {line}\n"))
    result = package("--scheme", "fp32", "--json")
    assert result.code == 7
    assert finding in result.gate("outputs")["detail"]


def test_a_rejected_run_takes_the_accepted_bundle_away_and_the_other_way_round(package: Run, project: Project) -> None:
    assert package("--scheme", "fp32").code == 0
    other = project.out / "quarters" / "own.txt"
    other.write_text("a file of the user's own")
    assert package("--scheme", "fp32", *limits("size=1kB")).code == 4
    assert not (project.out / "quarters" / X86).exists()
    assert other.read_text() == "a file of the user's own"
    assert (project.out / "rejected" / "quarters" / X86 / "report.json").is_file()
    assert package("--scheme", "fp32").code == 0
    assert not (project.out / "rejected").exists()


def test_an_error_leaves_the_earlier_bundle_alone(package: Run, project: Project) -> None:
    assert package("--scheme", "fp32").code == 0
    before = project.names()
    assert package("--scheme", "fp32", "--weights", "gone.pt").code == 2
    Path("broken.py").write_text("def score(outputs, label):\n    raise ValueError('late')\n")
    late = package("--scheme", "fp32", "--metric", "broken.py:score")
    late.fails(2, "broken.py:2", "late")
    assert project.names() == before
    read_bundle(project.out / "quarters" / X86)


def test_the_download_that_is_judged_is_the_published_zip(package: Run, project: Project) -> None:
    first = package("--scheme", "fp32", "--limit", "download=1MB", "--json")
    size = len(bundle_zip(project.out / "quarters" / X86))
    assert first.json["rows"][0]["download_bytes"] == size
    # the limit stands in the manifest, which is in the ZIP: this one has as many digits as it will measure
    for _ in range(3):
        result = package("--scheme", "fp32", "--limit", f"download={size}B", "--json")
        if result.code == 0 and len(bundle_zip(project.out / "quarters" / X86)) == size:
            break
        size = result.json["rows"][0]["download_bytes"]
    exact = package("--scheme", "fp32", "--limit", f"download={size}B", "--json")
    assert exact.code == 0
    assert len(bundle_zip(project.out / "quarters" / X86)) == size
    short = package("--scheme", "fp32", "--limit", f"download={size - 1}B", "--json")
    assert short.code == 4
    published = len(bundle_zip(project.out / "rejected" / "quarters" / X86))
    assert short.json["rows"][0]["download_bytes"] == published


def test_a_metric_that_works_in_place_spoils_nothing(package: Run, project: Project) -> None:
    Path("metric.py").write_text(
        "def score(outputs, label):\n    logits = outputs[0]\n    best = float(logits.argmax() == label)\n"
        "    logits *= 0\n    return best\n"
    )
    both = ("--target", "linux-x86_64-fbgemm", "--scheme", "fp32", "--json")
    plain = package(*both)
    digests = [row["digest"] for row in plain.json["rows"]]
    fidelity = plain.json["rows"][1]["verified"]["fidelity"]
    golden = np.load(project.out / "quarters" / X86 / "golden.npz")["output_0"]
    spoiled = package(*both, "--metric", "metric.py:score")
    assert spoiled.code == 0
    again = spoiled.json["rows"][1]["verified"]["fidelity"]
    assert again["metric"] == "score"
    assert again["sqnr_db"] == fidelity["sqnr_db"]
    assert again["score"] == fidelity["score"]
    assert np.array_equal(np.load(project.out / "quarters" / X86 / "golden.npz")["output_0"], golden)
    assert [row["digest"] for row in spoiled.json["rows"]] != digests  # the metric's name is published


def test_a_report_tells_what_the_command_told(package: Run, project: Project) -> None:
    result = package("--scheme", "fp32", "--json", *limits("size=1MB"))
    report = json.loads((project.out / "quarters" / X86 / "report.json").read_text())["row"]
    told = result.json["rows"][0]
    assert report["digest"] == told["digest"]
    assert [gate["name"] for gate in report["checked"]["gates"]] == [gate["name"] for gate in told["gates"]]
    assert report["verified"]["timing"]["p50_ms"] == told["verified"]["timing"]["p50_ms"]
    shutil.rmtree(project.out)
