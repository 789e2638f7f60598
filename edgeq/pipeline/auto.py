"""The schemes that a run does not name: those of `--scheme auto`, and a target's default for a model.

`auto` tries a target's schemes, the cheapest first, until one passes every gate. Each attempt equals a run of that
scheme alone, and is cached as such. The default is one scheme, by what the model computes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq.core.config import Job
from edgeq.core.errors import (
    AccuracyError,
    EdgeqError,
    ExitCode,
    OutOfTimeError,
    UnsupportedError,
    VerificationError,
)
from edgeq.core.results.artifact import Inputs
from edgeq.core.results.model import ModelWork
from edgeq.core.results.report import Choice, DataFacts, PackageResult, Variant, variant_of, with_warning
from edgeq.core.runtimes import FLOAT_TABLES, INT8_RECURRENT, INT8_TABLES
from edgeq.core.schemes import (
    AUTO,
    DEFAULT,
    FLOAT_SCHEMES,
    LIMITS,
    NEEDS_CALIBRATION,
    SEARCH_LIMITS,
    SchemeName,
    auto_schemes,
    default_schemes,
)
from edgeq.core.targets import TargetProfile
from edgeq.core.units import counted, format_bytes, parse_quantity
from edgeq.lower.onnx import file_work
from edgeq.pipeline.cache import keep, restore, seen_of, unit_of
from edgeq.pipeline.plan import BuildUnit, Finished, Results, Run
from edgeq.pipeline.prepare import TooFewSamples, load_job_model
from edgeq.pipeline.publish import write_reports
from edgeq.quantize import file_schemes
from edgeq.quantize.capture import run_once
from edgeq.report.progress import Budgeted
from edgeq.report.text import default_lines, share
from edgeq.verify.children import calm_openmp, use_torch

# errors that rule out this scheme only; any other error ends the run
REFUSALS: tuple[type[EdgeqError], ...] = (UnsupportedError, AccuracyError, VerificationError)

_MOST = 0.5  # of the multiply-accumulates: what does more of them decides


# builds units of named schemes, or returns them from the cache (`package.build_units`)
Build = Callable[[Run, Sequence[BuildUnit]], Results]


def choose_schemes(run: Run, units: Sequence[BuildUnit], build: Build) -> Results:
    """Return the units of a run, those of `auto` among them; one that cannot be made does not stop the others.

    A unit of `auto` is refused where none of its schemes could be made.

    Raises:
        EdgeqError: what concerns all units alike: the model, the data, the options, this machine.
    """
    named = [unit for unit in units if unit.scheme != AUTO]
    found = build(run, named) if named else Results(finished={}, refused={})
    wanted = [unit for unit in units if unit.scheme == AUTO]
    known = restore(wanted, run.folder(), run.job) if run.job.cache else {}
    missing = [unit for unit in wanted if unit.key not in known]
    raced = _raced(run, missing, build) if missing else Results(finished={}, refused={})
    return Results(
        finished=found.finished | known | raced.finished, refused=found.refused | raced.refused, chosen=found.chosen
    )


def candidates(target: TargetProfile, job: Job, linear_macs: float) -> tuple[SchemeName, ...]:
    """Return what is tried for a target, the cheapest first.

    dynamic-int8 leaves convolutions in float. Where these do most of the work it is not tried.
    A target without any of these schemes has its own, in the order of its profile. An ONNX file has those only that
    start from one.

    Args:
        target: its schemes.
        job: its source, and its limits: without one on accuracy there is nothing to search for.
        linear_macs: share of the multiply-accumulates in matrix products.
    """
    first: tuple[SchemeName, ...] = ("dynamic-int8", "static-int8") if linear_macs > _MOST else ("static-int8",)
    searched = any(name in SEARCH_LIMITS for name, _ in job.gates.limits)
    order = (*first, *(("mixed-int8",) if searched else ()), "qat-int8")
    can = _possible(target, job.source).schemes
    return tuple(scheme for scheme in order if scheme in auto_schemes(can)) or tuple(
        scheme for scheme in can if scheme in FLOAT_SCHEMES or scheme in auto_schemes(can)
    )


def _possible(target: TargetProfile, source: str) -> TargetProfile:
    """Return a target with the schemes that a source can get for it."""
    if not source.endswith(".onnx"):
        return target
    known = file_schemes(target.runtime)
    return target.model_copy(update={"schemes": tuple(scheme for scheme in target.schemes if scheme in known)})


@dataclass(slots=True)
class _Race:
    """The tries for one target.

    Attributes:
        left: schemes that were not tried yet.
        unfinished: those that there was no time for.
        rows: those of the tries that made a bundle, by their place among the tries.
    """

    unit: BuildUnit
    linear_macs: float
    left: list[SchemeName]
    tried: list[Variant] = field(default_factory=list)
    rows: dict[int, tuple[PackageResult, DataFacts]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    untried: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    error: EdgeqError | None = None

    @property
    def is_over(self) -> bool:
        return not self.left or any(one.passed for one in self.tried)

    def refuse(self, scheme: str, error: EdgeqError) -> None:
        self.left.remove(scheme)  # type: ignore[arg-type]  # it came from there
        self.error = error
        self.tried.append(Variant(scheme=scheme, error=error.what, exit_code=error.exit_code))

    def take(self, unit: BuildUnit, row: PackageResult, data: DataFacts) -> None:
        self.left.remove(unit.scheme)  # type: ignore[arg-type]
        self.rows[len(self.tried)] = (row, data)
        self.keys.append(unit.key)
        self.tried.append(variant_of(row))
        if any(_is_for_all(gate.name, gate.outcome) for gate in self.tried[-1].failed):
            self.untried, self.left = tuple(self.left), []

    def run_out(self) -> None:
        """End the race: there was no time for what is left."""
        self.unfinished, self.left = (*self.unfinished, *self.left), []

    @property
    def best(self) -> str:
        """The nearest so far, in words; there is at least one bundle."""
        one = self.tried[self.winner()]
        figures = [format_bytes(one.size_bytes or 0), *([f"drop {one.drop_pp.estimate:.2f} pp"] if one.drop_pp else [])]
        figures += [] if one.sqnr_db is None else [f"SQNR {one.sqnr_db:.1f} dB"]
        return f"best so far {one.scheme}: {', '.join(figures)}, failed: {', '.join(gate.name for gate in one.failed)}"

    def winner(self) -> int:
        """Return the place of the first that passed, or else of the nearest; there is at least one bundle."""
        passed = [place for place in self.rows if self.tried[place].passed]
        return passed[0] if passed else min(self.rows, key=lambda place: self.tried[place].distance)


def _is_for_all(name: str, outcome: str) -> bool:
    """Whether a gate's verdict would be the same under any scheme: a limit that cannot be measured here.

    A class that collapsed is not among them, however few its samples: another scheme may keep it.
    """
    return outcome == "unverified" and name in LIMITS and name != "class_drop"


def _raced(run: Run, units: Sequence[BuildUnit], build: Build) -> Results:
    linear_macs = _linear_macs(run)
    races = [
        _Race(unit=unit, linear_macs=linear_macs, left=list(candidates(unit.target, run.job, linear_macs)))
        for unit in units
    ]
    budget = run.job.time_budget
    end = math.inf if budget is None else time.monotonic() + parse_quantity(budget, "s")
    with run.progress.task("choose a scheme") as task:
        while still := [race for race in races if not race.is_over]:
            scheme = still[0].left[0]
            turn = [race for race in still if race.left[0] == scheme]
            task.note("; ".join(dict.fromkeys([f"trying {scheme}", *(race.best for race in turn if race.rows)])))
            # without a bundle there is no best so far: that one may take its time
            is_cut = budget is not None and all(race.rows for race in turn)
            limited = Budgeted(run.progress, end, budget) if is_cut and budget is not None else run.progress
            try:
                _try(dataclasses.replace(run, progress=limited), scheme, turn, build)
            except OutOfTimeError:
                for race in turn:
                    race.run_out()
    won = [race for race in races if race.rows]
    return Results(
        finished={key: value for race in won for key, value in _winner_result(run, race).items()},
        refused={race.unit.key: _no_scheme_error(race) for race in races if not race.rows},
    )


def _linear_macs(run: Run) -> float:
    """Load the model and look at what it is made of; raises what loading does."""
    calm_openmp()
    use_torch()

    job = run.job
    with run.progress.task("analyze the model's layers"):
        model = load_job_model(job)
        if model.kind in ("pte", "ptl"):
            what = f"{job.source} is already lowered; --scheme auto needs a PyTorch or ONNX model"
            raise UnsupportedError(what, f"omit --scheme {AUTO}, or give the PyTorch model")
        work = file_work(model.model, model.inputs) if model.kind == "onnx" else run_once(model)[1]
        return (work or ModelWork()).matrix_share


def _try(run: Run, scheme: SchemeName, races: Sequence[_Race], build: Build) -> None:
    """Make one scheme for all targets whose turn it is; each scheme reads the data its own way, as when run alone."""
    if scheme in NEEDS_CALIBRATION and run.job.data.calibration is None:
        for race in races:
            race.refuse(scheme, UnsupportedError(f"{scheme} needs calibration data", "give --calibration-data"))
        return
    units = {race.unit.key: unit_of(run.job, run.facts, race.unit.target, scheme) for race in races}
    try:
        got = build(run, tuple(units.values()))
    except TooFewSamples as err:
        for race in races:
            race.refuse(scheme, err)
        return
    for race in races:
        unit = units[race.unit.key]
        if isinstance(got.refused.get(unit.key), OutOfTimeError):
            race.run_out()
        elif unit.key in got.refused:
            race.refuse(scheme, got.refused[unit.key])
        else:
            race.take(unit, *got.finished[unit.key])


def _winner_result(run: Run, race: _Race) -> Finished:
    """Return the bundle that came of a race, with the tries in its reports."""
    place = race.winner()
    row, data = race.rows[place]
    choice = Choice(
        linear_macs=race.linear_macs,
        tried=tuple(race.tried),
        chosen=place,
        untried=race.untried,
        unfinished=race.unfinished,
    )
    row = dataclasses.replace(row, choice=choice)
    judged = sum(data.evaluation_samples > 0 and not race.tried[i].passed for i in race.rows)
    if judged and race.tried[place].passed:
        before = "one scheme was" if judged == 1 else f"{judged} schemes were"
        row = with_warning(row, f"{before} rejected on the same evaluation samples before this one passed")
    result = {race.unit.key: (write_reports(row, data), data)}
    # with more time another scheme may pass
    return result if race.unfinished else keep(run, result, seen_of(race.keys, run.job.build))


def _no_scheme_error(race: _Race) -> EdgeqError:
    """Return the error of a race in which no scheme could be made, with the least exit code of them."""
    errors = "; ".join(f"{one.scheme}: {one.error}" for one in race.tried)
    code = min((one.exit_code for one in race.tried), default=ExitCode.UNSUPPORTED)
    kind = {ExitCode.ACCURACY: AccuracyError, ExitCode.VERIFICATION: VerificationError}.get(code, UnsupportedError)
    fix = race.error.fix if race.error is not None else "choose a --scheme"
    return kind(f"no scheme could be built for {race.unit.target.name}: {errors}", fix)


# --- The default of a target: the profile's first scheme, or what suits the model better. What the model computes is
# known once it is loaded, or from a result that the cache has.


# of the multiply-accumulates, in layers that dynamic-int8 computes in int8: its audit asks for as much
_WORTH = 0.25


def choose_default(target: TargetProfile, work: ModelWork | None) -> tuple[SchemeName, str]:
    """Return the default scheme of a target for a model, and the reason; "" where that is not known.

    dynamic-int8 is for models whose work is attention or recurrent layers, and weight-only-int8 on targets without it:
    static-int8 leaves products of two activations and recurrent layers in float, so that its audit fails on some, and
    its one range for each tensor costs 3 to 22 dB of such models. Small models trained on digits (docs/figures.md),
    SQNR in dB of static-int8 and of the default; x: the audit failed.

                 x86          qnnpack      xnnpack      ort          openvino
      vit        30.2x 40.3   34.7x 44.8   34.1  47.6   34.9  43.2   35.0  44.9
      swin       23.5x 39.6   34.3x 41.6   32.1  45.5   31.8  41.8   31.9  34.5
      encoder    28.9  34.9   32.9  40.0   33.9  44.7   33.7  38.8   33.5  41.4
      mobilevit  31.0  50.4   35.9  54.0   36.9  53.9   33.0  50.8   33.3  44.8
      lstm       38.1x 40.4   43.7x 42.7   43.9x 47.7   42.7x 39.4   42.8x 49.5

    They are for models that mostly hold tables of embeddings, too, which static-int8 leaves in float32.
    """
    first, *others = default_schemes(target.schemes)
    if work is None or not work.macs:
        return first, ""
    recurrent = {"LSTM": work.lstm_macs, "GRU": work.gru_macs, "RNN": work.rnn_macs}
    in_int8 = sum(recurrent[kind] for kind in INT8_RECURRENT.get(target.runtime, ()))
    if work.recurrent_macs > _MOST * work.macs:
        why = f"recurrent layers do {share(work.recurrent_macs / work.macs)} of the multiply-accumulates"
        if others and in_int8 > _MOST * work.macs:
            return others[0], f"{why}, and {first} leaves them in float"
        if "fp16" in others:
            return "fp16", f"{why}, and no int8 scheme of this target has kernels for them"
        return first, why
    if others and work.attention_products and work.linear_macs + in_int8 >= _WORTH * work.macs:
        return others[0], f"{counted(work.attention_products, 'attention product')}, which {first} leaves in float"
    stores = target.backend in FLOAT_TABLES and others and others[0] in INT8_TABLES
    if stores and work.table_share > _MOST and work.linear_macs + in_int8 >= _WORTH * work.macs:
        why = f"tables of embeddings hold {share(work.table_share)} of the weights, and {first} leaves them in float32"
        return others[0], why
    kinds = {"convolutions": work.convolution_macs, "linear layers": work.linear_macs}
    kinds |= {"recurrent layers": work.recurrent_macs, "attention products": work.attention_macs}
    most = max(kinds, key=lambda kind: kinds[kind])
    return first, f"{most} do {share(kinds[most] / work.macs)} of the multiply-accumulates"


def default_choices(job: Job, work: ModelWork | None) -> dict[str, tuple[SchemeName, str]]:
    """Return scheme and reason by target, where the job leaves the scheme open and the model has been looked at."""
    targets = [target for target in job.all_targets if DEFAULT in job.schemes_of(target)]
    if work is None:
        return {}
    return {target.name: choose_default(_possible(target, job.source), work) for target in targets}


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
        scheme, why = choose_default(_possible(unit.target, run.job.source), work)
        named = unit_of(run.job, run.facts, unit.target, scheme)
        chosen[unit.key] = dataclasses.replace(named, by_default=why)
    for line in default_lines((unit.target.name, unit.scheme, unit.by_default) for unit in chosen.values()):
        with run.progress.task(line):
            pass
    known = restore([*chosen.values()], run.folder(), run.job) if run.job.cache else {}
    return dataclasses.replace(results, finished=results.finished | known, chosen=chosen)
