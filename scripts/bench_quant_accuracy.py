"""Accuracy of int8 schemes on the digits, against fp32: `scripts/bench_quant_accuracy.py [--seeds 3] [--mixed]`.

--mixed measures mixed-int8 instead of qat-int8, with a limit of 0.2 points on 1,198 search images: the training
images, shifted, rotated and with noise by a seed of their own. Sizes are of the lowered artifacts.
`hard_digits.py` describes the cases.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
import warnings
from typing import Any

import torch
from hard_digits import (
    CASES,
    Case,
    accuracy,
    augmented,
    dataset_of,
    graph_of,
    moved,
    net,
    predict_of,
    predictor,
    size_bytes,
    spec_of,
    tensors,
)

from edgeq.core.config import QatConfig
from edgeq.core.results.model import QuantizedModel, Scores
from edgeq.demo import digits
from edgeq.quantize import quantize
from edgeq.quantize.spec import SearchSpec

# at most these points under fp32; where static loses LOSES or more, QAT wins half of it back
MOST = {"static-int8": 0.5, "qat-int8": 0.3}
LOSES = 2.0
HALF = 0.5
# mixed-int8 keeps a drop within this many times the size of static-int8
MIXED_DROP, MIXED_TIMES = 0.2, 1.15
SEARCH_SEED = 2


def main() -> None:
    """Measure every case for every seed and print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", default="", help="names or backends, separated by commas; all if not given")
    parser.add_argument("--mixed", action="store_true", help="mixed-int8 in place of qat-int8")
    options = parser.parse_args()
    wanted = options.cases.split(",")
    images, labels = augmented()
    if options.mixed:
        raise SystemExit(_report_mixed(images, labels, options.seeds, options.cases))
    print(f"{len(images)} test images, {options.seeds} seeds, qat-int8 by its defaults: {QatConfig()}", flush=True)
    print(f"{'case':22}{'fp32':>8}{'static':>9}{'qat':>9}{'drop':>8}{'qat drop':>10}{'won back':>10}   each drop")
    missed = 0
    for case in CASES:
        if options.cases and not {case.name, case.backend} & set(wanted):
            continue
        missed += not _report(case, images, labels, options.seeds)
    raise SystemExit(f"{missed} figures missed" if missed else 0)


def _report(case: Case, images: torch.Tensor, labels: torch.Tensor, seeds: int) -> bool:
    start = time.perf_counter()
    model = net(case)
    fp32 = accuracy(model, images, labels)
    drops: dict[str, list[float]] = {"static-int8": [], "qat-int8": []}
    for seed in range(seeds):
        for scheme, values in drops.items():
            values.append(fp32 - accuracy(predictor(case, model, scheme, seed), images, labels))
    static, qat = (statistics.mean(drops[scheme]) for scheme in drops)
    back = (static - qat) / static if static >= LOSES else None
    reached = back >= HALF if back is not None else static <= MOST["static-int8"] and qat <= MOST["qat-int8"]
    each = "; ".join(", ".join(f"{value:+.2f}" for value in values) for values in drops.values())
    won = "" if back is None else f"{back:.0%}"
    print(
        f"{case.name + ' ' + case.backend:22}{fp32:8.2f}{fp32 - static:9.2f}{fp32 - qat:9.2f}{static:8.2f}{qat:10.2f}"
        f"{won:>10}   {each}  {'reached' if reached else 'MISSED'} ({time.perf_counter() - start:.0f} s)",
        flush=True,
    )
    return reached


def _report_mixed(images: torch.Tensor, labels: torch.Tensor, seeds: int, cases: str) -> int:
    print(
        f"{'case':22}{'fp32':>8}{'static':>9}{'mixed':>9}{'drop':>8}{'size':>8}   layers in float, by seed", flush=True
    )
    missed = 0
    for case in CASES:
        if cases and not {case.name, case.backend} & set(cases.split(",")):
            continue
        model = net(case)
        fp32 = accuracy(model, images, labels)
        rows = [_mixed(case, model, seed) for seed in range(seeds)]
        static, mixed = (
            statistics.mean(accuracy(predict_of(case, row[i]), images, labels) for row in rows) for i in (0, 1)
        )
        times = statistics.mean(size_bytes(case, row[1]) / size_bytes(case, row[0]) for row in rows)
        reached = fp32 - mixed <= MIXED_DROP and times <= MIXED_TIMES
        missed += not reached
        kept = "; ".join(_found(row[1]) for row in rows)
        print(
            f"{case.name + ' ' + case.backend:22}{fp32:8.2f}{static:9.2f}{mixed:9.2f}{fp32 - mixed:8.2f}{times:7.2f}x"
            f"   {kept}  {'reached' if reached else 'MISSED'}",
            flush=True,
        )
    return missed


def _found(mixed: QuantizedModel) -> str:
    """Return the layers in float, and what was changed for all layers."""
    found = mixed.search.found
    return ", ".join([*(found.kept or ("none",)), *(f"({name})" for name in found.remedies)])


def _mixed(case: Case, model: Any, seed: int) -> tuple[QuantizedModel, QuantizedModel]:
    """Return static-int8 and mixed-int8 of a seed's calibration samples."""
    spec = spec_of(case, model, seed)
    images, labels = tensors(digits.calibration_data())
    shifted = moved(images, torch.Generator().manual_seed(SEARCH_SEED))
    exact = accuracy(model, shifted, labels)

    def score(graph: Any) -> Scores:
        predict = graph_of(graph, case)
        before, after = model(shifted), torch.cat([predict(part) for part in shifted.split(1)])
        noise = float((before - after).square().sum())
        sqnr_db = 10 * math.log10(float(before.square().sum()) / noise) if noise else math.inf
        agreement = float((before.argmax(1) == after.argmax(1)).float().mean())
        drop = exact - 100 * float((after.argmax(1) == labels).float().mean())
        return Scores(sqnr_db=sqnr_db, agreement=agreement, drop_pp=drop)

    search = SearchSpec(
        samples=dataset_of(shifted, range(len(shifted))),
        score=score,
        limits=(("accuracy_drop", MIXED_DROP),),
        size_limit=None,
        state_folder=None,
        identity=(),
    )
    with torch.no_grad():
        mixed = quantize(case.runtime, "mixed-int8", dataclasses.replace(spec, search=search))
    return quantize(case.runtime, "static-int8", spec), mixed


if __name__ == "__main__":
    main()
