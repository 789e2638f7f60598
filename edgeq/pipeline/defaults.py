"""The scheme of a target where the run names none: the profile's first, or what suits the model better.

The model decides, by what it computes; that is known once it is loaded, or from a result that the cache has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.config import Job
from edgeq.core.results.artifact import Inputs
from edgeq.core.results.model import ModelWork
from edgeq.core.schemes import DEFAULT, SchemeName, default_schemes
from edgeq.core.targets import TargetProfile
from edgeq.core.units import counted
from edgeq.lower.onnx import file_work
from edgeq.pipeline.cache import restore, unit_of
from edgeq.pipeline.plan import BuildUnit, Finished, Results, Run
from edgeq.pipeline.publish import write_reports
from edgeq.report.text import default_lines, share

_MOST = 0.5  # of the multiply-accumulates

# of the multiply-accumulates, in layers that dynamic-int8 computes in int8: its audit asks for as much
_WORTH = 0.25

# by runtime: the recurrent layers that dynamic-int8 computes in int8, and on OpenVINO weight-only-int8 stores
_INT8_RECURRENT = {
    "torchscript": ("LSTM", "GRU"),
    "executorch": ("LSTM", "GRU"),
    "onnx": ("LSTM", "RNN"),
    "openvino": ("LSTM", "GRU", "RNN"),
}


def choose_default(target: TargetProfile, work: ModelWork | None) -> tuple[SchemeName, str]:
    """Return the default scheme of a target for a model, and the reason; "" where that is not known.

    dynamic-int8 is for models whose work is attention or recurrent layers, where the target has it, and else
    weight-only-int8. static-int8 leaves products of two activations and recurrent layers in float, and its one range
    for each tensor loses more of what lies between them. Small models, trained on digits, SQNR of static-int8 against
    dynamic-int8 (on OpenVINO weight-only-int8), with the gates that failed without limits; docs/figures.md has sizes:

    TABLE
    """
    first, *others = default_schemes(target.schemes)
    if work is None or not work.macs:
        return first, ""
    recurrent = {"LSTM": work.lstm_macs, "GRU": work.gru_macs, "RNN": work.rnn_macs}
    in_int8 = sum(recurrent[kind] for kind in _INT8_RECURRENT.get(target.runtime, ()))
    if work.recurrent_macs > _MOST * work.macs:
        why = f"recurrent layers do {share(work.recurrent_macs / work.macs)} of the multiply-accumulates"
        if others and in_int8 > _MOST * work.macs:
            return others[0], f"{why}, and {first} leaves them in float"
        if "fp16" in others and target.runtime != "torchscript":  # which stores no nn.RNN in half
            return "fp16", f"{why}, and no int8 scheme of this target has kernels for them"
        return first, why
    if others and work.attention_products and work.linear_macs + in_int8 >= _WORTH * work.macs:
        return others[0], f"{counted(work.attention_products, 'attention product')}, which {first} leaves in float"
    kinds = {"convolutions": work.convolution_macs, "linear layers": work.linear_macs}
    kinds |= {"recurrent layers": work.recurrent_macs, "attention products": work.attention_macs}
    most = max(kinds, key=lambda kind: kinds[kind])
    return first, f"{most} do {share(kinds[most] / work.macs)} of the multiply-accumulates"


def restore_defaults(
    units: Sequence[BuildUnit], facts: Mapping[str, Any], work: Path, job: Job
) -> tuple[dict[str, BuildUnit], Finished]:
    """Return, by the keys of units of the default scheme, the units that the cache has, and their results.

    A result says what its model computes, and so whether its scheme is the model's default. Its key stands for the same
    model, as far as the options say; the cache compares the files that the model's code reads.
    """
    chosen: dict[str, BuildUnit] = {}
    finished: Finished = {}
    for number, unit in enumerate(units):
        for scheme in default_schemes(unit.target.schemes):
            named = unit_of(job, facts, unit.target, scheme)
            folder = work / f"default-{number}-{scheme}"
            folder.mkdir()
            row, data = restore([named], folder, job).get(named.key, (None, None))
            if row is None or data is None or row.work is None:
                continue
            best, why = choose_default(unit.target, row.work)
            if best == scheme:
                chosen[unit.key] = dataclasses.replace(named, by_default=why)
                finished[named.key] = (write_reports(dataclasses.replace(row, by_default=why), data), data)
                break
    return chosen, finished


def choose_defaults(run: Run, units: Sequence[BuildUnit], inputs: Inputs, results: Results) -> Results:
    """Return the results with a unit of a scheme for each unit of the default scheme, and those that the cache has."""
    units = [unit for unit in units if unit.scheme == DEFAULT]
    if not units:
        return results
    model = inputs.model
    work = file_work(model.model, model.inputs) if model.kind == "onnx" else inputs.work
    chosen: dict[str, BuildUnit] = {}
    for unit in units:
        scheme, why = choose_default(unit.target, work)
        named = unit_of(run.job, run.facts, unit.target, scheme)
        chosen[unit.key] = dataclasses.replace(named, by_default=why)
    for line in default_lines((unit.target.name, unit.scheme, unit.by_default) for unit in chosen.values()):
        with run.progress.task(line):
            pass
    known = restore([*chosen.values()], run.folder(), run.job) if run.job.cache else {}
    return dataclasses.replace(results, finished=results.finished | known, chosen=chosen)
