"""`edgeq sensitivity`: which layers lose most in int8, as candidates for --keep-fp32."""

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
from edgeq.core.config import LIMITS, MORE_LIMITS, Job, PackageConfig
from edgeq.core.errors import UsageError
from edgeq.core.marks import options_of

if TYPE_CHECKING:
    import edgeq.config.options
    import edgeq.config.resolve
    import edgeq.pipeline.preflight
    import edgeq.pipeline.sensitivity
    import edgeq.report.html
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.pipeline.sensitivity import Ranking


SCHEMA_VERSION = 1

_OPTIONS = ConfigOptions(
    keys=(
        *("model", "targets", "name", "weights", "inputs", "state", "input_dtype", "trust_source", "seed", "observer"),
        "keep_fp32",
        *("data.calibration", "data.preprocess", "data.lint", "data.skip_bad_images", "data.num_calibration_samples"),
        *("data.evaluation", "data.metric", "data.labels"),
    ),
    defaults={"data.num_calibration_samples": 32},
    docs={
        "data.num_calibration_samples": "Samples to calibrate and measure on.",
        "data.evaluation": "Evaluation data: the layers are then ranked by score, on at most 256 samples.",
    },
)

# of a project's file: a ranking holds nothing to limits, packages nothing, and emulates nothing
_LEFT_OUT = frozenset(
    ["reuse_qparams_from", *(o.key for o in options_of(PackageConfig) if o.panel in (LIMITS, MORE_LIMITS))]
)


@grouped
def sensitivity(
    options: Annotated[dict[str, Any], _OPTIONS],
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
    config: flags.Config = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
) -> None:
    """Rank a model's layers by the error that int8 causes in each.

    Each layer is quantized alone; the most sensitive layers are also kept in float one at a time, with all others in
    int8. The outputs are compared with fp32's on calibration samples, and with --eval-data or --metric also scored.
    """
    job = _job(to_values(options), config)

    edgeq.pipeline.preflight.preflight(job)
    with open_progress(quiet=quiet) as progress:
        found = edgeq.pipeline.sensitivity.sensitivity(job, progress)
    if html is not None:
        view = edgeq.report.html.ranked_view(found.found, model=found.model, target=found.target, metric=found.metric)
        write_text(html, edgeq.report.html.float_html(view))
    if as_json:
        say_json(to_json(found))
    else:
        say(str(found))


def _job(command_line: dict[str, Any], config: Path | None) -> Job:
    project = {key: value for key, value in edgeq.config.options.read_project(config).items() if key not in _LEFT_OUT}
    job = edgeq.config.resolve.request(command_line, project | {"schemes": ["static-int8"], "device": {"on": "host"}})
    if len(job.all_targets) > 1:
        names = ", ".join(target.name for target in job.all_targets)
        raise UsageError(f"a ranking needs exactly one target, got {names}", "give one --target")
    asked = command_line.get("data", {})
    if "evaluation" in asked or "metric" in asked:
        return job
    # of a project's file, which gives them for its gates
    return dataclasses.replace(job, data=dataclasses.replace(job.data, evaluation=None, metric=None))


def to_json(found: Ranking) -> dict[str, Any]:
    """Return the same as JSON; a layer that changes nothing has the string "Infinity"."""
    measured = dataclasses.asdict(found.found)
    best = found.best_kept
    document: dict[str, Any] = edgeq.report.json.finite(
        {
            "schema_version": SCHEMA_VERSION,
            "model": found.model,
            "target": found.target,
            "samples": found.samples,
            "metric": found.metric or None,
            "layers": measured.pop("layers"),
            "measured_on": measured.pop("samples"),
            **measured,
            "keep_fp32": best.layer if best else None,
        }
    )
    return document
