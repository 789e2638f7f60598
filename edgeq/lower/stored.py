"""What a TorchScript archive stores, read from its tables without running anything in it."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq.artifacts import Layer, QuantizedModel

_DTYPES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Char": "int8",
    "QInt8": "int8",
    "Byte": "uint8",
    "QUInt8": "uint8",
    "Int": "int32",
    "Long": "int64",
    "Bool": "bool",
}


def archive_elements(path: Path) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype a TorchScript archive stores."""
    tally: Counter[str] = Counter()
    seen: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # torch.jit.trace leaves its example inputs beside the model
            if name.endswith(".pkl") and not name.endswith("/traced_inputs.pkl"):
                with archive.open(name) as file:
                    _Tables(file, tally, seen, name.removesuffix(".pkl")).load()
    return tuple(sorted(tally.items()))


def stored_layers(layers: Sequence[Layer], quantized: QuantizedModel) -> tuple[Layer, ...]:
    """Return the layers with the bytes that their weights take in the artifact.

    A weight that is stored in a shorter type, and was seen as the float32 that it becomes in a run, is counted by that
    type; the scales of int8 are not.
    """
    shorter = {"fp16": 2, "weight-only-int8": 4}.get(quantized.scheme)
    if shorter is None:
        return tuple(layers)
    return tuple(
        dataclasses.replace(layer, weight_bytes=layer.weight_bytes // shorter)
        if any(layer.name == name or layer.name.startswith(f"{name}.") for name in quantized.quantized)
        else layer
        for layer in layers
    )


class _Tables(pickle.Unpickler):
    """Reads a pickle for the storages that it names; every class and function in it becomes an empty shell."""

    def __init__(self, file: Any, tally: Counter[str], seen: set[str], table: str) -> None:
        super().__init__(file)
        self._tally, self._seen, self._table = tally, seen, table

    def find_class(self, module: str, name: str) -> Any:  # noqa: ARG002
        """Return a storage's dtype, or a shell."""
        return _DTYPES.get(name.removesuffix("Storage"), name) if name.endswith("Storage") else _Shell

    def persistent_load(self, pid: Any) -> Any:
        """Count a storage once: ("storage", dtype, key, device, elements)."""
        _, dtype, key, _, elements = pid
        place = f"{self._table}/{key}"
        if place not in self._seen:
            self._seen.add(place)
            self._tally[str(dtype)] += int(elements)


class _Shell:
    """Stands for anything that the tables build."""

    def __init__(self, *_args: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass
