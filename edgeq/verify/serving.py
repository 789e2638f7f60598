"""The serving check: an artifact in a fresh process that has torch and no edgeq."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeq.core.errors import EnvironmentProblem, VerificationError
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.measured import DeviceMeasures
from edgeq.core.samples import Outputs
from edgeq.core.system import host_arch
from edgeq.verify import serve_alone
from edgeq.verify.metrics import percentile_ms

WARMUP, RUNS = 10, 100

NO_CUDA = "torch finds no CUDA device here"

NO_CUDA_FIX = (
    "run it on the machine with the GPU (check `nvidia-smi`), or omit --on cuda: the CPU then emulates the GPU"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The results of the process.

    Attributes:
        outputs: of each sample.
        measures: times of the first sample, by CUDA events on a GPU.
        capability, cuda: of the GPU; "" on a CPU.
    """

    outputs: tuple[Outputs, ...]
    measures: DeviceMeasures
    capability: str
    cuda: str


def require_cuda() -> None:
    """Check in a separate process that torch can use a GPU here.

    Raises:
        EnvironmentProblem: it cannot.
    """
    code = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    if subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=False).returncode:
        raise EnvironmentProblem(NO_CUDA, NO_CUDA_FIX)


def serve(
    artifact: Path,
    samples: Sequence[tuple[NDArray[Any], ...]],
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    widen: bool = False,
    threads: int = 1,
    timeout_s: float,
) -> Served:
    """Load the artifact with torch alone, run the samples and time the first.

    Args:
        artifact: an exported program, a compiled package or TorchScript.
        samples: inputs of the artifact, at least one sample.
        device: where it runs.
        widen: whether stored half weights are widened to float32 once, where there is no GPU.
        threads: of the CPU.
        timeout_s: for all of it.

    Raises:
        EnvironmentProblem: there is no CUDA device.
        VerificationError: it does not load or run, takes too long, or imports edgeq.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-serve-") as name:
        folder = Path(name)
        request = {
            "artifact": str(artifact.resolve()),
            "device": device,
            "widen": widen,
            "threads": threads,
            "warmup": WARMUP,
            "runs": RUNS,
            "samples": [_written(sample, folder, i) for i, sample in enumerate(samples)],
        }
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-I", str(Path(serve_alone.__file__)), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=folder)
        except subprocess.TimeoutExpired as err:
            raise VerificationError(
                f"torch alone did not answer within {timeout_s:.0f} s", "give a longer --timeout"
            ) from err
        path = folder / "reply.json"
        if not path.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            last = f"; its last message: {said[-1].strip()[:200]}" if said else ""
            what = f"a process with torch alone ended with status {done.returncode}{last}"
            raise VerificationError(what, "do not ship this artifact; check that torch works on that machine")
        reply: dict[str, Any] = json.loads(path.read_text())
        if reply.get("error") == "no CUDA":
            raise EnvironmentProblem(NO_CUDA, NO_CUDA_FIX)
        if "error" in reply:
            what = f"torch alone cannot run it: {reply['error'].splitlines()[0][:300]}"
            raise VerificationError(what, "package the model again with the machine's torch version")
        if reply["edgeq"]:
            raise VerificationError(
                f"the artifact imports {', '.join(reply['edgeq'])}",
                "report this model's architecture to edgeq's developers",
            )
        outputs = tuple(tuple(_read(item, folder) for item in items) for items in reply["outputs"])
    latencies = [float(value) for value in reply["latencies_ms"]]
    on_gpu = reply["device"] != "cpu"
    cuda = f", CUDA {reply['cuda']}" if on_gpu else ""
    measures = DeviceMeasures(
        device=reply["device"],
        platform=platform.system().lower(),
        os=f"{platform.system()} {platform.release()}"[:80],
        arch=host_arch(),
        cores=os.cpu_count() or 0,
        is_virtual=False,
        runtime=f"torch {reply['torch']}{cuda}",
        threads=int(reply["threads"]),
        warmup=WARMUP,
        runs=len(latencies),
        p50_ms=percentile_ms(latencies, 0.5),
        p90_ms=percentile_ms(latencies, 0.9),
        load_ms=float(reply["load_ms"]),
        peak_memory_bytes=reply["peak_bytes"],
        latencies_ms=tuple(latencies),
    )
    return Served(outputs=outputs, measures=measures, capability=reply["capability"], cuda=reply["cuda"])


def _written(sample: tuple[NDArray[Any], ...], folder: Path, index: int) -> list[dict[str, Any]]:
    items = []
    for i, array in enumerate(sample):
        name = f"input-{index}-{i}"
        (folder / name).write_bytes(np.ascontiguousarray(array).tobytes())
        items.append({"dtype": str(array.dtype), "shape": list(array.shape), "file": name})
    return items


def _read(item: dict[str, Any], folder: Path) -> NDArray[Any]:
    data = (folder / item["file"]).read_bytes()
    return np.frombuffer(data, np.dtype(item["dtype"])).reshape(item["shape"])
