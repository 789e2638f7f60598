"""Activations of a calibrated PT2E graph that must not share a range, or must not be rounded at all.

The quantizer of ExecuTorch 1.5.1 (`_annotate_cat`) gives all inputs of a concatenation and its output one observer,
which reaches back through views and pools to the layers that made them. A branch whose own range is much smaller keeps
few of its 256 steps then: scores of 0 to 1 beside boxes in pixels become all 0. And a mask of -1e9 takes the whole
range of the sum that it is added to. Both are found by the ranges that calibration saw. This file needs torch to load.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from edgeq.quantize.fake_quant import observes_weight, part_at
from edgeq.quantize.pt2e_workarounds import LAYERS
from edgeq.quantize.spec import UNSIGNED

IsObserver = Callable[[Any], bool]

_aten = torch.ops.aten

_CAT = _aten.cat.default

_SUMS = frozenset({_aten.add.Tensor, _aten.add_.Tensor})

_PRODUCTS = frozenset({_aten.mul.Tensor, _aten.mul_.Tensor})

_OWN_SCALES = LAYERS | _SUMS | _PRODUCTS  # what they read and what they give need not have one scale

_FUSED = frozenset({_aten.relu.default, _aten.relu_.default})

# what they give has a range of its own, whatever the scales of what they read
_SATURATE = frozenset(
    {_aten.sigmoid.default, _aten.tanh.default, _aten.hardsigmoid.default, _aten.softmax.int, _aten._softmax.default}
)

# the ranges of a join are unlike where a branch's own step is this many times smaller: it would lose two of its bits
UNLIKE = 4.0

# masks hold such values, and what a layer computes does not
_MASK = 1e4

_STEPS = 255  # of int8


def has_joins(prepared: Any) -> bool:
    """Whether a prepared graph has concatenations, so that `unshare` needs to know what each value's own range is."""
    return any(node.target is _CAT for node in prepared.graph.nodes)


def unshare(prepared: Any, alone: Mapping[str, Any], is_observer: IsObserver, backend: str) -> None:
    """Let unlike branches of a join keep their own ranges, and leave what a mask was added to in float, in place.

    Where nothing that follows the join computes in int8, it is left in float, with all that only moves or scales its
    values; and so it is up to a sigmoid or the like, whose output a layer may read. Where a layer reads the join, the
    layer's input has one scale, as it must; but a branch that something else reads too is rounded by that scale on its
    way into the join only.
    ONNX Runtime joins parts of unlike scales, but computes a layer with a relu in int8 only where its range begins at
    zero: for it, a layer's relu keeps its own range beside parts with negative values.

    Args:
        prepared: a calibrated torch.fx.GraphModule with observers.
        alone: calibrated observers of nodes that share one, each as it would be by itself; by the node's name.
        is_observer: tells its observers from other modules.
        backend: of the target.
    """
    graph = _Observed(prepared, is_observer)
    changed = False
    for node in reversed(list(prepared.graph.nodes)):
        if node.target is _CAT:
            changed = _unshare_join(graph, node, alone) or changed
        elif node.target in _SUMS | _PRODUCTS:
            changed = _free_arithmetic(graph, node) or changed
    if changed:
        for node in reversed(list(prepared.graph.nodes)):
            if graph.is_observed(node) and not node.users:
                graph.erase(node)
        prepared.graph.lint()
        prepared.recompile()
    for node in prepared.graph.nodes if backend in UNSIGNED else ():
        if not graph.is_observed(node) or node.args[0].target not in _FUSED:
            continue
        own = alone.get(node.args[0].name)
        if own is not None and node.args[0].args[0].target in LAYERS and bool(graph.observer(node).min_val < 0):
            setattr(prepared, str(node.target), copy.deepcopy(own))


class _Observed:
    """A prepared graph, and what of it is observed."""

    def __init__(self, prepared: Any, is_observer: IsObserver) -> None:
        self.prepared, self.is_observer = prepared, is_observer

    def is_observed(self, node: Any) -> bool:
        """Whether a node is an observer."""
        return node.op == "call_module" and self.is_observer(self.prepared._modules.get(str(node.target)))

    def observer(self, node: Any) -> Any:
        """Return the module of an observer's node."""
        return getattr(self.prepared, str(node.target))

    def output_observer(self, node: Any) -> Any | None:
        """Return the observer's node of what a node computes, itself or with the relu that is fused to it."""
        users = list(node.users)
        if len(users) == 1 and users[0].target in _FUSED and not self.is_observed(users[0]):
            users = list(users[0].users)
        return users[0] if len(users) == 1 and self.is_observed(users[0]) else None

    def region(
        self, start: Iterable[Any], *, min_width: float = 0.0, until: Collection[Any] = ()
    ) -> tuple[set[Any], bool]:
        """Return the observers' nodes that readers of a value in int8 lead to, and whether a layer in int8 is one.

        Args:
            start: nodes that read it; followed as far as values are rounded.
            min_width: observers with a narrower range are not followed.
            until: operators whose output is not followed.
        """
        found: set[Any] = set()
        waiting, reaches = list(start), False
        while waiting:
            node = waiting.pop()
            if node in found or node.op == "output":
                continue
            if node.target in LAYERS:
                reaches = reaches or any(observes_weight(self.prepared, arg) for arg in node.all_input_nodes)
            elif self.is_observed(node):
                if _width(self.observer(node)) >= min_width:
                    found.add(node)
                    waiting += node.users
            elif node.target not in until and (observed := self.output_observer(node)) is not None:
                waiting.append(observed)
        return found, reaches

    def float_region(self, start: Any) -> set[Any] | None:
        """Return the observers' nodes that may go when a reader gets its input in float; None where it must be int8."""
        found, reaches = self.region([start])
        if reaches:
            found, reaches = self.region([start], until=_SATURATE)
        return None if reaches else found

    def leave_in_float(self, region: Iterable[Any], first: Any | None) -> None:
        """Take out the observers of a region, and those of the constants that are read together with its values.

        Args:
            region: nodes of observers.
            first: the node in float that the region follows, else None.
        """
        for reader in list(first.users) if first is not None else []:
            self.drop_constants(reader)
        for node in region:
            for reader in list(node.users):
                self.drop_constants(reader)
            node.replace_all_uses_with(node.args[0])
            self.erase(node)

    def drop_constants(self, reader: Any) -> None:
        """Let a node read constants as they are."""
        for source in reader.all_input_nodes if reader.target not in LAYERS else ():
            if self.is_observed(source) and self.constants(source.args[0]):
                reader.replace_input_with(source, source.args[0])

    def constants(self, node: Any) -> list[Any]:
        """Return the tensors that a value is computed from where these are constants only, else nothing."""
        if node.op == "get_attr":
            return [part_at(self.prepared, node.target)]
        found = [self.constants(source) for source in node.all_input_nodes] if node.target not in LAYERS else []
        return [tensor for tensors in found for tensor in tensors] if all(found) else []

    def erase(self, node: Any) -> None:
        """Take out an observer that nothing reads."""
        self.prepared.graph.erase_node(node)
        delattr(self.prepared, str(node.target))

    def insert(self, observer: Any, value: Any, reader: Any) -> None:
        """Let one reader have a value through an observer."""
        name = next(free for i in itertools.count() if not hasattr(self.prepared, free := f"join_observer_{i}"))
        self.prepared.add_module(name, observer)
        with self.prepared.graph.inserting_before(reader):
            node = self.prepared.graph.call_module(name, (value,))
        node.meta.update(value.meta)
        reader.replace_input_with(value, node)

    def groups(self, observer: Any, *, without: Any = None) -> list[set[Any]]:
        """Return the nodes of an observer that many share, by which of them must: what only moves values keeps a scale.

        Args:
            observer: the module.
            without: a node that is not to count, else None.
        """
        nodes = [n for n in self.prepared.graph.nodes if self.is_observed(n) and self.observer(n) is observer]
        groups = [{node} for node in nodes]
        for after in nodes:
            maker = self._maker(after)
            if maker is without or maker.target in _OWN_SCALES:
                continue
            same = {after, *maker.all_input_nodes}
            joined = [group for group in groups if group & same]
            groups = [group for group in groups if group not in joined] + [set().union(*joined)]
        return groups

    def has_other_readers(self, group: set[Any], reader: Any) -> bool:
        """Whether anything but `reader` reads the values of a group, its own moves of them aside."""
        moves = {self._maker(node) for node in group}
        return any(user not in moves and user is not reader for node in group for user in node.users)

    def _maker(self, observed: Any) -> Any:
        """Return the node whose output an observer's node sees, before the relu that is fused to it."""
        maker = observed.args[0]
        if maker.target in _FUSED and not self.is_observed(maker.args[0]):
            return maker.args[0]
        return maker


def _unshare_join(graph: _Observed, join: Any, alone: Mapping[str, Any]) -> bool:
    """Do what `unshare` says with one concatenation; return whether anything was to do."""
    observed = graph.output_observer(join)
    if observed is None:
        return False
    shared = graph.observer(observed)
    own = {arg: alone.get(arg.args[0].name) for arg in join.all_input_nodes if graph.is_observed(arg)}
    unlike = [arg for arg, range_ in own.items() if range_ is not None and _width(range_) * UNLIKE < _width(shared)]
    if not unlike:
        return False
    readers = list(observed.users)
    regions = {reader: region for reader in readers if (region := graph.float_region(reader)) is not None}
    is_int8 = len(regions) < len(readers)
    if regions:
        with graph.prepared.graph.inserting_after(observed):
            twin = graph.prepared.graph.node_copy(join)
        for reader in regions:
            reader.replace_input_with(observed, twin)
        graph.drop_constants(twin)
        graph.leave_in_float(set().union(*regions.values()), twin)
    if is_int8:
        branches = graph.groups(shared, without=join)
        for arg in unlike:
            group = next((group for group in branches if arg in group), set())
            if graph.has_other_readers(group, join):
                graph.insert(shared, arg, join)
    else:
        graph.erase(observed)
        graph.prepared.graph.erase_node(join)
    groups = graph.groups(shared)
    for group in groups if len(groups) > 1 else ():
        ranges = [alone[node.args[0].name] for node in group if node.args[0].name in alone]
        if ranges and observed not in group:
            widest = copy.deepcopy(max(ranges, key=_width))
            for node in group:
                setattr(graph.prepared, str(node.target), widest)
    return is_int8 or bool(regions)


def _free_arithmetic(graph: _Observed, node: Any) -> bool:
    """Leave a sum or product in float of which a mask took the range; return whether it was one.

    Such is one whose values reach 1e4 or are not finite, or in which another operand's whole range is less than a step.
    """
    observed = graph.output_observer(node)
    if observed is None:
        return False
    sources = [source for source in node.all_input_nodes if graph.is_observed(source)]
    constants = {source: graph.constants(source.args[0]) for source in sources}
    widths = [_width(graph.observer(source)) for source in sources if not constants[source]]
    width = _width(graph.observer(observed))
    is_masked = (
        max((width, *widths)) >= _MASK
        or any(not bool(tensor.isfinite().all()) for tensors in constants.values() for tensor in tensors)
        or any(_STEPS * operand < width for operand in widths if operand > 0 and node.target in _SUMS)
    )
    if not is_masked:
        return False
    region, reaches = graph.region([observed])
    if reaches:  # then as far as the mask's range reaches: a softmax has taken it out, and its output is rounded again
        region, reaches = graph.region([observed], min_width=width / 2)
    if reaches:
        return False
    for source in sources:
        annotation = source.args[0].meta.get("quantization_annotation")
        if annotation is None or annotation.output_qspec is None:  # rounded for this node's sake, and not by its maker
            node.replace_input_with(source, source.args[0])
    graph.leave_in_float(region, None)
    return True


def _width(observer: Any) -> float:
    """Return the width of the range that an observer has seen, and zero."""
    low, high = (float(value) if value.numel() else 0.0 for value in (observer.min_val, observer.max_val))
    if not math.isfinite(low) or not math.isfinite(high):
        return 0.0  # it has seen nothing
    return max(high, 0.0) - min(low, 0.0)
