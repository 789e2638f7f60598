"""TorchScript archives without what only debugging needs: source ranges hold the paths of this machine."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from edgeq.errors import UnsupportedError

_DROPPED = (".debug_pkl", "/.data/serialization_id", "/mobile_debug_handles.pkl", "/callstack_debug_map.pkl")
_ALIGNMENT = 64  # PyTorch's own (caffe2/serialize/inline_container.h), so that tensors can be mapped
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MANGLED = re.compile(rb"___torch_mangle_\d+")
_TENSOR = re.compile(r"/(?:weight_|tensor_)?\d+$")  # raw bytes, where anything may occur by chance
_PATH = re.compile(rb"/[\w.+-]+/[\w./+-]*\w\.py\b|/site-packages/")
_PAD_ID = 0x4246  # "FB", the extra field that PyTorch pads with


def strip_archive(path: Path) -> None:
    """Rewrite an archive in place: sorted as it was, stored, aligned, without debug records or times.

    Raises:
        UnsupportedError: an entry still names a path of this machine.
    """
    with zipfile.ZipFile(path) as source:
        kept = [entry.filename for entry in source.infolist() if not entry.filename.endswith(_DROPPED)]
        contents = _renumbered({name: source.read(name) for name in kept})
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
    numbers: dict[bytes, bytes] = {}

    def number(match: re.Match[bytes]) -> bytes:
        return numbers.setdefault(match[0], b"___torch_mangle_%d" % len(numbers))

    renamed = {}
    for name, data in contents.items():
        own_name = _MANGLED.sub(number, name.encode()).decode()
        if name.endswith(".pkl") and _MANGLED.search(data):
            data = _rewritten(data, number)
        elif name.endswith(".py"):
            data = _MANGLED.sub(number, data)
        renamed[own_name] = data
    return renamed


def _rewritten(data: bytes, number: Callable[[re.Match[bytes]], bytes]) -> bytes:
    """Rename inside a pickle, whose strings carry their length."""
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    parts = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for index, part in enumerate(parts):
        changed = _MANGLED.sub(number, part)
        if part[:1] == pickle.BINUNICODE:  # opcode, length in four bytes, text
            changed = pickle.BINUNICODE + (len(changed) - 5).to_bytes(4, "little") + changed[5:]
        parts[index] = changed
    return b"".join(parts)


def _padding(offset: int, name: str) -> bytes:
    """Return the extra field that makes the entry's data start at a multiple of the alignment."""
    header = 30 + len(name.encode()) + 4
    size = -(offset + header) % _ALIGNMENT
    return _PAD_ID.to_bytes(2, "little") + size.to_bytes(2, "little") + b"\0" * size
