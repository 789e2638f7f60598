"""What a Core ML package holds, read back from the artifact's bytes: its operators and the values of its weights."""

from __future__ import annotations

import math
import operator
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.results.model import QuantizedModel

PACKAGE = "model.mlpackage"

# operators of MIL that multiply matrices, by the input that is their weight
_WEIGHTS = {"conv": "weight", "conv_transpose": "weight", "linear": "weight", "matmul": "y"}

_INT8, _PALETTE = "constexpr_affine_dequantize", "constexpr_lut_to_dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the packages of a program hold.

    Attributes:
        stored: elements of the constants by how they are stored: `int8`, `palette4` for indices of 4 bits, `float16`.
        kernels: each operator that multiplies matrices, in order, with what it multiplies in: "conv int8".
        weights: the values of those that are compressed, as the device expands them.
    """

    stored: tuple[tuple[str, int], ...]
    kernels: tuple[str, ...]
    weights: tuple[NDArray[Any], ...]


def read_contents(packages: Sequence[bytes]) -> Contents:
    """Return what packages hold, as ExecuTorch's delegate has them in its program."""
    stored: Counter[str] = Counter()
    kernels: list[str] = []
    weights: list[NDArray[Any]] = []
    for package in packages:
        for op in _operators(package):
            if op.op_type == _INT8:
                stored["int8"] += op.quantized_data.val.size
                weights.append(np.asarray(op.materialized_val_inference()))
            elif op.op_type == _PALETTE:
                weights.append(np.asarray(op.materialized_val_inference()))
                stored[f"palette{int(math.log2(op.lut.val.size))}"] += weights[-1].size
            elif op.op_type == "const" and isinstance(value := op.outputs[0].val, np.ndarray):
                # scales, and what stands for an operator's axes and strides, are no weights
                if value.dtype.kind == "f" and not any(_is_expanded(user) for user in op.outputs[0].child_ops):
                    stored[str(value.dtype)] += value.size
            elif op.op_type in _WEIGHTS:
                kernels.append(f"{op.op_type} {'int8' if _is_int8(op) else 'float'}")
    return Contents(stored=tuple(sorted(stored.items())), kernels=tuple(kernels), weights=tuple(weights))


def _operators(package: bytes) -> Iterator[Any]:
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load
    from executorch.backends.apple.coreml import executorchcoreml

    with tempfile.TemporaryDirectory() as folder:
        executorchcoreml.unflatten_directory_contents(package, folder)
        path = next(Path(folder).rglob(PACKAGE))
        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
        for function in program.functions.values():
            yield from function.operations


def _is_expanded(op: Any) -> bool:
    return op.op_type.startswith("constexpr_") or op.op_type in ("quantize", "dequantize")


def _is_int8(op: Any) -> bool:
    """Whether both factors of an operator are int8 values that are expanded right before it."""
    weight, value = op.inputs[_WEIGHTS[op.op_type]].op, op.inputs["x"].op
    kinds = [getattr(one, "op_type", "") for one in (value, weight)]
    return kinds[0] == "dequantize" and kinds[1] in (_INT8, "dequantize")


def weights_sqnr_db(found: Sequence[NDArray[Any]], quantized: QuantizedModel) -> float | None:
    """Return how far the compressed weights of a package are from those of the graph: the lowest SQNR, in dB.

    Packages have no names of the model's: each weight is compared with all of the graph's of its size, and the nearest
    counts. None where nothing is compressed.
    """
    expected: dict[int, list[NDArray[Any]]] = {}
    for value in _graph_weights(quantized):
        expected.setdefault(value.size, []).append(value)
    worst = math.inf
    for weight in found:
        values = weight.astype(np.float64)
        forms = [values.ravel(), np.swapaxes(values, -1, -2).ravel()] if values.ndim > 1 else [values.ravel()]
        ratios = [_sqnr_db(known, form) for known in expected.get(weight.size, ()) for form in forms]
        worst = min(worst, max(ratios, default=-math.inf))
    return worst if found else None


def _sqnr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    noise = float(np.square(expected - found).sum())
    signal = float(np.square(expected).sum())
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)


def _graph_weights(quantized: QuantizedModel) -> Iterator[NDArray[Any]]:
    """Yield the constants of a quantized graph, flat, and what it computes of constants alone: int8 ones expanded."""
    import torch

    graph = quantized.graph if quantized.exported is None else quantized.exported.module()
    known: dict[Any, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(graph)
        elif node.op == "call_function" and node.all_input_nodes and all(one in known for one in node.all_input_nodes):
            args, options = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **options)
        else:
            continue
        if torch.is_tensor(known[node]) and known[node].is_floating_point() and known[node].ndim > 1:
            yield known[node].detach().double().numpy().ravel()
