"""TorchScript archives without what only debugging needs: source ranges hold the paths of this machine."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from edgeq.errors import UnsupportedError
from edgeq.lower.compact import compacted
from edgeq.lower.tables import read, write

# beside what debugging needs, the inputs that the model was traced with
_DROPPED = re.compile(
    r"\.debug_pkl$|/\.data/serialization_id$|/(mobile_debug_handles|callstack_debug_map)\.pkl$"
    r"|^[^/]+/traced_inputs(\.pkl$|/)"
)
_ALIGNMENT = 64  # PyTorch's own (caffe2/serialize/inline_container.h), so that tensors can be mapped
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MANGLED = re.compile(r"___torch_mangle_\d+")
_TENSOR = re.compile(r"/(?:weight_|tensor_)?\d+(?:\.storage)?$")  # raw bytes, where anything may occur by chance
_PATH = re.compile(rb"/[\w.+-]+/[\w./+-]*\w\.py\b|/site-packages/")
_PAD_ID = 0x4246  # "FB", the extra field that PyTorch pads with


def strip_archive(path: Path) -> None:
    """Rewrite an archive in place: stored, aligned, without debug records or times, and compacted.

    Raises:
        UnsupportedError: an entry still names a path of this machine.
    """
    with zipfile.ZipFile(path) as source:
        kept = [entry.filename for entry in source.infolist() if not _DROPPED.search(entry.filename)]
        contents = compacted(_renumbered({name: source.read(name) for name in kept}))
    for name, data in contents.items():
        if not _TENSOR.search(name) and _PATH.search(data):
            what = f"{path.name}: {name} holds a path of this machine"
            raise UnsupportedError(what, "please report the model's architecture")
    stripped = path.with_suffix(path.suffix + ".stripped")
    with zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as target:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.extra = _padding(target.fp.tell() if target.fp else 0, name)
            target.writestr(info, data)
    stripped.replace(path)


def _renumbered(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Count PyTorch's mangled class names from 0: it numbers them through everything that a process traced."""
    numbers: dict[str, str] = {}

    def number(text: str) -> str:
        return _MANGLED.sub(lambda match: numbers.setdefault(match[0], f"___torch_mangle_{len(numbers)}"), text)

    renamed = {}
    for name, data in contents.items():
        own_name = number(name)
        if name.endswith(".py"):
            data = number(data.decode()).encode()
        elif name.endswith(".pkl") and _MANGLED.search(data.decode("latin-1")):
            data = write(read(data), number)
        renamed[own_name] = data
    return renamed


def _padding(offset: int, name: str) -> bytes:
    """Return the extra field that makes the entry's data start at a multiple of the alignment."""
    header = 30 + len(name.encode()) + 4
    size = -(offset + header) % _ALIGNMENT
    return _PAD_ID.to_bytes(2, "little") + size.to_bytes(2, "little") + b"\0" * size
