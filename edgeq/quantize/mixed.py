"""mixed-int8 and the ranking of layers, on both routes: one calibrated graph to rank by, and others by its ranges."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import QuantizedModel, RankedLayers
from edgeq.core.samples import evenly
from edgeq.quantize import fx, fx_observers, pt2e
from edgeq.quantize.before_logs import IN_FLOAT_BY_PLAN
from edgeq.quantize.calibrate import ObserverCache, calibrate, lend, observed
from edgeq.quantize.capture import example_tensors
from edgeq.quantize.eager import has_stubs
from edgeq.quantize.mixed_search import EQUALIZED, TYPICAL, SearchSpace, mixed, other_ranges
from edgeq.quantize.qat import Library
from edgeq.quantize.result import output_steps, quantized_model
from edgeq.quantize.sensitivity import RANK_SAMPLES, LayerName, Probe, Subject, measurements, rank, simulated
from edgeq.quantize.shared_ranges import unshare
from edgeq.quantize.spec import QuantizeSpec

_SCHEME = "mixed-int8"


def fx_mixed(spec: QuantizeSpec) -> QuantizedModel:
    """Search by FX.

    Raises:
        UnsupportedError: FX cannot trace the model, or there is no layer to choose.
        UsageError: a --keep-fp32 name that the model does not have, or a sample that does not fit.
    """
    with _fx(spec):
        # the other engines have a step size for each channel, and equalization would gain them little
        equalized = (EQUALIZED,) if spec.backend == "qnnpack" else ()
        return mixed(spec, _fx_ground, (TYPICAL, *equalized, *other_ranges(spec)))


def fx_sensitivity(spec: QuantizeSpec) -> RankedLayers:
    """Rank the layers by FX; raises what `fx_mixed` does."""
    with _fx(spec):
        return _ranked(_fx_subject(spec), spec)


def pt2e_mixed(spec: QuantizeSpec) -> QuantizedModel:
    """Search by PT2E.

    Raises:
        UnsupportedError: there is no layer to choose.
        UsageError: a --keep-fp32 name that the model does not have, or a sample that does not fit.
    """
    return mixed(spec, _pt2e_ground, (TYPICAL, *other_ranges(spec)))


def pt2e_sensitivity(spec: QuantizeSpec) -> RankedLayers:
    """Rank the layers by PT2E; raises what `pt2e_mixed` does."""
    return _ranked(_pt2e_subject(spec), spec)


def _fx_ground(spec: QuantizeSpec) -> SearchSpace:
    subject = _fx_subject(spec)

    def finish(kept: Sequence[str], final: bool) -> QuantizedModel:
        fewer = _keeping(spec, kept)
        prepared = fx.prepare(fewer)
        _ranged(prepared, subject, fewer)
        before = fx.watched(prepared, spec) if final else None
        converted = fx.convert(prepared)
        steps = output_steps(converted, example_tensors(spec.inputs))
        layers, sqnrs = fx_observers.split_layers(converted), before.against(converted) if before else None
        by_plan = prepared.meta[IN_FLOAT_BY_PLAN]
        return quantized_model(_SCHEME, converted, layers, steps=steps, layer_sqnrs=sqnrs, by_plan=by_plan)

    return SearchSpace(spec=spec, subject=subject, finish=finish)


def _pt2e_ground(spec: QuantizeSpec) -> SearchSpace:
    subject = _pt2e_subject(spec)

    def finish(kept: Sequence[str], final: bool) -> QuantizedModel:
        fewer = _keeping(spec, kept)
        prepared = pt2e.prepare(pt2e.float_graph(fewer.captured, spec.backend), fewer)
        unshare(prepared, _ranged(prepared, subject, fewer).alone, subject.library.is_observer, spec.backend)
        before = pt2e.watched(prepared, spec) if final else None
        converted = pt2e.convert(prepared, spec.backend)
        layers, sqnrs = pt2e.split_layers(converted), before.against(converted) if before else None
        steps, by_plan = pt2e.output_steps(converted), prepared.meta[IN_FLOAT_BY_PLAN]
        return quantized_model(_SCHEME, converted, layers, steps=steps, layer_sqnrs=sqnrs, by_plan=by_plan)

    return SearchSpace(spec=spec, subject=subject, finish=finish)


def _ranked(subject: Subject, spec: QuantizeSpec) -> RankedLayers:
    def measure(_name: str, run: Callable[[], float]) -> float:
        return run()

    simulation, judge = simulated(subject), spec.judge
    samples = judge.samples if judge else evenly(spec.calibration, RANK_SAMPLES)
    with spec.progress.task(f"rank the layers for {spec.label}", measurements(simulation), "measurements") as task:
        probe = Probe(simulation, samples, spec.inputs, judge.score if judge else None)
        layers = rank(probe, task, measure)
        return RankedLayers(
            layers=layers,
            order=simulation.layers,
            all_db=probe.sqnr_db(simulation.layers),
            all_score=probe.score,
            fp32_score=probe.float_score,
            samples=samples.count,
        )


def _keeping(spec: QuantizeSpec, kept: Sequence[str]) -> QuantizeSpec:
    return dataclasses.replace(spec, keep_fp32=(*spec.keep_fp32, *kept))


def _ranged(prepared: Any, subject: Subject, spec: QuantizeSpec) -> ObserverCache:
    """Give a graph its ranges: those that are known, or by calibration; return these."""
    is_observer = subject.library.is_observer
    if lend(prepared, subject.ranges, is_observer):
        return subject.ranges
    again = spec.progress.task(f"calibrate {spec.label} again", spec.calibration.count)
    with again as task, observed(prepared, is_observer) as ranges:
        calibrate(prepared, spec.calibration, spec.inputs, task)
    return ranges


@contextlib.contextmanager
def _fx(spec: QuantizeSpec) -> Iterator[None]:
    if spec.model.kind == "module" and has_stubs(spec.model.model):
        what = "the model marks its own int8 region with QuantStub, so mixed-int8 has no layers to choose"
        raise UnsupportedError(what, "use --scheme static-int8 with --keep-fp32")
    fx.refuse_exported(spec)
    with fx.engine(spec.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its deprecation on every call
        yield


def _fx_subject(spec: QuantizeSpec) -> Subject:
    return _calibrated(spec, lambda: fx.prepare(spec), fx.library(), fx_observers.layer_of)


def _pt2e_subject(spec: QuantizeSpec) -> Subject:
    return _calibrated(
        spec, lambda: pt2e.prepare(pt2e.float_graph(spec.captured, spec.backend), spec), pt2e.library(), pt2e.layer_of
    )


def _calibrated(spec: QuantizeSpec, prepare: Callable[[], Any], library: Library, layer_of: LayerName) -> Subject:
    with spec.progress.task(f"calibrate {spec.label}", spec.calibration.count) as task:
        prepared = prepare()
        with observed(prepared, library.is_observer) as ranges:
            calibrate(prepared, spec.calibration, spec.inputs, task)
    return Subject(prepared=prepared, library=library, layer_of=layer_of, ranges=ranges)
