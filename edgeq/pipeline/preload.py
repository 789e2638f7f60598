"""What every worker of a project needs: imported once, by the process that they are forked from.

Importing is half of what a small model takes. Nothing here runs a kernel: libgomp hangs in a child that was forked
after it had started threads.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of an enumeration that only concerns torchao

for _name in (
    "torch",
    "torchao.quantization.pt2e.quantize_pt2e",
    "torchvision",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "executorch.backends.xnnpack.quantizer.xnnpack_quantizer",
    "edgeq.pipeline.package",
):
    if importlib.util.find_spec(_name.partition(".")[0]) is not None:  # an environment has the extras that it needs
        importlib.import_module(_name)
