"""The GPU of this host, as torch sees it, and what fits into its memory."""

from __future__ import annotations

import re
from typing import Any

OUT_OF_MEMORY = "out of device memory"
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ASKED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")


def gpu_facts() -> dict[str, str]:
    """Return name, compute capability and CUDA version of the GPU; nothing where there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "cuda": str(torch.version.cuda)}


def rows_that_fit(rows: int, *, weight_bytes: int, needed_bytes: int, memory_bytes: int) -> int:
    """Return how many rows of a batch can fit at most, from what a batch needed when it ran out of memory.

    Activations grow with the batch, weights do not. What it would have needed later is not known: fewer may fit.

    Args:
        rows: of the batch that failed.
        weight_bytes: what was taken before it ran.
        needed_bytes: what was taken when it failed, with what it asked for last.
        memory_bytes: what there is for it.
    """
    activations = max(needed_bytes - weight_bytes, 1)
    return max(0, min(rows - 1, rows * (memory_bytes - weight_bytes) // activations))


def out_of_memory(err: BaseException, inputs: tuple[Any, ...], weight_bytes: int) -> RuntimeError:
    """Return the error of a batch that did not fit, which says how many rows may.

    Args:
        err: torch's own, which says what was asked for last.
        inputs: what was run; the batch comes first.
        weight_bytes: what was taken before.
    """
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info()
    taken_bytes = int(torch.cuda.max_memory_allocated())
    rows = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1
    most = rows_that_fit(
        rows,
        weight_bytes=weight_bytes,
        needed_bytes=taken_bytes + asked_bytes(str(err)),
        memory_bytes=taken_bytes + free_bytes,
    )
    return RuntimeError(
        f"{OUT_OF_MEMORY}: a batch of {rows} does not fit into {total_bytes / 2**30:.1f} GiB; at most {most} do"
    )


def asked_bytes(text: str) -> int:
    """Return what torch's message says that was asked for ("Tried to allocate 2.00 GiB"); 0 where it does not."""
    match = _ASKED.search(text)
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0
