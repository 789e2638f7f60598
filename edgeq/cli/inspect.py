"""`edgeq inspect`: describe a bundle or a bare artifact."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options
from edgeq.cli.console import open_progress, say, say_json
from edgeq.cli.outputs import write_text
from edgeq.core.errors import UsageError
from edgeq.core.ort_format import reduced_build_config
from edgeq.core.units import counted, format_bytes

if TYPE_CHECKING:
    import edgeq.pipeline.inspect
    import edgeq.report.text
    from edgeq.core.manifest import GateVerdict, LanguageFacts, Manifest, Measure, Tensor
    from edgeq.core.results.model import Layer
    from edgeq.pipeline.inspect import ArtifactInspection, BundleInspection


SCHEMA_VERSION = 1

_SHOWN = 10

_SHARE_UNKNOWN = "not known: a bare artifact does not list its layers; inspect its bundle"

_NOT_LISTED = "not known: a .pt archive holds code but no list of operators"


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT_OR_BUNDLE",
            help="A bundle's folder, or a .pte, .ptl, .onnx, .ort, .tflite, OpenVINO's .xml or TorchScript .pt file.",
        ),
    ],
    layers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of layers or archive entries to list; --json has all.")
    ] = _SHOWN,
    required_operators: Annotated[
        bool,
        typer.Option(
            "--required-operators",
            help=("For an .ort file: print only the configuration for a reduced build of ONNX Runtime."),
        ),
    ] = False,
    graph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the graph with size, precision and error of each layer as JSON for Model Explorer, and stop.",
        ),
    ] = None,
    trust_source: options.TrustSource = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Describe a bundle or an artifact.

    Shows inputs and outputs, sizes, operators, the delegate's share and bytes per layer. A bundle's hashes are checked;
    an artifact is loaded in a separate process.
    """
    if graph is not None:
        collection = edgeq.pipeline.inspect.explorer_graph(path)
        write_text(graph, json.dumps(collection, indent=1, ensure_ascii=False) + "\n")
        count = counted(len(collection["graphs"][0]["nodes"]), "operator")
        say(f"written: {graph}, {count}: open it with `model-explorer {graph}`, of the package ai-edge-model-explorer")
        return
    with open_progress(quiet=quiet) as progress:
        found = edgeq.pipeline.inspect.inspect_path(
            _ort_file(path) if required_operators else path, progress, trusted=trust_source
        )
    if required_operators and not isinstance(found, edgeq.pipeline.inspect.BundleInspection):
        say(reduced_build_config(found.facts.operators).rstrip())
    elif as_json:
        say_json(
            bundle_json(found) if isinstance(found, edgeq.pipeline.inspect.BundleInspection) else artifact_json(found)
        )
    else:
        say(
            bundle_text(found, layers, edgeq.report.text.terminal_width())
            if isinstance(found, edgeq.pipeline.inspect.BundleInspection)
            else artifact_text(found, layers, edgeq.report.text.terminal_width())
        )


def bundle_text(found: BundleInspection, shown: int, width: int | None = None) -> str:
    """Return a bundle as text with `shown` layers, those with the most bytes first, wrapped at `width` columns."""
    manifest = found.bundle.manifest
    target, runtime = manifest.target, manifest.runtime
    field = f", oldest in the field {runtime.oldest_in_field}"
    bytecode = "" if runtime.bytecode_version is None else f", bytecode version {runtime.bytecode_version}"
    threads = counted(manifest.threads, "thread")
    facts = [
        ("digest", found.bundle.digest),
        ("target", f"{target.name} ({target.platform}, {target.arch}, {target.backend}, {threads})"),
        ("runtime", f"{runtime.name}, written by {runtime.exported_with or 'an unknown version'}{field}{bytecode}"),
        *(("input", _tensor(tensor)) for tensor in manifest.inputs),
        *(("output", _tensor(tensor)) for tensor in manifest.outputs),
        ("labels", str(len(manifest.labels)) if manifest.labels else "none"),
        *((("language", _language(manifest.language)),) if manifest.language else ()),
        *_computed(manifest),
        *((entry.role, f"{entry.path}, {_bytes(entry.size_bytes)}") for entry in manifest.files),
        ("download", f"{_bytes(found.download_bytes)} as the ZIP of a release"),
        ("zeros", edgeq.report.text.zeros(found.zeros)),
    ]
    title = f"{manifest.model.name} {manifest.model.version}, {manifest.scheme}, weights {manifest.model.weights}"
    verdict = "accepted" if manifest.accepted else "rejected"
    lines = [
        f"{title}: {edgeq.report.text.printable(str(found.bundle.folder))}",
        *edgeq.report.text.aligned(facts, width=width),
        f"gates: {verdict}",
    ]
    gates = [(gate.outcome, gate.name, _gate_facts(gate, found.measured.get(gate.name, ""))) for gate in manifest.gates]
    lines += edgeq.report.text.aligned(gates or [("none",)], width=width)
    return "\n".join([*lines, *_layer_lines(found, shown, width)])


def _language(facts: LanguageFacts) -> str:
    ends = f"ends at {', '.join(map(str, facts.eos_ids))}" if facts.eos_ids else "no token ends a text"
    return f"{counted(facts.context_length, 'token')} of context, {facts.vocabulary:,} in the vocabulary, {ends}"


def _gate_facts(gate: GateVerdict, measured: str) -> str:
    facts = (f"limit {gate.limit}" if gate.limit else "", f"measured {measured}" if measured else "")
    told = ", ".join(fact for fact in facts if fact)
    return f"{told}: {gate.detail}" if told and gate.detail else told or gate.detail or ""


def _computed(manifest: Manifest) -> list[tuple[str, str]]:
    layers = manifest.layers
    return [
        ("MACs", "not known" if layers.macs is None else f"{layers.macs:,} an inference"),
        ("int8 MACs", _share(layers.int8_macs, "not known: the profile did not match the layers")),
        ("delegated", _share(layers.delegated_macs, "there is no delegate, or its share is not known")),
        ("undelegated", ", ".join(layers.undelegated) or "no operator"),
        ("kept in fp32", ", ".join(layers.kept_fp32) or "no layer"),
    ]


def _layer_lines(found: BundleInspection, shown: int, width: int | None) -> list[str]:
    if not found.layers:
        return [f"layers: not known: {edgeq.report.text.printable(found.why_no_layers)}"]
    largest = sorted(found.layers, key=lambda layer: -layer.weight_bytes)[:shown]
    total = sum(layer.weight_bytes for layer in found.layers)
    macs = sum(layer.macs for layer in found.layers)
    lines = [f"layers: {len(found.layers)}, {_bytes(total)} of constants; the largest {len(largest)}:"]
    rows = [_layer_cells(layer, total, macs) for layer in largest]
    head = ("bytes", "share", "MACs", "delegate", "operator", "layer")
    table = edgeq.report.text.aligned([head, *rows], right=frozenset({0, 1, 2}), width=width) if rows else []
    return [*lines, *table]


def _layer_cells(layer: Layer, total: int, macs: int) -> tuple[str, ...]:
    share = layer.weight_bytes / total if total else 0.0
    of_macs = layer.macs / macs if macs else 0.0
    where = "yes" if layer.delegated else "-"
    return (f"{layer.weight_bytes:,}", f"{share:.1%}", f"{of_macs:.1%}", where, layer.op, layer.name)


def _tensor(tensor: Tensor) -> str:
    text = f"{tensor.name}, {tensor.dtype} {tensor.shape_text()}"
    image = tensor.preprocessing
    if image is None:
        return text
    steps: list[str] = [image.color]
    steps += [f"resize {_sides(image.resize)}"] if image.resize is not None else []
    steps += [f"crop {_sides(image.crop)}"] if image.crop is not None else []
    if image.dtype == "uint8":
        return f"{text}: {', '.join(steps)}, as bytes, {image.layout}"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (image.mean, image.std))
    return f"{text}: {', '.join(steps)}, x {image.scale:.6g}, mean {mean}, std {std}, {image.layout}"


def _sides(sides: int | tuple[int, int]) -> str:
    return f"shorter side {sides}" if isinstance(sides, int) else f"{sides[0]}x{sides[1]}"


def _share(value: Measure | None, unknown: str) -> str:
    number = math.nan if value is None else float(value)
    return f"{number:.2%} of the MACs" if math.isfinite(number) else unknown


def _ort_file(path: Path) -> Path:
    """Return the .ort file that `path` is, or that lies in the bundle.

    Raises:
        UsageError: there is none.
    """
    file = path / "model.ort" if path.is_dir() else path
    if file.suffix != ".ort" or not file.is_file():
        what = f"--required-operators is for ONNX Runtime's own format, and {path} neither is nor contains an .ort file"
        raise UsageError(what, "give a model.ort, or a bundle for a target whose file_format is ort")
    return file


def _bytes(size_bytes: int) -> str:
    return f"{format_bytes(size_bytes)} ({size_bytes:,} B)" if size_bytes >= 1000 else f"{size_bytes} B"


def artifact_text(found: ArtifactInspection, shown: int, width: int | None = None) -> str:
    """Return an artifact as text with `shown` entries of an archive, wrapped at `width` columns."""
    facts = found.facts
    operators = ", ".join(facts.operators)
    unlisted = _NOT_LISTED if found.path.suffix == ".pt" else "none"
    lines = [
        ("runtime", found.runtime),
        ("size", _bytes(found.size_bytes)),
        ("inputs", _stated(found.stated.inputs)),
        ("outputs", _stated(found.stated.outputs)),
        ("operators", operators or unlisted),
    ]
    if found.runtime == "executorch":
        lines += [("delegates", str(facts.delegates)), ("delegated", _SHARE_UNKNOWN)]
    if facts.bytecode_version is not None:
        lines.append(("opset" if found.runtime == "onnx" else "bytecode", f"version {facts.bytecode_version}"))
    text = [edgeq.report.text.printable(str(found.path)), *edgeq.report.text.aligned(lines, width=width)]
    if found.entries and shown:
        text.append(f"entries: {len(found.entries)}, the largest {min(shown, len(found.entries))}:")
        text += edgeq.report.text.aligned(
            [(f"{size:,}", name) for name, size in found.entries[:shown]], right=frozenset({0})
        )
    return "\n".join(text)


def _stated(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return "; ".join(f"{dtype} {list(shape)}" for dtype, shape in tensors) or "not stated in a TorchScript archive"


def bundle_json(found: BundleInspection) -> dict[str, Any]:
    """Return a bundle as JSON: its manifest and further facts."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "bundle",
        "path": str(found.bundle.folder),
        "digest": found.bundle.digest,
        "download_bytes": found.download_bytes,
        "zeros": found.zeros,
        "manifest": found.bundle.manifest.model_dump(mode="json"),
        "layers": [dataclasses.asdict(layer) for layer in found.layers] or None,
        "layers_unknown": found.why_no_layers or None,
    }


def artifact_json(found: ArtifactInspection) -> dict[str, Any]:
    """Return an artifact as JSON; facts that the format does not have are null."""
    is_executorch = found.runtime == "executorch"
    states_tensors = found.runtime != "torchscript"
    listed = found.path.suffix != ".pt"
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "artifact",
        "path": str(found.path),
        "runtime": found.runtime,
        "size_bytes": found.size_bytes,
        "inputs": _stated_json(found.stated.inputs) if states_tensors else None,
        "outputs": _stated_json(found.stated.outputs) if states_tensors else None,
        "operators": list(found.facts.operators) if listed else None,
        "delegates": found.facts.delegates if is_executorch else None,
        "delegated_macs": None,
        "bytecode_version": found.facts.bytecode_version,
        "entries": [{"name": name, "size_bytes": size} for name, size in found.entries],
    }


def _stated_json(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> list[dict[str, Any]]:
    return [{"dtype": dtype, "shape": list(shape)} for dtype, shape in tensors]
