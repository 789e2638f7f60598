"""Models with state over many steps: the artifact fed with its own state, against fp32 fed with its own.

Language models keep theirs in buffers, and continue a prompt.

The steps are the first of the data, repeated: each quarter has the same inputs, so that a difference between quarters
comes from the state alone. Both sides run in step, and only sums are kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.results.artifact import Observed
from edgeq.core.results.measured import Continuation, DriftReport, OutputDrift
from edgeq.core.samples import Batch, Feedback, Outputs, batches, state_specs
from edgeq.core.schemes import FLOAT_SCHEMES, least_sqnr_db
from edgeq.verify.golden import GOLDEN_BYTES
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import Comparison, unlike_infinities
from edgeq.verify.spec import Forward, VerifySpec

STEPS = 1000

_QUARTER = STEPS // 4

_START = 25  # the first steps, in which an artifact that ignores its state shows

# of the signal's energy, below which the state changes nothing in fp32's outputs but rounding
_LEAST_EFFECT = 1e-10

# an error this far below the signal is the noise of a few quantization steps, whatever it hides
_FAINT_DB = 30.0

_LEAST_MOTION = 1e-3  # of the signal's energy, below which an output does not move

# where the error grows by less, and leaves more than this of the signal, nobody asks what rounding does to fp32 itself
_GROWS_DB, _POOR_DB = 1.0, 10.0

# how far a value moves that is rounded once: the last bit of a float, or one step of int8
_FLOAT_ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
_FP32_ROUNDING, _INT8_ROUNDING = 2.0**-23, 1 / 255


@dataclass(slots=True)
class _Sums:
    """Sums of one output over some steps."""

    steps: int = 0
    fp32_energy: float = 0.0
    energy: float = 0.0
    error: float = 0.0
    effect: float = 0.0
    reach: float = 0.0
    fp32_reach: float = 0.0
    total: NDArray[Any] = field(default_factory=lambda: np.zeros(()))
    fp32_total: NDArray[Any] = field(default_factory=lambda: np.zeros(()))

    def add(self, fp32: NDArray[Any], measured: NDArray[Any], stateless: NDArray[Any] | None) -> None:
        """Add a step; `stateless` is what fp32 gives from the state that the sequence starts with."""
        left, right = fp32.astype(np.float64), measured.astype(np.float64)
        self.steps += 1
        self.fp32_energy += float((left**2).sum())
        self.energy += float((right**2).sum())
        self.error += float(((left - right) ** 2).sum())
        self.reach = max(self.reach, float(np.abs(right).max(initial=0.0)))
        self.fp32_reach = max(self.fp32_reach, float(np.abs(left).max(initial=0.0)))
        self.total, self.fp32_total = self.total + right, self.fp32_total + left
        if stateless is not None:
            self.effect += float(((left - stateless.astype(np.float64)) ** 2).sum())

    @property
    def sqnr_db(self) -> float:
        return _ratio_db(self.fp32_energy, self.error)

    @property
    def has_effect(self) -> bool:
        """Whether the state changes fp32's output."""
        return self.effect > _LEAST_EFFECT * self.fp32_energy

    @property
    def effect_db(self) -> float | None:
        """What the state changes in fp32's output against the error; None where either is too small to tell."""
        return _ratio_db(self.effect, self.error) if self.has_effect and self.sqnr_db < _FAINT_DB else None

    @property
    def of_motion(self) -> dict[str, float | None]:
        """The artifact's variance, the square of the means' difference, and the rest of the error.

        They are shares of fp32's variance.
        """
        fp32 = self.fp32_energy - float((self.fp32_total**2).sum()) / self.steps
        if fp32 <= _LEAST_MOTION * self.fp32_energy:
            return dict.fromkeys(("motion", "offset", "untracked"))
        own = max(0.0, self.energy - float((self.total**2).sum()) / self.steps)
        offset = float(((self.total - self.fp32_total) ** 2).sum()) / self.steps
        return {"motion": own / fp32, "offset": offset / fp32, "untracked": max(0.0, self.error - offset) / fp32}


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def run_drift(spec: VerifySpec, runtime: HostRuntime) -> DriftReport:
    """Run the artifact and fp32 over many steps, each with its own state.

    Args:
        spec: of a model with state, and with fp32.
        runtime: has the artifact loaded.

    Raises:
        VerificationError: the artifact crashes the runtime.
    """
    fp32 = spec.fp32
    if fp32 is None:
        raise ValueError("drift is measured against fp32")
    drive = _drive(spec)
    report = DriftReport(steps=STEPS, inputs=min(_QUARTER, spec.samples.count))
    ours, theirs = Feedback(spec.inputs), Feedback(spec.inputs)
    start: list[_Sums] = []
    quarters: list[list[_Sums]] = []
    with spec.progress.task(f"run {spec.label} over {STEPS:,} steps", STEPS) as task:
        for step, batch in enumerate(drive):
            left, right = theirs.fed(batch), ours.fed(batch)
            reference, measured = fp32(left), runtime.run(right.inputs)
            theirs.took(left, reference)
            ours.took(right, measured)
            for index, (expected, came) in enumerate(zip(reference, measured, strict=True)):
                strange = unlike_infinities(came, expected)
                where = f"NaN or Inf in output{index} at step {step + 1:,}"
                if not np.isfinite(expected[strange]).all():
                    return dataclasses.replace(report, unsure=f"fp32 itself gives {where}")
                if strange.any():
                    return dataclasses.replace(report, problem=f"it gives {where}, unlike fp32")
            start = start or [_Sums() for _ in reference]
            quarters = quarters or [[_Sums() for _ in range(4)] for _ in reference]
            is_start, is_last = 0 < step <= _START, step >= STEPS - _QUARTER
            stateless = fp32(_renamed(batch, " alone")) if is_start or is_last else (None,) * len(reference)
            for index, arrays in enumerate(zip(reference, measured, stateless, strict=True)):
                quarters[index][step // _QUARTER].add(*arrays)
                if is_start:
                    start[index].add(*arrays)
            task.advance()
    if not any(sums.has_effect for sums in (*start, *(found[-1] for found in quarters))):
        why = "fp32 gives the same outputs without its state, so that --state names nothing that forward uses"
        return dataclasses.replace(report, unsure=why)
    states = {one.fed_from for one in state_specs(spec.inputs)}
    outputs = []
    for index, found in enumerate(quarters):
        outputs.append(
            OutputDrift(
                output=index,
                is_state=index in states,
                sqnr_db=tuple(one.sqnr_db for one in found),
                start_effect_db=start[index].effect_db,
                effect_db=found[-1].effect_db,
                **found[-1].of_motion,
                reach=found[-1].reach,
                fp32_reach=found[-1].fp32_reach,
            )
        )
    if any(one.growth_db > _GROWS_DB or one.sqnr_db[-1] < _POOR_DB for one in outputs):
        with spec.progress.task(f"round the state of fp32 once for {spec.label}", STEPS):
            pairs = zip(outputs, _reactions(spec, fp32, drive), strict=True)
            outputs = [dataclasses.replace(one, reaction_db=reaction) for one, reaction in pairs]
    return dataclasses.replace(report, outputs=tuple(outputs))


def _drive(spec: VerifySpec) -> list[Batch]:
    """Return the steps: the first of the data, repeated, as one sequence with the state that the data start from."""
    block = list(itertools.islice(batches(spec.samples, spec.inputs), _QUARTER))
    first = block[0]
    found = []
    for step in range(STEPS):
        batch = block[step % _QUARTER % len(block)]
        inputs = tuple(
            array if one.fed_from is None else start
            for array, start, one in zip(batch.inputs, first.inputs, spec.inputs, strict=True)
        )
        sample = dataclasses.replace(
            first.samples[0],
            inputs=inputs,
            raw=inputs,
            digest=f"drift of {first.samples[0].digest}, {step}",  # fp32's outputs are remembered by it
            sequence="drift",
            step=step,
        )
        found.append(Batch(inputs=inputs, samples=(sample,)))
    return found


def _renamed(batch: Batch, suffix: str) -> Batch:
    (sample,) = batch.samples
    return dataclasses.replace(batch, samples=(dataclasses.replace(sample, digest=f"{sample.digest}{suffix}"),))


def _reactions(spec: VerifySpec, fp32: Forward, drive: Sequence[Batch]) -> list[float]:
    """Return the SQNR of fp32 against itself over the last quarter, its state rounded once after the first one.

    A state that forgets has nothing left of it by then; a chaotic one is anywhere.
    """
    size = _FLOAT_ROUNDING.get(spec.scheme, _FP32_ROUNDING if spec.scheme in FLOAT_SCHEMES else _INT8_ROUNDING)
    rng = np.random.default_rng(0)
    sums: list[_Sums] = []
    pairs = zip(_closed(spec, fp32, drive), _closed(spec, fp32, drive, rounded=(size, rng)), strict=True)
    for step, (reference, moved) in enumerate(pairs):
        if step < STEPS - _QUARTER:
            continue
        sums = sums or [_Sums() for _ in reference]
        for one, left, right in zip(sums, reference, moved, strict=True):
            one.add(left, right, None)
    return [one.sqnr_db for one in sums]


def _closed(
    spec: VerifySpec,
    fp32: Forward,
    drive: Sequence[Batch],
    rounded: tuple[float, np.random.Generator] | None = None,
) -> Iterator[Outputs]:
    """Yield fp32's outputs; with `rounded`, its float states are moved once, by this share of their range."""
    feedback = Feedback(spec.inputs)
    for step, batch in enumerate(drive):
        fed = feedback.fed(batch)
        if rounded is not None and step >= _QUARTER:
            if step == _QUARTER:
                size, rng = rounded
                inputs = tuple(
                    _moved(array, size, rng) if one.fed_from is not None else array
                    for array, one in zip(fed.inputs, spec.inputs, strict=True)
                )
                fed = dataclasses.replace(fed, inputs=inputs)
            fed = _renamed(fed, " rounded")
        outputs = fp32(fed)
        feedback.took(fed, outputs)
        yield outputs


def _moved(array: NDArray[Any], size: float, rng: np.random.Generator) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    step = size * float(np.abs(array).max(initial=0.0))
    return np.asarray(array + rng.choice([-step, step], array.shape), array.dtype)


# --- Language models: a prompt, and then the tokens that fp32 continues it with, one in each call.


_PROMPT, _TOKENS, _GOLDEN = 32, 16, 8


def golden_calls(spec: VerifySpec, runtime: HostRuntime) -> list[Observed]:
    """Run the first tokens of the data one by one, as many as golden samples may hold: each reads what the last wrote.

    Args:
        spec: of a language model.
        runtime: has the artifact loaded.

    Raises:
        VerificationError: the artifact crashes the runtime.
    """
    sample, found = spec.samples.read(0), []
    vocabulary = spec.language.vocabulary if spec.language else 1
    count = min(_GOLDEN, len(sample.inputs[0]), max(1, GOLDEN_BYTES // (4 * vocabulary)))
    for place in range(count):
        inputs = (sample.inputs[0][None, place : place + 1], np.asarray([place], sample.inputs[1].dtype))
        digest = f"golden call of {sample.digest} with {spec.label}, {place}"
        raw = tuple(array[0] for array in inputs)
        one = dataclasses.replace(sample, inputs=raw, raw=raw, label=None, digest=digest, sequence="golden", step=place)
        batch = Batch(inputs=inputs, samples=(one,))
        reference = spec.fp32(batch) if spec.fp32 else None
        found.append(Observed(batch=batch, host=runtime.run(inputs), fp32=reference, scored=False, golden=True))
    return found


def run_continuation(spec: VerifySpec, runtime: HostRuntime) -> list[Observed]:
    """Run the artifact and fp32 on a prompt of the data and on what fp32 says next, each with its own cache.

    Args:
        spec: of a language model, and with fp32.
        runtime: has the artifact loaded.

    Raises:
        VerificationError: the artifact crashes the runtime.
    """
    fp32, language = spec.fp32, spec.language
    if fp32 is None or language is None:
        raise ValueError("a continuation is of a language model, and measured against fp32")
    sample = spec.samples.read(0)
    count = min(_TOKENS, language.context_length - 1)
    given = sample.inputs[0][: min(_PROMPT, language.context_length - count)]
    place, found = 0, []
    with spec.progress.task(f"continue a text with {spec.label}", count, "tokens") as task:
        for step in range(count):
            inputs = (given[None], np.asarray([place], sample.inputs[1].dtype))
            # fp32's outputs are remembered by the digest: what another scheme's steps left must not stand for a call
            digest = f"continuation of {sample.digest} with {spec.label}, {step}"
            raw = tuple(array[0] for array in inputs)
            one = dataclasses.replace(sample, inputs=raw, raw=raw, label=None, digest=digest)
            batch = Batch(inputs=inputs, samples=(one,))
            reference, measured = fp32(batch), runtime.run(inputs)
            found.append(Observed(batch=batch, host=measured, fp32=reference, scored=False, continues=True))
            place += len(given)
            given = np.asarray([_next_token(reference)], given.dtype)
            task.advance()
    return found


def judge_continuation(spec: VerifySpec, steps: Sequence[Observed]) -> Continuation:
    """Run the converted graph on the same calls, with its own cache, and compare the artifact with it and with fp32."""
    sums, as_graph, graph = Comparison(), 0, spec.graph
    if graph is not None:
        for one in steps:
            expected = graph(one.batch)
            sums.add(expected, one.host)
            as_graph += says_the_same(expected, one.host, spec.scheme)
    return Continuation(
        prompt=steps[0].batch.inputs[0].shape[1],
        tokens=len(steps),
        as_graph=as_graph if graph else None,
        as_fp32=sum(_next_token(one.fp32 or ()) == _next_token(one.host) for one in steps),
        sqnr_db=sums.sqnr_db if graph else None,
    )


def _next_token(outputs: Outputs) -> int:
    return int(outputs[0][0, -1].argmax())


def says_the_same(expected: Outputs, came: Outputs, scheme: str) -> bool:
    """Whether the same token comes next by two runs that should agree.

    So it does where the two tokens' logits are nearer to each other than rounding may move them.
    """
    one, other = _next_token(expected), _next_token(came)
    logits = expected[0][0, -1].astype(np.float64)
    moved = float(np.sqrt(np.mean(logits**2))) * 10 ** (-least_sqnr_db(scheme) / 20)
    return bool(one == other or logits[one] - logits[other] <= 2 * moved)
