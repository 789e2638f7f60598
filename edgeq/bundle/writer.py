"""Writing a bundle: the artifact, the golden samples and the manifest, the same bytes for the same input."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq._io import disk_errors, sha256_file
from edgeq.artifacts import BundleInput, GoldenSet
from edgeq.bundle.facts import manifest_from
from edgeq.manifest import GOLDEN_NAME, MANIFEST_NAME, FileEntry, FileRole, manifest_bytes, manifest_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_bundle(item: BundleInput, folder: Path) -> str:
    """Write a bundle into an existing folder, and return its digest.

    Args:
        item: what the steps found out.
        folder: the caller's staging folder (`edgeq._io.staged_dir`); what an earlier call wrote is overwritten.

    Raises:
        UsageError: a name that may not stand in a manifest.
        EnvironmentProblem: the disk is full, or not writable.
    """
    with disk_errors(folder):
        artifact = folder / item.lowered.path.name
        shutil.copyfile(item.lowered.path, artifact)
        golden = folder / GOLDEN_NAME
        golden.write_bytes(golden_npz(item.golden, [spec.name for spec in item.model.inputs]))
        files = [_entry(artifact, "artifact"), _entry(golden, "golden")]
        for role, companion in item.lowered.companions:
            files.append(_entry(Path(shutil.copyfile(companion, folder / companion.name)), role))
        manifest = manifest_from(item, files)
        data = manifest_bytes(manifest)
        (folder / MANIFEST_NAME).write_bytes(data)
    return manifest_digest(data, manifest)


def golden_npz(golden: GoldenSet, input_names: list[str]) -> bytes:
    """Return golden.npz: `input_<name>` and `output_<i>`, little-endian, [samples, …].

    Stored, not deflated: the digest must not hang on the version of zlib.
    """
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, array in _golden_arrays(golden, input_names):
            archive.writestr(zip_entry(f"{name}.npy", ZIP_EPOCH), _npy(array))
    return sink.getvalue()


def zip_entry(name: str, date_time: tuple[int, int, int, int, int, int]) -> zipfile.ZipInfo:
    """Return a ZIP entry that says nothing of the machine: fixed time, mode 0644, made on Unix."""
    info = zipfile.ZipInfo(name, date_time)
    info.external_attr = 0o100644 << 16
    info.create_system = 3
    return info


def _golden_arrays(golden: GoldenSet, input_names: list[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, array in zip(input_names, golden.inputs, strict=True):
        yield f"input_{name}", array
    for i, array in enumerate(golden.outputs):
        yield f"output_{i}", array


def _npy(array: NDArray[Any]) -> bytes:
    import numpy as np

    sink = io.BytesIO()
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(sink, plain, version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def _entry(path: Path, role: FileRole) -> FileEntry:
    return FileEntry(path=path.name, sha256=sha256_file(path), size_bytes=path.stat().st_size, role=role)
