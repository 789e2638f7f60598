"""Loads and runs an artifact with torch alone, as a server does: `python -I serve_alone.py FOLDER`. Imports no edgeq.

FOLDER/request.json: {artifact, device, widen, threads, warmup, runs, samples}; a sample is a list of
{dtype, shape, file}. FOLDER/reply.json: {error} or {device, capability, cuda, torch, edgeq, threads, load_ms,
latencies_ms, peak_bytes, outputs}, the outputs described as the samples are. Files hold little-endian numbers in C
order.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer the request of the folder that is named."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    try:
        reply = answer(request, folder)
    except Exception as err:  # every failure is the caller's to report
        reply = {"error": f"{type(err).__name__}: {str(err).strip()}"}
    (folder / "reply.json").write_text(json.dumps(reply))


def answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Load, run every sample, and time the first."""
    import torch

    device = request["device"]
    if device == "cuda" and not torch.cuda.is_available():
        return {"error": "no CUDA"}
    torch.set_num_threads(request["threads"])
    start = time.perf_counter_ns()
    model = loaded(Path(request["artifact"]), device, widen=request["widen"])
    load_ms = (time.perf_counter_ns() - start) / 1e6
    samples = [tuple(tensor(item, folder).to(device) for item in sample) for sample in request["samples"]]
    outputs = []
    with torch.no_grad():
        for index, sample in enumerate(samples):
            leaves = torch.utils._pytree.tree_leaves(model(*sample))
            outputs.append([described(leaf, folder, f"output-{index}-{i}") for i, leaf in enumerate(leaves)])
        latencies = timed(model, samples[0], device, request["warmup"], request["runs"])
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else "",
        "cuda": str(torch.version.cuda),
        "torch": str(torch.__version__),
        "edgeq": sorted(name for name in sys.modules if name.partition(".")[0] == "edgeq"),
        "threads": torch.get_num_threads(),
        "load_ms": load_ms,
        "latencies_ms": latencies,
        "peak_bytes": int(torch.cuda.max_memory_allocated()) if on_gpu else None,
        "outputs": outputs,
    }


def loaded(path: Path, device: str, *, widen: bool) -> Any:
    """Return the artifact on the device: a compiled package, an exported program or TorchScript."""
    import torch
    import torch.export.passes

    if path.name.endswith(".aoti.pt2"):
        return torch._inductor.aoti_load_package(str(path))
    if path.suffix == ".pt":
        model = torch.jit.load(str(path), map_location=device)
    else:
        program = torch.export.passes.move_to_device_pass(torch.export.load(path), device)
        program._guards_code = []  # Python source; edgeq has checked all else in the program
        model = program.module()
    return model.float() if widen else model


def timed(model: Any, inputs: tuple[Any, ...], device: str, warmup: int, runs: int) -> list[float]:
    """Return the milliseconds of each run, on a GPU by CUDA events."""
    import torch

    for _ in range(warmup):
        model(*inputs)
    latencies = []
    for _ in range(runs):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            model(*inputs)
            end.record()
            torch.cuda.synchronize()
            latencies.append(float(start.elapsed_time(end)))
        else:
            begun = time.perf_counter_ns()
            model(*inputs)
            latencies.append((time.perf_counter_ns() - begun) / 1e6)
    return latencies


def tensor(item: dict[str, Any], folder: Path) -> Any:
    """Read a tensor."""
    import torch

    data = bytearray((folder / item["file"]).read_bytes())
    dtype = getattr(torch, item["dtype"])
    return (
        torch.frombuffer(data, dtype=dtype).reshape(item["shape"]) if data else torch.empty(item["shape"], dtype=dtype)
    )


def described(value: Any, folder: Path, name: str) -> dict[str, Any]:
    """Write a tensor."""
    value = value.detach().cpu().contiguous()
    size = value.numel() * value.element_size()
    (folder / name).write_bytes(ctypes.string_at(value.data_ptr(), size) if size else b"")
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "file": name}


if __name__ == "__main__":
    main()
