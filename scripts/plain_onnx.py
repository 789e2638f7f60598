"""What one would write by hand for ONNX Runtime: export and quantize. `scripts/bench` measures edgeq beside it.

python scripts/plain_onnx.py mobilenet_v2 weights.pt images/ out.onnx
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_models import batches, load
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not followed by mypy
    """Gives each sample once."""

    def __init__(self, data: Path) -> None:
        self.batches = batches(data)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample as the model's input; None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch.numpy()}


def main() -> None:
    """Package one model."""
    name, weights, data, out = sys.argv[1:]
    model, example = load(name, weights)
    with tempfile.TemporaryDirectory() as folder:
        floats, folded = Path(folder, "float.onnx"), Path(folder, "folded.onnx")
        torch.onnx.export(model, example, floats, dynamo=True, input_names=["x"], external_data=False, verbose=False)
        with contextlib.chdir(folder):  # where it fails to infer a shape, it leaves a file in the current folder
            quant_pre_process(str(floats), str(folded))
        quantize_static(
            str(folded),
            out,
            Samples(Path(data)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


if __name__ == "__main__":
    main()
