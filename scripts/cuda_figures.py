"""How `scripts/bench cuda` tells its figures, and what it holds them to."""

from __future__ import annotations

from typing import Any

# the ways that the ratios are asked of: half in one graph, launched at once or compiled
FASTEST = ("edgeq half, CUDA graph", "edgeq AOTInductor half", "edgeq AOTInductor half, CUDA graph")
LEAST_RATIO = {1: 3.0, 32: 2.0}  # times fp32 eager, by batch
LEAST_AGREEMENT, MOST_SIZE_RATIO = 0.999, 0.51
HEAD = f"{'model':<13} {'batch':>5}  {'way':<38} {'p50':>9} {'p90':>9}    {'throughput':>10}    peak memory"


def verdicts(found: dict[str, Any]) -> list[str]:
    """Hold the figures to what is to be reached."""
    return [*_ratios(found), *_agreements(found), *_sizes(found), *(_stress(item) for item in found["stress"])]


def _ratios(found: dict[str, Any]) -> list[str]:
    lines = []
    p50 = {(row["model"], row["batch"], row["way"]): row["p50_ms"] for row in found["rows"] if "p50_ms" in row}
    for model in found["models"]:
        for batch, least in LEAST_RATIO.items():
            base = p50.get((model, batch, "fp32 eager"))
            ours = {way: p50[model, batch, way] for way in FASTEST if (model, batch, way) in p50}
            if base is None or not ours:
                lines.append(f"{model}, batch {batch}: not measured")
                continue
            way = min(ours, key=ours.__getitem__)
            lines.append(_told(f"{model}, batch {batch}: {way} / fp32 eager", base / ours[way], least, at_least=True))
    return lines


def _agreements(found: dict[str, Any]) -> list[str]:
    return [
        _told(
            f"{item['model']}: top-1 agreement, {item['inputs']} inputs",
            item["top1_agreement"],
            LEAST_AGREEMENT,
            at_least=True,
        )
        for item in found["agreement"]
    ]


def _sizes(found: dict[str, Any]) -> list[str]:
    return [
        _told(f"{item['model']}: fp16 / fp32 artifact", item["ratio"], MOST_SIZE_RATIO, at_least=False)
        for item in found["sizes"]
    ]


def _stress(item: dict[str, Any]) -> str:
    named = ", ".join(item["kept"][:4])
    kept = f"{len(item['kept'])} layers in float32: {named}" if item["kept"] else "all in half"
    state = "MISSED" if item["not_finite"] else "reached"
    naive = f"plain half: {item['naive_half_not_finite']} of 4 not finite"
    return f"{item['model']}: no NaN at {item['share']:.0%} of half's range: {state} ({kept}; {naive})"


def _told(what: str, value: float, limit: float, *, at_least: bool) -> str:
    reached = value >= limit if at_least else value <= limit
    bound = f"at {'least' if at_least else 'most'} {limit:g}"
    return f"{what}: {value:.4g} ({bound}): {'reached' if reached else 'MISSED'}"


def shown_row(row: dict[str, Any]) -> str:
    """Return a line of the table under `HEAD`."""
    head = f"{row['model']:<13} {row['batch']:>5}  {row['way']:<38}"
    if "error" in row:
        return f"{head} {row['error']}"
    memory = f"{row['peak_bytes'] / 2**20:8.1f} MiB" if row["peak_bytes"] is not None else "not measured"
    return f"{head} {row['p50_ms']:9.3f} {row['p90_ms']:9.3f} ms {row['images_per_s']:10.1f} /s {memory}"
