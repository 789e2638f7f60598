"""`optimize_for_mobile` runs on torch 2.12.1, the last whose wheels have XNNPACK; the `.ptl` must load everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
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
graph, low = artifact("torchscript", sys.argv[1], "qnnpack")
(batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
(expected,) = forward(graph.graph, "qnnpack")(batch)
open(sys.argv[2] + "/model.ptl", "wb").write(low.path.read_bytes())
np.save(sys.argv[2] + "/expected.npy", expected)
print(json.dumps({"passes": low.passes, "operators": low.operators, "torch": low.runtime_version,
                  "version": low.bytecode_version, "macs": [layer.macs for layer in low.layers]}))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with that torch, made once and kept outside the repository."""
    place = Path(tempfile.gettempdir()) / f"edgeq-torch-{TORCH}"
    python = place / "bin" / "python"
    with FileLock(f"{place}.lock"):  # test workers make it once
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


@pytest.mark.parametrize("scheme", ["static-int8", "fp32"])
def test_what_optimize_for_mobile_made_loads_here_with_equal_outputs(python, tmp_path, scheme):
    unit = Path(__file__).parent.parent
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(unit.parent.parent), str(unit)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(python), "-c", SCRIPT, scheme, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(ran.stdout)
    assert said["torch"] == TORCH
    assert said["passes"] == ["trace", "freeze", "optimize_for_mobile"]
    assert set(said["operators"]) <= set(Path("edgeq/check/torch-2.1.0.ops.txt").read_text().split())
    assert said["version"] <= 8
    assert said["macs"] == [16 * 16 * 8 * 3 * 9, 16 * 16 * 8 * 9, 8 * 16, 16 * 5]
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        module = _load_for_lite_interpreter(str(tmp_path / "model.ptl"))
        (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
        came = module(*map(torch.from_numpy, batch.inputs)).numpy()
    finally:
        torch.backends.quantized.engine = before
    expected = np.load(tmp_path / "expected.npy")
    if scheme == "static-int8":
        assert np.array_equal(came, expected)
    else:
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-5)
