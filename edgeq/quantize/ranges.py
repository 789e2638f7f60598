"""What half precision would lose, node by node: how far values reach, and how far the node's own result moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.artifacts import TensorSpec
from edgeq.errors import UsageError, first_line
from edgeq.half import emulation
from edgeq.job import Task
from edgeq.quantize.halfgraph import float_op, op_name
from edgeq.samples import Dataset, batches

_ERROR_SAMPLES = 8  # a range is a maximum over all samples, an error is much the same for each


@dataclass(slots=True)
class NodeRange:
    """What was seen of a node's result.

    Attributes:
        largest: the largest finite magnitude, as float32 computes it.
        signal, noise: sums of squares of the result, and of its difference when this one node is computed in half.
    """

    largest: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to the difference that half precision makes; infinite where there is none, or no signal."""
        if math.isnan(self.noise) or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 and self.noise > 0 else math.inf


def scan(module: Any, dtype: Any, dataset: Dataset, specs: Sequence[TensorSpec], task: Task) -> dict[Any, NodeRange]:
    """Run a float32 graph over the samples and return what was seen of each node's float results.

    Args:
        module: of `functional_graph`.
        dtype: the half precision.
        dataset: samples, at least one.
        specs: the model's inputs.
        task: is told of each sample.

    Raises:
        UsageError: a sample that does not fit, or that the model fails on (named).
    """
    import torch

    seen: dict[Any, NodeRange] = {}
    samples = 0
    for batch in batches(dataset, specs):
        scanner = _scanner(module, dtype if samples < _ERROR_SAMPLES else None, seen)
        try:
            with torch.no_grad():
                scanner.run(*(torch.from_numpy(array.copy()) for array in batch.inputs))
        except Exception as err:  # the user's forward may raise anything
            what = f"the range scan fails on {batch.samples[0].name}: {first_line(err)}"
            raise UsageError(what, "mend or remove this sample") from err
        samples += batch.rows
        task.advance(batch.rows)
    return seen


def _scanner(module: Any, dtype: Any, seen: dict[Any, NodeRange]) -> Any:
    """Return an interpreter that notes ranges in `seen`, and with a dtype errors too."""
    import torch

    class Scanner(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
        """Computes in float32."""

        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if _is_float(leaf)]
            if node.op == "output" or not leaves:
                return result
            found = seen.setdefault(node, NodeRange())
            found.largest = max(found.largest, *(_largest(leaf) for leaf in leaves))
            if dtype is not None and op_name(node) and not float_op(node, float(torch.finfo(dtype).max)):
                self.note_error(node, leaves, found)
            return result

        def note_error(self, node: Any, expected: list[Any], found: NodeRange) -> None:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            args, kwargs = torch.utils._pytree.tree_map(_narrowed, (args, kwargs))
            try:
                with emulation():
                    result = node.target(*args, **kwargs)
            except RuntimeError:  # it takes no half tensors at all
                found.noise = math.inf
                return
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if _is_float(leaf)]
            for own, half in zip(expected, leaves, strict=True):
                finite = torch.isfinite(own)  # a mask's -inf is no signal
                found.signal += float(own[finite].double().square().sum())
                found.noise += float((own - half.float())[finite].double().square().sum())

    def _narrowed(value: Any) -> Any:
        return value.to(dtype) if torch.is_tensor(value) and value.dtype == torch.float32 else value

    return Scanner(module)


def _is_float(leaf: Any) -> bool:
    import torch

    return bool(torch.is_tensor(leaf) and leaf.is_floating_point() and leaf.numel() > 0)


def _largest(leaf: Any) -> float:
    return float(leaf.abs().nan_to_num(nan=0.0, posinf=0.0).max())
