"""Predicted beside published latencies, for every row of scripts/latency_rows.json.

Each device is predicted by a fit on the others. Counts are those of the same models, lowered by edgeq, on the device's
core; --recount makes the models and counts again, which takes five minutes of processor time, or with --only less.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.devices import PUBLISHED_FIT, Observation, Speed, fit, groups, leave_one_out, load_device
from edgeq.core.results.measured import Counts

ROWS = Path(__file__).with_name("latency_rows.json")
LEFT_OUT = ("pixel", "pixel-2", "pixel-3a")
MOST_MEDIAN, MOST_ERROR, LEAST_WITHIN = 0.20, 0.35, 0.90
Features = Callable[[Observation], tuple[float, ...]]


def main() -> None:
    """Print the rows, the summary, other forms of the model, and int8 against fp32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recount", metavar="FOLDER", type=Path, help="count again; models are kept in this folder")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="which counts: mobilenet_v2-*@cortex-a72")
    options = parser.parse_args()
    data = json.loads(ROWS.read_text())
    if options.recount:
        _recount(data, options.recount, options.only)
    observed = [_observation(row, data["counts"]) for row in data["rows"]]
    predicted = leave_one_out(observed)
    _table(data["rows"], predicted)
    _summary(data["rows"], predicted)
    _forms(data["rows"], observed)
    _ratios(data)
    fitted = fit(observed)
    print(f"\nfitted on all rows: {fitted}")
    if any(
        abs(a / b - 1) > 1e-3
        for a, b in zip(dataclasses.astuple(fitted), dataclasses.astuple(PUBLISHED_FIT), strict=True)
    ):
        sys.exit(f"edgeq.core.devices has {PUBLISHED_FIT}: write the new constants there")


def _observation(row: dict[str, Any], counts: dict[str, Any]) -> Observation:
    device = load_device(row["device"])
    return Observation(
        group=row["group"],
        speed=Speed(width=device.width, clock_ghz=device.clock_ghz),
        threads=row["threads"],
        counts=Counts(**counts[f"{row['model']}-{row['scheme']}@{device.core}"]),
        latency_ms=row["latency_ms"],
    )


def _table(rows: Sequence[dict[str, Any]], predicted: Sequence[float]) -> None:
    print(f"{'device':<18} {'model':<19} {'scheme':<12} threads  published  predicted   error")
    for row, value in zip(rows, predicted, strict=True):
        error = value / row["latency_ms"] - 1
        words = f"{row['device']:<18} {row['model']:<19} {row['scheme']:<12}"
        print(f"{words} {row['threads']:7}  {row['latency_ms']:6.1f} ms  {value:6.1f} ms  {error:+6.0%}")


def _summary(rows: Sequence[dict[str, Any]], predicted: Sequence[float]) -> None:
    def told(label: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        errors = [abs(v / row["latency_ms"] - 1) for row, v in zip(rows, predicted, strict=True) if keep(row)]
        within = sum(error <= MOST_ERROR for error in errors) / len(errors)
        median = statistics.median(errors)
        reached = median <= MOST_MEDIAN and within >= LEAST_WITHIN
        print(
            f"{label:<34} {len(errors):3} rows, median error {median:5.1%} (at most {MOST_MEDIAN:.0%}), "
            f"{within:4.0%} within {MOST_ERROR:.0%} (at least {LEAST_WITHIN:.0%}): {'reached' if reached else 'MISSED'}"
        )

    print("\neach device predicted by a fit on the others")
    told("Pixel, Pixel 2, Pixel 3a, fp32", lambda row: row["device"] in LEFT_OUT)
    told("all fp32", lambda row: row["scheme"] == "fp32")
    told("all int8", lambda row: row["scheme"] == "static-int8")
    told("all", lambda _: True)


def _forms(rows: Sequence[dict[str, Any]], observed: Sequence[Observation]) -> None:
    """Compare other forms of the model, each fitted and left out in the same way."""
    print("\nforms of the model, left out in the same way: median error of the Pixels' fp32 rows, and of all rows")
    for name, features in _features(rows, observed).items():
        errors = _left_out_errors(observed, features)
        pixels = [e for e, row in zip(errors, rows, strict=True) if row["device"] in LEFT_OUT]
        within = sum(e <= MOST_ERROR for e in errors) / len(errors)
        told = (
            f"{statistics.median(pixels):6.1%} {statistics.median(errors):6.1%}, {within:4.0%} within {MOST_ERROR:.0%}"
        )
        print(f"  {name:<38} {told}")


def _features(rows: Sequence[dict[str, Any]], observed: Sequence[Observation]) -> dict[str, Features]:
    in_order = {"cortex-a53", "cortex-a55"}
    core = {id(one): load_device(row["device"]).core for row, one in zip(rows, observed, strict=True)}

    def cycles(one: Observation, count: float) -> float:
        return count / one.threads / (one.speed.clock_ghz * 1e6)

    def lines(one: Observation) -> float:
        return one.counts.lines_32k / (one.speed.clock_ghz * 1e6)

    return {
        "instructions / width + lines (used)": lambda o: (cycles(o, o.counts.instructions / o.speed.width), lines(o)),
        "instructions": lambda o: (cycles(o, o.counts.instructions),),
        "vector multiplies + lines": lambda o: (cycles(o, o.counts.macs_in_vectors), lines(o)),
        "multiplies + rest + lines": lambda o: (
            cycles(o, o.counts.macs_in_vectors),
            cycles(o, o.counts.instructions - o.counts.macs_in_vectors),
            lines(o),
        ),
        "instructions by kind of core + lines": lambda o: (
            cycles(o, o.counts.instructions * (core[id(o)] not in in_order)),
            cycles(o, o.counts.instructions * (core[id(o)] in in_order)),
            lines(o),
        ),
        "used + lines beyond 1 MiB": lambda o: (
            cycles(o, o.counts.instructions / o.speed.width),
            lines(o),
            o.counts.lines_1024k / 1e6,
        ),
        "instructions / width, no cache": lambda o: (cycles(o, o.counts.instructions / o.speed.width),),
    }


def _left_out_errors(observed: Sequence[Observation], features: Features) -> list[float]:
    import numpy as np

    x = np.array([features(one) for one in observed]) / np.array([[one.latency_ms] for one in observed])
    errors = np.zeros(len(observed))
    for group in groups(observed):
        out = np.array([one.group == group for one in observed])
        errors[out] = abs(x[out] @ _non_negative(x[~out]) - 1)
    return [float(error) for error in errors]


def _non_negative(x: Any) -> Any:
    """Return the non-negative weights whose sums are nearest to one, by trying every subset of the columns."""
    import numpy as np

    best, least = np.zeros(x.shape[1]), np.inf
    for size in range(1, x.shape[1] + 1):
        for chosen in map(list, itertools.combinations(range(x.shape[1]), size)):
            weights = np.linalg.lstsq(x[:, chosen], np.ones(len(x)), rcond=None)[0]
            error = ((x[:, chosen] @ weights - 1) ** 2).sum()
            if (weights >= 0).all() and error < least:
                best, least = np.zeros(x.shape[1]), error
                best[chosen] = weights
    return best


def _ratios(data: dict[str, Any]) -> None:
    """Print int8 against fp32: instructions, predicted at one width and clock of the core, published."""
    print("\nint8 against fp32, times faster                     instructions  predicted  published")
    devices = {"cortex-a53": "pixel-2-little", "cortex-a72": "raspberry-pi-4", "cortex-a76": "raspberry-pi-5"}
    published = {(r["device"], r["model"], r["scheme"]): r["latency_ms"] for r in data["rows"]}
    for (core, name), model in itertools.product(devices.items(), ("mobilenet_v1", "mobilenet_v2")):
        device = load_device(name)
        both = [Counts(**data["counts"][f"{model}-{scheme}@{core}"]) for scheme in ("fp32", "static-int8")]
        threads = 4 if name == "raspberry-pi-4" else 1
        one, other = (device.predict(counts, threads).estimate_ms for counts in both)
        rows = [published.get((name, model, scheme)) for scheme in ("fp32", "static-int8")]
        told = f"{rows[0] / rows[1]:.2f}" if rows[0] and rows[1] else "none"
        label = f"{core}, {threads} threads" if threads > 1 else core
        count = both[0].instructions / both[1].instructions
        print(f"  {label:<24} {model:<24} {count:12.2f} {one / other:10.2f} {told:>10}")


def _recount(data: dict[str, Any], folder: Path, pattern: str) -> None:
    """Count again what matches, say what changed and what it took, and write it down."""
    import numpy as np
    from mobilenets import MODELS, build

    from edgeq.report.progress import Quiet
    from edgeq.verify.emulate.counting import count
    from edgeq.verify.emulate.install import ensure_installed, find_wheels

    folder.mkdir(parents=True, exist_ok=True)
    (wheel,), _ = find_wheels("executorch", ("1.5",))
    runtime = ensure_installed(wheel, Quiet())
    image = (np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype("float32"),)
    cores = sorted({key.partition("@")[2] for key in data["counts"]})
    for (name, scheme), core in itertools.product(MODELS, cores):
        key = f"{name}-{scheme}@{core}"
        if not fnmatch.fnmatch(key, pattern):
            continue
        path = folder / f"{name}-{scheme}.pte"
        path = path if path.exists() else build(name, scheme, folder)
        start = time.perf_counter()
        counted = dataclasses.asdict(count(runtime, core, path, image, timeout_s=3000).total)
        took_s = time.perf_counter() - start
        was = data["counts"].get(key, {})
        changed = {what: f"{was.get(what)} -> {now}" for what, now in counted.items() if was.get(what) != now}
        print(f"{key}: {took_s:.0f} s, {changed or 'all counts as before'}", flush=True)
        data["counts"][key] = counted
    ROWS.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
