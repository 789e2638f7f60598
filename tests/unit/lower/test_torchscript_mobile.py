"""`optimize_for_mobile` runs on torch 2.12.1, the last whose wheels have XNNPACK; the `.ptl` must load everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from small_models import IMAGE, dataset
from torch.jit.mobile import _load_for_lite_interpreter

from edgeq.core.samples import batches

pytestmark = pytest.mark.slow

TORCH = "2.12.1"
MAKE_S, RUN_S = 600, 300
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from small_models import IMAGE, artifact, dataset, forward
from edgeq.core.samples import batches
(batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
said = {}
for scheme in sys.argv[2:]:
    graph, low = artifact("torchscript", scheme, "qnnpack")
    (expected,) = forward(graph.graph, "qnnpack")(batch)
    open(f"{sys.argv[1]}/{scheme}.ptl", "wb").write(low.path.read_bytes())
    np.save(f"{sys.argv[1]}/{scheme}.npy", expected)
    said[scheme] = {"passes": low.passes, "operators": low.operators, "torch": low.runtime_version,
                    "version": low.bytecode_version, "macs": [layer.macs for layer in low.layers]}
print(json.dumps(said))
"""
SCHEMES = ("static-int8", "fp32")


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with that torch, made once in the user's cache: it takes 4.6 GB."""
    place = user_cache_path("edgeq-tests") / f"torch-{TORCH}"
    place.parent.mkdir(parents=True, exist_ok=True)
    python = place / "bin" / "python"
    with FileLock(f"{place}.lock"):  # runs beside each other make it once
        _make(place, python)
    return python


def _make(place: Path, python: Path) -> None:
    if _torch_of(python) != TORCH:
        ours = Path(__file__).parents[3] / ".uv" / "bin" / "uv"  # where scripts/setup puts it
        uv = shutil.which("uv") or shutil.which(ours)
        if uv is None:
            pytest.skip("uv, which makes the environment, is not installed")
        making = [[uv, "venv", "--clear", "-q", "-p", "3.11", str(place)]]
        making += [[uv, "pip", "install", "-q", "-p", str(python), f"torch=={TORCH}", "numpy"]]
        for command in making:
            made = subprocess.run(command, capture_output=True, text=True, timeout=MAKE_S, check=False)
            if made.returncode:
                pytest.skip(f"torch {TORCH} cannot be installed: {made.stderr.strip()[-200:]}")


def _torch_of(python: Path) -> str:
    if not python.is_file():
        return ""
    text = "import importlib.metadata as m, numpy; print(m.version('torch'))"
    return subprocess.run([str(python), "-c", text], capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture(scope="module")
def made(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder with an archive of each scheme and what its graph gave there, and what was said about it."""
    folder = tmp_path_factory.mktemp("mobile")
    unit = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(unit.parent.parent), str(unit)])}
    command = [str(python), "-c", SCRIPT, str(folder), *SCHEMES]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return folder, json.loads(ran.stdout)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_optimize_for_mobile_made_loads_here_with_equal_outputs(made, scheme):
    folder, said_of = made
    said = said_of[scheme]
    assert said["torch"] == TORCH
    assert said["passes"] == ["trace", "freeze", "optimize_for_mobile"]
    assert set(said["operators"]) <= set(Path("edgeq/check/torch-2.1.0.ops.txt").read_text().split())
    assert said["version"] <= 8
    assert said["macs"] == [16 * 16 * 8 * 3 * 9, 16 * 16 * 8 * 9, 8 * 16, 16 * 5]
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        module = _load_for_lite_interpreter(str(folder / f"{scheme}.ptl"))
        (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
        came = module(*map(torch.from_numpy, batch.inputs)).numpy()
    finally:
        torch.backends.quantized.engine = before
    expected = np.load(folder / f"{scheme}.npy")
    if scheme == "static-int8":
        assert np.array_equal(came, expected)
    else:
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-5)
