"""What mixed-int8 tries before it spends bytes on float: changes for all layers at once that cost none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from edgeq.quantize.names import matched_names
from edgeq.quantize.result import type_names
from edgeq.quantize.spec import QuantizeSpec
from edgeq.scheme import ObserverName

# what searches the least error, and what cuts outliers; minmax is for those who ask for it
_RANGES: tuple[ObserverName, ...] = ("histogram", "percentile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change of how all layers are quantized.

    Attributes:
        name: in words, for reports.
        apply: returns the changed specification; None where the model has nothing to change.
    """

    name: str
    apply: Callable[[QuantizeSpec], QuantizeSpec | None]


def _evened(spec: QuantizeSpec) -> QuantizeSpec | None:
    from edgeq.quantize.equalize import equalized

    model = equalized(spec.model)
    if model is None:
        return None
    # by name: fusion changes the types of modules, and takes batch norms away
    kept = matched_names(spec.keep_fp32, type_names(spec.model.model)) & set(type_names(model.model))
    return dataclasses.replace(spec, model=model, keep_fp32=tuple(sorted(kept)))


def _typical(spec: QuantizeSpec) -> QuantizeSpec | None:
    from edgeq.quantize.outliers import without_outliers

    model = spec.model.model if spec.model.kind == "module" else spec.model.model.module()
    with spec.progress.task(f"look for outliers for {spec.label}", spec.calibration.count) as task:
        samples = without_outliers(spec.calibration, model, spec.inputs, task)
        if samples is not None:
            task.note(f"{spec.calibration.count - samples.count} calibration samples stand out: tried without them")
    return None if samples is None else dataclasses.replace(spec, calibration=samples)


TYPICAL = Remedy(name="calibrated without the samples that stand out", apply=_typical)
EVENED = Remedy(name="weights evened out between layers", apply=_evened)


def other_ranges(spec: QuantizeSpec) -> tuple[Remedy, ...]:
    """Return the observers that were not asked for."""
    return tuple(_by(name) for name in _RANGES if name != spec.observer)


def _by(observer: ObserverName) -> Remedy:
    return Remedy(name=f"{observer} ranges", apply=lambda spec: dataclasses.replace(spec, observer=observer))
