"""Multiply-accumulates of convolutions and matrix products, from shapes."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.operators import size_bound
from edgeq.core.results.model import Layer, QuantizedModel
from edgeq.lower.torchscript_archive import DTYPES, Storage, place, read, walk

MODULE_KEY = "edgeq_module"  # written at capture; kept by torch in `meta["custom"]`

# which arguments are the factors
MATRIX_OPS = {"addmm": (1, 2), "mm": (0, 1), "bmm": (0, 1), "linear": (0, 1), "baddbmm": (1, 2), "matmul": (0, 1)}


_CONVOLUTIONS = {"convolution", *(f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3))}


def conv_macs(
    weight_shape: Sequence[int], output_shape: Sequence[int], input_shape: Sequence[int], *, transposed: bool
) -> int:
    """Return the MACs of a convolution.

    Args:
        weight_shape: [out, in / groups, k…], or [in, out / groups, k…] where transposed.
        output_shape: [N, C, …].
        input_shape: [N, C, …].
        transposed: each input element, instead of each output element, is multiplied by the whole kernel.
    """
    positions = math.prod(input_shape) if transposed else math.prod(output_shape)
    return positions * math.prod(weight_shape[1:])


def matmul_macs(left_shape: Sequence[int], columns: int) -> int:
    """Return the MACs of [..., K] x [K, columns]."""
    return math.prod(left_shape) * columns


def delegated_share(layers: Sequence[Layer]) -> float | None:
    """Return the share of the MACs that the delegate took; None if there are none."""
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.delegated) / total if total else None


def graph_layer(
    node: Any, constant_names: frozenset[str], *, delegated: bool, fixed_names: frozenset[str] = frozenset()
) -> Layer | None:
    """Return the layer of an exported graph's node; None where it neither multiplies nor accumulates.

    Args:
        node: of the graph.
        constant_names: placeholders that are parameters, buffers or constants.
        delegated: whether the delegate took it.
        fixed_names: placeholders that are computed from such ones, outside of the graph.
    """
    op = node.target.__name__.removeprefix("aten.").partition(".")[0]
    shape = _shape(node) if hasattr(node.meta.get("val"), "shape") else ()
    if op in _CONVOLUTIONS:
        source, weight, of_activations = node.args[0], node.args[1], False
        transposed = op.startswith("conv_transpose") or (op == "convolution" and bool(node.args[6]))
        macs = conv_macs(_shape(weight), shape, _shape(source), transposed=transposed)
    elif op in MATRIX_OPS:
        source, weight = (node.args[i] for i in MATRIX_OPS[op])
        macs = matmul_macs(_shape(source), shape[-1])
        of_activations = all(is_of_input(factor, constant_names | fixed_names) for factor in (source, weight))
    else:
        return None
    name = node.meta.get("custom", {}).get(MODULE_KEY) or node.name
    constants = {item for arg in node.all_input_nodes for item in _constants(arg, constant_names)}
    return Layer(
        name=name,
        op=op,
        macs=macs,
        weight_bytes=sum(_nbytes(item) for item in constants),
        delegated=delegated,
        of_activations=of_activations,
    )


def is_of_input(node: Any, constant_names: frozenset[str]) -> bool:
    """Whether a value depends on an input of the graph, and not on parameters, buffers and constants alone."""
    waiting, seen = [node], {node}
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder" and one.name not in constant_names:
            return True
        fresh = [source for source in one.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _shape(node: Any) -> tuple[int, ...]:
    """Return a value's shape, the largest one where sizes vary."""
    return tuple(map(size_bound, node.meta["val"].shape))


def _constants(node: Any, names: frozenset[str]) -> list[Any]:
    """Return the parameters that feed `node` through permutes and dequantize nodes."""
    if node.op == "placeholder":
        return [node] if node.name in names else []
    target = getattr(node.target, "__name__", "")
    if "dequantize" in target:  # values and scales; zero points of weights are zero and are not stored
        return [item for arg in node.args[:2] if hasattr(arg, "op") for item in _constants(arg, names)]
    if target == "to.dtype" or any(
        word in target for word in ("permute", "t_copy", "view", "t.default", "unsqueeze", "to_dim_order_copy")
    ):
        return [item for arg in node.all_input_nodes for item in _constants(arg, names)]
    return []


def _nbytes(node: Any) -> int:
    value = node.meta["val"]
    size = int(value.numel() * value.element_size())
    return size // 2 if is_int4(node) else size


def is_int4(node: Any) -> bool:
    """Whether a constant of an exported graph holds whole numbers of 4 bits, which delegates store two to a byte."""
    return any(
        getattr(reader.target, "__name__", "").endswith("dequantize_affine.default")
        and reader.args[0] is node
        and reader.args[5:7] == (-8, 7)
        for reader in node.users
    )


# --- What a TorchScript archive stores, read from its tables without running anything in it.


def archive_elements(path: Path) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype a TorchScript archive stores."""
    tally: Counter[str] = Counter()
    for dtype, count in _storages(path).values():
        tally[dtype] += count
    return tuple(sorted(tally.items()))


def archive_weights(path: Path) -> Iterator[NDArray[Any]]:
    """Yield what a TorchScript archive stores of floats and int8, as rows: a storage does not say its tensor's axes."""
    with zipfile.ZipFile(path) as archive:
        for entry, (dtype, count) in _storages(path).items():
            if dtype in _READ:
                yield np.frombuffer(archive.read(entry), _READ[dtype], count).reshape(1, -1)


_READ = {"float32": "<f4", "float16": "<f2", "int8": "i1", "qint8": "i1"}  # as numpy has them


def _storages(path: Path) -> dict[str, tuple[str, int]]:
    """Return dtype and elements of each storage, by its entry's name."""
    elements: dict[str, tuple[str, int]] = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            for node in walk(read(archive.read(name))) if name.endswith(".pkl") else ():
                if isinstance(node, Storage):
                    dtype = node.dtype.__name__
                    elements[place(names, name, node)] = (DTYPES.get(dtype, dtype), node.elements)
    return elements


def stored_layers(layers: Sequence[Layer], quantized: QuantizedModel) -> tuple[Layer, ...]:
    """Return the layers with the bytes that their weights take in the artifact.

    A weight that is stored in a shorter type but becomes float32 at run time counts by its stored type; int8 scales do
    not count.
    """
    shorter = {"fp16": 2, "weight-only-int8": 4}.get(quantized.scheme)
    if shorter is None:
        return tuple(layers)
    return tuple(
        dataclasses.replace(layer, weight_bytes=layer.weight_bytes // shorter)
        if any(layer.name == name or layer.name.startswith(f"{name}.") for name in quantized.quantized)
        else layer
        for layer in layers
    )


# --- Zeros of a pruned model, by which its ZIP is smaller.


def zero_share(weights: Iterable[NDArray[Any]]) -> float | None:
    """Return the share of zeros among numbers of matrices and kernels, 0 to 1; None without any.

    Args:
        weights: as they are stored, whole numbers without their zero point. Those with less than two axes are biases
            and scales, and do not count.
    """
    total = zeros = 0
    for values in weights:
        if values.ndim > 1 and (values.dtype.kind == "f" or values.dtype.itemsize == 1):
            total += values.size
            zeros += int((values == 0).sum())
    return zeros / total if total else None
