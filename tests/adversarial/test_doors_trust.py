"""Every command that loads an artifact refuses one that opens files, and takes the option that its message names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeq.cli.main import run
from tests.unit.conftest import changed, host_bundle, net

__all__ = ["changed", "host_bundle", "net"]  # fixtures

Change = Callable[[Path, dict[str, Any]], None]
TRUST = "--trust-source"


class _Writes(torch.nn.Module):
    """Leaves a file behind when it runs; the path is of the test."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.mark)
        return x.flatten(1)[:, :3]


@pytest.fixture
def evil(host_bundle: Path, changed: Callable[[Path, Change], Path], tmp_path: Path) -> Path:
    """Return a bundle whose hashes hold, and whose artifact writes a file."""

    def exchange(place: Path, manifest: dict[str, Any]) -> None:
        manifest["scheme"] = "fp32"  # so that `compare` takes it for the first of two
        artifact = next(entry["path"] for entry in manifest["files"] if entry["role"] == "artifact")
        module = torch.jit.script(_Writes(str(tmp_path / "code_ran")))
        if artifact.endswith(".ptl"):
            module._save_for_lite_interpreter(str(place / artifact))
        else:
            module.save(str(place / artifact))

    return changed(host_bundle, exchange)


def commands(evil: Path, other: Path) -> dict[str, list[str]]:
    artifact = next(path for path in evil.iterdir() if path.name.startswith("model."))
    return {
        "verify": ["verify", str(evil)],
        "compare": ["compare", str(evil), str(other)],
        "inspect": ["inspect", str(artifact)],
        "package": ["package", str(artifact), "--input", "1x1x8x8", "-t", "linux-x86_64-x86", "--no-cache"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "compare", "inspect", "package"])
def test_it_is_refused_by_name_with_the_option_that_takes_it(
    command: str, evil: Path, host_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = commands(evil, host_bundle)[command]
    if command == "package" and args[1].endswith(".pt"):
        args[1] = str(shutil.copy(args[1], tmp_path / "model.ptl"))
    assert run([*args, "-q"]) == 2
    said = capfd.readouterr().err
    assert "reads or writes files by name" in said
    assert TRUST in said
    assert not (tmp_path / "code_ran").exists()
    if command != "package":  # what the file does then is its own affair
        run([*args, "-q", TRUST])
        assert "reads or writes files by name" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *("package", "build", "verify", "compare", "inspect", "sensitivity", "profile"),
        *("devices fit", "ota release", "ota update"),
    ],
)
def test_every_command_that_runs_artifacts_has_the_option(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert re.search(rf"{TRUST}\b", capfd.readouterr().out)
