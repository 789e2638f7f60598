"""What one would write by hand for LiteRT: convert and quantize by Google's tools. `scripts/bench litert` runs it.

CONVERTER/bin/python scripts/plain_litert.py program.pt2 samples.npy OUT

It runs in the converter's environment, which has no torchvision, so that the float model comes as an exported program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe


def main() -> None:
    """Write float.tflite, static.tflite and dynamic.tflite."""
    source, samples, out = (Path(text) for text in sys.argv[1:])
    program = torch.export.load(source)
    inputs, _ = program.example_inputs
    floats = out / "float.tflite"
    litert_torch.convert(program.module(), inputs).export(str(floats))
    data = {"serving_default": [{"args_0": sample} for sample in np.load(samples)]}
    for name, how in (("static", recipe.static_wi8_ai8()), ("dynamic", recipe.dynamic_wi8_afp32())):
        tool = quantizer.Quantizer(str(floats), how)
        ranges = tool.calibrate(data) if tool.need_calibration else None
        tool.quantize(ranges).export_model(str(out / f"{name}.tflite"))


if __name__ == "__main__":
    main()
