"""The int8 layers that an artifact stores, read back from its bytes; nothing in it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeq.artifacts import StoredLayer
from edgeq.errors import UnsupportedError, first_line
from edgeq.lower import shipped_archive, shipped_program

READERS: dict[str, Callable[[Path], tuple[StoredLayer, ...]]] = {
    "executorch": shipped_program.layers,
    "torchscript": shipped_archive.layers,
}


def shipped_layers(path: Path, runtime: str) -> tuple[StoredLayer, ...]:
    """Return the convolutions and linear layers that an artifact stores in int8; none for a runtime without a reader.

    Args:
        path: the artifact; trusted as far as its bundle's hashes are.
        runtime: which wrote it.

    Raises:
        UnsupportedError: it is laid out otherwise than this edgeq's own.
    """
    if runtime not in READERS:
        return ()
    try:
        return READERS[runtime](path)
    except Exception as err:  # parsers of foreign formats raise many types
        what = f"cannot read the int8 values of {path}: {type(err).__name__}: {first_line(err)}"
        fix = "package the shipped model again with this edgeq, or leave --reuse-qparams-from out"
        raise UnsupportedError(what, fix) from err
