"""What one would write by hand: export, calibrate and lower, nothing else. `scripts/bench` measures edgeq beside it.

python scripts/plain.py mobilenet_v2 weights.pt images/ out.pte
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torchvision
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from PIL import Image
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchvision.models import get_model


def main() -> None:
    """Package one model."""
    name, weights, images, out = sys.argv[1:]
    model = get_model(name, weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    example = (torch.rand(1, 3, 224, 224),)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, example).module(), quantizer)
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        for path in sorted(Path(images).iterdir()):
            prepared(transform(Image.open(path).convert("RGB"))[None])
    converted = convert_pt2e(prepared)
    edge = to_edge_transform_and_lower(torch.export.export(converted, example), partitioner=[XnnpackPartitioner()])
    Path(out).write_bytes(edge.to_executorch().buffer)


if __name__ == "__main__":
    main()
