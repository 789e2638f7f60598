"""Two bundles of the small net, packaged by the real pipeline, on the same inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeq.cli.compare import to_json
from edgeq.cli.main import run
from edgeq.core.config import DataConfig
from edgeq.core.errors import UnsupportedError, UsageError, VerificationError
from edgeq.core.files import canonical_json
from edgeq.core.manifest import parse_manifest
from edgeq.core.results.measured import OutputComparison
from edgeq.pipeline.compare import BundleComparison, compare_bundles
from edgeq.report import text
from edgeq.report.json import CompareDocument
from edgeq.report.progress import Quiet
from tests.unit.conftest import packaged

Changed = Callable[[Path, Callable[[Path, dict[str, Any]], None]], Path]


@pytest.fixture(scope="module")
def float_bundle(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(net, "linux-x86_64-x86", tmp_path_factory.mktemp("float"), schemes=("fp32",))


def compared(fp32: Path, other: Path, **options: Any) -> BundleComparison:
    data = DataConfig(evaluation=options.get("evaluation"), metric=options.get("metric"))
    return compare_bundles(
        fp32,
        other,
        data=data,
        samples=options.get("samples", 20),
        layers=options.get("layers", False),
        progress=Quiet(),
    )


def test_the_figures_are_those_of_the_artifacts_own_outputs(
    net: Path, float_bundle: Path, host_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "x86")  # whatever a test before this one left
    found = compared(float_bundle, host_bundle, evaluation=f"{net}:evaluation", samples=1000)
    pixels = np.random.default_rng(2).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8).astype(np.float32)
    inputs = torch.from_numpy(((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).copy())
    outputs = []
    for bundle in (float_bundle, host_bundle):
        (path,) = (path for path in bundle.iterdir() if path.name.startswith("model."))
        model = torch.jit.load(path)
        with torch.no_grad():
            outputs.append(np.concatenate([model(one[None]).numpy() for one in inputs]).astype(np.float64))
    left, right = outputs
    figures = found.outputs
    assert (figures.samples, figures.inputs, figures.ranked) == (24, "evaluation", 24)
    assert figures.mean_abs_error == pytest.approx(np.abs(left - right).mean(), rel=1e-4)
    assert figures.fp32_magnitude == pytest.approx(np.abs(left).mean(), rel=1e-4)
    assert figures.quantized_magnitude == pytest.approx(np.abs(right).mean(), rel=1e-4)
    assert figures.agreeing == (left.argmax(1) == right.argmax(1)).sum()
    expected = 10 * np.log10((left**2).sum() / ((left - right) ** 2).sum())
    assert figures.sqnr_db == pytest.approx(expected, abs=0.01)
    assert found.notes == ()
    assert found.layers is None


def test_random_inputs_are_seeded_and_said_to_be_random(
    float_bundle: Path, host_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = compared(float_bundle, host_bundle, layers=True)
    assert (found.outputs.samples, found.outputs.inputs) == (20, "random")
    assert "random inputs" in found.notes[0]
    assert found.layers is not None
    assert [one.layer for one in found.layers.layers] == ["layers.0", "layers.2", "layers.5"]
    args = ["compare", str(float_bundle), str(host_bundle), "--samples", "20", "-q", "--layers", "--json"]
    assert run(args) == 0
    document = json.loads(capfd.readouterr().out)
    CompareDocument.model_validate(document)
    assert document == json.loads(json.dumps(to_json(found)))
    told = str(found)
    assert "outputs, 20 random inputs:" in told
    assert "layers.2" in told
    assert text.error_start(found.layers) in told


def test_a_metric_scores_both(net: Path, float_bundle: Path, host_bundle: Path) -> None:
    found = compared(float_bundle, host_bundle, evaluation=f"{net}:evaluation", metric=f"{net}:score", samples=24)
    model = found.outputs
    assert model.metric == "score"
    assert model.fp32_score is not None
    assert model.score is not None
    assert model.fp32_score == pytest.approx(model.score, rel=0.1)
    assert model.fp32_score != model.score
    assert f"score                {model.fp32_score:.4g} fp32, {model.score:.4g} quantized" in str(found)
    top1 = compared(float_bundle, host_bundle, evaluation=f"{net}:evaluation", samples=24).outputs
    assert (top1.metric, top1.score is None) == ("top1", False)
    drawn = compared(float_bundle, host_bundle).outputs
    assert (drawn.metric, drawn.score) == ("", None)


def test_what_cannot_be_compared_is_refused(float_bundle: Path, host_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"first bundle must be the fp32 one.*static-int8") as caught:
        compared(host_bundle, float_bundle)
    assert caught.value.fix == "swap the two bundles"
    with pytest.raises(UsageError, match="both bundles are the same"):
        compared(float_bundle, float_bundle)
    with pytest.raises(UsageError, match=r"no bundle|cannot read"):
        compared(float_bundle, float_bundle.parent)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda manifest: manifest.update(labels=["a", "b", "c"]), "labels differ: none and a, b, c"),
        (lambda manifest: manifest["inputs"][0].update(shape=[1, 1, 8, 8]), "inputs differ: image float32"),
        (lambda manifest: manifest["outputs"][0].update(shape=[1, 4]), r"outputs differ: float32 \[1, 3\] and"),
        (lambda manifest: manifest["inputs"][0].update(preprocessing=None), "preprocessing differ: .* and none"),
    ],
)
def test_other_contracts_are_refused(
    float_bundle: Path, host_bundle: Path, changed: Changed, change: Any, told: str
) -> None:
    other = changed(host_bundle, lambda _, manifest: change(manifest))
    with pytest.raises(UsageError, match=told):
        compared(float_bundle, other)


def test_a_target_that_nothing_here_runs_is_unsupported(
    float_bundle: Path, host_bundle: Path, changed: Changed
) -> None:
    other = changed(
        host_bundle, lambda _, manifest: manifest["target"].update(name="ios-arm64-coreml", backend="coreml")
    )
    with pytest.raises(UnsupportedError, match="ios-arm64-coreml cannot be run here"):
        compared(float_bundle, other)


def test_layers_of_other_weights_are_refused_and_outputs_noted(
    float_bundle: Path, host_bundle: Path, changed: Changed, tmp_path: Path
) -> None:
    other = changed(host_bundle, lambda _, manifest: manifest["provenance"].update(source_sha256="1" * 64))
    assert "different sources or weights" in compared(float_bundle, other).notes[-1]
    with pytest.raises(UsageError, match=r"report.json does not match the bundle beside it"):
        compared(float_bundle, other, layers=True)
    twin = tmp_path / "float"
    shutil.copytree(float_bundle, twin)
    manifest = json.loads((twin / "manifest.json").read_bytes())
    manifest["provenance"]["source_sha256"] = "1" * 64
    (twin / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(UsageError, match="different sources or weights, but layer figures"):
        compared(twin, host_bundle, layers=True)


def test_a_report_without_layers_says_why(float_bundle: Path, host_bundle: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(host_bundle, old)
    report = json.loads((old / "report.json").read_text())
    report["row"]["layer_sqnrs"] = None
    (old / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="no layer figures: an older edgeq wrote it"):
        compared(float_bundle, old, layers=True)


def test_a_nan_is_no_figure(net: Path, float_bundle: Path, host_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.npy"
    np.save(path, np.full((2, 1, 16, 16), np.nan, np.float32))
    with pytest.raises((VerificationError, UsageError), match="NaN"):
        compared(float_bundle, host_bundle, evaluation=str(path))


def test_the_command_ends_with_the_error_s_code(
    float_bundle: Path, host_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(host_bundle), str(float_bundle), "-q"]) == 2
    assert "swap the two bundles" in capfd.readouterr().err
    assert run(["compare", str(float_bundle), str(host_bundle), "--labels", "x.txt"]) == 2
    assert "add --eval-data" in capfd.readouterr().err


def test_outputs_that_rank_no_classes_are_told_without_an_agreement() -> None:
    golden = Path(__file__).parents[2] / "golden" / "0.1.0" / "digits" / "linux-x86_64-x86" / "manifest.json"
    manifest = parse_manifest(golden.read_bytes())
    outputs = OutputComparison(
        samples=4,
        inputs="evaluation",
        mean_abs_error=0.1,
        fp32_magnitude=1.0,
        quantized_magnitude=1.0,
        max_abs_error=0.2,
        sqnr_db=30.0,
        cosine=1.0,
        agreeing=0,
        ranked=0,
    )
    found = BundleComparison(fp32=manifest, quantized=manifest, outputs=outputs, layers=None, weight_bytes={}, notes=())
    assert "the first output is not [N, classes]" in str(found)
