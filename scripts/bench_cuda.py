#!/usr/bin/env python3
"""Half precision on a GPU beside fp32, in one run: `scripts/bench cuda [--json FILE]`.

resnet50 and mobilenet_v2 with seeded weights: p50 and p90 by CUDA events, throughput and peak device memory of each
way to run them; agreement with fp32, the artifact's size, a stress set at the edge of half's range, and the serving
check. Needs torch and numpy alone: `PYTHON=python3 scripts/bench cuda` takes that Python, without setting anything up.
`--device cpu --quick` only shows that the script runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from cuda_figures import HEAD, shown_row, verdicts  # noqa: E402
from cuda_models import CLASSES, PARAMETERS, build, noisy, patterns  # noqa: E402
from cuda_ways import Run, autocast, graphed, machine, measured, tensor_floats, tf32  # noqa: E402

from edgeq.core.half import HALF_MAX, emulated  # noqa: E402
from edgeq.core.results.model import LoadedModel, QuantizedModel, TensorSpec  # noqa: E402
from edgeq.core.samples import Dataset, Sample  # noqa: E402
from edgeq.lower import lower  # noqa: E402
from edgeq.lower.cuda import can_compile, compile_package  # noqa: E402
from edgeq.lower.spec import LowerSpec  # noqa: E402
from edgeq.quantize import quantize  # noqa: E402
from edgeq.quantize.capture import capture  # noqa: E402
from edgeq.quantize.half_graph import functional_graph, scan  # noqa: E402
from edgeq.quantize.spec import QuantizeSpec  # noqa: E402
from edgeq.verify.serving import serve  # noqa: E402

SHARES = (0.5, 0.99, 2.0)  # of half's range, that the stress set's largest activation reaches


class Silent:
    """Progress that is not shown."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Silent]:  # noqa: ARG002
        yield self

    def advance(self, steps: int = 1) -> None:
        pass


class Bench:
    """One model's measurements.

    Attributes:
        module: fp32, on the CPU; each way to run it gets a copy.
    """

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.options, self.folder = name, options, folder
        self.module, self.origin = build(name, options.size, options.classes, options.device)
        self.device = options.device
        self.packages: dict[int, Path] = {}

    def model(self, batch: int) -> LoadedModel:
        spec = TensorSpec(name="x", dtype="float32", shape=(batch, 3, self.options.size, self.options.size))
        return LoadedModel(
            name=self.name,
            kind="module",
            model=self.module,
            inputs=(spec,),
            weights="random",
            fp32_bytes=0,
            source_sha256="",
        )

    def made(self, scheme: str, batch: int, calibration: torch.Tensor) -> tuple[QuantizedModel, Path]:
        """Quantize and lower by edgeq for one batch size; the artifact lies in a folder of its own."""
        model = self.model(batch)
        quantized = quantize(
            "cuda",
            scheme,
            QuantizeSpec(
                model=model,
                captured=capture(model),
                backend="cuda",
                observer="minmax",
                keep_fp32=(),
                calibration=dataset(calibration),
                progress=Silent(),
                label=self.name,
            ),
        )
        place = Path(tempfile.mkdtemp(dir=self.folder))
        lowering = LowerSpec(inputs=model.inputs, backend="cuda", folder=place, progress=Silent(), label=self.name)
        return quantized, lower("cuda", quantized, lowering).path

    def loaded(self, path: Path) -> Any:
        """Load an artifact as a server does; half is emulated on a CPU."""
        import torch.export.passes

        program = torch.export.passes.move_to_device_pass(torch.export.load(path), self.device)
        return program.module() if self.device == "cuda" else emulated(program.module())

    def plain(self, dtype: torch.dtype, *, channels_last: bool = False) -> Any:
        import copy

        model = copy.deepcopy(self.module).to(self.device, dtype)
        return model.to(memory_format=torch.channels_last) if channels_last else model

    def ways(self, batch: int, path: Path, quantized: QuantizedModel) -> Iterator[tuple[str, Callable[[], Run]]]:
        """Yield each way to run the model on [batch, 3, size, size] in float32, as a function that prepares it."""
        half = torch.float16

        def cast(model: Any, **layout: Any) -> Run:
            return lambda x: model(x.to(half, **layout)).float()

        yield "fp32 eager", lambda: self.plain(torch.float32)
        yield "fp32 TF32", lambda: tf32(self.plain(torch.float32))
        yield "autocast fp16", lambda: autocast(self.plain(torch.float32), self.device)
        yield "half eager", lambda: cast(self.plain(half))
        nhwc = {"memory_format": torch.channels_last}
        yield "half eager, channels last", lambda: cast(self.plain(half, channels_last=True), **nhwc)
        yield "edgeq half", lambda: self.loaded(path)
        if self.device == "cuda":
            yield "half CUDA graph", lambda: graphed(cast(self.plain(half)), self.example(batch))
            yield "edgeq half, CUDA graph", lambda: graphed(self.loaded(path), self.example(batch))
        if self.options.quick:
            return
        yield "torch.compile half", lambda: torch.compile(cast(self.plain(half)))
        yield (
            "torch.compile half, reduce-overhead",
            lambda: torch.compile(cast(self.plain(half)), mode="reduce-overhead"),
        )
        if can_compile():
            yield "edgeq AOTInductor half", lambda: self.compiled(batch, quantized)
            yield (
                "edgeq AOTInductor half, CUDA graph",
                lambda: graphed(self.compiled(batch, quantized), self.example(batch)),
            )

    def compiled(self, batch: int, quantized: QuantizedModel) -> Run:
        if batch not in self.packages:  # compiling takes a minute
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            self.packages[batch] = compile_package(quantized.exported, folder, self.device)
        return torch._inductor.aoti_load_package(str(self.packages[batch]))

    def calibration(self, count: int) -> torch.Tensor:
        return noisy(patterns(max(8, count), self.options.size), seed=2)

    def example(self, batch: int) -> torch.Tensor:
        return noisy(patterns(batch, self.options.size), seed=3).to(self.device)

    def rows(self, batch: int, report: Callable[[dict[str, Any]], None]) -> None:
        """Measure every way with one batch size."""
        quantized, path = self.made("fp16", batch, self.calibration(batch))
        x = self.example(batch)
        for way, prepare in self.ways(batch, path, quantized):
            if self.options.ways and not any(part in way for part in self.options.ways):
                continue
            row = {"model": self.name, "batch": batch, "way": way, **measured(prepare, x, self.options)}
            report(row)

    def agreement(self) -> dict[str, Any]:
        """Compare the artifact with fp32, TF32 off, over many inputs."""
        batch, total = self.options.agreement_batch, self.options.inputs
        _, path = self.made("fp16", batch, self.calibration(batch))
        fp32, half = self.plain(torch.float32), self.loaded(path)
        shown = patterns(self.options.classes, self.options.size)
        same = right = digits = seen = 0
        signal = noise = 0.0
        with torch.no_grad():
            for start in range(0, total, batch):
                wanted = torch.arange(start, start + batch) % len(shown)
                x = noisy(shown[wanted], seed=1000 + start, share=0.01).to(self.device)
                a, b = fp32(x).cpu()[: total - start], half(x).float().cpu()[: total - start]
                labels = a.argmax(1)
                right += int((labels == wanted[: len(labels)]).sum())
                same += int((labels == b.argmax(1)).sum())
                tops = [torch.softmax(side.double(), 1).gather(1, labels[:, None]) for side in (a, b)]
                digits += int((tops[0].sub(tops[1]).abs() < 0.5e-5).sum())
                signal += float(a.double().square().sum())
                noise += float((a - b).double().square().sum())
                seen += len(a)
        sqnr_db = 10 * float(torch.tensor(signal / noise).log10()) if noise else float("inf")
        return {
            "model": self.name,
            "inputs": seen,
            "top1_agreement": same / seen,
            "same_probability_5_digits": digits / seen,
            "sqnr_db": sqnr_db,
            "fp32_top1": right / seen,
        }

    def sizes(self) -> dict[str, Any]:
        """Compare the artifacts' bytes."""
        calibration = self.calibration(8)
        half, fp32 = (self.made(scheme, 1, calibration)[1].stat().st_size for scheme in ("fp16", "fp32"))
        return {"model": self.name, "fp16_bytes": half, "fp32_bytes": fp32, "ratio": half / fp32}

    def stress(self, share: float) -> dict[str, Any]:
        """Scale inputs until the largest activation is at `share` of half's range; count what is not finite."""
        scaled = noisy(patterns(4, self.options.size), seed=4)
        model = self.model(1)
        graph = functional_graph(capture(model))
        for _ in range(4):  # a network with relu6 does not grow with its input everywhere
            ranges = scan(graph, None, dataset(scaled), model.inputs, Silent())
            reach = max(seen.largest for node, seen in ranges.items() if node.op == "call_function")
            scaled *= share * HALF_MAX / reach
        quantized, path = self.made("fp16", 1, scaled)
        half, naive = self.loaded(path), self.plain(torch.float16)
        with torch.no_grad():
            bad, naively = 0, 0
            for image in scaled.to(self.device):
                bad += int(not torch.isfinite(half(image[None])).all())
                naively += int(not torch.isfinite(naive(image[None].half())).all())
        kept = list(quantized.kept_fp32)
        return {"model": self.name, "share": share, "not_finite": bad, "naive_half_not_finite": naively, "kept": kept}

    def served(self) -> dict[str, Any]:
        """Run the artifact in a process that has torch and no edgeq."""
        _, path = self.made("fp16", 1, self.calibration(8))
        result = serve(path, [(self.example(1).cpu().numpy(),)], device=self.device)
        measures = result.measures
        return {"model": self.name, "device": measures.device, "runtime": measures.runtime, "p50_ms": measures.p50_ms}


def dataset(samples: torch.Tensor) -> Dataset:
    """Return images as samples of one row each."""
    rows = [row.numpy() for row in samples]
    found = [Sample(inputs=(row,), raw=(row,), label=None, name=str(i), digest=str(i)) for i, row in enumerate(rows)]
    return Dataset(origin="seeded", count=len(found), read=found.__getitem__)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,mobilenet_v2")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--ways", default="", help="parts of the ways' names, with commas; all without")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="small images, few runs, nothing compiled")
    parser.add_argument("--only", default="rows,agreement,sizes,stress,served", help="parts of the benchmark")
    parser.add_argument(
        "--json", type=Path, help="file of the figures, replaced after each, so that a stopped run keeps them"
    )
    options = parser.parse_args(arguments)
    options.models, options.only = options.models.split(","), options.only.split(",")
    options.batches = [int(batch) for batch in options.batches.split(",")]
    options.ways = [part for part in options.ways.split(",") if part]
    unknown = set(options.models) - set(PARAMETERS)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}; there are {', '.join(PARAMETERS)}")
    options.size = 64 if options.quick else 224
    options.runs, options.warmup = (5, 1) if options.quick else (50, 10)
    options.inputs, options.agreement_batch = (16, 8) if options.quick else (1000, 50)
    options.classes = 16 if options.quick else CLASSES
    if options.quick:
        options.batches = options.batches[:2]
    return options


def main() -> None:
    """Print the table, the verdicts, and write JSON."""
    options = options_of(sys.argv[1:])
    if options.device == "cuda" and not torch.cuda.is_available():
        fix = "run it on a machine with a GPU; --device cpu --quick tries the script"
        sys.exit(f"error: no CUDA device: torch sees none here\n  fix: {fix}")
    found: dict[str, Any] = {"machine": machine(options.device), "quick": options.quick, "models": options.models}
    found |= {"rows": [], "agreement": [], "sizes": [], "stress": [], "served": []}

    def keep(part: str, item: dict[str, Any]) -> None:
        found[part].append(item)
        print(shown_row(item) if part == "rows" else f"{part}: {json.dumps(item)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")

    print(json.dumps(found["machine"]))
    print(HEAD)
    with tensor_floats(False), tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            bench = Bench(name, options, Path(folder))
            for part in ("sizes", "agreement", "served"):
                if part in options.only:
                    keep(part, getattr(bench, part)())
            for share in SHARES if "stress" in options.only else ():
                keep("stress", bench.stress(share))
            for batch in options.batches if "rows" in options.only else ():
                bench.rows(batch, lambda row: keep("rows", row))
    for line in verdicts(found):
        print(line if options.device == "cuda" and not options.quick else f"not judged here: {line}")


if __name__ == "__main__":
    main()
