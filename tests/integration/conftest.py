"""A project with a model that tells which quarter of an image is bright, its data, and ways to run `edgeq` on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from platformdirs import user_cache_path

X86 = "linux-x86_64-x86"
FBGEMM = "linux-x86_64-fbgemm"
QNNPACK = "android-arm64-qnnpack"
XNNPACK = "android-arm64-xnnpack"
FIXTURES = Path(__file__).parents[1] / "fixtures"

MODEL = '''
import torch
from torch import nn


class Quarters(nn.Module):
    """The mean brightness of each quarter, four times with different gains, summed up by the head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.pool = nn.AvgPool2d(4)
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        return self.head(torch.flatten(self.pool(self.features(image)), 1))


def model():
    net = Quarters()
    with torch.no_grad():
        conv, head = net.features[0], net.head
        conv.weight.zero_()
        conv.weight[:, 0, 1, 1] = torch.tensor([1.0, 0.5, 0.25, 0.125])
        conv.bias.zero_()
        head.weight.zero_()
        for channel in range(4):
            for quarter in range(4):
                head.weight[quarter, 4 * channel + quarter] = 1.0
        head.bias.zero_()
    return net


def example_inputs():
    return (torch.zeros(1, 1, 8, 8),)
'''


@dataclass(frozen=True)
class Result:
    """What a run of `edgeq` came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    def gate(self, name: str, row: int = 0) -> dict[str, Any]:
        gates = [gate for gate in self.json["rows"][row]["gates"] if gate["name"] == name]
        assert len(gates) == 1, f"{name} is not among {[gate['name'] for gate in self.json['rows'][row]['gates']]}"
        found: dict[str, Any] = gates[0]
        return found

    def fails(self, code: int, *texts: str) -> None:
        """Assert that it ended as errors, each with one line what and one line how to mend it."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        told = self.err[self.err.index("error: ") :].splitlines()
        assert len(told) % 2 == 0
        assert all(line.startswith("error: ") for line in told[::2])
        assert all(line.startswith("  fix: ") for line in told[1::2])
        for text in texts:
            assert text in self.err


@dataclass(frozen=True)
class Project:
    """A folder of its own as the current one, with temporary and cache folders of its own.

    Attributes:
        root: the current folder; `out` in it is where bundles go.
        temporary: what TMPDIR names.
        cache: what EDGEQ_CACHE_DIR names.
    """

    root: Path
    temporary: Path
    cache: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    def names(self, folder: Path | None = None) -> list[str]:
        """Return every file and folder below OUT, hidden ones too."""
        place = self.out if folder is None else folder
        return sorted(str(path.relative_to(place)) for path in place.rglob("*"))

    def left_behind(self) -> list[str]:
        """Return what of edgeq's lies in the temporary folder, and its working files in OUT."""
        temporary = [path.name for path in self.temporary.iterdir() if path.name.startswith("edgeq-")]
        return temporary + [name for name in self.names() if "/." in f"/{name}"] if self.out.exists() else temporary

    def manifest(self, target: str = X86, model: str = "quarters") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / model / target / "manifest.json").read_text())
        return found


Run = Callable[..., Result]


def bright_quarters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images float32 [count, 1, 8, 8] within 0..1, and which quarter is bright, int64 [count]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = rng.uniform(0.1, 0.3, (count, 1, 1, 1)) + rng.uniform(0, 0.05, (count, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += rng.uniform(0.3, 0.6)
    return images.astype(np.float32), labels.astype(np.int64)


def write_set(path: Path, count: int, seed: int) -> None:
    images, labels = bright_quarters(count, seed)
    np.savez(path, image=images, y=labels)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files: `quarters.py`, `calibration.npz` and `evaluation.npz`."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "quarters.py").write_text(MODEL)
    write_set(folder / "calibration.npz", 64, seed=1)
    write_set(folder / "evaluation.npz", 100, seed=2)
    return folder


def enter(monkeypatch: pytest.MonkeyPatch, folder: Path, template: Path) -> Project:
    """Make a project in an empty folder, and go there."""
    project = Project(root=folder / "project", temporary=folder / "tmp", cache=folder / "cache")
    shutil.copytree(template, project.root)
    project.temporary.mkdir()
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(project.cache))
    monkeypatch.setenv("TMPDIR", str(project.temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # compiling torch anew takes seconds a process
    return project


@pytest.fixture
def project(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A fresh project; whatever the test does, nothing of edgeq's may stay behind."""
    made = enter(monkeypatch, tmp_path, template)
    yield made
    assert made.left_behind() == []


@pytest.fixture
def runtimes(project: Project) -> Path:
    """The devices' runtimes in the user's own cache, which every run of the tests shares: fetching takes minutes.

    LiteRT's converter, where it is installed, is taken from there too.
    """
    project.cache.mkdir()
    for name in ("converters", "emulator"):
        shared = user_cache_path("edgeq") / name
        shared.mkdir(parents=True, exist_ok=True)
        (project.cache / name).symlink_to(shared)
    return shared


@pytest.fixture
def edgeq(project: Project, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, where torch is imported once for all tests."""
    from edgeq.cli.main import run

    def call(*args: str | Path) -> Result:
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Result(code=int(code), out=out, err=err)

    return call


@pytest.fixture
def package(edgeq: Run) -> Run:
    """Run `edgeq package` on the model, its data and the x86 target; arguments may add to it, or replace it all."""
    # emulation has tests of its own, in test_emulator.py
    return lambda *args, base=True, cache=False: edgeq(
        "package", "--on", "host", *(command() if base else ()), *args, *(() if cache else ("--no-cache",)), "--quiet"
    )


def command(model: str = "quarters.py:model", target: str = X86) -> tuple[str, ...]:
    data = ("--calibration-data", "calibration.npz", "--eval-data", "evaluation.npz")
    return (model, "--target", target, "--out", "out", "--on", "host", *data)


def arguments(model: str = "quarters.py:model", *, target: str = X86) -> tuple[str, ...]:
    """Return a whole `package` command line without a cache, for a process of its own."""
    return ("package", *command(model, target), "--no-cache")


@pytest.fixture
def small_disk(project: Project) -> Iterator[Callable[[Path, str], Path]]:
    """Mount a small file system; the test is skipped where nothing may be mounted."""
    mounted: list[Path] = []

    def mount(place: Path, size: str) -> Path:
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            place.rmdir()
            pytest.skip("a small file system cannot be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)
