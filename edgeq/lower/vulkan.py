"""ExecuTorch's Vulkan delegate: its options, and the operators of its own graph, read from the artifact's bytes."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import Any

from edgeq.core.results.model import QuantizedModel

# operators that multiply matrices: "aten.convolution.default", "et_vk.q8ta_linear_gemv.default", "aten.bmm.default"
_PRODUCT = re.compile(r"conv(?!ert)|linear|mm\b|matmul")

_INT8 = "q8ta_"  # activations quantized by tensor, and int8 weights


def partitioner(quantized: QuantizedModel, _left_out: Collection[str] = (), _spec: Any = None) -> Any:
    """Return Vulkan's partitioner; for fp16 the shaders compute in half, with inputs and outputs in float32."""
    root = logging.getLogger()
    level = root.level
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    root.setLevel(level)  # the import has every library's INFO shown (ExecuTorch 1.5.1)
    return VulkanPartitioner({"force_fp16": quantized.scheme == "fp16"})


def kernels(graphs: Sequence[bytes]) -> tuple[str, ...]:
    """Return the operators of delegates' graphs that multiply matrices, in order, with what they multiply in.

    Args:
        graphs: as ExecuTorch's delegates have them in a program.
    """
    from executorch.backends.vulkan.serialization.vulkan_graph_serialize import (
        extract_vk_flatbuffer,
        flatbuffer_to_vk_graph,
    )

    names = [call.name for graph in graphs for call in flatbuffer_to_vk_graph(extract_vk_flatbuffer(graph)).chain]
    return tuple(f"{name} {'int8' if _INT8 in name else 'float'}" for name in names if _PRODUCT.search(name))
