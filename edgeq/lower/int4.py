"""Weights in int4: two to a byte, in ONNX Runtime's MatMulNBits, and how near those in a file are to the graph's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.results.model import GroupedWeight


def packed_int4(codes: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers of 4 bits as bytes, flat: of each two the first one has the lower bits."""
    low, high = codes.reshape(-1, 2).astype(np.uint8).T & 15
    return np.ascontiguousarray(low | high << 4)


def unpacked_int4(data: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return the int8 numbers, from -8 to 7, that `packed_int4` made bytes of."""
    numbers = np.stack((data & 15, data >> 4), axis=-1).reshape(shape).astype(np.int8)
    return np.where(numbers > 7, numbers - 16, numbers).astype(np.int8)


def read_back(
    grouped: Sequence[GroupedWeight], found: Iterable[tuple[str, NDArray[Any]]]
) -> tuple[tuple[str, float], ...]:
    """Return the layers that are to be in int4, each with how near the weight in the file is to the graph's, in dB.

    Minus infinity stands for a weight that the file does not hold in 4 bits.

    Args:
        grouped: the graph's.
        found: the file's, [out, in] or [in, out], with the names of their layers.
    """
    known = [(weight.layers[0], weight.values.astype(np.float64)) for weight in grouped]
    missing = dict(enumerate(name for name, _ in known))
    held: list[tuple[str, float]] = []
    for name, values in found:
        of_layer = [place for place, (owner, _) in enumerate(known) if owner == name.partition("#")[0]]
        forms = (values.astype(np.float64), values.T.astype(np.float64))
        ratio, place = max(
            (_sqnr_db(known[place][1], form), place)
            for place in of_layer or range(len(known))  # a product of no module has another name in the graph
            for form in forms
        )
        missing.pop(place, None)
        held.append((name, ratio))
    return (*held, *((name, -math.inf) for name in missing.values()))


def _sqnr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        return -math.inf
    noise, signal = float(np.square(expected - found).sum()), float(np.square(expected).sum())
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)


# --- ONNX Runtime's operator for weights of 4 bits. Its codes are unsigned: 8 stands for zero where none is given.

INT4_OP, _DOMAIN, _ZERO = "MatMulNBits", "com.microsoft", 8

# the operator's accuracy_level: activations stay in float32; others let a kernel quantize them
_FLOAT32 = 1


def put_int4(proto: Any, grouped: Sequence[GroupedWeight]) -> None:
    """Exchange each product of a graph by a grouped weight for MatMulNBits, in place, under the same name.

    A layer whose weight the exporter changed stays in float32; `file_int4` tells.
    """
    import onnx

    graph = proto.graph
    held = {item.name: item for item in graph.initializer}
    nodes = []
    for node in graph.node:
        weight = held.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        match = None if weight is None else _match(onnx.numpy_helper.to_array(weight), grouped)
        options = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        plain = options.get("alpha", 1) == options.get("beta", 1) == 1 and not options.get("transA", 0)
        if weight is None or match is None or not plain:
            nodes.append(node)
            continue
        codes, scales = (f"{weight.name}/{part}" for part in ("codes", "scales"))
        if codes not in held:
            rows, groups, size = match.codes.shape
            packed = packed_int4((match.codes + _ZERO).astype(np.int8)).reshape(rows, groups, size // 2)
            for name, value in ((codes, packed), (scales, match.scales.ravel())):
                held[name] = onnx.numpy_helper.from_array(value, name)
                graph.initializer.append(held[name])
        biased = len(node.input) > 2
        sums = [f"{node.output[0]}/product"] if biased else [*node.output]
        rows, groups, size = match.codes.shape
        nodes.append(
            onnx.helper.make_node(
                INT4_OP,
                [node.input[0], codes, scales],
                sums,
                name=node.name,
                domain=_DOMAIN,
                K=groups * size,
                N=rows,
                bits=4,
                block_size=size,
                accuracy_level=_FLOAT32,
            )
        )
        if biased:
            nodes.append(onnx.helper.make_node("Add", [*sums, node.input[2]], node.output, name=f"{node.name}/bias"))
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for item in [item for item in graph.initializer if item.name not in read]:
        graph.initializer.remove(item)
    if _DOMAIN not in {item.domain for item in proto.opset_import}:
        proto.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))


def _match(values: NDArray[Any], grouped: Sequence[GroupedWeight]) -> GroupedWeight | None:
    return next(
        (one for one in grouped if any(np.array_equal(values, form) for form in (one.values, one.values.T))), None
    )


def file_int4(path: Path, grouped: Sequence[GroupedWeight]) -> tuple[tuple[str, float], ...]:
    """Return what `read_back` does, of an .onnx file; nothing where nothing was to be in int4."""
    import onnx

    return read_back(grouped, _int4_weights(onnx.load(str(path)).graph)) if grouped else ()


def _int4_weights(graph: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    import onnx

    held = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == INT4_OP:
            data, scales = (onnx.numpy_helper.to_array(held[name]) for name in node.input[1:3])
            codes = int4_codes(data)
            yield node.name, (codes * scales.reshape(*codes.shape[:2], 1)).reshape(len(codes), -1)


def int4_codes(data: NDArray[Any]) -> NDArray[Any]:
    """Return the int8 numbers [out, groups, size] that an operator's bytes [out, groups, size / 2] hold."""
    return unpacked_int4(data ^ (_ZERO << 4 | _ZERO), (*data.shape[:-1], 2 * data.shape[-1]))


# --- The same in an ExecuTorch program, whose XNNPACK delegate keeps codes as MatMulNBits does, and scales in bfloat16.


def program_int4(path: Path, grouped: Sequence[GroupedWeight]) -> tuple[tuple[str, float], ...]:
    """Return the layers that are to be in int4: with infinity where a `.pte` file holds codes and scales, else minus.

    The programs of delegates have no names of layers: a weight is found by its bytes.
    """
    if not grouped:
        return ()
    data = path.read_bytes()
    found = []
    for weight in grouped:
        codes = packed_int4((weight.codes + _ZERO).astype(np.int8)).tobytes()
        scales = (np.ascontiguousarray(weight.scales, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        found.append((weight.layers[0], math.inf if codes in data and scales in data else -math.inf))
    return tuple(found)
