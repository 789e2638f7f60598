"""The state of a training run on disk, so that a killed one goes on from its last epoch."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from edgeq._io import canonical_json, sha256_bytes, write_atomic

_HEAD_BYTES = 64  # the SHA-256 of the rest, in hexadecimal


def state_key(student: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the hash of what a run starts from and of how it trains.

    Args:
        student: the tensors by name: the float weights with batch norm folded, and the static ranges.
        facts: all else that decides the result, as JSON can say it.
    """
    digest = hashlib.sha256(canonical_json(facts))
    for name, tensor in sorted(student.items()):
        digest.update(f"{name}{list(tensor.shape)};".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def state_path(folder: Path, key: str) -> Path:
    """Return where the state of a run is kept."""
    return folder / f"{key}.state"


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all.

    Raises:
        OSError: the disk is full, or may not be written to.
    """
    import torch

    buffer = io.BytesIO()
    torch.save({"key": key, **state}, buffer)
    data = buffer.getvalue()
    write_atomic(path, sha256_bytes(data).encode() + data)


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """Return the state that was saved under this key; None where there is none. A torn or foreign one is removed."""
    import torch

    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, data = content[:_HEAD_BYTES], content[_HEAD_BYTES:]
    if head == sha256_bytes(data).encode():
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
        if state.pop("key", None) == key:
            return state
    path.unlink(missing_ok=True)
    return None
