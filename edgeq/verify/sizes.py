"""Sizes that vary: the artifact at the smallest, the middle and the largest ones, and just outside of the range.

Data need not have samples of these sizes: samples are cut, or repeated from their beginning, until they have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgeq.core.arrays import NDArray, np
from edgeq.core.errors import EdgeqError, UnsupportedError, VerificationError
from edgeq.core.results.measured import BeyondRun, Parity, SizeRun, SizesReport
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch, Dataset, Outputs, Sample, batches
from edgeq.core.sizes import Sizes, beyond_sizes, fixed_at, sizes_text, tried_sizes, varying_outputs
from edgeq.verify.accumulate import ParityTally, spread
from edgeq.verify.host import HostRuntime, Killed, Refused
from edgeq.verify.metrics import Comparison
from edgeq.verify.spec import Forward, VerifySpec

_SAMPLES = 4  # of each size

_NEAR_DB = 10.0  # outside of the range, an answer nearer to fp32's than this is no other answer


@dataclass(slots=True)
class Trial:
    """What the artifact gave at some sizes, with its inputs."""

    sizes: Sizes
    pairs: list[tuple[Batch, Outputs]] = field(default_factory=list)


def run_sizes(spec: VerifySpec, run: Forward, *, samples: int = _SAMPLES) -> list[Trial]:
    """Run `samples` inputs of all sizes to be tried, the largest first; none where no size varies.

    Raises:
        UnsupportedError, VerificationError: the runtime refuses a size, or crashes.
    """
    trials = [Trial(sizes=sizes) for sizes in tried_sizes(spec.inputs)]
    for trial in trials:
        for batch in _batches_at(spec, trial.sizes, samples):
            try:
                outputs = run(batch)
            except (Refused, UnsupportedError) as err:
                fix = "use another target, or give fixed sizes or another range in --input"
                raise type(err)(f"the artifact does not run at {sizes_text(trial.sizes)}: {err.what}", fix) from err
            trial.pairs.append((batch, outputs))
    return trials


def show(spec: VerifySpec, trials: Sequence[Trial]) -> None:
    """Hand what ran to whoever observes it: all of the largest sizes, and one sample of each of the others."""
    if spec.observe_sizes is None:
        return
    for index, trial in enumerate(trials):
        for batch, outputs in trial.pairs[: None if index == 0 else 1]:
            spec.observe_sizes(batch, outputs, spec.fp32(batch) if spec.fp32 else None)


def output_specs(trials: Sequence[Trial], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the outputs at the largest sizes, with what varies of them; () without trials."""
    if not trials:
        return ()
    shapes = [[output.shape for output in trial.pairs[0][1]] for trial in trials]
    varying = varying_outputs([trial.sizes for trial in trials], shapes)
    largest = trials[0].pairs[0][1]
    return tuple(
        TensorSpec(
            name=names[i] if names else f"output{i}", dtype=str(array.dtype), shape=array.shape, varying=varying[i]
        )
        for i, array in enumerate(largest)
    )


def judge_sizes(spec: VerifySpec, trials: Sequence[Trial], beyond: Sequence[BeyondRun]) -> SizesReport | None:
    """Compare what ran with the converted graph and with fp32, size by size; None where no size varies."""
    if not trials:
        return None
    planned = spec.lowered.planned_memory_bytes if spec.lowered else None
    runs = tuple(_judged(spec, trial) for trial in trials)
    return SizesReport(runs=runs, beyond=tuple(beyond), planned_memory_bytes=planned)


def _judged(spec: VerifySpec, trial: Trial) -> SizeRun:
    problem, parity, sums = "", ParityTally(), Comparison(nominal=True)
    for batch, measured in trial.pairs:
        of_fp32 = spec.fp32(batch) if spec.fp32 else None
        for expected, of in ((spec.graph(batch) if spec.graph else None, "the converted graph"), (of_fp32, "fp32")):
            if expected is not None and [one.shape for one in expected] != [one.shape for one in measured]:
                shapes, others = ([list(one.shape) for one in side] for side in (measured, expected))
                problem = problem or f"outputs have the shapes {shapes}, but those of {of} have {others}"
            elif expected is not None and of == "fp32":
                sums.add(expected, measured)
            elif expected is not None:
                parity.add(batch, expected, measured, spec.output_steps)
        is_finite = all(np.isfinite(one).all() for one in measured if one.dtype.kind == "f")
        if not is_finite and (of_fp32 is None or all(np.isfinite(one).all() for one in of_fp32)):
            problem = problem or "an output holds NaN or Inf"
    found: Parity | None = None
    if parity.batches and spec.graph is not None:
        found = parity.result(spec.graph)
    return SizeRun(
        sizes=tuple(trial.sizes.items()),
        samples=len(trial.pairs),
        parity=found,
        sqnr_db=sums.sqnr_db if sums.elements else None,
        problem=problem,
    )


def run_beyond(spec: VerifySpec, runtime: HostRuntime) -> tuple[BeyondRun, ...]:
    """Run sizes just outside of the range, last: the runtime may crash on them."""
    found = []
    for sizes in beyond_sizes(spec.inputs):
        (batch,) = _batches_at(spec, sizes, 1)
        try:
            outputs = runtime.run(batch.inputs)
        except (Refused, UnsupportedError):
            found.append(BeyondRun(sizes=tuple(sizes.items()), outcome="refused"))
            continue
        except Killed:
            raise
        except VerificationError:
            found.append(BeyondRun(sizes=tuple(sizes.items()), outcome="crashes"))
            break
        found.append(BeyondRun(sizes=tuple(sizes.items()), outcome=_answers(spec, batch, outputs)))
    return tuple(found)


def _answers(spec: VerifySpec, batch: Batch, outputs: Outputs) -> Literal["same", "other"]:
    """Return "same" where the outputs are near those of fp32, "other" where they are not, or fp32 fails there."""
    try:
        expected = spec.fp32(batch) if spec.fp32 else ()
    except Exception:  # the user's forward may raise anything
        return "other"
    if [one.shape for one in expected] != [one.shape for one in outputs]:
        return "other"
    sums = Comparison(nominal=True)
    sums.add(expected, outputs)
    return "same" if sums.sqnr_db >= _NEAR_DB else "other"


def _batches_at(spec: VerifySpec, sizes: Sizes, samples: int) -> Iterator[Batch]:
    """Yield so many samples, spread over the data, at these sizes."""
    specs = fixed_at(spec.inputs, sizes)
    axes = [{one.axis: one.name for one in item.varying} for item in spec.inputs]
    for row in sorted(spread(spec.samples.count, samples)):
        (whole,) = batches(_only(spec.samples, row), spec.inputs)
        for is_from_end in (False, True):
            inputs = tuple(
                _resized(array, item.shape, tuple(known), is_from_end=is_from_end)
                for array, item, known in zip(whole.inputs, specs, axes, strict=True)
            )
            sample = whole.samples[0]
            name = f"{sample.name} at {sizes_text(sizes)}"
            digest = f"{sample.digest} at {sizes_text(sizes)}{' from its end' if is_from_end else ''}"
            sized = Sample(inputs=inputs, raw=inputs, label=None, name=name, digest=digest)
            batch = Batch(inputs=inputs, samples=(sized,))
            # of a mask that is padded in front, the beginning may leave nothing to compute
            if is_from_end or _is_finite(spec, batch):
                yield batch
                break


def _only(samples: Dataset, row: int) -> Dataset:
    return dataclasses.replace(samples, count=1, read=lambda _: samples.read(row))


def _resized(
    array: NDArray[np.generic], shape: tuple[int, ...], axes: tuple[int, ...], *, is_from_end: bool
) -> NDArray[np.generic]:
    for axis in axes:
        size, wanted = array.shape[axis], shape[axis]
        places = np.arange(wanted) - (wanted if is_from_end else 0)
        array = np.take(array, places % size, axis=axis)
    return np.ascontiguousarray(array)


def _is_finite(spec: VerifySpec, batch: Batch) -> bool:
    """Whether fp32 gives finite outputs; also where it fails, or there is none to ask."""
    try:
        outputs = spec.fp32(batch) if spec.fp32 else ()
    except EdgeqError:
        raise
    except Exception:  # the user's forward may raise anything
        return True
    return all(np.isfinite(one).all() for one in outputs if one.dtype.kind == "f")
