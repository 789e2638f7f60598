"""A model under several schemes in words: what --scheme auto tried, and what --compare found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeq.report import words
from edgeq.units import format_bytes, format_quantity

if TYPE_CHECKING:
    from edgeq.artifacts import Choice, Comparison, Interval, Variant


def choice(found: Choice) -> str:
    """Return what --scheme auto went by, and what came of it."""
    made_of = f"matrix products do {words.share(found.linear_macs)} of the model's multiply-accumulates"
    chosen = found.tried[found.chosen]
    if chosen.passed:
        return f"{made_of}; {chosen.scheme} is the first that passed every gate"
    left = f"; not tried, since it would fail alike: {', '.join(found.untried)}" if found.untried else ""
    return f"{made_of}; none passed every gate, {chosen.scheme} is the nearest{left}"


def choice_lines(found: Choice) -> list[str]:
    """Return a line for each scheme that was tried: its figures, and why it was refused."""
    return [f"{one.scheme}: {_figures(one)}{verdict_of(one)}" for one in found.tried]


def verdict_of(one: Variant) -> str:
    """Return `passed`, or why a scheme was refused."""
    return "passed" if one.passed else f"refused: {reasons(one)}"


def reasons(one: Variant) -> str:
    """Return why there is no artifact, or what each failed gate says; "" where there is nothing to say."""
    return one.error or "; ".join(words.gate_facts(gate) for gate in one.failed)


def compared(found: Comparison) -> list[str]:
    """Return the figures side by side, and in words what the scheme brings against fp32."""
    own, *others = found.variants
    lines = ["; ".join(f"{one.scheme} {_figures(one) or reasons(one)}".rstrip(", ") for one in found.variants)]
    fp32 = next((one for one in others if one.scheme == "fp32" and not one.error), None)
    return [*lines, _worth(own, fp32, found.arch)] if fp32 is not None else lines


def _worth(own: Variant, fp32: Variant, arch: str) -> str:
    told = [] if own.speedup is None else [f"is {speedup(own.speedup, f'than fp32 on this {arch} host')}"]
    if own.size_bytes and fp32.size_bytes:
        ratio = fp32.size_bytes / own.size_bytes
        told.append(f"is {ratio:.2f} times smaller" if ratio >= 1 else f"is {1 / ratio:.2f} times larger")
    slower = own.speedup is not None and round(own.speedup.high, 2) < 1
    so = ": its gain is in size alone" if slower and "smaller" in told[-1] else ""
    return f"{own.scheme} {' and '.join(told)}{so}" if told else f"{own.scheme}: nothing to compare was measured"


def speedup(found: Interval, than: str) -> str:
    """Return how many times faster or slower something is, or that its interval, as it is shown, allows for both.

    Args:
        found: times faster.
        than: what it is compared with, and where: "than fp32 on this x86_64 host".
    """
    spread = f"95% interval {found.low:.2f} to {found.high:.2f}"
    if round(found.low, 2) > 1:
        return f"{found.estimate:.2f} times faster {than} ({spread})"
    if round(found.high, 2) < 1:
        return (
            f"{1 / found.estimate:.2f} times slower {than} (95% interval {1 / found.high:.2f} to {1 / found.low:.2f})"
        )
    return f"not surely faster or slower {than} ({found.estimate:.2f} times as fast, {spread})"


def _figures(one: Variant) -> str:
    known = [size(one), accuracy(one), latency(one)]
    return "".join(f"{text}, " for text in known if text != words.MISSING)


def size(one: Variant) -> str:
    """Return its artifact's size."""
    return words.MISSING if one.size_bytes is None else format_bytes(one.size_bytes)


def accuracy(one: Variant) -> str:
    """Return its score, or its SQNR where there are no labels."""
    if one.score is not None:
        drop = "" if one.drop_pp is None else f" (drop {one.drop_pp.estimate:.2f} pp)"
        return f"{words.share(one.score) if one.score <= 1 else format(one.score, '.4g')}{drop}"
    return words.MISSING if one.sqnr_db is None else f"SQNR {words.decibel(one.sqnr_db)}"


def latency(one: Variant) -> str:
    """Return its median latency, and the 90th percentile."""
    if one.latency_ms is None or one.latency_p90_ms is None:
        return words.MISSING
    return f"{format_quantity(one.latency_ms, 'ms')} (p90 {format_quantity(one.latency_p90_ms, 'ms')})"
