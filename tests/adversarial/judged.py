"""From outputs of fp32 and of an artifact to the gates that judge them, by the code that a run uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.check.fidelity import floor_gates
from edgeq.check.limits import Measured, limit_gate
from edgeq.core.config import GateOptions
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import LoweredModel, TensorSpec
from edgeq.core.results.report import Gate
from edgeq.core.samples import Dataset, Sample, batches
from edgeq.load.selection import sample_digest
from edgeq.report.progress import Quiet
from edgeq.verify.accumulate import Tally, compare, fidelity_of
from edgeq.verify.spec import VerifySpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 1))


def report_of(reference, measured, *, labels=None, keys=None, is_evaluation=True, metric=None) -> VerifyReport:
    """Return what the verify step makes of outputs.

    Args:
        reference: fp32's, a list of arrays [samples, …].
        measured: the artifact's.
        labels: a class for each sample.
        keys: samples with equal keys are repeats.
        is_evaluation: False for random inputs.
        metric: a score of the user's own.
    """
    count = len(reference[0])
    keys = range(count) if keys is None else keys

    def read(i: int) -> Sample:
        array = np.array([keys[i]], np.float32)
        label = None if labels is None else int(labels[i])
        return Sample(inputs=(array,), raw=(array,), label=label, name=str(i), digest=sample_digest((array,)))

    samples = Dataset(origin="test", count=count, read=read, labelled=labels is not None)
    position = {"fp32": 0, "artifact": 0}

    def next_of(side, arrays):
        at = position[side]
        position[side] += 1
        return tuple(array[at : at + 1] for array in arrays)

    lowered = LoweredModel(
        path=Path("model.pte"),
        runtime="executorch",
        runtime_version="1.5.1",
        bytecode_version=None,
        passes=(),
        operators=(),
        undelegated=(),
        layers=(),
        delegated_macs=None,
    )
    spec = VerifySpec(
        lowered=lowered,
        inputs=(X,),
        graph=None,
        fp32=lambda _: next_of("fp32", reference),
        output_steps=(),
        samples=samples,
        is_evaluation=is_evaluation,
        metric=metric,
        metric_name="top1" if metric is None else "own",
        scheme="static-int8",
        backend="xnnpack",
        threads=1,
        progress=Quiet(),
        label="test",
    )
    tally = Tally()
    for batch in batches(samples, (X,)):
        compare(spec, tally, batch, batch, next_of("artifact", measured))
    return VerifyReport(host="test", outputs=tally.shapes, findings=(), fidelity=fidelity_of(spec, tally))


def floor(reference, measured, *, limits=(), scheme="static-int8", **kwargs) -> dict[str, Gate]:
    """Return the gates of the floor by name."""
    report = report_of(reference, measured, **kwargs)
    return {gate.name: gate for gate in floor_gates(scheme, report, GateOptions(limits=tuple(limits)))}


def limit(name, value, reference, measured, **kwargs) -> Gate:
    """Return the gate of one limit."""
    measures = Measured(
        size_bytes=1,
        download_bytes=1,
        verified=report_of(reference, measured, **kwargs),
        limit_on="interval",
        host_arch="x86_64",
        target_arch="x86_64",
        target_platform="linux",
        threads=1,
    )
    return limit_gate(name, value, measures)


def rounded(array, levels=256):
    """Return values rounded to a grid of as many levels as int8 has, over their own range."""
    low, high = float(array.min()), float(array.max())
    step = (high - low) / (levels - 1) or 1.0
    return (np.round((array - low) / step) * step + low).astype(np.float32)
