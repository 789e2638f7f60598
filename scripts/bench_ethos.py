#!/usr/bin/env python3
"""edgeq's bundles for Ethos-U beside Arm's plain recipe, and an independent look at each bundle.

`scripts/bench_ethos.py [MODEL,MODEL…]`, of digits, mobilenet_v2 and encoder. The plain recipe is that of ExecuTorch's
Ethos-U tutorial: torch.export, EthosUQuantizer, EthosUPartitioner, on the same weights and samples. Sizes, SRAM and
cycles are vela's own. Of each bundle, without edgeq's code: vela makes its `.pte` of its TOSA program, byte for byte;
Arm's own script reads its scratch size; and TOSA's reference model gives the golden outputs that it records.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

import ethos_models  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

TARGETS = {"cortex-m-ethos-u55": "ethos-u55-128", "linux-arm64-ethos-u85": "ethos-u85-256"}
INPUTS = {
    "digits": "image=float32:1x1x32x32",
    "mobilenet_v2": "x=float32:1x3x224x224",
    "encoder": "tokens=int64:1x8:0..99",
}
COUNT = 16


def plain(name: str, accelerator: str) -> dict[str, float]:
    """Return the figures of Arm's recipe."""
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner, backend
    from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    module, calibration = getattr(ethos_models, name)(), ethos_models.samples(name, 1, COUNT)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        spec = EthosUCompileSpec(accelerator)
        # as `dump_intermediate_artifacts_to`, which would write the folder's name into the program
        compiled = functools.partial(backend.vela_compile, intermediate_path=folder)
        quantizer = EthosUQuantizer(spec).set_global(get_symmetric_quantization_config(is_per_channel=True))
        graph = torch.export.export(module, (calibration[0],)).module(check_guards=False)
        prepared = prepare_pt2e(graph, quantizer)
        for sample in calibration:
            prepared(sample)
        converted = convert_pt2e(prepared)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(backend, "vela_compile", lambda *args, **_: compiled(*args)),
        ):
            edge = to_edge_transform_and_lower(
                torch.export.export(converted, (calibration[0],)), partitioner=[EthosUPartitioner(spec)]
            )
        program = edge.to_executorch()
        (report,) = (Path(folder) / "output").glob("*.csv")
        row = next(csv.DictReader(report.open()))
        noise, signal = 0.0, 0.0
        for sample in ethos_models.samples(name, 2, COUNT):
            expected = module(sample)
            signal += float(expected.square().sum())
            noise += float((expected - converted(sample)).square().sum())
    plan = program.executorch_program.execution_plan[0]
    return {
        "size": len(program.buffer),
        "sram": float(row["sram_memory_used"]) * 1024 + sum(plan.non_const_buffer_sizes),
        "cycles": float(row["cycles_total"]),
        "sqnr_db": 10 * np.log10(signal / noise),
    }


def packaged(name: str, target: str, out: Path) -> dict[str, float]:
    """Return the figures of edgeq's bundle, and look into it by Arm's own tools."""
    for place, seed in (("calibration", 1), ("evaluation", 2)):
        arrays = np.concatenate([one.numpy() for one in ethos_models.samples(name, seed, COUNT)])
        np.savez(out / f"{place}.npz", **{INPUTS[name].partition("=")[0]: arrays})
    command = ["edgeq", "package", f"{ROOT / 'scripts' / 'ethos_models.py'}:{name}", "--name", name, "-t", target]
    command += ["--scheme", "static-int8", "--input", INPUTS[name], "--no-cache", "-q", "--json", "-o", str(out)]
    command += ["--calibration-data", f"{out / 'calibration.npz'}", "--eval-data", f"{out / 'evaluation.npz'}"]
    # random weights: the outputs of int8 are far from fp32, which is no matter of the NPU
    command += ["--limit", "sqnr=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = json.loads(done.stdout or "{}").get("rows")
    if not rows:
        raise SystemExit(done.stdout + done.stderr)
    (row,) = rows
    print(f"{name} {target}: exit {done.returncode}", [g["name"] for g in row["gates"] if g["outcome"] != "ok"])
    bundle = next(path.parent for path in out.rglob("manifest.json"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    look(bundle, manifest)
    npu = manifest["npu"]
    fidelity = row["verified"]["fidelity"]
    return {
        "size": row["size_bytes"],
        "sram": npu["sram_bytes"] + npu["planned_bytes"],
        "cycles": npu["cycles"],
        "sqnr_db": fidelity["sqnr_db"],
        "scratch": npu["scratch_bytes"],
        "planned": npu["planned_bytes"],
        "parity": ", ".join(f"{name} {value}" for name, value in (manifest["parity"] or {}).items()),
        "cpu": ", ".join(npu["cpu_operators"]),
    }


def look(bundle: Path, manifest: dict[str, Any]) -> None:
    """Check a bundle of one NPU part by ExecuTorch, vela and TOSA's reference model alone."""
    import tosa_reference_model
    from executorch.backends.arm.arm_vela import vela_compile
    from executorch.backends.arm.scripts.get_ethosu_scratch_from_pte import get_scratch_from_pte
    from executorch.exir._serialize._program import deserialize_pte_binary

    with contextlib.redirect_stdout(io.StringIO()):
        if get_scratch_from_pte(str(bundle / "model.pte")) != manifest["npu"]["scratch_bytes"]:
            raise SystemExit("Arm's script reads another scratch size than the manifest has")
    program = deserialize_pte_binary((bundle / "model.pte").read_bytes()).program
    plan = program.execution_plan[0]
    with zipfile.ZipFile(bundle / "reference.zip") as archive:
        tosa = [archive.read(name) for name in archive.namelist()]
    if len(tosa) > 1:
        print(f"  {len(tosa)} parts: the vendor's tools run no program of several")
        return
    specs = {one.key: bytes(one.value).decode() for one in plan.delegates[0].compile_specs}
    with contextlib.redirect_stdout(io.StringIO()):
        again = vela_compile(tosa[0], specs["compile_flags"].split(" ")).processed_bytes
    data = program.backend_delegate_data[plan.delegates[0].processed.index].data
    if bytes(data) != again:
        raise SystemExit("vela makes another program of the TOSA program")
    steps = [step.instr_args for step in plan.chains[0].instructions]
    calls = {plan.operators[one.op_index].name: one.args for one in steps if hasattr(one, "op_index")}
    known = [getattr(value.val, "double_val", getattr(value.val, "int_val", None)) for value in plan.values]
    golden = np.load(bundle / "golden.npz")
    names = [one["name"] for one in manifest["inputs"]]
    if "aten::index_select" in calls or len(names) > 1:
        print("  vela gives the same bytes; the CPU computes more than quantizing, so the outputs were not compared")
        return
    worst = 0
    for index in range(manifest["golden"]["samples"]):
        array = (
            golden[f"input_{names[0]}"][index][None]
            if golden[f"input_{names[0]}"].ndim < len(manifest["inputs"][0]["shape"]) + 1
            else golden[f"input_{names[0]}"][index]
        )
        if "quantized_decomposed::quantize_per_tensor" in calls:
            scale, zero = (known[place] for place in calls["quantized_decomposed::quantize_per_tensor"][1:3])
            given = np.clip(np.round(array / np.float32(scale)) + zero, -128, 127).astype(np.int8)
        else:
            given = array.astype(np.int32)
        outputs, _ = tosa_reference_model.run(tosa[0], [given])
        scale, zero = (known[place] for place in calls["quantized_decomposed::dequantize_per_tensor"][1:3])
        found = (outputs[0].astype(np.float64) - zero) * scale
        worst = max(worst, float(np.abs(found.ravel() - golden["output_0"][index].ravel()).max()) / scale)
    print(f"  vela gives the same bytes; golden outputs by the reference model alone: {worst:.2g} steps at most")


def main() -> None:
    names = (sys.argv[1] if len(sys.argv) > 1 else "digits,mobilenet_v2,encoder").split(",")
    print("| model | target | | size, B | SRAM, B | cycles | SQNR to fp32, dB | scratch pool, B | planned, B |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        for target, accelerator in TARGETS.items():
            theirs = plain(name, accelerator)
            with tempfile.TemporaryDirectory() as out:
                ours = packaged(name, target, Path(out))
            for who, row in (("Arm's recipe", theirs), ("edgeq", ours)):
                cells = [f"{row[key]:,.0f}" for key in ("size", "sram", "cycles")] + [f"{row['sqnr_db']:.1f}"]
                cells += [f"{row[key]:,.0f}" if key in row else "" for key in ("scratch", "planned")]
                print(f"| {name} | {target} | {who} | {' | '.join(cells)} |", flush=True)
            print(f"  parity: {ours['parity']}; on the CPU: {ours['cpu']}", flush=True)


if __name__ == "__main__":
    main()
