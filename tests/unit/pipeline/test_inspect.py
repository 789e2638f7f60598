"""What a bundle and a bare artifact say of themselves; what is neither, or damaged, is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeq.core.errors import IntegrityError, UsageError
from edgeq.pipeline.inspect import ArtifactInspection, BundleInspection, inspect_path
from edgeq.report.progress import Quiet


def artifact(bundle: Path) -> Path:
    return next(bundle.glob("model.*"))


def test_a_bundle_tells_its_bytes_by_layer(host_bundle: Path) -> None:
    found = inspect_path(host_bundle, Quiet())
    assert isinstance(found, BundleInspection)
    assert found.why_no_layers == ""
    assert sum(layer.macs for layer in found.layers) == found.bundle.manifest.layers.macs
    assert all(layer.weight_bytes > 0 for layer in found.layers if layer.macs)
    assert 0 < found.download_bytes < 1e6


def test_without_its_own_report_the_layers_are_not_known(host_bundle: Path, changed: Any) -> None:
    other = changed(host_bundle, lambda _, manifest: manifest["model"].update(version="2"))
    found = inspect_path(other, Quiet())
    assert isinstance(found, BundleInspection)
    assert (found.layers, found.why_no_layers) == ((), "report.json belongs to another bundle")
    (other / "report.json").write_text("[]")
    found = inspect_path(other, Quiet())
    assert isinstance(found, BundleInspection)
    assert "does not have edgeq's format" in found.why_no_layers
    (other / "report.json").unlink()
    found = inspect_path(other, Quiet())
    assert isinstance(found, BundleInspection)
    assert found.why_no_layers == "the bundle has no report.json next to it"


def test_a_changed_bundle_is_refused(host_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(host_bundle, folder)
    artifact(folder).write_bytes(b"")
    with pytest.raises(IntegrityError):
        inspect_path(folder, Quiet())


def test_a_torchscript_archive(host_bundle: Path) -> None:
    path = artifact(host_bundle)
    found = inspect_path(path, Quiet())
    assert isinstance(found, ArtifactInspection)
    assert (found.runtime, found.size_bytes, found.stated.inputs) == ("torchscript", path.stat().st_size, ())
    sizes = [size for _, size in found.entries]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sum(sizes) < found.size_bytes
    if path.suffix == ".ptl":
        assert found.facts.bytecode_version is not None
        assert any(name.startswith("quantized::") for name in found.facts.operators)


@pytest.mark.slow
def test_an_executorch_program(phone_bundle: Path) -> None:
    found = inspect_path(artifact(phone_bundle), Quiet())
    assert isinstance(found, ArtifactInspection)
    assert found.stated.inputs == (("float32", (1, 1, 16, 16)),)
    assert found.stated.outputs == (("float32", (1, 3)),)
    assert found.facts.delegates >= 1
    assert (found.facts.bytecode_version, found.entries) == (None, ())


def test_what_is_neither_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pte").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    for name in ("gone.pte", "folder.pte", "weights.safetensors", "."):
        with pytest.raises(UsageError) as caught:
            inspect_path(Path(name), Quiet())
        assert ".pte, .ptl, .onnx, .ort, .tflite, OpenVINO .xml or TorchScript .pt" in caught.value.fix


@pytest.mark.parametrize("name", ["model.pte", "model.ptl", "model.pt", "model.onnx", "model.ort", "model.xml"])
@pytest.mark.parametrize("data", [b"", b"not a model at all", b"\xdc" * 99, b"PK\x03\x04" + bytes(60)])
def test_a_damaged_artifact_is_bad_input(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=rf"{name} is not a valid .*: ") as caught:
        inspect_path(tmp_path / name, Quiet())
    assert "check that the file is complete" in caught.value.fix
