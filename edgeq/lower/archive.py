"""TorchScript archives without what only debugging needs: source ranges hold the paths of this machine."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from edgeq.errors import UnsupportedError

_DROPPED = (".debug_pkl", "/.data/serialization_id", "/mobile_debug_handles.pkl", "/callstack_debug_map.pkl")
_ALIGNMENT = 64  # PyTorch's own (caffe2/serialize/inline_container.h), so that tensors can be mapped
_EPOCH = (1980, 1, 1, 0, 0, 0)
_TENSOR = re.compile(r"/\d+$")  # raw bytes, where anything may occur by chance
_PATH = re.compile(rb"/[\w.+-]+/[\w./+-]*\w\.py\b|/site-packages/")
_PAD_ID = 0x4246  # "FB", the extra field that PyTorch pads with


def strip_archive(path: Path) -> None:
    """Rewrite an archive in place: sorted as it was, stored, aligned, without debug records or times.

    Raises:
        UnsupportedError: an entry still names a path of this machine.
    """
    stripped = path.with_suffix(path.suffix + ".stripped")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if entry.filename.endswith(_DROPPED):
                continue
            data = source.read(entry)
            info = zipfile.ZipInfo(entry.filename, _EPOCH)
            info.external_attr = 0o644 << 16
            info.extra = _padding(target.fp.tell() if target.fp else 0, entry.filename)
            target.writestr(info, data)
            if not _TENSOR.search(entry.filename) and _PATH.search(data):
                what = f"{path.name}: {entry.filename} holds a path of this machine"
                raise UnsupportedError(what, "please report the model's architecture")
    stripped.replace(path)


def _padding(offset: int, name: str) -> bytes:
    """Return the extra field that makes the entry's data start at a multiple of the alignment."""
    header = 30 + len(name.encode()) + 4
    size = -(offset + header) % _ALIGNMENT
    return _PAD_ID.to_bytes(2, "little") + size.to_bytes(2, "little") + b"\0" * size
