"""What the process that a project's workers are forked from imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core.config import Job
from edgeq.core.targets import load_target
from edgeq.pipeline.workers import EXPORT, TORCHVISION, imports_of

X86, ORT = load_target("linux-x86_64-x86"), load_target("linux-x86_64-ort")


def job(source: str, *targets: object) -> Job:
    return Job(source=source, targets=targets or (X86,), out=Path("out"))


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([job("plain.py:model")], ("torch",)),
        ([job("plain.py:model"), job("resnet.py:model")], ("torch", TORCHVISION)),
        ([job("torchvision:resnet18")], ("torch", TORCHVISION)),
        ([job("plain.py:model", X86, ORT)], ("torch", *EXPORT)),
        ([job("package.module:model")], ("torch",)),
        ([job("gone.py:model"), job("weights.pt2")], ("torch",)),
    ],
)
def test_a_project_imports_what_its_targets_and_sources_need(
    jobs: list[Job], expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.py").write_text("import torch\n")
    Path("resnet.py").write_text("from torchvision.models import resnet18 as model\n")
    assert imports_of(jobs) == expected
