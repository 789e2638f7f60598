"""`inspect_path`: describe a bundle or a bare artifact without judging it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.bundle.archive import download_size_bytes
from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import REPORT_NAME, read_report, read_report_of
from edgeq.core.config import Progress
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.manifest import MANIFEST_NAME, Bundle
from edgeq.core.results.model import Layer
from edgeq.core.results.report import PackageResult, html_table
from edgeq.core.system import check_extras
from edgeq.core.units import counted, format_bytes
from edgeq.lower.onnx import graph_operators
from edgeq.pipeline.from_file import load_given
from edgeq.report.json import graph_json, ordered
from edgeq.verify.host import ArtifactFacts, HostRuntime, Loaded

RUNTIMES = {
    ".pte": "executorch",
    ".ptl": "torchscript",
    ".pt": "torchscript",
    ".onnx": "onnx",
    ".ort": "onnx",
    ".xml": "openvino",
    ".tflite": "litert",
}

_SHOWN = 20  # layers in a notebook

_ACCEPTED = (
    "give a bundle's folder (with a manifest.json), or a .pte, .ptl, .onnx, .ort, .tflite, OpenVINO .xml or "
    "TorchScript .pt file"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInspection:
    """A bundle with verified hashes.

    Attributes:
        download_bytes: bytes of the ZIP that a release publishes.
        layers: in the order of execution; none where they are not known.
        why_no_layers: the reason for none.
        measured: what each gate measured, by its name; none where the bundle's report is not known.
        zeros: share of zeros among the weights; None where that is not known.
    """

    bundle: Bundle
    download_bytes: int
    layers: tuple[Layer, ...]
    why_no_layers: str
    measured: Mapping[str, str]
    zeros: float | None = None

    def _repr_html_(self) -> str:
        """Return what the bundle holds as HTML tables, for notebooks; of the layers those with most bytes."""
        manifest = self.bundle.manifest
        inputs, outputs = (
            ", ".join(f"{one.name} {one.dtype} {one.shape_text()}" for one in tensors)
            for tensors in (manifest.inputs, manifest.outputs)
        )
        facts = [
            ("runtime", f"{manifest.target.runtime}, {manifest.target.backend}"),
            ("inputs", inputs),
            ("outputs", outputs),
            ("size", f"{format_bytes(manifest.size_bytes)}, as a download {format_bytes(self.download_bytes)}"),
            ("digest", self.bundle.digest),
        ]
        title = f"{manifest.model.name} {manifest.model.version} for {manifest.target.name}, {manifest.scheme}"
        largest = sorted(self.layers, key=lambda layer: -layer.weight_bytes)[:_SHOWN]
        cells = [(one.name, one.op, f"{one.weight_bytes:,}", f"{one.macs:,}") for one in largest]
        head = ("layer", "operator", "bytes", "MACs")
        rest = f"{counted(len(self.layers), 'layer')}, those with most bytes"
        layers = html_table(head, cells, title=rest) if cells else ""
        return html_table((), facts, title=title) + layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInspection:
    """A bare artifact, loaded in its runtime.

    Attributes:
        size_bytes: of the file, with that of its weights where OpenVINO keeps them beside it.
        stated: what it says of its inputs and outputs; empty for TorchScript, whose archives state none.
        entries: name and bytes of what an archive holds, the largest first; none for a .pte.
    """

    path: Path
    runtime: str
    size_bytes: int
    stated: Loaded
    facts: ArtifactFacts
    entries: tuple[tuple[str, int], ...]


def inspect_path(path: Path, progress: Progress, *, trusted: bool = False) -> BundleInspection | ArtifactInspection:
    """Describe a bundle's folder or an artifact's file.

    Args:
        path: the folder or the file.
        progress: shows the steps.
        trusted: whether an artifact that could run code may be loaded.

    Raises:
        UsageError: neither of the two, or the artifact is damaged, or could run code and is not `trusted`.
        IntegrityError: the bundle's files are not those that it lists.
        VerificationError: the artifact crashes its runtime.
        UnsupportedError: the runtime lacks what the artifact needs, or a newer edgeq wrote the bundle.
        EnvironmentProblem: it cannot be read, or the runtime's process does not start.
    """
    if path.is_dir():
        if not (path / MANIFEST_NAME).is_file():
            raise UsageError(f"{path} is a folder without a {MANIFEST_NAME}", _ACCEPTED)
        return _bundle(path)
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}", _ACCEPTED)
    if path.suffix not in RUNTIMES or not path.is_file():
        raise UsageError(f"{path} cannot be inspected", _ACCEPTED)
    runtime = RUNTIMES[path.suffix]
    weights = path.with_suffix(".bin") if runtime == "openvino" else None
    check_extras((runtime,))
    with progress.task(f"load {path.name}"), HostRuntime(trusted=trusted) as child:
        # packed weights load in any engine of this host; qnnpack is the one that both x86 and ARM have
        stated = load_given(child, path, name=runtime, backend="qnnpack")
        facts = child.facts()
    return ArtifactInspection(
        path=path,
        runtime=runtime,
        size_bytes=sum(one.stat().st_size for one in (path, weights) if one is not None and one.is_file()),
        stated=stated,
        facts=facts,
        entries=_entries(path) if runtime == "torchscript" else (),
    )


def explorer_graph(path: Path) -> dict[str, Any]:
    """Return the graph of a bundle or of an .onnx file in Model Explorer's JSON.

    An .onnx file says what feeds each operator; of other artifacts the layers are a chain in the order of execution.

    Raises:
        UsageError: neither of the two, or the bundle's report has no layers.
        IntegrityError: the bundle's files are not those that it lists.
    """
    if path.suffix == ".onnx" and path.is_file():
        return graph_json(graph_operators(path), None, title=path.name)
    if not (path / MANIFEST_NAME).is_file():
        raise UsageError(f"{path} has no graph to write", "give a bundle's folder, or an .onnx file")
    bundle = read_bundle(path)
    row = read_report_of(bundle)
    if not row.layers:
        what = f"{path} has no layers: the source was a ready-made artifact, or an older edgeq packaged it"
        raise UsageError(what, "package the model again from PyTorch or ONNX")
    is_onnx = bundle.artifact.suffix == ".onnx"
    operators = graph_operators(bundle.artifact) if is_onnx else ordered(row)
    return graph_json(operators, row, title=f"{row.model} for {row.target}, {row.scheme}")


def _bundle(folder: Path) -> BundleInspection:
    bundle = read_bundle(folder)
    row, why = _row(bundle)
    if row is not None and not row.layers:
        why = "the source was a ready-made artifact, or an older edgeq packaged it"
    return BundleInspection(
        bundle=bundle,
        download_bytes=download_size_bytes(folder),
        layers=() if row is None else row.layers,
        why_no_layers=why,
        measured={} if row is None else {gate.name: gate.measured for gate in row.gates},
        zeros=None if row is None else row.zeros,
    )


def _row(bundle: Bundle) -> tuple[PackageResult | None, str]:
    """Return what report.json says, or why nothing; no hash covers it, so it only counts for its own bundle."""
    try:
        row = read_report(bundle.folder)
    except EdgeqError as err:
        missing = not (bundle.folder / REPORT_NAME).exists()
        return None, f"the bundle has no {REPORT_NAME} next to it" if missing else err.what
    return (row, "") if row.digest == bundle.digest else (None, f"{REPORT_NAME} belongs to another bundle")


def _entries(path: Path) -> tuple[tuple[str, int], ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [(info.filename, info.compress_size) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return ()  # torch read it, and reads more kinds of archive than Python does
    return tuple(sorted(found, key=lambda entry: (-entry[1], entry[0])))
