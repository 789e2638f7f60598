"""`edgeq compare`: compare the outputs of an fp32 and a quantized bundle, and find where the error starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options as flags
from edgeq.cli.console import open_progress, say, say_json
from edgeq.cli.options import ConfigOptions, grouped, to_values
from edgeq.cli.outputs import write_text
from edgeq.core.config import DataConfig
from edgeq.core.errors import UsageError
from edgeq.core.units import counted

if TYPE_CHECKING:
    import edgeq.config.options
    import edgeq.pipeline.compare
    import edgeq.report.html
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.core.manifest import Manifest
    from edgeq.core.results.measured import OutputComparison
    from edgeq.core.results.model import LayerSqnrs
    from edgeq.pipeline.compare import BundleComparison


SCHEMA_VERSION = 1

_SAMPLES = 1000

_INPUTS = {"evaluation": "evaluation samples", "random": "random inputs"}

_OPTIONS = ConfigOptions(
    keys=("data.evaluation", "data.labels", "data.metric"),
    docs={
        "data.evaluation": "Inputs: an image folder, .npz/.npy or file.py:function. Without it, seeded random inputs."
    },
)


@grouped
def compare(
    fp32: Annotated[Path, typer.Argument(metavar="FP32_BUNDLE", help="A bundle of scheme fp32.")],
    quantized: Annotated[
        Path, typer.Argument(metavar="QUANTIZED_BUNDLE", help=("A bundle of the same model with another scheme."))
    ],
    options: Annotated[dict[str, Any], _OPTIONS],
    layers: Annotated[bool, typer.Option("--layers", help="Also compare the output of each layer.")] = False,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help=f"Maximum number of inputs. [default: {_SAMPLES}]")
    ] = _SAMPLES,
    trust_source: flags.TrustSource = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
) -> None:
    """Run an fp32 and a quantized bundle of one model on the same inputs, and compare their outputs.

    Without --eval-data the inputs are drawn from the range that the preprocessing gives. The command does not judge the
    figures: its exit code is 0 for any difference.
    """
    data = edgeq.config.options.filled(DataConfig, to_values(options).get("data", {}))
    if data.labels is not None and data.evaluation is None:
        raise UsageError("--labels was given without --eval-data", "add --eval-data, or omit --labels")
    if data.metric is not None and data.evaluation is None:
        raise UsageError("--metric was given without --eval-data", "add --eval-data, or omit --metric")
    with open_progress(quiet=quiet) as progress:
        found = edgeq.pipeline.compare.compare_bundles(
            fp32, quantized, data=data, samples=samples, layers=layers, progress=progress, trusted=trust_source
        )
    if html is not None:
        view = edgeq.report.html.compared_view(
            found.layers,
            found.weight_bytes,
            title=f"fp32 and {_title(found.quantized)}",
            about=f"{counted(found.outputs.samples, 'sample')}, {_INPUTS[found.outputs.inputs]}",
            facts=(*_figures(found.outputs), *(("note", text) for text in found.notes)),
        )
        write_text(html, edgeq.report.html.float_html(view))
    if as_json:
        say_json(to_json(found))
    else:
        say(render(found))


def render(found: BundleComparison) -> str:
    """Return the figures as text: a line per layer, and the layer where the error starts."""
    outputs = found.outputs
    lines = edgeq.report.text.aligned([("fp32", _title(found.fp32)), ("quantized", _title(found.quantized))], indent="")
    lines += [f"outputs, {outputs.samples:,} {_INPUTS[outputs.inputs]}:", *edgeq.report.text.aligned(_figures(outputs))]
    if found.layers is not None:
        lines += _layer_lines(found.layers)
        advice = edgeq.report.text.error_advice(found.layers, found.weight_bytes)
        lines += edgeq.report.text.advice_lines(advice, (found.layers.start or found.layers.noisiest).layer)
    return "\n".join([*lines, *(f"note: {edgeq.report.text.printable(text)}" for text in found.notes)])


def _title(manifest: Manifest) -> str:
    return f"{manifest.model.name} {manifest.model.version} for {manifest.target.name}, {manifest.scheme}"


def _figures(outputs: OutputComparison) -> list[tuple[str, str]]:
    counts = f"{outputs.agreeing:,} of {outputs.ranked:,}"
    return [
        ("mean absolute error", f"{outputs.mean_abs_error:.4g}"),
        ("mean magnitude", f"{outputs.fp32_magnitude:.4g} fp32, {outputs.quantized_magnitude:.4g} quantized"),
        ("largest error", f"{outputs.max_abs_error:.4g}"),
        (
            "argmax agreement",
            f"{edgeq.report.text.share(outputs.agreeing / outputs.ranked)}, {counts}"
            if outputs.ranked
            else "the first output is not [N, classes]",
        ),
        *(
            [(outputs.metric, f"{outputs.fp32_score:.4g} fp32, {outputs.score:.4g} quantized")]
            if outputs.score is not None
            else []
        ),
        ("SQNR", edgeq.report.text.decibel(outputs.sqnr_db)),
        ("cosine", f"{outputs.cosine:.6g}"),
    ]


def _layer_lines(found: LayerSqnrs) -> list[str]:
    cells = [
        (one.layer, edgeq.report.text.decibel(one.sqnr_db), edgeq.report.text.decibel(one.own_db))
        for one in found.layers
    ]
    head = ("layer", "SQNR", "by itself")
    return [
        f"layers, the converted graph against the float one, {counted(found.samples, 'calibration sample')}:",
        *edgeq.report.text.aligned([head, *cells], right=frozenset({1, 2})),
    ]


def to_json(found: BundleComparison) -> dict[str, Any]:
    """Return the same as JSON; `schema_version` changes when a key is removed or changes its meaning."""
    document: dict[str, Any] = edgeq.report.json.finite(
        {
            "schema_version": SCHEMA_VERSION,
            "fp32": _bundle_json(found.fp32),
            "quantized": _bundle_json(found.quantized),
            "outputs": dataclasses.asdict(found.outputs),
            "layer_sqnrs": edgeq.report.json.layer_sqnrs_json(found.layers),
            "notes": list(found.notes),
        }
    )
    return document


def _bundle_json(manifest: Manifest) -> dict[str, str]:
    model = manifest.model
    return {
        "model": model.name,
        "model_version": model.version,
        "target": manifest.target.name,
        "scheme": manifest.scheme,
    }
