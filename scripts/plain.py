"""What one would write by hand: export, calibrate and lower, nothing else. `scripts/bench` measures edgeq beside it.

python scripts/plain.py mobilenet_v2 weights.pt images/ out.pte
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from bench_models import batches, load
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def main() -> None:
    """Package one model."""
    name, weights, data, out = sys.argv[1:]
    model, example = load(name, weights)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, example).module(), quantizer)
    with torch.no_grad():
        for batch in batches(Path(data)):
            prepared(batch)
    converted = convert_pt2e(prepared)
    edge = to_edge_transform_and_lower(torch.export.export(converted, example), partitioner=[XnnpackPartitioner()])
    Path(out).write_bytes(edge.to_executorch().buffer)


if __name__ == "__main__":
    main()
