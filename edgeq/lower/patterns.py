"""XNNPACK's pattern graphs, built only for models in which they could match."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edgeq._replace import replaced

# what attention and bilinear resizing are made of, before and after decomposition
_PARTS = ("softmax", "scaled_dot_product", "upsample", "index", "grid_sampler", "interpolate")


@contextlib.contextmanager
def needed_patterns(program: Any) -> Iterator[None]:
    """Spare the two XNNPACK passes that look for patterns the graphs that they look for, where none can match.

    Building the graphs means five exports, about six seconds in each process (a tenth of packaging mobilenet_v2);
    without an operator of `_PARTS` in the program the passes find nothing, and the artifact is the same.
    """
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if any(part in name for name in names for part in _PARTS):
        yield
        return
    with replaced(sdpa, "get_graphs", list), replaced(bilinear_2d, "get_graphs_dict", dict):
        yield
