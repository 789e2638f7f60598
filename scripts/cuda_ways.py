"""Ways to run a model for `scripts/bench cuda`, and how each is timed."""

from __future__ import annotations

import argparse
import contextlib
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from edgeq.core.errors import EdgeqError

Run = Callable[[torch.Tensor], Any]


@contextlib.contextmanager
def tensor_floats(allowed: bool) -> Iterator[None]:
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def tf32(model: Any) -> Run:
    def run(x: torch.Tensor) -> Any:
        with tensor_floats(True):
            return model(x)

    return run


def autocast(model: Any, device: str) -> Run:
    def run(x: torch.Tensor) -> Any:
        with torch.autocast(device, dtype=torch.float16):
            return model(x).float()

    return run


def graphed(run: Run, example: torch.Tensor) -> Run:
    """Capture `run` into a CUDA graph, and return what copies its input in and replays it."""
    held = example.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(held)

    def replay(x: torch.Tensor) -> Any:
        held.copy_(x)
        graph.replay()
        return result

    return replay


def measured(prepare: Callable[[], Run], x: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare and time one way; the result of a failure is its message."""
    gc.collect()
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        with torch.no_grad():
            run = prepare()
            latencies = timed(run, x, options, on_gpu=on_gpu)
    except torch.OutOfMemoryError:
        return {"error": "out of device memory"}
    except (EdgeqError, RuntimeError) as err:
        return {"error": str(err).splitlines()[0][:200]}
    p50 = statistics.median(latencies)
    return {
        "p50_ms": p50,
        "p90_ms": statistics.quantiles(latencies, n=10)[-1],
        "images_per_s": 1000 * len(x) / p50,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "with_preparation_s": time.perf_counter() - start,
    }


def timed(run: Run, x: torch.Tensor, options: argparse.Namespace, *, on_gpu: bool) -> list[float]:
    """Return the milliseconds of each run, on a GPU by CUDA events."""
    for _ in range(options.warmup):
        run(x)
    latencies = []
    for _ in range(options.runs):
        if on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run(x)
            end.record()
            torch.cuda.synchronize()
            latencies.append(begin.elapsed_time(end))
        else:
            begun = time.perf_counter_ns()
            run(x)
            latencies.append((time.perf_counter_ns() - begun) / 1e6)
    return latencies


def machine(device: str) -> dict[str, Any]:
    """Return what it ran on."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if device == "cuda" else None
    names = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "python": platform.python_version()}
    return {"device": device, "gpu": gpu, "compute_capability": capability, **names}
