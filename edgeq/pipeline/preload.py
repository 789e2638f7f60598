"""What every worker of a project needs: imported once, by the process that they are forked from.

Importing is half of what a small model takes. Nothing here runs a kernel: libgomp hangs in a child that was forked
after it had started threads.
"""

from __future__ import annotations

import logging

import edgeq.pipeline.installed  # first: it notes what torch looks for

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of an enumeration that only concerns torchao

import torch  # noqa: E402, F401
import torchao.quantization.pt2e.quantize_pt2e  # noqa: E402, F401
import torchvision  # noqa: E402, F401
from executorch.backends.xnnpack.partition import xnnpack_partitioner  # noqa: E402, F401
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer  # noqa: E402, F401

import edgeq.pipeline.package  # noqa: E402, F401
