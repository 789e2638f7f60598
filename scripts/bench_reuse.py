"""Measure what --reuse-qparams-from saves: patches of a model that was tuned a little, and of one trained from scratch.

Each is packaged with the shipped model's scales and zero points and without, and the patch from the shipped bundle is
the file that a release publishes. Bytes are counted; nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MODELS = ("digits", "mobilenet_v2")
TARGETS = ("linux-x86_64-x86", "linux-x86_64-xnnpack")
# the shipped model; it after a few steps of training; another training
FACTORIES = """
import sys
sys.path.insert(0, {scripts!r})
import tuned_models

def shipped(): return tuned_models.{model}("shipped")
def tuned(): return tuned_models.{model}("tuned")
def head(): return tuned_models.{model}("head")
def retrained(): return tuned_models.{model}("retrained")
def example_inputs(): return tuned_models.example_inputs("{model}")
def calibration(): return tuned_models.samples("{model}", "calibration")
def evaluation(): return tuned_models.samples("{model}", "evaluation")
"""


def main() -> None:
    """Print the patches, and which figures were reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--kinds", default="tuned,head,retrained")
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="edgeq-bench-") as name:
        os.environ["EDGEQ_CACHE_DIR"] = f"{name}/cache"
        for model in options.models.split(","):
            for target in options.targets.split(","):
                compare(Path(name), model, target, options.kinds.split(","))


def compare(work: Path, model: str, target: str, kinds: list[str]) -> None:
    """Package a model and its successors for a target, and print the patches."""
    from edgeq.deliver.ota.patch import pack
    from edgeq.deliver.ota.release import Base, prepare

    source = work / f"{model}.py"
    source.write_text(FACTORIES.format(scripts=str(ROOT / "scripts"), model=model))
    base = package(work / model / target / "shipped", source, "shipped", target, [])
    start = Base(label="shipped", plain=pack(base))
    for kind in kinds:
        sizes = {}
        for how, options in (("without", []), ("with", ["--reuse-qparams-from", str(base)])):
            folder = package(work / model / target / f"{kind}-{how}", source, kind, target, options)
            item = prepare(folder, [start])
            sizes[how] = (len(item.deltas[0].patch.data), len(item.archive))
            sizes[f"{how} quality"] = quality(folder)
        patch, full = sizes["with"]
        share, saved = patch / full, patch / sizes["without"][0]
        reached = "" if kind == "retrained" else f"  {'reached' if share <= 0.25 and saved <= 0.5 else 'MISSED'}"
        print(
            f"{model:13} {target:21} {kind:10} patch {patch / 1e3:8.1f} kB = {share:6.1%} of {full / 1e3:.1f} kB, "
            f"{saved:6.1%} of {sizes['without'][0] / 1e3:.1f} kB without; "
            f"{sizes['with quality']} with, {sizes['without quality']} without{reached}",
            flush=True,
        )


def package(out: Path, source: Path, factory: str, target: str, options: list[str]) -> Path:
    """Run `edgeq package`, and return the bundle."""
    from edgeq.cli.main import run

    data = [f"--calibration-data={source}:calibration", f"--eval-data={source}:evaluation", "--data-lint=warn"]
    command = ["package", f"{source}:{factory}", "-t", target, "-o", str(out), "--name=model", "--on=host", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = run([*command, *data, *options])
    if code:
        raise SystemExit(f"edgeq package ended with {code}: {told.getvalue()}")
    return out / "model" / target


def quality(folder: Path) -> str:
    """Return accuracy where there are labels, and SQNR against the float model."""
    from edgeq.bundle.run_report import read_report

    fidelity = read_report(folder).verified.fidelity
    if fidelity is None or fidelity.sqnr_db is None:
        return "not measured"
    score = "" if fidelity.score is None else f"{fidelity.score:.2%}, "
    return f"{score}{fidelity.sqnr_db:.1f} dB"


if __name__ == "__main__":
    main()
