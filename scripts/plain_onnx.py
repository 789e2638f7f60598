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
import torchvision
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torchvision.models import get_model


class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not followed by mypy
    """Gives each image of a folder once."""

    def __init__(self, folder: Path) -> None:
        self.paths = iter(sorted(folder.iterdir()))
        self.transform = torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize(256),
                torchvision.transforms.CenterCrop(224),
                torchvision.transforms.ToTensor(),
                torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image as the model's input; None after the last."""
        path = next(self.paths, None)
        return None if path is None else {"x": self.transform(Image.open(path).convert("RGB"))[None].numpy()}


def main() -> None:
    """Package one model."""
    name, weights, images, out = sys.argv[1:]
    model = get_model(name, weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        floats, folded = Path(folder, "float.onnx"), Path(folder, "folded.onnx")
        example = (torch.rand(1, 3, 224, 224),)
        torch.onnx.export(model, example, floats, dynamo=True, input_names=["x"], external_data=False, verbose=False)
        with contextlib.chdir(folder):  # where it fails to infer a shape, it leaves a file in the current folder
            quant_pre_process(str(floats), str(folded))
        quantize_static(
            str(folded),
            out,
            Images(Path(images)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


if __name__ == "__main__":
    main()
