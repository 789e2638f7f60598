"""Package the zoo: many architectures on every kind of target, each verdict compared with what edgeq has no part in.

    scripts/zoo                                  all that has no result yet; after a kill the same command continues
    scripts/zoo timm.lcnet_050 'cases.*'         models by name
    scripts/zoo --again wrong,refused            those whose last verdict was one of these
    scripts/zoo --list                           the models

The scheme is the one that edgeq proposes. A row is `ok`, `failed` (a gate), `refused` (an error with a reason) or
`wrong`: an internal error, a crash, a bundle that is ok and whose artifact, run by its runtime alone on fresh samples,
loses the model or is far worse than what the runtime's documented recipe makes; or one that failed or was refused
although that recipe makes a fine artifact. Each model has a process of its own. Exit status 1 if a row is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo_table import ROWS, TARGETS, VERDICTS, Row, read_rows, text

from edgeq.pipeline.workers import EXPORT, TORCHVISION

ROOT = Path(__file__).resolve().parents[1]
_CALIBRATED, _JUDGED, _FRESH = 16, 16, 12
_ONNX = ("onnxscript", "torch.onnx._internal.exporter._torchlib.ops", "onnxruntime", "openvino", "sklearn.datasets")
_PACKAGES = {"smp": "segmentation-models-pytorch", "cases": "torch"}
# below the first nothing is left of a model; below the second the recipe is run beside an artifact that is ok, which is
# wrong where that recipe's artifact, of at most so many times its size, is so much better
_LOST_DB, _COMPARED_DB, _BETTER_DB, _AS_SMALL = 1.0, 9.0, 3.0, 1.4
# a recipe's artifact is fine from this SQNR on, and with this share of the float weights' bytes, beside what any has
_FINE_DB, _FINE_SHARE, _FINE_BYTES = 12.0, 0.7, 100_000


# --- In the child: one model


def run_model(name: str, targets: Sequence[str], results: Path) -> None:
    """Package a model for each target, one after the other, and append a row to the results after each."""
    import numpy as np
    import torch
    from zoo_models import zoo

    model = zoo()[name]
    library = _PACKAGES.get(model.library, model.library)
    row: Row = {
        "model": name,
        "target": "",
        "scheme": "",
        "verdict": "wrong",
        "reason": "",
        "db": None,
        "plain": None,
        "library": f"{library} {importlib.metadata.version(library)}",
        **_stamp(),
    }
    try:
        net = model.make()
        reference = getattr(net, "_orig_mod", net)  # what torch.compile wraps, which it would compile first
        data = {
            role: model.data(np.random.default_rng(seed), count)
            for role, seed, count in (("calibration", 1, _CALIBRATED), ("evaluation", 2, _JUDGED), ("fresh", 3, _FRESH))
        }
        samples = {role: _rows(arrays) for role, arrays in data.items()}
        from zoo_checks import tensors
        from zoo_models import call

        with torch.no_grad():
            expected = [tensors(call(reference, sample)) for sample in samples["fresh"]]
        spread = max(float(np.std([row[index] for row in expected], 0).max()) for index in range(len(expected[0])))
        if not np.isfinite(spread) or spread == 0:
            raise ValueError(f"the model's outputs have a spread of {spread} over the samples")
    except Exception as err:
        # the zoo's own fault: no row, so that the parent tells it
        traceback.print_exc()
        raise SystemExit(f"{name} cannot be run in PyTorch: {err}") from err
    bytes_fp32 = sum(one.numel() * one.element_size() for one in reference.parameters())
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        start = time.monotonic()
        found = _packaged(net, targets, data, samples, Path(folder))
        if len(targets) > 1 and all(one.get("ended_run") for one in found.values()):
            for target in targets:  # which of them ends a run, and what comes of the others
                found |= _packaged(net, [target], data, samples, Path(folder) / target)
        seconds = round((time.monotonic() - start) / len(targets), 1)
        for target in targets:
            mine = {**row, "target": target, "seconds": seconds, "fp32_bytes": bytes_fp32}
            mine |= _checked(found[target], target, samples, expected)
            if mine["verdict"] != "ok" or mine["db"] < _COMPARED_DB:
                append(results, {**mine, "plain": "not finished"})  # a recipe may crash
                mine = _judged(reference, mine, samples, expected, Path(folder))
            append(results, mine)


def _rows(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the samples one by one, as tensors with a batch axis."""
    import torch

    count = len(next(iter(arrays.values())))
    return [{name: torch.from_numpy(array[i : i + 1].copy()) for name, array in arrays.items()} for i in range(count)]


def _packaged(net: Any, targets: Sequence[str], data: Any, samples: Any, folder: Path) -> dict[str, Row]:
    """Return, by target, scheme and reason, and the result of what was made."""
    import edgeq

    example = samples["calibration"][0]
    forms = {role: next(iter(arrays.values())) if len(arrays) == 1 else arrays for role, arrays in data.items()}
    try:
        report = edgeq.package(
            net,
            name="zoo",
            targets=list(targets),
            example_inputs=tuple(example.values()) if len(example) == 1 else example,
            calibration=forms["calibration"],
            evaluation=forms["evaluation"],
            on="host",
            out=folder / "out",
            progress=False,
        )
    except edgeq.EdgeqError as err:
        row = {**_refused("", int(err.exit_code), f"{err.what}; fix: {err.fix}"), "ended_run": True}
        return dict.fromkeys(targets, row)
    except Exception as err:
        row = {"verdict": "wrong", "reason": f"internal error: {type(err).__name__}: {err}", "ended_run": True}
        return {key: {**row, "trace": traceback.format_exc()[-3000:]} for key in targets}
    refused = {
        one.target: _refused(one.scheme, int(one.error.exit_code), f"{one.error.what}; fix: {one.error.fix}")
        for one in report.refused
    }
    return refused | {one.target: {"verdict": "made", "result": one} for one in report.rows}


def _checked(found: Row, target: str, samples: Any, expected: Any) -> Row:
    """Return verdict, reason and figures of a target, with an artifact that is ok run apart from edgeq."""
    from zoo_checks import compared, loaded

    if found["verdict"] != "made":
        return found
    result = found["result"]
    timing, fidelity = result.verified.timing, result.verified.fidelity
    row: Row = {
        "scheme": result.scheme,
        "bytes": result.size_bytes,
        "edgeq_db": None if fidelity is None or fidelity.sqnr_db is None else round(fidelity.sqnr_db, 1),
        "edgeq_ms": None if timing is None else round(timing.p50_ms, 3),
    }
    if not result.ok:
        failed = [f"{gate.name}: {gate.measured} {gate.detail}" for gate in result.gates if not gate.passed]
        return {**row, "verdict": "failed", "reason": "; ".join(failed)}
    try:
        names = [one.name for one in result.bundle.manifest.inputs]
        ordered = [_ordered(sample, names) for sample in samples["fresh"]]
        figures = compared(loaded(result.artifact_path, target.rpartition("-")[2]), ordered, expected)
    except Exception as err:
        return {**row, "verdict": "wrong", "reason": f"ok, but its runtime alone fails: {type(err).__name__}: {err}"}
    if figures["db"] < _LOST_DB:
        return {**row, **figures, "verdict": "wrong", "reason": f"ok, but {figures['db']} dB on fresh samples"}
    return {**row, **figures, "verdict": "ok", "reason": ""}


def _refused(scheme: str, code: int, reason: str) -> Row:
    if code == 1:
        return {"scheme": scheme, "verdict": "wrong", "reason": f"internal error: {reason}"}
    return {"scheme": scheme, "verdict": "refused", "reason": f"({code}) {reason}"}


def _ordered(sample: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return a sample's tensors in the order of the artifact's inputs, without those that it does not have."""
    return {name: sample[name] for name in names} if set(names) <= set(sample) else sample


def _judged(net: Any, row: Row, samples: Any, expected: Any, folder: Path) -> Row:
    """Return a row with the figures of the documented recipes, as wrong where one shows that the runtime can do better.

    The kind of the row's scheme comes first; the other one is looked at where no artifact was made, and only if needed.
    """
    plain: Row = {}
    kinds = ("static", "dynamic") if row["scheme"] in ("", "static-int8") else ("dynamic", "static")
    for kind in kinds[:1] if row["verdict"] in ("ok", "wrong") else kinds:
        plain[kind] = _plain(net, row["target"], kind, samples, expected, folder)
        row = beside(row, kind, plain[kind])
        if row["verdict"] == "wrong":
            break
    return {**row, "plain": plain}


def _plain(net: Any, target: str, kind: str, samples: Any, expected: Any, folder: Path) -> Row | str:
    """Return the figures of the documented recipe in static or dynamic int8, or how it fails."""
    from zoo_checks import compared, loaded, recipe

    try:
        path = recipe(target, net, samples["calibration"], kind == "dynamic", folder / kind)
        size = sum(one.stat().st_size for one in (path, path.with_suffix(".bin")) if one.exists())
        figures = compared(loaded(path, target.rpartition("-")[2]), samples["fresh"], expected)
    except Exception as err:
        lines = [line for line in str(err).splitlines() if line.strip()]
        return f"{type(err).__name__}: {lines[0] if lines else ''}"[:200]
    return {**figures, "bytes": size}


def beside(row: Row, kind: str, plain: Row | str) -> Row:
    """Return a row, as wrong where a recipe's artifact is far better than it, or fine although the row is not ok."""
    if isinstance(plain, str):
        return row
    made = f"the documented recipe ({kind} int8) makes {plain['db']} dB, {plain['bytes']:,} bytes"
    if row["verdict"] == "ok":
        better = plain["db"] > max(row["db"] + _BETTER_DB, 2 * _BETTER_DB)
        if better and plain["bytes"] <= _AS_SMALL * row["bytes"]:
            return {**row, "verdict": "wrong", "reason": f"ok at {row['db']} dB, {row['bytes']:,} bytes; {made}"}
    elif row["verdict"] in ("failed", "refused"):
        small = plain["bytes"] <= _FINE_SHARE * row["fp32_bytes"] + _FINE_BYTES
        if small and plain["db"] >= _FINE_DB:
            return {**row, "verdict": "wrong", "reason": f"{row['verdict']} wrongly: {made}; edgeq: {row['reason']}"}
    return row


def append(results: Path, row: Row) -> None:
    """Append a row with one write, on a line of its own even after a line that a kill cut short."""
    with results.open("a+b") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        cut = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut + json.dumps(row).encode() + b"\n")


def _stamp() -> Row:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"date": f"{datetime.date.today()}", "edgeq": done.stdout.strip()}


# --- In the parent: all models, one after the other


def run_all(wanted: Sequence[tuple[str, list[str]]], results: Path, timeout_s: float, memory_bytes: float) -> None:
    """Run models, all targets of one together, and each alone where that ends its process; that then gets a row."""
    libraries = {name.partition(".")[0] for name, _ in wanted} & {"timm", "transformers"}
    for library in ("torch", TORCHVISION, *EXPORT, *_ONNX, *sorted(libraries)):  # once for all: it takes seconds
        importlib.import_module(library)
    for number, (name, targets) in enumerate(wanted, 1):
        groups = [list(targets)]
        while groups:
            group = groups.pop(0)
            before = len(_lines(results))
            ended = _child(name, group, results, timeout_s * len(group), memory_bytes)
            found = {
                row["target"]: row for line in _lines(results)[before:] if (row := json.loads(line))["model"] == name
            }
            missing = [target for target in group if target not in found]
            if ended and len(group) > 1:
                groups += [[target] for target in missing]
            elif missing and ended:
                dead: Row = {"model": name, "target": missing[0], "scheme": "", "verdict": "wrong", "reason": ended}
                found[missing[0]] = {**dead, "db": None, "plain": None, "library": "", **_stamp()}
                append(results, found[missing[0]])
            elif missing:
                print(f"{number}/{len(wanted)} {name}: not run, see {results.with_suffix('.log')}", flush=True)
            for row in found.values():
                print(f"{number}/{len(wanted)} {_told(row)}", flush=True)


def _child(name: str, targets: Sequence[str], results: Path, timeout_s: float, memory_bytes: float) -> str:
    """Run a model in a fork of this process; return why it ended before it was done, "" where it was."""
    import psutil

    process = multiprocessing.get_context("fork").Process(target=_as_child, args=(name, targets, results))
    process.start()
    try:
        seen, since = -1, time.monotonic()
        while process.is_alive():
            process.join(0.5)
            size = results.stat().st_size if results.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            if time.monotonic() - since > timeout_s:
                return f"no result after {timeout_s:.0f} s"
            if sum(_tree(psutil, process.pid)) > memory_bytes:
                return f"more than {memory_bytes / 1e9:.0f} GB of memory"
        code = process.exitcode or 0
        return f"crashed: {signal.Signals(-code).name}" if code < 0 else ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.join()


def _as_child(name: str, targets: Sequence[str], results: Path) -> None:
    """Run a model as the leader of a group of processes, with what it prints in a log beside the results."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with results.with_suffix(".log").open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    run_model(name, targets, results)


def _tree(psutil: Any, pid: int) -> list[int]:
    """Return the resident bytes of a process and of those that it started, as far as they are still there."""
    found = []
    try:
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            memory = one.memory_info()
            found.append(memory.rss - memory.shared)
    except psutil.Error:
        pass
    return found


def _lines(results: Path) -> list[str]:
    return [line for line in results.read_text().splitlines() if line.endswith("}")] if results.exists() else []


def _told(row: Row) -> str:
    figures = "" if row["db"] is None else f" {row['db']} dB"
    reason = f": {' '.join(row['reason'].split())[:160]}" if row["reason"] else ""
    return f"{row['model']} {row['target']} {row['scheme'] or '-'}{figures} {row['verdict']}{reason}"


def main() -> int:
    """Run what was asked for, and print the matrix of it."""
    parser = argparse.ArgumentParser(
        prog="scripts/zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names or patterns; default: all")
    parser.add_argument("--targets", default=",".join(TARGETS), help="with commas between; default: %(default)s")
    parser.add_argument("--results", type=Path, default=ROWS, help="JSON lines, appended to; default: %(default)s")
    parser.add_argument("--again", default="", metavar="VERDICTS", help=f"of {', '.join(VERDICTS)}: run these again")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of one pair; default: 300")
    parser.add_argument("--memory", type=float, default=8, metavar="GB", help="of one model; default: 8")
    parser.add_argument("--list", action="store_true", help="print the models' names")
    options = parser.parse_args()
    from zoo_models import zoo

    if options.list:
        print("\n".join(zoo()))
        return 0
    patterns = options.models or ["*"]
    names = list(dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(zoo(), pattern)))
    if not names:
        raise SystemExit(f"error: no model {' '.join(patterns)}; `scripts/zoo --list` names them")
    again = options.again.split(",")

    def is_due(name: str, target: str) -> bool:
        row = known.get((name, target))
        return row is None or row["verdict"] in again

    known = read_rows(options.results)
    wanted = [(name, [one for one in options.targets.split(",") if is_due(name, one)]) for name in names]
    wanted = [(name, targets) for name, targets in wanted if targets]
    run_all(wanted, options.results, options.timeout, options.memory * 1e9)
    rows = read_rows(options.results)
    print(text([row for row in rows.values() if row["model"] in names]))
    ran = {(name, target) for name, targets in wanted for target in targets}
    return int(any(rows[pair]["verdict"] == "wrong" for pair in ran if pair in rows))


if __name__ == "__main__":
    # a terminal's Ctrl-C and a kill end the child too, by the same way
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
