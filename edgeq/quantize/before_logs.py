"""What leads to a logarithm, and would be lost in int8: it stays in float, up to the layers before which it is not.

A front end of audio computes the logarithm of a spectrum's power, which spans a million to one: rounded to 256 steps,
nearly all of it is zero, and the logarithm says so at length. Roots and reciprocals magnify small values as well. How
much is lost is seen on calibration samples; int8 then begins after the logarithm, with a range that suits it. Graphs
of FX and of PT2E alike, prepared and not yet calibrated. This file needs torch to load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeq.core.lazy import np
from edgeq.core.samples import evenly
from edgeq.quantize.calibrate import calibrate
from edgeq.quantize.spec import QuantizeSpec

# in the metadata of a prepared graph: names of layers in float, as the table of the artifact's has them, by the reason
IN_FLOAT_BY_PLAN = "edgeq_in_float"

_SAMPLES = 16

_MAGNIFYING = frozenset({"log", "log_", "log2", "log10", "log1p", "rsqrt", "reciprocal", "sqrt"})

# operators that multiply by weights, as functions; modules with weights are layers too
_PRODUCTS = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
        *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    }
)

# below, a value is mostly noise; an int8 layer costs 30 to 40 dB
_LEAST_DB = 20.0

_STEPS = 255


def leave_lost_fronts_in_float(prepared: Any, is_observer: Callable[[Any], bool], spec: QuantizeSpec) -> frozenset[Any]:
    """Take the observers away from what leads to a logarithm that int8 would make noise of, in place.

    Args:
        prepared: a torch.fx.GraphModule with observers.
        is_observer: tells its observers from other modules.
        spec: whose calibration samples show what is lost.

    Returns:
        The operators that were left in float.

    Raises:
        UsageError: the model fails on a calibration sample.
    """
    observers = {
        node
        for node in prepared.graph.nodes
        if node.op == "call_module" and is_observer(prepared._modules.get(str(node.target)))
    }
    cones = {node: _cones(prepared, node, observers) for node in prepared.graph.nodes if _name(node) in _MAGNIFYING}
    cones = {node: levels for node, levels in cones.items() if levels[-1] & observers}
    if not cones or not spec.calibration.count:
        return frozenset()
    samples = evenly(spec.calibration, _SAMPLES)
    ranges = _Ranges(prepared, observers)
    with spec.progress.task(f"compare logarithms for {spec.label}", samples.count) as task:
        calibrate(ranges, samples, spec.inputs, task)
    found: set[Any] = set()
    for node, levels in cones.items():
        for level in (frozenset(), *levels):
            rounded = _Rounded(prepared, ranges, node, found | level)
            with spec.progress.task(f"round before {node.name} for {spec.label}", samples.count) as task:
                calibrate(rounded, samples, spec.inputs, task)
            if rounded.sqnr_db() >= _LEAST_DB:
                break
        found |= level
    for place in [node for node in prepared.graph.nodes if node in observers and node in found]:
        for reader in [user for user in list(place.users) if user in found]:
            reader.replace_input_with(place, place.args[0])
    for place in [node for node in reversed(prepared.graph.nodes) if node in observers and not node.users]:
        prepared.graph.erase_node(place)
        delattr(prepared, str(place.target))
    prepared.recompile()
    return frozenset(node for node in found if node.op.startswith("call_") and node not in observers)


def multiplies(prepared: Any, node: Any) -> bool:
    """Whether an operator multiplies by weights, or matrices with each other."""
    if node.op == "call_module":
        return next(prepared.get_submodule(str(node.target)).parameters(), None) is not None
    return _name(node) in _PRODUCTS


def _name(node: Any) -> str:
    """Return an operator's plain name, of a function, a method or an overload."""
    if node.op == "call_method":
        return str(node.target)
    if getattr(node.target, "__module__", "") == "math":  # of sizes, which FX traces: the root of a number
        return ""
    return str(getattr(node.target, "__name__", "")).partition(".")[0] if node.op == "call_function" else ""


def _cones(prepared: Any, node: Any, observers: set[Any]) -> list[frozenset[Any]]:
    """Return what leads to a node from the layers before it, from those before these, and so on; the node included.

    The first has no layer, and not the observers of what those before it give; the last has all that leads to it.
    """

    def layer(value: Any) -> Any:
        """Return the layer that a node is, or whose output it observes; else None."""
        if value in observers:
            value = value.args[0]
            if _name(value) in ("relu", "relu_") and value.args[0] not in observers:
                value = value.args[0]
        return value if multiplies(prepared, value) and value not in observers else None

    levels: list[frozenset[Any]] = []
    found: set[Any] = set()
    opened: set[Any] = set()  # layers that this level has
    starts = [node]
    while starts:
        waiting, starts = starts, []
        opened |= {layer(start) for start in waiting}
        while waiting:
            reached = waiting.pop()
            if reached in found:
                continue
            if layer(reached) is not None and layer(reached) not in opened:
                starts.append(reached)
                continue
            found.add(reached)
            waiting += reached.all_input_nodes
        levels.append(frozenset(found))
    return levels


class _Ranges(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a prepared graph without its observers, and notes the least and the largest value at each."""

    def __init__(self, prepared: Any, observers: set[Any]) -> None:
        super().__init__(prepared)
        self.places = observers
        self.seen: dict[Any, tuple[float, float]] = {}

    def __call__(self, *tensors: Any) -> Any:
        return self.run(*tensors)

    def named_parameters(self) -> Any:
        """Return those of the graph: `calibrate` blames them."""
        return self.module.named_parameters()

    def run_node(self, n: Any) -> Any:
        """Run a node; of an observer, note its value."""
        if n not in self.places:
            return super().run_node(n)
        value = self.fetch_args_kwargs_from_env(n)[0][0]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            low, high = self.seen.get(n, (0.0, 0.0))
            finite = value[value.isfinite()]
            if finite.numel():
                self.seen[n] = (min(low, float(finite.min())), max(high, float(finite.max())))
        return value


class _Rounded(_Ranges):
    """Runs a prepared graph twice, in float and with observed values rounded, and compares one node's results.

    Args:
        ranges: of the values.
        watched: the node.
        in_float: nodes that read what they read unrounded.
    """

    def __init__(self, prepared: Any, ranges: _Ranges, watched: Any, in_float: frozenset[Any] | set[Any]) -> None:
        super().__init__(prepared, ranges.places)
        self.seen, self._watched, self._in_float = ranges.seen, watched, in_float
        self._rounds = False
        self._results: list[Any] = []
        self._signal = self._noise = self._sum = 0.0
        self._count = 0

    def __call__(self, *tensors: Any) -> Any:
        self._results = []
        for self._rounds in (False, True):
            result = self.run(*(tensor.clone() for tensor in tensors))
        exact, rounded = (value.double() for value in self._results)
        known = exact.isfinite()
        exact, rounded = exact[known], torch.nan_to_num(rounded[known])
        self._count += exact.numel()
        self._sum += float(exact.sum())
        self._signal += float((exact**2).sum())
        self._noise += float(((exact - rounded) ** 2).sum())
        return result

    def run_node(self, n: Any) -> Any:
        """Run a node, rounding where that is asked for."""
        if n not in self.places:
            result = torch.fx.Interpreter.run_node(self, n)
            if n is self._watched:
                self._results.append(result)
            return result
        value = self.fetch_args_kwargs_from_env(n)[0][0]
        low, high = self.seen.get(n, (0.0, 0.0))
        if not self._rounds or high == low or n in self._in_float:
            return value
        step = (high - low) / _STEPS
        return (value / step).round() * step

    def sqnr_db(self) -> float:
        """Return the SQNR of the node's rounded results over all samples, a logarithm's about its mean."""
        signal = self._signal
        if _name(self._watched).startswith("log"):  # roots and reciprocals are factors: their relative error counts
            signal -= self._sum**2 / max(self._count, 1)
        with np.errstate(divide="ignore"):  # the logarithm of a value that was rounded to zero is infinitely wrong
            return float(10 * np.log10(max(signal, 0.0) / self._noise)) if self._noise else np.inf
