"""The limits that a project sets: size, download, accuracy drop, latency, peak memory, load time."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeq.check.drift import growth_of
from edgeq.check.fidelity import needed_for_drop, proves_changes, score_is_share, unproven_drop, worst_part
from edgeq.check.gate import at_least, at_most, unverified
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.intervals import beyond_proof
from edgeq.core.results.measured import (
    CountReport,
    DeviceMeasures,
    DeviceRun,
    Fidelity,
    Interval,
    LatencyPrediction,
    VerifyReport,
)
from edgeq.core.results.report import Gate
from edgeq.core.schemes import LIMITS, LimitName
from edgeq.core.units import counted, format_quantity

# platform.machine() and target profiles name the same processors differently
_ARCH = {"aarch64": "arm64", "amd64": "x86_64", "x64": "x86_64"}

_PHONES = ("android", "ios")

_APART_DB = 10.0

_NO_NPU = "only vela measures this, for targets of Ethos-U"

_LEAST_RUNS = 10  # of fewer, one time in ten that is slower would not be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The values that limits are compared with.

    Attributes:
        size_bytes: bytes of the artifact.
        download_bytes: bytes of the published ZIP.
        verified: the results of running the artifact.
        limit_on: whether the accuracy drop is judged by the upper end of its interval or by the estimate.
        host_arch: the architecture that `verified` was measured on, in the form of `platform.machine()`.
        target_arch, target_platform: the target's.
        threads: of the app; a device timing with another number of threads does not count for latency.
        times_on: as in `GateOptions`.
        sram_bytes, cycles: of an artifact for an Ethos-U; None for others.
    """

    size_bytes: int
    download_bytes: int
    verified: VerifyReport
    limit_on: Literal["interval", "point"]
    host_arch: str
    target_arch: str
    target_platform: str
    threads: int
    times_on: str | None = None
    sram_bytes: int | None = None
    cycles: int | None = None


def counts_on(times_on: str | None, cpu: str) -> bool:
    """Whether times that were measured on a kind of machine count, where `times_on` names the kind that does."""
    if times_on is None:
        return True
    return bool(times_on) and re.search(rf"(?<!\w){re.escape(times_on)}(?!\w)", cpu) is not None


def limit_gate(name: LimitName, limit: float, measured: Measured) -> Gate:
    """Check one measured value against its limit (bytes, ms or percentage points, unrounded).

    A value is `unverified` (exit code 7) if it was not measured, or was measured on another kind of machine.
    """
    kind = LIMITS[name]
    value, note = _value(name, limit, measured)
    if name == "sqnr" and limit == 0:  # which takes the floor away, and so must not be one
        shown = "not measured" if value is None else format_quantity(value, kind.dimension)
        return Gate(
            name=name,
            outcome="ok",
            limit="none",
            measured=shown,
            detail="sqnr=0 turns the check of the outputs' floor off",
            exit_code=kind.exit_code,
            bound=limit,
        )
    if value is None:
        sign = ">=" if kind.at_least else "<="
        gate = unverified(name, f"{sign} {format_quantity(limit, kind.dimension)}", note)
        return dataclasses.replace(gate, bound=limit)
    hold = at_least if kind.at_least else at_most
    gate = hold(name=name, limit=limit, measured=value, dimension=kind.dimension, code=kind.exit_code, note=note)
    predicted = "predicted " if name == "latency" and _prediction(measured) is not None else ""
    return dataclasses.replace(gate, measured=f"{predicted}{gate.measured}", bound=limit)


def _value(name: LimitName, limit: float, measured: Measured) -> tuple[float | None, str]:
    """Return the value that counts and a remark, or None and why there is none."""
    if name == "size":
        return measured.size_bytes, ""
    if name == "download":
        return measured.download_bytes, ""
    if name == "sram":
        return measured.sram_bytes, _NO_NPU if measured.sram_bytes is None else "by vela, and what the runtime plans"
    if name == "cycles":
        return measured.cycles, _NO_NPU if measured.cycles is None else "vela's estimate, without the CPU's share"
    if name == "accuracy_drop":
        # the drop that counts; the converted graph's can only fail an artifact that was not run
        only = measured.verified.graph_only
        if only is None:
            return _drop_of(measured.verified.fidelity, measured, limit)
        value, note = _drop_of(only.fidelity, measured, limit)
        if value is None:
            return None, f"{only.why}; {note}"
        if value <= limit:
            return None, f"{only.why}; the converted graph is within the limit: {format_quantity(value, 'pp')}, {note}"
        return value, f"of the converted graph, {note}"
    if name in ("drift", "perplexity"):
        return growth_of(measured.verified.drift, limit) if name == "drift" else _rise_of(measured)
    if name in ("sqnr", "agreement"):
        return _likeness(name, measured)
    if LIMITS[name].measured_by == "release":
        return None, "`edgeq ota release` measures this against the shipped model"
    return _timed(name, measured)


def _drop_of(fidelity: Fidelity | None, measured: Measured, limit: float) -> tuple[float | None, str]:
    """Return the drop on all evaluation data, or on a device's kernels where those score otherwise and worse."""
    if fidelity is None or fidelity.drop_pp is None:
        return None, "no score against fp32: give labelled --eval-data, or a --metric"
    why = why_worthless(fidelity)
    if why:
        return None, why
    runs = measured.verified.emulation.runs if measured.verified.emulation else ()
    other = [
        (run.drop_pp, f"; on {run.name}, {counted(run.scored, 'sample')}")
        for run in runs
        if run.rescored and run.drop_pp
    ]
    by_point = measured.limit_on == "point"
    unproven = "" if by_point else unproven_drop(fidelity, limit)
    if unproven:
        return None, unproven
    drop, where = max([(fidelity.drop_pp, ""), *other], key=lambda item: _judged(item[0], by_point))
    if by_point:
        return drop.estimate, f"the estimate; the 95% interval is {drop.low:.2f} to {drop.high:.2f} pp{where}"
    count = fidelity.samples if fidelity.distinct is None else fidelity.distinct
    repeats = f" over {counted(count, 'distinct sample')} of {fidelity.samples}" if count < fidelity.samples else ""
    needed = f"; {needed_for_drop(fidelity, limit)}" if drop.estimate <= limit < drop.high else ""
    if not needed and drop.high > limit and fidelity.lost is not None and (why := beyond_proof(count, limit)):
        needed = f"; {why}"
    return (
        drop.high,
        f"upper end of the 95% interval{repeats}; the estimate is {drop.estimate:.2f} pp{where}{needed}",
    )


def _rise_of(measured: Measured) -> tuple[float | None, str]:
    """Return the rise of a language model's perplexity in percent."""
    fidelity = measured.verified.fidelity
    if fidelity is None or fidelity.perplexity is None:
        return None, "only a language model has one: give --context-length N, and a text as --eval-data"
    found = fidelity.perplexity
    over = f"from {found.fp32:.4g} to {found.artifact:.4g} over {counted(fidelity.samples, 'window')} of the text"
    if measured.limit_on == "point":
        interval = f"{found.rise_pct.low:.2f} to {found.rise_pct.high:.2f}%"
        return found.rise_pct.estimate, f"the estimate, {over}; the 95% interval is {interval}"
    if not math.isfinite(found.rise_pct.high):
        return None, f"a single window proves nothing ({over}): give a longer text"
    return found.rise_pct.high, f"upper end of the 95% interval; the estimate is {found.rise_pct.estimate:.2f}%, {over}"


def _likeness(name: LimitName, measured: Measured) -> tuple[float | None, str]:
    """Return the SQNR in dB or the top-1 agreement in percent, on evaluation data; random inputs prove nothing.

    A device's kernels count where they differ from the host's, and do worse.
    """
    fidelity = measured.verified.fidelity
    if fidelity is None or fidelity.inputs != "evaluation":
        return None, "random inputs prove nothing about accuracy: give --eval-data, with or without labels"
    part, value = _worst(name, fidelity)
    why = "no fp32 output ranks classes" if name == "agreement" else "there is no fp32 to compare with"
    if value is None:
        return None, why
    runs = measured.verified.emulation.runs if measured.verified.emulation else ()
    other = [
        (found, f"on {run.name}, {counted(run.samples, 'sample')}")
        for run in runs
        if (found := _of_run(name, run, value)) is not None
    ]
    over = f"{part} over {counted(fidelity.samples, 'sample')}"
    return min([(value, over), *other], key=lambda one: _worst_first(one[0]))


def _worst(name: LimitName, fidelity: Fidelity) -> tuple[str, float | None]:
    """Return the output, or the channels of it, that do worst, and its SQNR in dB or top-1 agreement in percent."""
    if name == "sqnr":
        return worst_part(fidelity) if fidelity.sqnr_db is not None else ("", None)
    shares = [(100 * one.agreeing / one.ranked, f"output {one.output}") for one in fidelity.agreements if one.ranked]
    if shares:
        least, part = min(shares)
        return part, least
    return "output 0", None if fidelity.top1_agreement is None else 100 * fidelity.top1_agreement


def _of_run(name: LimitName, run: DeviceRun, host: float) -> float | None:
    """Return a device's own SQNR or agreement; None where what sets it apart from the host is too little to matter."""
    if run.fp32 is None:
        return None
    if name == "agreement":
        return run.fp32.top1_percent if run.host.top1_flips else None
    # noise that far below fp32's own changes its power by a few percent, less than other samples do
    return run.fp32.sqnr_db if not run.host.sqnr_db > host + _APART_DB else None


def _worst_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _judged(drop: Interval, by_point: bool) -> float:
    return drop.estimate if by_point else drop.high


def _timed(name: LimitName, measured: Measured) -> tuple[float | None, str]:
    verified = measured.verified
    prediction = _prediction(measured)
    if name == "latency" and prediction is not None:
        beyond = (
            ", extrapolated beyond the range that the latency model was fitted on" if prediction.extrapolated else ""
        )
        estimate = (
            f"the estimate is {prediction.estimate_ms:.3g} ms ({prediction.low_ms:.3g} to {prediction.high_ms:.3g})"
        )
        threads = counted(prediction.threads, "thread")
        return prediction.high_ms, f"predicted for {prediction.device} on {threads}, not measured; {estimate}{beyond}"
    if verified.device is not None:
        return _on_device(name, verified.device, measured)
    timing = verified.timing
    host = timing.arch if name == "latency" and timing else measured.host_arch
    by = (timing.gpu or counted(timing.threads, "thread")) if timing else ""
    values: dict[LimitName, tuple[float | None, str]] = {
        "latency": (timing.p90_ms, f"p90 of {counted(timing.runs, 'run')}, {by}") if timing else (None, ""),
        "peak_memory": (verified.peak_memory_bytes, f"on {verified.host}"),
        "load": (verified.load_ms, f"on {verified.host}"),
    }
    value, note = values[name]
    if value is None:
        only = verified.graph_only
        return None, verified.stand_in or (only.why if only else "the run on the host did not measure it")
    what = "memory" if name == "peak_memory" else "a time"
    if timing is not None and not counts_on(measured.times_on, timing.cpu):
        # no name of this machine: a bundle's digest covers the words
        named = measured.times_on and f"another kind of machine than {measured.times_on} (--latency-cpu)"
        return (
            None,
            f"{what} measured on {named or 'one of several machines: name the one that counts with --latency-cpu'}",
        )
    if _arch(host) != _arch(measured.target_arch):
        return None, f"{what} measured on {_arch(host)} is not valid for {_arch(measured.target_arch)}"
    if measured.target_platform in _PHONES:  # an arm64 server, or a laptop, is ten times a phone
        return None, f"{what} measured on this host is not valid for a phone"
    return value, note


def _on_device(name: LimitName, device: DeviceMeasures, measured: Measured) -> tuple[float | None, str]:
    """Return what a real device took; another kind of device than the target's does not settle a limit."""
    if device.is_virtual:
        return None, f"{device.device} is an emulated device; its figures are not valid for a real one"
    if not _fits(device, measured):
        actual, expected = (f"{device.platform} {device.arch}", f"{measured.target_platform} {measured.target_arch}")
        return None, f"measured on {device.device}, which is {actual}; the target is {expected}"
    if name == "latency" and device.threads != measured.threads:
        return (
            None,
            f"{device.device} was timed with {counted(device.threads, 'thread')}, but the app uses {measured.threads}",
        )
    if name == "latency" and device.runs < _LEAST_RUNS:
        return None, (
            f"{device.device} was timed {counted(device.runs, 'time')}, but a p90 needs at least {_LEAST_RUNS} runs"
        )
    where = f"on {device.device}, {device.runtime}"
    values: dict[LimitName, tuple[float | None, str]] = {
        "latency": (
            device.p90_ms,
            f"p90 of {counted(device.runs, 'run')}, {counted(device.threads, 'thread')}, {where}",
        ),
        "peak_memory": (device.peak_memory_bytes, where),
        "load": (device.load_ms, where),
    }
    value, note = values[name]
    return (value, note) if value is not None else (None, f"the run {where} did not measure it")


def _fits(device: DeviceMeasures, measured: Measured) -> bool:
    kind = (device.platform, _arch(device.arch))
    return not device.is_virtual and kind == (measured.target_platform, _arch(measured.target_arch))


def _prediction(measured: Measured) -> LatencyPrediction | None:
    """Return the prediction that counts: none where the device itself was measured."""
    device, cost = measured.verified.device, measured.verified.cost
    return None if cost is None or (device is not None and _fits(device, measured)) else cost.prediction


def _arch(name: str) -> str:
    return _ARCH.get(name.lower(), name.lower())


# --- What an accuracy drop is worth: against an fp32 model that is no better than chance it is zero, whatever
# ships.


MAX_TIED = 0.05  # share of the samples; of int8 scores a few are equal

_MOST_LOST = 4  # channels that a warning names

FAR_SQNR_DB = 10.0  # the difference is a third of the signal

# a half float has 11 bits, 66 dB: what is far below has overflowed, or lost what it subtracts
FAR_SQNR_DB_HALF = 30.0

_Z95 = 1.645  # the normal distribution's one-sided 95% point


def why_worthless(fidelity: Fidelity) -> str:
    """Return why the measured drop proves nothing; "" where it does.

    Weights that a factory did not load, another preprocessing or another order of the classes than in training leave
    fp32 at chance, and a drop against that is near zero. So is the drop of a user's metric that does not depend on the
    labels. Scores outside 0 to 1 have no percentage points.
    """
    fp32, score, chance = fidelity.fp32_score, fidelity.score, fidelity.chance_score
    if fp32 is None or score is None:
        return ""
    if not score_is_share(fidelity):
        return (
            f"percentage points need a score from 0 to 1, but {fidelity.metric} gave {fp32:.4g} for fp32 and "
            f"{score:.4g}: scale it"
        )
    mismatched = fidelity.mismatch_drop_pp
    if mismatched is not None and mismatched.high < 0:
        return (
            f"{fidelity.metric} scores fp32 higher with the labels of other samples, or noise, than with the "
            f"right ones, by {-mismatched.estimate:.2f} pp: a higher score must be better, so return 1 - x for a "
            "loss or an error x"
        )
    if mismatched is not None and not mismatched.low > 0:
        return (
            f"{fidelity.metric} scores fp32 no better with the right labels than with those of other samples, or "
            f"noise ({mismatched.estimate:.2f} pp, {mismatched.low:.2f} to {mismatched.high:.2f}): check that it "
            "uses the label, that there are enough samples, and that weights and preprocessing are right"
        )
    if chance is None:
        return ""
    distinct = fidelity.samples if fidelity.distinct is None else fidelity.distinct
    margin = _Z95 * math.sqrt(chance * (1 - chance) / distinct)
    if fp32 > chance + margin:
        return ""
    return (
        f"fp32 itself scores {fp32:.1%} over {counted(fidelity.samples, 'sample')}, no better than always "
        f"predicting the most common label ({chance:.1%}): check weights, preprocessing and class order"
    )


def accuracy_warnings(scheme: str, verified: VerifyReport, options: GateOptions) -> tuple[str, ...]:
    """Return warnings about the outputs, and about the score where no limit on the drop was given."""
    if verified.graph_only is not None:
        return _far_warnings(scheme, verified.graph_only.fidelity, "the converted graph's outputs")
    fidelity = verified.fidelity
    if fidelity is None:
        return ()
    said = []
    is_judged = any(name in ("accuracy_drop", "perplexity") for name, _ in options.limits)
    comparable = fidelity.chance_score is not None or fidelity.mismatch_drop_pp is not None
    if not is_judged and comparable and (why := why_worthless(fidelity)):
        said.append(why)
    if fidelity.tied is not None and fidelity.tied > MAX_TIED:
        said.append(
            f"in {fidelity.tied:.1%} of the samples two classes tie for the top score, unlike in fp32: top-1 then "
            "depends on the order of the classes"
        )
    said += _far_warnings(scheme, fidelity, "the outputs")
    lost = [group.name for group in fidelity.groups if group.constant and group.unlike]
    if lost and not proves_changes(fidelity) and dict(options.limits).get("sqnr") != 0:
        inputs = counted(fidelity.samples, "random input" if fidelity.inputs == "random" else "sample")
        said.append(
            f"{', '.join(lost[:_MOST_LOST])}: the same for every input over {inputs}, unlike in fp32; give --eval-data "
            "with 8 or more distinct samples to see whether the score suffers"
        )
    if is_judged:
        return tuple(said)
    if scheme == "pretrained":
        said.append("the model was already quantized: there is no fp32 model to compare its outputs with")
    elif scheme != "fp32":
        how = "" if fidelity.score is not None else "labelled --eval-data and "
        limit = "perplexity=2%, or the rise" if fidelity.perplexity else "accuracy_drop=1pp, or the drop"
        said.append(f"accuracy was not judged: add {how}--limit {limit} that you can accept")
    return tuple(said)


def _far_warnings(scheme: str, fidelity: Fidelity, what: str) -> tuple[str, ...]:
    """Say that outputs are farther from fp32's than their scheme explains, whatever the limits."""
    least = FAR_SQNR_DB_HALF if scheme in ("fp16", "storage-fp16") else FAR_SQNR_DB
    if fidelity.sqnr_db is None or not fidelity.sqnr_db < least:
        return ()
    inputs = "evaluation samples" if fidelity.inputs == "evaluation" else "random inputs"
    return (f"{what} are far from fp32's: {fidelity.sqnr_db:.1f} dB over {fidelity.samples} {inputs}",)


# --- The gate on instructions: an update must not cost a phone much more than the model that is shipped.


INSTRUCTIONS_GATE = "instructions"

# a tenth: kernels for other shapes cost some percent more or less, a lost delegate or a float layer far more
MOST_RATIO = 1.1


def instruction_gates(shipped: Path | None, verified: VerifyReport) -> tuple[Gate, ...]:
    """Compare the instructions of one inference with those of the shipped model, for each CPU core (exit code 6).

    Args:
        shipped: the bundle of --shipped; None for no gate.
        verified: holds the counts of both, where they could be measured.
    """
    if shipped is None:
        return ()
    limit = f"<= {MOST_RATIO} x the shipped model's"
    cost = verified.cost
    pairs = [] if cost is None else _pairs(cost.counts, cost.shipped)
    if not pairs:
        return (unverified(INSTRUCTIONS_GATE, limit, "instructions are counted for ARM64 targets, under QEMU"),)
    ratios = [(now.total.instructions / then.total.instructions, now, then) for now, then in pairs]
    worst, now, _ = max(ratios, key=lambda found: found[0])
    counts = (f"{one.cpu}: {one.total.instructions:,} against {other.total.instructions:,}" for _, one, other in ratios)
    return (
        Gate(
            name=INSTRUCTIONS_GATE,
            outcome="ok" if worst <= MOST_RATIO else "failed",
            limit=limit,
            measured=f"{worst:.3f} x on {now.cpu}",
            detail="; ".join(counts),
            exit_code=ExitCode.LATENCY,
        ),
    )


def _pairs(counts: tuple[CountReport, ...], shipped: tuple[CountReport, ...]) -> list[tuple[CountReport, CountReport]]:
    known = {one.cpu: one for one in shipped if one.total.instructions}
    return [(one, known[one.cpu]) for one in counts if one.cpu in known]
