"""What the bundle, its readers and the installer are tested with: the facts of one small, invented model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_items import artifact, inputs

from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import ExitCode
from edgeq.core.files import canonical_json, sha256_file
from edgeq.core.preprocess import PRESETS
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import Fidelity, Interval, KernelShare, Parity, Timing, VerifyReport
from edgeq.core.results.model import Layer, LoweredModel, TensorSpec
from edgeq.core.results.report import CheckReport, DataFacts, DataFinding, Gate
from edgeq.core.schemes import SchemeName
from edgeq.core.targets import load_target


@pytest.fixture(scope="session")
def item(tmp_path_factory: pytest.TempPathFactory) -> BundleInput:
    path = tmp_path_factory.mktemp("artifact") / "model.pte"
    path.write_bytes(np.random.default_rng(0).bytes(5000) + bytes(5000))
    data = DataFacts(
        calibration_sha256="b" * 64, calibration_samples=128, findings=(DataFinding(name="few", message="/home/x"),)
    )
    return BundleInput(
        target=load_target("android-arm64-xnnpack"),
        scheme="static-int8",
        inputs=inputs(labels=("zero", "one"), preprocess=PRESETS["imagenet"], data=data),
        artifact=artifact(_lowered(path), _verified()),
        checked=CheckReport(
            gates=(
                gate("size", ExitCode.SIZE, detail="10 kB of 1 MB"),
                gate("accuracy_drop", ExitCode.ACCURACY, detail="upper end 0.31 pp"),
                gate("latency", ExitCode.LATENCY, detail="p50 3.21 ms"),
            )
        ),
        model_version="1",
        seed=0,
        tools={"torch": "2.15.0", "executorch": "1.5.1"},
    )


@pytest.fixture
def bundle(item: BundleInput, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(item, folder)
    return folder


def gate(name: str, code: ExitCode, detail: str = "", outcome: str = "ok") -> Gate:
    return Gate(name=name, outcome=outcome, limit="a limit", measured="a value", detail=detail, exit_code=code)


def _lowered(path: Path) -> LoweredModel:
    return LoweredModel(
        path=path,
        runtime="executorch",
        runtime_version="1.5.1",
        bytecode_version=None,
        passes=("fuse", "delegate"),
        operators=("aten::add.out",),
        undelegated=("aten::mul.out", "aten::add.out", "aten::mul.out"),
        layers=(
            Layer(name="conv", op="convolution", macs=900, weight_bytes=90, delegated=True),
            Layer(name="head", op="linear", macs=100, weight_bytes=10, delegated=False),
        ),
        delegated_macs=0.9,
    )


def _verified() -> VerifyReport:
    return VerifyReport(
        host="host x86_64",
        parity=Parity(samples=8, max_abs=0.0, max_steps=0.0, sqnr_db=float("inf"), differing=0.0),
        fidelity=Fidelity(
            samples=100,
            inputs="evaluation",
            sqnr_db=31.23456,
            cosine=0.99987,
            max_abs=0.0123456,
            top1_agreement=0.99,
            metric="top-1",
            fp32_score=0.98,
            score=0.979,
            drop_pp=Interval(estimate=0.1, low=-0.2, high=0.31),
        ),
        timing=Timing(p50_ms=3.21, p90_ms=4.5, runs=50, warmup=5, threads=2, arch="x86_64"),
        kernels=KernelShare(int8_macs=0.987654, kernels=("conv_int8",)),
        peak_memory_bytes=12_345_678,
        load_ms=1.5,
        outputs=(TensorSpec(name="output0", dtype="float32", shape=(1, 2)),),
        findings=(),
    )


NET = """
import numpy as np
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        convs = [torch.nn.Conv2d(1, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*convs, torch.nn.Flatten(), torch.nn.Linear(200, 3))

    def forward(self, image):
        return self.layers(image)


def factory():
    torch.manual_seed(0)
    return Net().eval()


def _images(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)


def calibration():
    return _images(1)


def evaluation():
    return _images(2), np.arange(24) % 3


def others():
    return _images(3), np.arange(24) % 3


def unlabelled():
    return _images(2)


def score(outputs, label):
    return float(-outputs[0].var())
"""


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a small convolutional net and functions that give data and a score."""
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    path.with_name("gray.toml").write_text('color = "gray"\nmean = [0.5]\nstd = [0.25]\n')
    return path


def packaged(net: Path, target: str, out: Path, *, batch: int = 1, schemes: tuple[SchemeName, ...] = ()) -> Path:
    """Package the small net by the real pipeline; return the bundle."""
    from edgeq.core.config import DataConfig, DeviceConfig, Job
    from edgeq.pipeline.package import package
    from edgeq.report.progress import Quiet

    data = DataConfig(
        calibration=f"{net}:calibration",
        evaluation=f"{net}:evaluation",
        preprocess=str(net.with_name("gray.toml")),
        lint="warn",
    )
    job = Job(
        source=f"{net}:factory",
        targets=(load_target(target),),
        schemes=schemes,
        out=out,
        name="net",
        inputs=(f"image={batch}x1x16x16",),
        data=data,
        device=DeviceConfig(on="host"),
        cache=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_CACHE_DIR", str(out / "cache"))
        (row,) = package(job, Quiet()).rows
    assert not row.checked.exit_code, row.checked
    return row.path


@pytest.fixture(scope="session")
def host_bundle(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript bundle for this host, not to be changed."""
    return packaged(net, "linux-x86_64-x86", tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def batched_bundle(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a batch of three in the exported shape."""
    return packaged(net, "linux-x86_64-x86", tmp_path_factory.mktemp("batched"), batch=3)


@pytest.fixture(scope="session")
def phone_bundle(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ExecuTorch bundle for phones, not to be changed; making it takes half a minute of imports."""
    return packaged(net, "android-arm64-xnnpack", tmp_path_factory.mktemp("phone"))


Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Path, Change], Path]:
    """Copy a bundle, let `change` alter its files and its manifest, and write hashes that hold again."""

    def copy(bundle: Path, change: Change) -> Path:
        place = tmp_path / "changed"
        shutil.copytree(bundle, place)
        manifest = json.loads((place / "manifest.json").read_bytes())
        change(place, manifest)
        for entry in manifest["files"]:
            path = place / entry["path"]
            entry.update(sha256=sha256_file(path), size_bytes=path.stat().st_size)
        (place / "manifest.json").write_bytes(canonical_json(manifest))
        return place

    return copy


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB; the test is skipped where nothing may be mounted."""
    place = tmp_path / "small_disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
