"""Where an artifact ran, side by side: this host, and each CPU model that was emulated."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.artifacts import DeviceRun, Row
from edgeq.report import words
from edgeq.units import format_bytes, format_quantity

_SELF = "-"  # a place against itself
_NO_TIME = "emulated: no time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What was measured in one place; all places of a row name the same facts in the same order."""

    name: str
    facts: tuple[tuple[str, str], ...]


def places(row: Row) -> tuple[Place, ...]:
    """Return this host first, then the emulated devices."""
    emulation = row.verified.emulation
    return (_host(row), *(_device(run) for run in (emulation.runs if emulation else ())))


def why_host_only(row: Row) -> str:
    """Return why a target with a device was not, or not fully, run on its kernels; "" otherwise."""
    emulation = row.verified.emulation
    return emulation.problem if emulation else row.verified.not_emulated


def _host(row: Row) -> Place:
    verified = row.verified
    timing, parity, fidelity = verified.timing, verified.parity, verified.fidelity
    load_ms, peak_bytes = verified.load_ms, verified.peak_memory_bytes
    facts = (
        ("samples", str(fidelity.samples) if fidelity else words.MISSING),
        ("score", _score(fidelity.score if fidelity else None)),
        ("SQNR against fp32", _decibel(fidelity.sqnr_db if fidelity else None)),
        ("SQNR against its graph", _decibel(parity.sqnr_db if parity else None)),
        ("SQNR against the host", _SELF),
        ("classes unlike the host's", _SELF),
        ("latency p50", format_quantity(timing.p50_ms, "ms") if timing else words.MISSING),
        ("latency p90", format_quantity(timing.p90_ms, "ms") if timing else words.MISSING),
        ("load", words.MISSING if load_ms is None else format_quantity(load_ms, "ms")),
        ("peak memory", words.MISSING if peak_bytes is None else format_bytes(peak_bytes)),
    )
    return Place(name=verified.host, facts=facts)


def _device(run: DeviceRun) -> Place:
    flips = run.host.top1_flips
    facts = (
        ("samples", str(run.samples)),
        ("score", _score(run.score)),
        ("SQNR against fp32", _decibel(run.fp32.sqnr_db if run.fp32 else None)),
        ("SQNR against its graph", words.MISSING),
        ("SQNR against the host", _decibel(run.host.sqnr_db)),
        ("classes unlike the host's", words.MISSING if flips is None else f"{flips} of {run.host.samples}"),
        ("latency p50", _NO_TIME),
        ("latency p90", _NO_TIME),
        ("load", _NO_TIME),
        ("peak memory", words.MISSING),
    )
    return Place(name=run.name, facts=facts)


def _decibel(value_db: float | None) -> str:
    return words.MISSING if value_db is None else words.decibel(value_db)


def _score(value: float | None) -> str:
    return words.MISSING if value is None else f"{value:.4g}"
