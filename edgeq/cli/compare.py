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
    from edgeq.pipeline.compare import BundleComparison


SCHEMA_VERSION = 1

_SAMPLES = 1000


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
            title=f"fp32 and {edgeq.report.text.bundle_title(found.quantized)}",
            about=f"{counted(found.outputs.samples, 'sample')}, {edgeq.report.text.INPUT_KINDS[found.outputs.inputs]}",
            facts=(*edgeq.report.text.output_figures(found.outputs), *(("note", text) for text in found.notes)),
        )
        write_text(html, edgeq.report.html.float_html(view))
    if as_json:
        say_json(to_json(found))
    else:
        say(str(found))


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
