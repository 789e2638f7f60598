"""Which values of a prepared FX graph share a range, and which are not rounded at all.

FX puts an observer on what an int8 kernel reads or writes, and takes its kind from the kernel (torch 2.15):

- a sigmoid's fixed range of 0 to 1 also goes to its *input*, where nothing has observed that before (after a split, a
  slice, flatten, a division or a layer in float), and to all that is joined with the sigmoid's output;
- a view, a pool or a relu shares the range of the first observer before it, also where a softmax or a division lies
  between and the values are others;
- all parts of a concatenation get one scale, be one in 0 to 1 and another in pixels, and so does what is multiplied by
  a number and its product, although that kernel scales the scale instead;
- a softmax over thousands of values is rounded to steps of 1/256, where nearly all of it is zero, and so is a tanh or
  sigmoid whose values fill a small part of its fixed range;
- a mask of -1e9 that is added to attention scores takes the range, so that the scores are one value;
- the divisor of `x / (total + eps)` is rounded: its small values become 0, and what they divide is any number.

Here each observer is given the range of the value that it sees. What only moves data shares the range of its source. A
join of unlike ranges is computed in float: at the end of a graph with its parts in their own scales, elsewhere rounded
once more, in a range of its own. This file needs torch to load.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.ao.quantization.observer import FixedQParamsObserver, _is_activation_post_process
from torch.ao.quantization.qconfig_mapping import _FIXED_QPARAMS_OP_TO_OBSERVER

from edgeq.core.samples import evenly
from edgeq.quantize.calibrate import calibrate
from edgeq.quantize.fake_quant import observes_weight
from edgeq.quantize.fx_workarounds import clamped_layers
from edgeq.quantize.spec import QuantizeSpec, inside

# of the calibration samples, so many tell whether ranges are alike; calibration itself takes all
_SAMPLES = 16

# a part of a join whose own range is so many times smaller loses two bits to the others
_UNLIKE = 4.0

# a softmax sums to one; rounded ones that miss it by more on average have lost their small values
_LOST_SUM = 0.02

# an activation whose values take so small a part of its fixed range keeps fewer than 32 of its 256 steps
_UNUSED = 8.0

# what masks add to what softmax shall leave out: -inf, the least float of any type, BERT's -10000
_MASK = -9999.0

# what moves values and changes none, as function, method or module
_MOVING = frozenset(
    {
        *("flatten", "reshape", "view", "view_as", "reshape_as", "permute", "transpose", "t", "swapaxes", "movedim"),
        *("squeeze", "unsqueeze", "unflatten", "chunk", "split", "tensor_split", "unbind", "getitem", "narrow"),
        *("select", "index_select", "contiguous", "expand", "expand_as", "repeat", "repeat_interleave", "tile"),
        *("broadcast_to", "flip", "roll", "clone", "detach", "detach_", "dropout", "feature_dropout", "identity"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "squeeze_", "unsqueeze_", "take_along_dim", "gather"),
        *("pixelshuffle", "pixelunshuffle", "channelshuffle", "dropout1d", "dropout2d", "dropout3d", "alphadropout"),
        *("to", "float", "split_with_sizes", "rot90", "ravel", "mT"),
    }
)

# kernels that give their input's scale on, beside those that move (FX's "share" operators)
_SCALE_KEEPING = frozenset(
    {
        *("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "mean", "floordiv"),
        *("interpolate", "upsample", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"),
        *("adaptiveavgpool1d", "adaptiveavgpool2d", "adaptiveavgpool3d", "avgpool1d", "avgpool2d", "avgpool3d"),
        *("maxpool1d", "maxpool2d", "maxpool3d"),
    }
)

_JOINING = frozenset({"cat", "stack"})

# a peak is what equals the largest value around it: rounded, its neighbours do too
_COMPARING = frozenset({"eq", "ne", "ge", "le", "gt", "lt"})

# what functionalized writes become: a tensor of which a part is another's values
_WRITING = frozenset(
    {"slice_scatter", "select_scatter", "index_put", "where", "masked_fill", "masked_scatter", "scatter"}
)

_SOFTMAX = frozenset({"softmax"})

# activations whose int8 kernel has one output range, and ATen's operator of each
_FIXED = {name: name.rstrip("_") for name in ("hardsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_")}

# what divides, which no int8 kernel does, and the place of the operand whose small values may not be rounded to 0
_DIVISORS = {
    **dict.fromkeys(("div", "div_", "truediv", "itruediv", "divide"), 1),
    **dict.fromkeys(("rsqrt", "rsqrt_", "reciprocal", "reciprocal_", "rtruediv"), 0),
}

# what a divisor is made by, of one value
_BEFORE_DIVISION = frozenset(
    {
        *("add", "add_", "iadd", "mul", "mul_", "imul", "clamp", "clamp_", "clamp_min", "clip"),
        *("sqrt", "sqrt_", "pow", "abs"),
    }
)

_SCALING = (operator.add, operator.mul, torch.add, torch.mul)

# what computes one value from one, or from two at the same place: after a lost softmax it is as unfit for int8
_ELEMENTWISE = frozenset({"add", "mul", "sub", "div", "truediv", "neg", "iadd", "imul", "masked_fill", "where"})


def observe_inputs(prepared: Any, new_observer: Callable[[], Any]) -> Any:
    """Observe what layers in int8 read where FX left it out, in place; return the graph.

    FX takes the observer behind a reshape away again where none stands before it, as behind an LSTM or a slice of the
    input (torch 2.15): the layer that reads it would stay in float.
    """
    observers: dict[Any, Any] = {}
    for node in list(prepared.graph.nodes):
        if not is_int8_layer(prepared, node):
            continue
        source = node.args[0]
        if source.op == "call_module" and _is_activation_post_process(prepared.get_submodule(source.target)):
            continue
        if source not in observers:
            name = f"activation_post_process_of_{source.name}"
            prepared.add_submodule(name, new_observer())
            with prepared.graph.inserting_after(source):
                observers[source] = prepared.graph.call_module(name, (source,))
        node.replace_input_with(source, observers[source])
    prepared.recompile()
    return prepared


def place_observers(prepared: Any, spec: QuantizeSpec, new_observer: Callable[[], Any]) -> Any:
    """Give each value of a prepared graph its own range, in place, before it is calibrated; return the graph.

    Args:
        prepared: a torch.fx.GraphModule with observers.
        spec: whose calibration samples tell which ranges are alike.
        new_observer: makes the engine's observer of activations.

    Raises:
        UsageError: the model fails on a calibration sample.
    """
    graph = _Graph(prepared, new_observer)
    graph.own_moved_ranges()
    graph.own_fixed_ranges()
    graph.own_scaled_ranges()
    for one in clamped_layers(prepared, graph.is_layer):
        if graph.observer(one.before) is graph.observer(one.after):
            graph.put(one.before, new_observer())  # of which nothing is used: see `saturate_clamps`
    graph.leave_writes_in_float()
    graph.leave_divisors_in_float()
    joins = [node for node in prepared.graph.nodes if graph.name(node) in _JOINING and graph.parts(node)]
    softmaxes = [node for node in prepared.graph.nodes if graph.name(node) in _SOFTMAX and graph.place(node)]
    fixed = [node for node in prepared.graph.nodes if graph.name(node) in _FIXED and graph.fixed_range(node)]
    masking = any(graph.name(node) == "softmax" for node in prepared.graph.nodes)
    if (joins or fixed or masking) and spec.calibration.count:
        samples = evenly(spec.calibration, _SAMPLES)
        seen = _Seen(graph, joins, fixed, softmaxes, masking=masking)
        with spec.progress.task(f"compare ranges for {spec.label}", samples.count) as task:
            calibrate(seen, samples, spec.inputs, task)
        for place in seen.masked:
            graph.remove(place)
        for node in fixed:
            if 0 < seen.outputs[node].width * _UNUSED < _width(graph.fixed_range(node)()):
                graph.compute_in_float(node)
        lost = [node for node in softmaxes if seen.lost_sum(node) > _LOST_SUM]
        apart = [node for node in joins if graph.must_part(node, seen)]
        graph.leave_lost_in_float(lost)
        for node in apart:
            graph.part(node)
        ends = [reader for node in apart for reader in graph.read_in_float(node, node)]
        graph.leave_ends_in_float([*lost, *apart, *ends])
    graph.leave_ends_in_float([node for node in prepared.graph.nodes if graph.compares(node)])
    prepared.recompile()
    return prepared


@dataclass(slots=True)
class _Range:
    """The least and the largest value seen, zero among them: int8 ranges hold it."""

    low: float = 0.0
    high: float = 0.0

    @property
    def width(self) -> float:
        return self.high - self.low

    def add(self, values: torch.Tensor) -> None:
        finite = values[values.isfinite()]
        if finite.numel():
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))


class _Graph:
    """A prepared graph and where its observers are; a place is an observer's node, a part one that a join reads."""

    def __init__(self, prepared: Any, new_observer: Callable[[], Any]) -> None:
        self.prepared, self.nodes, self._new_observer = prepared, prepared.graph.nodes, new_observer

    def is_place(self, node: Any) -> bool:
        """Whether a node is an observer of an activation."""
        return (
            isinstance(node, torch.fx.Node)
            and node.op == "call_module"
            and _is_activation_post_process(self.prepared._modules.get(str(node.target)))
            and not observes_weight(self.prepared, node)
        )

    def name(self, node: Any) -> str:
        """Return the operator's plain name: "cat", "flatten" of all three forms, "relu" of nn.ReLU."""
        if not isinstance(node, torch.fx.Node):
            return ""
        if node.op == "call_module":
            return type(self.prepared.get_submodule(str(node.target))).__name__.lower()
        if node.op == "call_method":
            return str(node.target)
        return str(getattr(node.target, "__name__", "")).partition(".")[0] if node.op == "call_function" else node.op

    def place(self, value: Any) -> Any:
        """Return the first observer of a value, or of what it was moved to; None if there is none."""
        waiting = list(value.users)
        for user in waiting:
            if self.is_place(user):
                return user
            waiting += user.users if self.name(user) in _MOVING else ()
        return None

    def observer(self, place: Any) -> Any:
        """Return the module of a place."""
        return self.prepared._modules[str(place.target)]

    def put(self, place: Any, observer: Any) -> None:
        """Exchange the module of a place; others may share the one that was there."""
        self.prepared._modules[str(place.target)] = observer

    def source(self, value: Any, names: frozenset[str]) -> Any:
        """Return what a value comes from, going back through operators of these names and through observers."""
        while self.is_place(value) or (self.name(value) in names and value.args):
            if not isinstance(value.args[0], torch.fx.Node):
                break
            value = value.args[0]
        return value

    def parts(self, join: Any) -> list[Any]:
        """Return the observed parts of a join; none where one is not observed."""
        tensors = join.args[0] if join.args else join.kwargs.get("tensors")
        found = list(tensors) if isinstance(tensors, (list, tuple)) else []
        return found if found and all(self.is_place(part) for part in found) else []

    def fixed_range(self, value: Any) -> Any:
        """Return the constructor of the observer that a value's operator has for its output alone, else None."""
        if not isinstance(value, torch.fx.Node):
            return None
        if value.op == "call_module":
            return _FIXED_QPARAMS_OP_TO_OBSERVER.get(type(self.prepared.get_submodule(str(value.target))))
        return _FIXED_QPARAMS_OP_TO_OBSERVER.get(value.target) if value.op.startswith("call_") else None

    def own_moved_ranges(self) -> None:
        """Let places share an observer only where what lies between keeps the scale."""
        places = [node for node in self.nodes if self.is_place(node)]
        head = {place: place for place in places}

        def head_of(place: Any) -> Any:
            while head[place] is not place:
                place = head[place]
            return place

        for place in places:
            value = place.args[0]
            before = self.parts(value) if self.name(value) in _JOINING else [self._kept_from(value)]
            for other in before:
                if other is not None and self.observer(other) is self.observer(place):
                    head[head_of(place)] = head_of(other)
        first: dict[int, Any] = {}
        own: dict[Any, Any] = {}
        for place in places:
            module = self.observer(place)
            if first.setdefault(id(module), head_of(place)) is not head_of(place):
                self.put(place, own.setdefault(head_of(place), self._new_observer()))

    def _kept_from(self, value: Any) -> Any:
        """Return the place whose scale a value has, or which is multiplied by a number to it; None for neither."""
        while self.name(value) in _MOVING or self.name(value) in _SCALE_KEEPING or self._is_scaled(value):
            value = self._operand(value) or value.args[0]
            if self.is_place(value):
                return value
            if not isinstance(value, torch.fx.Node):
                break
        return None

    def own_fixed_ranges(self) -> None:
        """Take a fixed range away from all values but those of its own activation, and of what keeps their scale."""
        for place in [node for node in self.nodes if self.is_place(node)]:
            if not isinstance(self.observer(place), FixedQParamsObserver):
                continue
            value = place.args[0]
            kept = self.fixed_range(self.source(value, _MOVING | _SCALE_KEEPING))
            if kept is not None and _alike(kept(), self.observer(place)):
                continue
            if kept is not None:
                self.put(place, kept())
                continue
            moved = value
            while self.name(moved) in _MOVING and moved.args and isinstance(moved.args[0], torch.fx.Node):
                moved = moved.args[0]
            # beside it, or where it was moved from, the value may have been observed for another reader
            known = [moved, *(user for user in moved.users if user is not place)]
            owners = [self.observer(one) for one in known if self.is_place(one)]
            free = [one for one in owners if not isinstance(one, FixedQParamsObserver)]
            self.put(place, free[0] if free else self._new_observer())

    def own_scaled_ranges(self) -> None:
        """Let what is added to or multiplied by a number not widen its range: that kernel changes the scale itself."""
        # from the end, so that of `(x + 1) * 40` all three still share an observer when the product is looked at
        for place in reversed([node for node in self.nodes if self.is_place(node)]):
            value = place.args[0]
            scaled = value if self._is_scaled(value) else self._before_relu(value)
            if scaled is not None and self.observer(place) is self.observer(self._operand(scaled)):
                own = self._new_observer()
                before = self.observer(place)
                for later in self._moved_on(place):
                    if self.observer(later) is before:
                        self.put(later, own)

    def _is_scaled(self, value: Any) -> bool:
        operand = self._operand(value)
        return value.op == "call_function" and value.target in _SCALING and operand is not None

    def _operand(self, value: Any) -> Any:
        """Return the observed operand where the other one is a number, else None."""
        places = [arg for arg in value.args if self.is_place(arg)]
        return places[0] if len(places) == 1 and len(value.all_input_nodes) == 1 else None

    def _before_relu(self, value: Any) -> Any:
        """Return the scalar operator whose relu this is, rounded as one with it; else None."""
        before = value.args[0] if self.name(value) == "relu" and value.args else None
        return before if isinstance(before, torch.fx.Node) and self._is_scaled(before) else None

    def _moved_on(self, place: Any) -> Iterator[Any]:
        """Yield a place, and those after it whose kernels give its scale on."""
        waiting = [place]
        while waiting:
            node = waiting.pop()
            if self.is_place(node):
                yield node
            waiting += [
                user
                for user in node.users
                if self.is_place(user) or self.name(user) in _MOVING or self.name(user) in _SCALE_KEEPING
            ]

    def must_part(self, join: Any, seen: _Seen) -> bool:
        """Whether the parts of a join need scales of their own.

        A kernel joins in the scale of its first part: that must be the observer's, as it is of no fixed range and of no
        product with a number. At the end of a graph nothing asks for one scale of unlike ranges; elsewhere the next
        layer does, but what a part is read by beside the join should not suffer from it.
        """
        parts = self.parts(join)
        modules = {id(self.observer(part)) for part in parts}
        roots = [self.source(part, _MOVING | _SCALE_KEEPING) for part in parts]
        odd = any(self.fixed_range(root) is not None or self._is_scaled(root) for root in roots)
        if (odd and len(parts) > 1) or len(modules) > 1:
            return True
        widths = [one.width for one in seen.ranges[join]]
        narrow = [part for part, width in zip(parts, widths, strict=True) if width * _UNLIKE < max(widths)]
        if not narrow:
            return False
        in_float = any(self._leads_out(reader) for reader in join.users)
        return self._ends(join) or in_float or any(len(self._readers(part)) > 1 for part in narrow)

    def _readers(self, part: Any) -> set[Any]:
        """Return what reads the value of a part, in int8 or not."""
        return {*part.users, *(user for user in part.args[0].users if user is not part)}

    def part(self, join: Any) -> None:
        """Compute a join in float, each part in its own range, and its output in one of its own."""
        shared = [self.observer(part) for part in self.parts(join)]
        for part in self.parts(join):
            root = self.source(part, _MOVING | _SCALE_KEEPING)
            fixed = self.fixed_range(root)
            if fixed is not None:
                self.put(part, fixed())
                continue
            before, mine = self.observer(part), list(self._with_source(part))
            alike = {*mine, *self._moved_on(mine[-1])}
            # another part has it too, or what another part is a multiple of
            if any(self.observer(node) is before for node in self.nodes if self.is_place(node) and node not in alike):
                own = self._new_observer()
                for place in mine:
                    if self.observer(place) is before:
                        self.put(place, own)
        if any(self.is_place(user) for user in join.users):
            own = self._new_observer()
            for place in [place for user in list(join.users) if self.is_place(user) for place in self._moved_on(user)]:
                if self.observer(place) in shared:
                    self.put(place, own)
        # FX turns what it knows as a join into an int8 one
        dim = join.kwargs.get("dim", join.kwargs.get("axis", join.args[1] if len(join.args) > 1 else 0))
        join.target = torch.ops.aten.stack.default if self.name(join) == "stack" else torch.ops.aten.cat.default
        join.args, join.kwargs = (join.args[0] if join.args else join.kwargs["tensors"], dim), {}

    def read_in_float(self, value: Any, unrounded: Any) -> list[Any]:
        """Let what leads to no layer in int8 read a value unrounded, or moved since it was so; return its readers.

        Args:
            value: a join that was parted, or its observer, or what moves its values.
            unrounded: the same value in float.
        """
        found = []
        for reader in list(value.users):
            if self._is_end(reader):
                reader.replace_input_with(value, unrounded)
                found.append(reader)
            elif self.is_place(reader):
                found += self.read_in_float(reader, unrounded)
            elif self._leads_out(reader):
                with self.prepared.graph.inserting_after(reader):
                    twin = self.prepared.graph.node_copy(reader, lambda node: unrounded if node is value else node)
                found += self.read_in_float(reader, twin)
        if self.is_place(value) and not value.users:
            self.remove(value)
        return found

    def _leads_out(self, node: Any) -> bool:
        """Whether a value comes to an end of the graph with no layer in int8 between, by moves alone."""
        moves = self.is_place(node) or self.name(node) in _MOVING
        return self._is_end(node) or (moves and any(self._leads_out(user) for user in node.users))

    def _is_end(self, node: Any) -> bool:
        """Whether a node is none of the layers in int8, and none comes after it."""
        return not self.is_layer(node) and self._ends(node)

    def _with_source(self, part: Any) -> Iterator[Any]:
        """Yield a place and those before it that it shares a scale with."""
        yield part
        value = part
        while self.is_place(value) or self.name(value) in _MOVING or self.name(value) in _SCALE_KEEPING:
            if not value.args or not isinstance(value.args[0], torch.fx.Node):
                break
            value = value.args[0]
            if self.is_place(value):
                yield value

    def is_layer(self, node: Any) -> bool:
        """Whether a node multiplies by weights in int8."""
        return is_int8_layer(self.prepared, node)

    def is_layers_output(self, value: Any) -> bool:
        """Whether a value is what a layer rounds: its own output, or that of the relu which is computed with it."""
        if self.is_layer(value):
            return True
        before = value.args[0] if self.name(value) in ("relu", "relu_") and value.args else None
        return isinstance(before, torch.fx.Node) and self.is_layer(before)

    def _ends(self, node: Any) -> bool:
        """Whether no layer in int8 comes after a node."""
        return not any(self.is_layer(later) for later in self._after(node))

    def _after(self, node: Any) -> set[Any]:
        found: set[Any] = set()
        waiting = list(node.users)
        while waiting:
            user = waiting.pop()
            if user not in found:
                found.add(user)
                waiting += user.users
        return found

    def compares(self, node: Any) -> bool:
        """Whether a node compares two computed values with each other."""
        inputs = node.all_input_nodes
        return self.name(node) in _COMPARING and len(inputs) > 1 and all(self.is_place(value) for value in inputs)

    def leave_lost_in_float(self, lost: list[Any]) -> None:
        """Do not round softmaxes whose small values int8 loses, nor what is computed of them value by value."""
        waiting = list(lost)
        while waiting:
            value = waiting.pop()
            for place in [user for user in value.users if self.is_place(user)]:
                if any(self.is_layer(user) for user in place.users):  # which must have it in int8
                    self.put(place, self._new_observer())
                    continue
                waiting += [user for user in place.users if self._goes_on(user)]
                self.remove(place)
            waiting += [user for user in value.users if self._goes_on(user)]

    def compute_in_float(self, activation: Any) -> None:
        """Compute an activation of fixed range in float, and round what it gives in its own range."""
        before = self.fixed_range(activation)()
        own = self._new_observer()
        for place in [place for user in list(activation.users) for place in self._moved_on(user)]:
            observer = self.observer(place)
            if isinstance(observer, FixedQParamsObserver) and _alike(observer, before):
                self.put(place, own)
        # FX makes an int8 kernel of each form that it knows
        source = activation.all_input_nodes[0]
        activation.target = getattr(torch.ops.aten, _FIXED[self.name(activation)]).default
        activation.op, activation.args, activation.kwargs = "call_function", (source,), {}

    def leave_writes_in_float(self) -> None:
        """Do not round what a write into a part of a tensor gave for readers in float: its parts' ranges may be unlike.

        FX rounds it for the view that reads it, since there are int8 views.
        """
        written = [node for node in self.nodes if _is_operator(node) and self.name(node) in _WRITING]
        for node in written:
            for place in self._first_places(node):  # those that are left: what is removed for one may be another's
                for reader in [user for user in list(place.users) if self._is_read_in_float(user)]:
                    reader.replace_input_with(place, place.args[0])
                    for later in [one for one in self._moved_on(reader) if self.is_place(one)]:
                        self.remove(later)
                if not place.users:
                    self.remove(place)

    def leave_divisors_in_float(self) -> None:
        """Do not round what a division divides by, as it was computed of one value: no int8 kernel divides."""
        for node in list(self.nodes):
            place = _DIVISORS.get(self.name(node))
            if place is None or len(node.args) <= place:
                continue
            reader, value = node, node.args[place]
            while isinstance(value, torch.fx.Node):
                if self.is_place(value) and not self.is_layers_output(value.args[0]):
                    source = value.args[0]
                    reader.replace_input_with(value, source)
                    if not value.users:
                        self.remove(value)
                    value = source
                elif self._makes_divisor(value):
                    reader, (value,) = value, value.all_input_nodes
                else:
                    break

    def _makes_divisor(self, value: Any) -> bool:
        """Whether a value is made of one other, and read once."""
        is_made = self.name(value) in _BEFORE_DIVISION or self.name(value) in _MOVING
        return is_made and len(value.all_input_nodes) == len(value.users) == 1

    def _first_places(self, node: Any) -> list[Any]:
        """Return the observers of a value, and of what it is moved to before it is observed."""
        waiting, found = list(node.users), []
        for user in waiting:
            if self.is_place(user):
                found.append(user)
            elif self.name(user) in _MOVING:
                waiting += user.users
        return list(dict.fromkeys(found))

    def _is_read_in_float(self, reader: Any) -> bool:
        """Whether no int8 kernel takes a value that a node reads, or moves."""
        if self.is_place(reader) or self.name(reader) in _MOVING:
            return all(self._is_read_in_float(user) for user in reader.users)
        return reader.op == "output" or _is_operator(reader)

    def _goes_on(self, user: Any) -> bool:
        return self.name(user) in _MOVING or self.name(user) in _ELEMENTWISE

    def leave_ends_in_float(self, causes: list[Any]) -> None:
        """Round nothing after the last layers, where a cause lies there: what is connected with it is left in float."""
        ends = {node for node in self.nodes if node.op != "output" and self._is_end(node)}
        reached = {cause for cause in causes if cause in ends}
        waiting = list(reached)
        while waiting:
            node = waiting.pop()
            beside = [
                other
                for other in (*node.all_input_nodes, *node.users)
                if other in ends and not self.is_layers_output(other) and other.op not in ("placeholder", "get_attr")
            ]
            for other in beside:
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
        for place in [node for node in reached if self.is_place(node)]:
            if not self.is_layers_output(place.args[0]):
                self.remove(place)

    def remove(self, place: Any) -> None:
        """Take an observer out, so that its value is not rounded."""
        place.replace_all_uses_with(place.args[0])
        self.prepared.graph.erase_node(place)
        delattr(self.prepared, str(place.target))


def _is_operator(node: Any) -> bool:
    """Whether a node is an operator of an exported graph that FX does not know, and leaves in float."""
    return isinstance(node.target, torch._ops.OpOverload)


def _width(fixed: Any) -> float:
    """Return the width of a fixed range."""
    width: float = float(fixed.scale) * (fixed.quant_max - fixed.quant_min + 1)
    return width


def _alike(one: Any, other: Any) -> bool:
    """Whether two fixed ranges are the same."""
    return bool(one.scale == other.scale) and bool(one.zero_point == other.zero_point)


@dataclass(slots=True)
class _Sums:
    """How far rounded softmaxes are from summing to one."""

    missed: float = 0.0
    rows: int = 0


class _Seen(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a prepared graph without its observers, and sees the ranges of joins and the sums of softmaxes.

    Attributes:
        ranges: of each part of each join.
        outputs: of each activation of fixed range.
        masked: the places of values that hold a mask, where the graph has a softmax to leave such out.
    """

    def __init__(
        self, graph: _Graph, joins: list[Any], fixed: list[Any], softmaxes: list[Any], *, masking: bool
    ) -> None:
        super().__init__()
        self.prepared = graph.prepared
        self.ranges = {join: [_Range() for _ in graph.parts(join)] for join in joins}
        self.outputs = {node: _Range() for node in fixed}
        self._sums = {node: _Sums() for node in softmaxes}
        self.masked: list[Any] = []
        self._observers = {node: graph.observer(graph.place(node)) for node in softmaxes}
        self._graph, self._watches_masks = graph, masking

    def lost_sum(self, softmax: Any) -> float:
        """Return how far from one the rounded values of a softmax sum up to, on average."""
        sums = self._sums[softmax]
        return sums.missed / sums.rows if sums.rows else 0.0

    def forward(self, *tensors: Any) -> Any:
        """Run the graph."""
        return _Watched(self.prepared, self).run(*tensors)

    def see(self, node: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note what a node took and gave."""
        if node in self.ranges:
            for seen, part in zip(self.ranges[node], args[0] if args else kwargs["tensors"], strict=True):
                seen.add(part)
        elif node in self.outputs:
            self.outputs[node].add(result)
        elif node in self._sums:
            if node.op == "call_module":
                dim = self.prepared.get_submodule(str(node.target)).dim
            else:
                dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            observer = self._observers[node]
            is_fixed = isinstance(observer, FixedQParamsObserver)
            step = float(observer.scale if is_fixed else result.max() / (observer.quant_max - observer.quant_min))
            rounded = (result / step).round() * step
            sums = rounded.sum(-1 if dim is None else dim)
            self._sums[node].missed += float((sums - 1).abs().sum())
            self._sums[node].rows += sums.numel()
        elif self._watches_masks and node not in self.masked and self._graph.is_place(node):
            is_float = isinstance(result, torch.Tensor) and result.is_floating_point()
            if is_float and bool((result < _MASK).any()):
                self.masked.append(node)


class _Watched(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a prepared graph, passing over its observers, and shows each node's values."""

    def __init__(self, prepared: Any, seen: _Seen) -> None:
        super().__init__(prepared)
        self._seen = seen

    def run_node(self, n: Any) -> Any:
        """Run a node, and pass its values to the observers."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        self._seen.see(n, args, kwargs, result)
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Pass over an observer."""
        if _is_activation_post_process(self.fetch_attr(target)):
            return args[0]
        return super().call_module(target, args, kwargs)


# --- Which layers an FX graph has, before and after it is converted.


def is_int8_layer(prepared: Any, node: Any) -> bool:
    """Whether a node multiplies by weights in int8, as a module or as a function."""
    return layer_of(prepared, node) is not None or any(
        observes_weight(prepared, source) for source in node.all_input_nodes
    )


def layer_of(prepared: Any, node: Any) -> str | None:
    """Return the module name of a prepared graph's node that is a convolution or a linear layer in int8, else None."""
    name = layer_name(prepared, node)
    is_int8 = name is not None and getattr(prepared.get_submodule(name), "qconfig", None) is not None
    return name if is_int8 else None


def layer_name(prepared: Any, node: Any) -> str | None:
    """Return the name of a convolution or linear, in int8 or in float, as the table of layers has it; else None."""
    import torch

    if node.op != "call_module":
        return None
    part = prepared.get_submodule(str(node.target))
    inner = part[0] if isinstance(part, torch.nn.Sequential) and len(part) else part
    return str(node.target) if isinstance(inner, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)) else None


def with_weights(prepared: Any, kept: Collection[str]) -> dict[Any, bool]:
    """Return whether each node with weights is in int8: the layers, and the modules that the user keeps in float."""
    found = {}
    for node in prepared.graph.nodes:
        if layer_of(prepared, node) is not None:
            found[node] = True
        elif node.op == "call_module" and inside(str(node.target), kept):
            weights = prepared.get_submodule(str(node.target)).parameters()
            found |= {node: False} if next(weights, None) is not None else {}
    return found


def split_layers(converted: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of convolutions and linears that compute in int8, and of those in float."""
    import torch
    from torch.ao.nn import intrinsic
    from torch.ao.nn.quantized import Linear
    from torch.ao.nn.quantized.modules.conv import _ConvNd

    graph = getattr(converted, "graph", None)  # of FX; eager mode leaves a plain module
    quantized = [node.name for node in graph.nodes if _is_quantized_call(node)] if graph else []
    kept: list[str] = []
    parts = dict(converted.named_modules())
    for name, part in parts.items():
        if isinstance(part, (Linear, _ConvNd)):
            quantized.append(name)
        elif isinstance(part, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            parent = name.rpartition(".")[0]
            # of a float conv-relu that was fused, people know the convolution's name
            kept.append(parent if isinstance(parts[parent], intrinsic._FusedModule) else name)
    return tuple(quantized), tuple(kept)


def _is_quantized_call(node: Any) -> bool:
    """Whether a node is torch.nn.functional's conv or linear, converted."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name.startswith(("conv", "linear")) and "quantized" in str(getattr(node.target, "__module__", ""))
