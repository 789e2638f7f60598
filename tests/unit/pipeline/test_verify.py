"""A real bundle is verified by running it; what was changed in it is found, whatever the hashes say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.bundle.writer import golden_npz
from edgeq.check import bundle
from edgeq.check.bundle import score_gates
from edgeq.core.config import DataConfig, GateOptions
from edgeq.core.errors import ExitCode, IntegrityError, UsageError
from edgeq.core.results.measured import ScoreComparison
from edgeq.core.results.report import BundleVerification
from edgeq.pipeline.verify import verify_bundle
from edgeq.report.progress import Quiet


def verified(folder: Path, *, data: DataConfig | None = None, gates: GateOptions | None = None) -> BundleVerification:
    return verify_bundle(folder, data=data or DataConfig(), gates=gates or GateOptions(), progress=Quiet())


def outcomes(result: BundleVerification) -> dict[str, str]:
    return {gate.name: gate.outcome for gate in result.checked.gates}


def rewritten_golden(place: Path, manifest: dict[str, Any], change: Any) -> None:
    """Put other outputs into golden.npz."""
    from edgeq.core.results.report import GoldenSet

    with np.load(place / "golden.npz") as arrays:
        inputs, outputs = arrays["input_image"], arrays["output_0"]
    golden = GoldenSet(inputs=(inputs,), outputs=(change(outputs),), preprocessed=False, sqnr_floor_db=0.0)
    (place / "golden.npz").write_bytes(golden_npz(golden, ["image"]))


def test_a_bundle_keeps_what_it_promises(net: Path, host_bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in host_bundle.iterdir()}
    limits = (("size", 1e6), ("download", 1e6), ("latency", 1e4), ("peak_memory", 1e9), ("load", 1e5))
    result = verified(host_bundle, data=DataConfig(evaluation=f"{net}:evaluation"), gates=GateOptions(limits=limits))
    assert result.exit_code == ExitCode.OK, result.checked
    names = ("files", "packaged", "run", "signature", "outputs", "golden", "score")
    assert list(outcomes(result)) == [*names, *(name for name, _ in limits)]
    assert result.golden is not None
    assert result.golden.samples == 4
    assert result.golden.sqnr_db >= result.golden.sqnr_floor_db
    assert result.score is not None
    assert (result.score.same_data, result.score.samples) == (True, 24)
    assert result.verified.timing is not None
    assert (result.verified.timing.runs, result.verified.timing.warmup) == (30, 5)
    assert {path.name: path.read_bytes() for path in host_bundle.iterdir()} == before


def test_a_model_of_several_rows_a_batch(net: Path, batched_bundle: Path) -> None:
    result = verified(batched_bundle, data=DataConfig(evaluation=f"{net}:evaluation"))
    assert result.exit_code == ExitCode.OK, result.checked
    assert result.golden is not None
    assert result.golden.samples == 4
    assert result.golden.max_abs == 0
    assert outcomes(result)["score"] == "ok"


@pytest.mark.slow
def test_a_phones_bundle_runs_on_the_host(phone_bundle: Path) -> None:
    options = GateOptions(limits=(("latency", 1e4), ("accuracy_drop", 5.0)))
    result = verified(phone_bundle, gates=options)
    found = outcomes(result)
    assert (found["golden"], found["signature"], found["outputs"]) == ("ok", "ok", "ok")
    # a time of this host says nothing about a phone, and a bundle holds no fp32
    assert (found["latency"], found["accuracy_drop"]) == ("unverified", "unverified")
    assert result.exit_code == ExitCode.VERIFICATION
    assert any("not the phone's" in note for note in result.checked.warnings)


@pytest.mark.slow
def test_inputs_that_the_program_does_not_take_fail(phone_bundle: Path, changed: Any) -> None:
    def narrower(place: Path, manifest: dict[str, Any]) -> None:
        manifest["inputs"][0].update(shape=[1, 1, 16, 15])
        manifest["inputs"][0]["preprocessing"].update(resize=[16, 15])

    result = verified(changed(phone_bundle, narrower))
    assert result.exit_code == ExitCode.VERIFICATION
    (gate,) = [gate for gate in result.checked.gates if not gate.passed]
    assert (gate.name, gate.measured) == ("signature", "float32 [1, 1, 16, 16] -> float32 [1, 3]")


@pytest.mark.parametrize("name", ["model.pt", "golden.npz"])
def test_a_flipped_byte_is_an_integrity_error(host_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(host_bundle, folder)
    path = next(folder.glob(f"{Path(name).stem}.*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="SHA-256 differs"):
        verified(folder)


def test_a_bundle_that_is_replaced_while_it_is_run_has_no_verdict(
    host_bundle: Path, tmp_path: Path, changed: Any
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(host_bundle, folder)
    other = changed(host_bundle, lambda _, manifest: manifest["model"].update(version="other"))

    class Replacing(Quiet):
        def task(self, description: str, total: int | None = None, unit: str = "samples") -> Any:
            if description.startswith("verify"):
                shutil.rmtree(folder)
                shutil.copytree(other, folder)
            return super().task(description, total, unit)

    with pytest.raises(IntegrityError, match=r"has the digest \w+, expected"):
        verify_bundle(folder, data=DataConfig(), gates=GateOptions(), progress=Replacing())


def test_other_golden_outputs_fail(host_bundle: Path, changed: Any) -> None:
    folder = changed(host_bundle, lambda place, manifest: rewritten_golden(place, manifest, lambda out: -out))
    result = verified(folder)
    assert result.exit_code == ExitCode.VERIFICATION
    assert [name for name, outcome in outcomes(result).items() if outcome == "failed"] == ["golden"]
    assert result.golden is not None
    assert result.golden.sqnr_db == pytest.approx(-6.02, abs=0.01)


def test_everything_that_is_wrong_is_told_at_once(host_bundle: Path, net: Path, changed: Any) -> None:
    def worse(place: Path, manifest: dict[str, Any]) -> None:
        rewritten_golden(place, manifest, lambda out: np.full_like(out, np.nan))
        manifest["outputs"][0].update(dtype="float64", shape=[1, 4])
        manifest["gates"].append({"name": "size", "outcome": "failed", "limit": "<= 1 B", "detail": None})
        manifest["gates"].append({"name": "latency", "outcome": "unverified", "limit": "<= 1 ms", "detail": None})
        manifest["gates"].append({"name": "runtime", "outcome": "failed", "limit": "1.4", "detail": None})
        manifest.update(accepted=False)
        manifest["accuracy"].update(score=0.99)

    data = DataConfig(evaluation=f"{net}:evaluation")
    result = verified(changed(host_bundle, worse), data=data, gates=GateOptions(limits=(("latency", 1e-6),)))
    failed = {gate.name: gate.exit_code for gate in result.checked.gates if not gate.passed}
    assert failed == {
        "packaged:size": ExitCode.SIZE,
        "packaged:latency": ExitCode.VERIFICATION,
        "packaged:runtime": ExitCode.UNSUPPORTED,
        "signature": ExitCode.VERIFICATION,
        "golden": ExitCode.VERIFICATION,
        "score": ExitCode.ACCURACY,
        "latency": ExitCode.LATENCY,
    }
    assert result.exit_code == ExitCode.UNSUPPORTED


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: bytes(4096)])
def test_a_damaged_artifact_is_a_gate_that_failed(host_bundle: Path, changed: Any, damage: Any) -> None:
    def broken(place: Path, manifest: dict[str, Any]) -> None:
        path = next(place.glob("model.*"))
        path.write_bytes(damage(path.read_bytes()))

    result = verified(changed(host_bundle, broken), gates=GateOptions(limits=(("size", 1.0), ("load", 1e5))))
    assert outcomes(result)["run"] == "failed"
    assert outcomes(result)["load"] == "unverified"
    assert result.golden is None
    assert result.exit_code == (ExitCode.SIZE if outcomes(result)["size"] == "failed" else ExitCode.VERIFICATION)


@pytest.mark.parametrize("function", ["others", "unlabelled"])
def test_scores_that_cannot_be_compared(host_bundle: Path, net: Path, function: str) -> None:
    result = verified(host_bundle, data=DataConfig(evaluation=f"{net}:{function}"))
    assert result.score is not None
    if function == "others":
        assert "score" not in outcomes(result)
        assert any("other data" in note for note in result.checked.warnings)
        assert result.exit_code == ExitCode.OK
    else:
        assert outcomes(result)["score"] == "unverified"
        assert result.exit_code == ExitCode.VERIFICATION


def test_a_metric_of_ones_own_is_not_compared_with_top1(host_bundle: Path, net: Path) -> None:
    result = verified(host_bundle, data=DataConfig(evaluation=f"{net}:evaluation", metric=f"{net}:score"))
    assert result.score is not None
    assert (result.score.metric, result.score.same_data, result.score.same_metric) == ("score", True, False)
    assert any("another metric" in note for note in result.checked.warnings)


def test_options_are_checked_before_anything_runs(host_bundle: Path, net: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'latency'"):
        verified(host_bundle, gates=GateOptions(allow_unmeasured=("latancy",)))
    with pytest.raises(UsageError, match="--metric and --labels"):
        verified(host_bundle, data=DataConfig(metric=f"{net}:score"))
    with pytest.raises(UsageError, match="no such file"):
        verified(host_bundle, data=DataConfig(evaluation="gone"))
    with pytest.raises(UsageError, match="no bundle"):
        verified(tmp_path)


@pytest.mark.parametrize(
    ("score", "recorded", "outcome"),
    [(0.996661, 0.9967, "ok"), (0.98, 0.9967, "failed"), (1.0, 0.9967, "ok"), (-3.0, -2.9, "failed")],
)
def test_a_score_is_compared_as_the_manifest_keeps_it(score: float, recorded: float, outcome: str) -> None:
    compared = ScoreComparison(
        metric="top1", samples=10, score=score, recorded=recorded, same_data=True, same_metric=True
    )
    ((gate,), notes) = score_gates(compared)
    assert (gate.outcome, gate.exit_code, notes) == (outcome, ExitCode.ACCURACY, ())
    assert ("equal" in gate.detail) == (score == 0.996661)


def test_no_recorded_score_is_no_gate() -> None:
    compared = ScoreComparison(metric="top1", samples=10, score=0.5, recorded=None, same_data=False, same_metric=False)
    gates, (note,) = bundle.score_gates(compared)
    assert gates == ()
    assert "records no score" in note
