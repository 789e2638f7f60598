"""Capture a model with torch.export, once for all ExecuTorch targets of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import operator
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from edgeq.core.errors import (
    EdgeqError,
    UnsupportedError,
    UsageError,
    calling_line,
    first_line,
    traced_line,
    user_line,
)
from edgeq.core.operators import (
    DEFORM,
    exported,
    open_steps,
    plain_cells,
    plain_deform_conv2d,
    plain_layers,
    plain_operators,
    traced_at,
    with_open_batch,
)
from edgeq.core.results.model import LoadedModel, ModelWork, TensorSpec
from edgeq.core.samples import Sizes, fixed_at, sizes_text, tried_sizes, varying_outputs, varying_sizes
from edgeq.core.speedups import decomposed
from edgeq.core.system import Uncompiled, replaced, unlogged

MODULE_KEY = "edgeq_module"  # survives decomposition and lowering in `meta["custom"]`

# of an output's largest value; threads may sum in another order, and nothing else may differ between two runs
_SAME = 1e-5


def example_tensors(specs: Sequence[TensorSpec], seed: int = 0) -> tuple[Any, ...]:
    """Return one seeded tensor for each input, contiguous, within the input's range."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            values = torch.rand(spec.shape, generator=generator) * (spec.high - spec.low) + spec.low
        elif spec.highs:
            ends = torch.tensor(spec.highs, dtype=torch.float64).reshape(spec.shape[1:]) + 1
            values = torch.rand(spec.shape, dtype=torch.float64, generator=generator) * (ends - spec.low) + spec.low
            values = values.floor()
        else:
            values = torch.randint(int(spec.low), int(spec.high) + 1, spec.shape, generator=generator)
        tensors.append(values.to(dtype))
    return tuple(tensors)


def calls_of(parts: Iterable[Any], module: Any, inputs: tuple[Any, ...]) -> Counter[Any]:
    """Run a module once, and return how often it calls which of its parts."""
    import torch

    calls: Counter[Any] = Counter()
    hooks = [part.register_forward_pre_hook(lambda part, _inputs: calls.update((part,))) for part in parts]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def run_once(model: LoadedModel) -> tuple[tuple[TensorSpec, ...], ModelWork | None]:
    """Run the float model on random inputs to find a mismatch early; return the outputs, and what the model computes.

    The second is None where the model cannot be watched.

    Raises:
        UsageError: the model does not take the inputs that were given.
        UnsupportedError: an output is not a tensor, or depends on random numbers or on earlier calls.
    """
    module = model.model.module() if model.kind == "exported" else model.model
    leaves = _leaves(module, model.inputs)
    work = _refuse_state(module, model.inputs, leaves)
    tried = tried_sizes(model.inputs)
    shapes = [[tuple(leaf.shape) for leaf in _leaves_at(module, model.inputs, sizes)] for sizes in tried]
    varying = varying_outputs(tried, shapes) or ((),) * len(leaves)
    outputs = tuple(
        TensorSpec(
            name=f"output{i}",
            dtype=str(leaf.dtype).removeprefix("torch."),
            shape=tuple(leaf.shape),
            varying=varying[i],
        )
        for i, leaf in enumerate(leaves)
    )
    return outputs, work


def _leaves(module: Any, specs: Sequence[TensorSpec], seed: int = 0) -> list[Any]:
    import torch

    try:
        with torch.no_grad():
            result = module(*example_tensors(specs, seed))
    except Exception as err:  # the user's forward may raise anything
        given = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
        what = f"the model fails on its inputs ({given}){user_line(err)}: {first_line(err)}"
        raise UsageError(what, _advice(module, specs)) from err
    leaves: list[Any] = torch.utils._pytree.tree_leaves(result)
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        came = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise UnsupportedError(f"the model returns {came}, expected tensors", "return tensors only")
    return leaves


def _leaves_at(module: Any, specs: Sequence[TensorSpec], sizes: Sizes) -> list[Any]:
    """Run a model that takes the largest sizes on others; raises an UnsupportedError where it fails on them."""
    try:
        return _leaves(module, fixed_at(specs, sizes))
    except UsageError as err:
        ranges = ", ".join(f"{name}={one.text}" for name, one in varying_sizes(specs).items())
        what = f"the sizes {ranges} cannot vary: at {sizes_text(sizes)}, {err.what}"
        fix = "make forward take its sizes from its inputs, or give the range in --input that it takes"
        if len(sizes) > 1:
            fix += "; sizes that must be equal need one name, such as {seq=8..128} in each input"
        raise UnsupportedError(what, fix) from err


def _refuse_state(module: Any, specs: Sequence[TensorSpec], before: Sequence[Any]) -> ModelWork | None:
    """Refuse a model that answers the same input otherwise after another one: no comparison with it means anything.

    Returns:
        What the model computed for the other input, whose outputs nobody needs.

    Raises:
        UnsupportedError: it draws random numbers, or keeps state between calls.
    """
    kept = [output.clone() for output in before]  # a module may return its own buffer
    held = {name: buffer.clone() for name, buffer in module.named_buffers()}
    work = _watched(module, specs)
    after = _leaves(module, specs)
    if len(kept) == len(after) and all(map(_is_same, kept, after)):
        return work
    what = "the model is not deterministic: the same input gave different outputs on a second call"
    changed = [name for name, buffer in module.named_buffers() if name in held and not _is_same(held[name], buffer)]
    if changed:
        fix = "make that state an input and an output of forward, and name them with --state INPUT=OUTPUT"
        raise UnsupportedError(f"{what}: forward changes {', '.join(changed[:3])}", fix)
    fix = "if forward draws random numbers, like F.dropout without training=self.training, remove that"
    raise UnsupportedError(what, f"{fix}; if it keeps state between calls, make it an input and an output, for --state")


def _is_same(left: Any, right: Any) -> bool:
    import torch

    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.dtype.is_floating_point or torch.equal(left, right):
        return bool(torch.equal(left, right))
    finite = left[left.isfinite()]
    room = _SAME * float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.allclose(left, right, rtol=0.0, atol=room, equal_nan=True))


def capture(model: LoadedModel) -> Any:
    """Return the model as a torch.export.ExportedProgram; each node knows the module that it came from.

    Raises:
        UnsupportedError: the model cannot be captured (data-dependent control flow, or a size that forward fixes);
            names the line.
    """
    import edgeq.core.exir  # noqa: F401  # the quantizers that come next import executorch.exir

    # two rows where the batch is open, since torch.export takes sizes of 0 and 1 for constants
    inputs = example_tensors(traced_at(model.inputs))
    guards: list[_Guard] = []
    if model.kind == "exported":
        program = model.model
        plain = {DEFORM: plain_deform_conv2d}
        plain |= {f"aten.{name}.default": cell for name, cell in plain_cells().items()}
        held = {node.target for node in program.graph.nodes if str(node.target) in plain}
        if held:
            program = decomposed(program, {target: plain[str(target)] for target in held})
        with silenced(), plain_operators():
            program = with_plain_bags(program, inputs, model.inputs)
    else:
        try:
            with silenced(), _plain_bags(), plain_operators(), plain_layers(), _noted(guards):
                program = exported(model.model, inputs, model.inputs)
        except Exception as err:  # export raises many types, most of them internal
            if any(one.most is None for spec in model.inputs for one in spec.varying):
                lines = [guard.line for guard in guards if guard.is_equation and guard.line]
                why = f": forward fixes it{lines[0]}" if lines else f"{user_line(err)}: {first_line(err)}"
                raise _one_batch_size(why) from err
            if refused := _fixed_by_forward(err, guards, model.inputs):
                raise refused from err
            what = f"torch.export cannot capture the model{user_line(err)}: {first_line(err)}"
            # TorchScript keeps one branch for ever, and so its targets refuse these too
            depends = "data-dependent" in str(err)
            fix = "replace data-dependent control flow (torch.where, torch.cond)"
            fix += "" if depends else ", or try a TorchScript target"
            if varying_sizes(model.inputs) and not depends:
                fix = "make forward take its sizes from its inputs, or give fixed sizes or another range in --input"
            raise UnsupportedError(what, fix) from err
    # Swin V2 zeroes a part of a copied bias: without writes in place, that is a constant like others. torch.vmap leaves
    # calls that open and close a batch, which a second trace replaces by operators on whole batches
    is_mapped = any(getattr(node.target, "__module__", "") == _VMAP for node in program.graph.nodes)
    if is_mapped or any(_writes(node) for node in _computed_from_constants(program)):
        with silenced(), open_steps(model.inputs):
            program = decomposed(program, {})
    return with_constants(with_modules(plain_pads(plain_convolutions(program))), inputs, model.inputs)


_VMAP = "torch._functorch.predispatch"


def capture_batched(model: LoadedModel) -> Any | None:
    """Return the model captured for batches of any size, which train faster.

    None for inputs without a batch axis, for an exported program, and for a forward that fixes the size of its batch.
    """
    if model.kind == "exported" or not all(spec.shape for spec in model.inputs):
        return None
    try:
        return capture(dataclasses.replace(model, inputs=with_open_batch(model.inputs)))
    except UnsupportedError:  # the capture of one size says what is wrong with the model
        return None


def dynamic_capture(model: LoadedModel) -> Any:
    """Return the model captured for batches of any size.

    Raises:
        UnsupportedError: it takes one size only.
    """
    if model.kind == "exported" or not all(spec.shape for spec in model.inputs):
        raise _one_batch_size("")
    return capture(dataclasses.replace(model, inputs=with_open_batch(model.inputs)))


def _one_batch_size(why: str) -> UnsupportedError:
    what = f"the model accepts one batch size only, so --dynamic-batch cannot capture it{why}"
    fix = "remove fixed sizes from its forward (x.flatten(1), not x.view(1, -1)), or omit --dynamic-batch"
    return UnsupportedError(what, fix)


def steps_that_vary(program: Any) -> str:
    """Return the line of the first recurrent layer of a program whose number of steps varies; "" if there is none."""
    for node in program.graph.nodes:
        if str(node.target) in ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"):
            steps = node.args[0].meta["val"].shape[1 if node.args[-1] else 0]
            if not isinstance(steps, int):
                return traced_line(node.meta.get("stack_trace")) or f" {node.name}"
    return ""


# --- Why a size cannot vary: torch.export's constraints in the words of `--input`, with the line that makes them.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Guard:
    """A condition on sizes that a line of forward needs.

    Attributes:
        sources: what the sizes belong to, as torch names them: "L['x'].size()[2]".
        is_equation: whether it is one, which fixes more than a bound does.
        line: of the user's own code; "" where there is none.
    """

    sources: tuple[str, ...]
    is_equation: bool
    line: str


@contextlib.contextmanager
def _noted(guards: list[_Guard]) -> Iterator[None]:
    """Note the conditions on sizes as torch makes them: its error at the end names no line."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    log = ShapeEnv._log_guard

    def noted(self: Any, prefix: str, guard: Any, *args: Any, **kwargs: Any) -> Any:
        found = [source for symbol in guard.free_symbols for source in self.var_to_sources.get(symbol, ())]
        names = tuple(str(source.name() if callable(source.name) else source.name) for source in found)
        guards.append(_Guard(sources=names, is_equation=str(guard).startswith("Eq("), line=calling_line()))
        return log(self, prefix, guard, *args, **kwargs)

    with replaced(ShapeEnv, "_log_guard", noted):
        yield


_EQUAL = re.compile(r"The values of (\w+) = .* and (\w+) = .* must always be equal")
_CONSTANT = re.compile(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_CONDITION = re.compile(r"Not all values of (\w+) = (\S+) in the specified range .* satisfy the generated guard (.+)")


def _fixed_by_forward(err: Exception, guards: Sequence[_Guard], specs: Sequence[TensorSpec]) -> UnsupportedError | None:
    """Return the error of a model that cannot take all sizes that `specs` state; None for another error."""
    places = {one.name.removesuffix("_steps"): (spec, one) for spec in reversed(specs) for one in spec.varying}
    text = str(err)
    found = _CONSTANT.search(text) or _CONDITION.search(text)
    equal = _EQUAL.search(text)
    name = (found or equal)[1].removesuffix("_steps") if found or equal else ""  # type: ignore[index]
    if "Constraints violated" not in text or name not in places:
        return None
    spec, size = places[name]
    own = f"[{spec.name!r}].size()[{size.axis}]"
    on_size = [guard for guard in guards if guard.line and any(own in source for source in guard.sources)]
    line = next((guard.line for guard in on_size if guard.is_equation), on_size[0].line if on_size else "")
    what = f"input {spec.name!r} cannot vary in dimension {size.axis} ({size.name}, {size.text})"
    fix = f"give a fixed size in --input, or make forward take it from {spec.name}.shape[{size.axis}] without int()"
    if found is None:
        other = equal[2].removesuffix("_steps") if equal else ""
        partner = places[other][0].name if other in places else other
        what += f" apart from input {partner!r}: forward needs equal sizes{line}"
        return UnsupportedError(what, f"give both sizes one name in --input, such as {{{other}={size.text}}}")
    if found.re is _CONSTANT:
        return UnsupportedError(f"{what}: forward works with {found[2]} only{line}", fix)
    condition = found[3].rstrip(".").replace(found[2], size.name)
    suggested = re.search(rf"{size.name} = (\d+)\*_{size.name}\b", text)
    if suggested:
        step = int(suggested[1])
        least, most = -(-size.least // step) * step, (size.most or 0) // step * step
        fix = f"give a range of multiples in --input, {{{size.name}={least}..{most}/{step}}}, or pad in forward"
    return UnsupportedError(f"{what}: forward needs {condition}{line}", fix)


def _advice(module: Any, specs: Sequence[TensorSpec]) -> str:
    """Return what to do about a forward that fails: weights in half need no other --input, but float32."""
    floats = {str(value.dtype).removeprefix("torch.") for value in module.parameters() if value.is_floating_point()}
    others = sorted(floats - {"float32", *(spec.dtype for spec in specs)})
    if others:
        return f"its weights are {' and '.join(others)}: give it in float32 (model.float()); the scheme converts it"
    if any(not spec.dtype.startswith(("float", "bool")) for spec in specs):
        ranges = ", ".join(
            f"{spec.name} from {spec.low:.0f} to {spec.high:.0f}"
            for spec in specs
            if not spec.dtype.startswith("float")
        )
        return f"give --input with the shapes, dtypes and whole numbers that its forward takes (here: {ranges})"
    return "give --input with the shapes and dtypes that its forward takes"


def plain_pads(program: Any) -> Any:
    """Write pads by constants that crop as slices, in place, and return the program.

    ExecuTorch's kernel takes no negative sizes.
    """
    import torch

    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
            continue
        x, sizes, *rest = node.args
        if node.target is aten.pad.default and rest and rest[0] != "constant":
            continue
        if not any(isinstance(size, int) and size < 0 for size in sizes):
            continue
        made = []
        with program.graph.inserting_before(node):
            for index in range(0, len(sizes), 2):
                first, last = (max(0, -size) if isinstance(size, int) else 0 for size in sizes[index : index + 2])
                if first or last:
                    axis = node.meta["val"].dim() - 1 - index // 2
                    x = program.graph.call_function(
                        aten.slice.Tensor, (x, axis, first, -last if last else torch.iinfo(torch.int64).max)
                    )
                    made.append(x)
            added = [size if not isinstance(size, int) else max(0, size) for size in sizes]
            if any(added):
                x = program.graph.call_function(node.target, (x, added, *rest))
                made.append(x)
        for part in made:
            part.meta.update(node.meta)
            part.meta["val"] = part.target(part.args[0].meta["val"], *part.args[1:])
        node.replace_all_uses_with(x)
        program.graph.erase_node(node)
        for spec in program.graph_signature.output_specs:
            if spec.arg.name == node.name:
                spec.arg.name = x.name
    program.graph_module.recompile()
    return program


def plain_convolutions(program: Any) -> Any:
    """Write convolutions of any kind as PyTorch's functions for one kind do, in place, and return the program.

    torch.jit.trace records `_convolution`, and a decomposed program has `convolution`: no quantizer knows these.
    """
    import torch

    aten = torch.ops.aten
    plain = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
    transposed = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
    general = (aten.convolution.default, aten._convolution.default, aten._convolution.deprecated)
    for node in program.graph.nodes:
        if node.target not in general:
            continue
        x, weight, bias, stride, padding, dilation, is_transposed, output_padding, groups = node.args[:9]
        dims = node.meta["val"].dim() - 2
        if is_transposed:
            node.target = transposed[dims]
            node.args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
        else:
            node.target, node.args = plain[dims], (x, weight, bias, stride, padding, dilation, groups)
    program.graph_module.recompile()
    return program


def with_modules(program: Any) -> Any:
    """Let each node know the module that it came from.

    A graph that was converted from an archive of torch.jit has no calls of modules: there the weight's owner is it.
    """
    import torch

    layers = {"conv": "Conv", "linear": "Linear", "embedding": "Embedding"}
    stacks = {node: node.meta["nn_module_stack"] for node in program.graph.nodes if node.meta.get("nn_module_stack")}
    names = {node: _module_name(list(stack.values())[-1][0]) for node, stack in stacks.items()}
    weights = program.graph_signature.inputs_to_parameters if not any(names.values()) else {}
    for node in program.graph.nodes:
        read = [weights[arg.name] for arg in node.args[:2] if isinstance(arg, torch.fx.Node) and arg.name in weights]
        kind = next((kind for op, kind in layers.items() if str(node.target).startswith(f"aten.{op}")), None)
        if read and kind is not None and (owner := read[0].rpartition(".")[0]):
            names[node] = owner
            node.meta["nn_module_stack"] = {**stacks.get(node, {}), owner: (owner, f"torch.nn.{kind}")}
    for node, name in names.items():
        # the whole dict is replaced, since nodes may share one
        node.meta["custom"] = {**node.meta.get("custom", {}), MODULE_KEY: name}
    return program


def _module_name(entry: str) -> str:
    """Return a module's name without torch.export's prefixes."""
    return str(entry).removeprefix("L['self'].").removeprefix("L__self__.").removeprefix("L['self']")


def with_constants(program: Any, inputs: tuple[Any, ...], specs: Sequence[TensorSpec]) -> Any:
    """Return the program with results in place of what would be computed from constants alone in every run.

    These are resized ones, as of a position embedding, for which runtimes lack operators (`_upsample_bicubic2d_aa`),
    weights that forward computes or transposes, which quantizers take for activations, and what layers make of
    parameters, such as a learned query: XNNPACK quantizes no constant as it runs.
    """
    import torch

    def is_wanted(node: Any) -> bool:
        """Whether a constant may be worth keeping: it is a resized one, a layer's output, or weights of its own."""
        kinds = [str(user.target) for user in node.users if node in user.args[1:3]]  # a weight or a bias
        multiplied = any(kind.startswith(("aten.conv", "aten.linear", "aten.matmul", "aten.mm.")) for kind in kinds)
        return multiplied or str(node.target).startswith(("aten.conv", "aten.linear")) or "upsample" in str(node.target)

    if not any(is_wanted(node) for node in _computed_from_constants(program, with_zeros=True)):
        return program
    module = program.module()
    values: dict[Any, Any] = {}  # of nodes that depend on no input
    folded = False
    written = written_into(module.graph)
    fixed: set[Any] = set()
    for node in module.graph.nodes:
        inputs_fixed = _is_zeros(node) or (
            bool(node.all_input_nodes) and all(arg in fixed for arg in node.all_input_nodes)
        )
        if node not in written and (node.op == "get_attr" or (node.op == "call_function" and inputs_fixed)):
            fixed.add(node)
    sources: dict[Any, frozenset[Any]] = {}  # what it is computed from
    for node in list(module.graph.nodes):
        if node in written:
            continue
        if node.op == "get_attr":
            sources[node] = frozenset([node])
            values[node] = functools.reduce(getattr, node.target.split("."), module)
        elif _is_zeros(node):
            sources[node] = frozenset()
            values[node] = torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
        elif node.op == "call_function" and node.all_input_nodes and all(arg in values for arg in node.all_input_nodes):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
            sources[node] = frozenset().union(*(sources[arg] for arg in node.all_input_nodes))
            if is_wanted(node) and _takes_no_more(node, values, sources[node], fixed):
                constant = _in_place_of(node, module, values[node])
                values[constant], sources[constant] = values[node], frozenset([constant])
                fixed.add(constant)
                folded = True
    if not folded:
        return program
    module.graph.eliminate_dead_code()
    module.recompile()
    with silenced():
        return with_modules(exported(module, inputs, specs))


def _in_place_of(node: Any, module: Any, value: Any) -> Any:
    """Exchange a node of a module's graph for a parameter, where quantizers look for weights; return its node."""
    import torch

    name = _own_name(node) or f"constant_{node.name}"
    place, _, leaf = name.rpartition(".")
    if hasattr(module.get_submodule(place), leaf):
        delattr(module.get_submodule(place), leaf)
    parameter = torch.nn.Parameter(value.contiguous(), requires_grad=False)
    module.get_submodule(place).register_parameter(leaf, parameter)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta.update(node.meta)
    node.replace_all_uses_with(constant)
    return constant


def _own_name(node: Any) -> str:
    """Return the name of a matrix whose transpose, the node, is all that is read of it, and that in products; or ""."""
    turned = str(node.target).startswith(("aten.t.", "aten.transpose", "aten.permute", "aten.numpy_T"))
    multiplied = all(str(user.target).startswith(("aten.matmul", "aten.mm.")) for user in node.users)
    source = node.all_input_nodes[0]
    is_alone = source.op == "get_attr" and len(source.users) == 1
    same = [other for other in node.graph.nodes if other.op == "get_attr" and other.target == source.target]
    return str(source.target) if turned and multiplied and is_alone and len(same) == 1 else ""


def _computed_from_constants(program: Any, *, with_zeros: bool = False) -> list[Any]:
    """Return the calls of a program that read parameters, buffers, perhaps zeros, and what is computed from these."""
    inputs = set(program.graph_signature.user_inputs)
    known: set[Any] = set()
    found = []
    for node in program.graph.nodes:
        if (node.op == "placeholder" and node.name not in inputs) or (with_zeros and _is_zeros(node)):
            known.add(node)
        elif node.op == "call_function" and node.all_input_nodes and known.issuperset(node.all_input_nodes):
            known.add(node)
            found.append(node)
    return found


def _is_zeros(node: Any) -> bool:
    """Whether a node makes a tensor of zeros of a fixed size, such as a first hidden state."""
    makers = ("aten.zeros.default", "aten.new_zeros.default", "aten.zeros_like.default")
    return str(node.target) in makers and all(isinstance(size, int) for size in node.meta["val"].shape)


def _takes_no_more(node: Any, values: Mapping[Any, Any], sources: Collection[Any], fixed: Collection[Any]) -> bool:
    """Whether a program with a constant in place of its sources stores no more, or the constant is a resized one."""
    held = sum(value.numel() for value in map(values.__getitem__, sources) if hasattr(value, "numel"))
    # a layer's output is computed here even where others share its weights: it is small, and see `with_constants`
    is_layer = str(node.target).startswith(("aten.conv", "aten.linear"))
    alone = is_layer or all(user in fixed for one in sources for user in one.users)
    return "upsample" in str(node.target) or (alone and values[node].numel() <= held)


def written_into(graph: Any) -> set[Any]:
    """Return the nodes that are written into, themselves or through a view: forward's results, and no constants."""
    found: set[Any] = set()
    for node in graph.nodes:
        place = node if _writes(node) else None
        while place is not None and place.op == "call_function" and place.all_input_nodes:
            place = place.all_input_nodes[0]
            found.add(place)
    return found


def _writes(node: Any) -> bool:
    """Whether a node is a call of an operator that writes in place."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return schema is not None and bool(schema.is_mutable)


@contextlib.contextmanager
def _plain_bags() -> Iterator[None]:
    """Let embedding bags of one size, [N, L] whole numbers, be captured as a lookup and a sum, mean or maximum.

    ExecuTorch 1.5.1 has no `_embedding_bag_forward_only`, and the ONNX exporter of torch 2.15 writes a loop over bags.
    """
    import torch

    functional = torch.nn.functional
    original = functional.embedding_bag

    def embedding_bag(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(input, weight, *args, **kwargs)
        call.apply_defaults()
        mode, weights, padding = (call.arguments[name] for name in ("mode", "per_sample_weights", "padding_idx"))
        if input.dim() != 2 or call.arguments["max_norm"] is not None or (mode == "max" and padding is not None):
            return original(input, weight, *args, **kwargs)
        return _plain_bag(input, weight, mode, weights, padding)

    with replaced(functional, "embedding_bag", embedding_bag):
        yield


def _plain_bag(ids: Any, table: Any, mode: str, weights: Any, padding: int | None) -> Any:
    """Return the sum, mean or maximum of the rows of each bag, float [N, size], for ids [N, L]."""
    import torch

    rows = torch.nn.functional.embedding(ids, table)
    if weights is not None:
        rows = rows * weights.unsqueeze(-1)
    if padding is not None:
        padding = padding % table.shape[0]  # counted from the table's end where it is negative
        counted = (ids != padding).unsqueeze(-1).to(rows.dtype)
        total = (rows * counted).sum(1)
        return total if mode == "sum" else total / counted.sum(1).clamp(min=1)
    return rows.amax(1) if mode == "max" else getattr(rows, mode)(1)


def with_plain_bags(program: Any, inputs: tuple[Any, ...], specs: Sequence[TensorSpec]) -> Any:
    """Return an exported program with its bags of one size as `_plain_bags` has them; itself without any.

    Such bags have offsets that forward counts up from 0 by their size.
    """
    import torch

    aten = torch.ops.aten
    kinds = (aten.embedding_bag.padding_idx, aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
    if not any(node.target in kinds for node in program.graph.nodes):
        return program
    module: Any = program.module()
    modes, changed = ("sum", "mean", "max"), False
    for node in [node for node in module.graph.nodes if node.target in kinds]:
        # (table, ids [N x L], offsets [N], scale_grad, mode, sparse, weights [N x L], has_last, padding)
        given: tuple[Any, ...] = (*node.args, *(None,) * 9)
        table, ids, offsets, _, mode, _, weights, has_last, padding = given[:9]
        padding = None if padding == -1 and node.target is not kinds[0] else padding
        readers = [reader for reader in node.users if reader.args[1] != 0]
        counted = offsets.target is aten.arange.start_step and offsets.args[0] == 0 and len(offsets.args) == 3
        if not counted or has_last or (mode == 2 and padding is not None) or any(one.users for one in readers):
            continue
        for reader in readers:
            module.graph.erase_node(reader)
        size = offsets.args[2]
        with module.graph.inserting_before(node):
            shaped = module.graph.call_function(aten.reshape.default, (ids, [-1, size]))
            factors = (
                None if weights is None else module.graph.call_function(aten.reshape.default, (weights, [-1, size]))
            )
            bag = module.graph.call_function(_plain_bag, (shaped, table, modes[mode or 0], factors, padding))
        for made in (shaped, bag):
            made.meta.update({key: value for key, value in node.meta.items() if key != "val"})
        for reader in list(node.users):
            reader.replace_all_uses_with(bag)
            module.graph.erase_node(reader)
        module.graph.erase_node(node)
        changed = True
    module.graph.eliminate_dead_code()
    module.recompile()
    return exported(module, inputs, specs) if changed else program


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep torch from logging and printing whole graphs in addition to edgeq's error message."""
    import torch.export._trace

    # its only use of sys; standard error itself belongs to the progress bars
    with unlogged(), replaced(torch.export._trace, "sys", SimpleNamespace(stderr=io.StringIO())):
        yield


# --- What a float model is made of: convolutions, or matrix products.


def _watched(module: Any, specs: Sequence[TensorSpec]) -> ModelWork | None:
    """Run the float model on random inputs, and return what it computes and looks up; None if it cannot be watched.

    Elementwise operators do not count. The fused path of attention is off, since it is one operator that no formula
    knows; a recurrent layer of oneDNN is another, whose weights are used once for each step.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    def storages(tensors: Iterable[Any]) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    held = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in (*module.parameters(), *module.buffers())}
    weights, tables = held.keys(), set[int]()
    recurrent = {kind: storages(tensors) for kind, tensors in _recurrent_weights(module).items()}
    macs: Counter[str] = Counter()
    products = 0

    class Watch(Uncompiled, TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal products
            result = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__.lstrip("_")
            if name == "mkldnn_rnn_layer":
                steps, batch = args[0].shape[:2]
                macs["LSTM"] += steps * batch * sum(weight.numel() for weight in args[1:3])
            elif name.startswith("embedding"):
                tables.update(storages(args[:1]) & weights)
            elif func.overloadpacket in flop_registry:
                count = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result) // 2
                factors = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
                if "convolution" in name:
                    macs["convolution"] += count
                elif read := storages(factors) & weights:
                    macs[next((kind for kind in recurrent if read & recurrent[kind]), "linear")] += count
                else:
                    macs["attention"] += count
                    products += 2 if name.startswith("scaled_dot_product") else 1
            return result

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TF32 on GPUs, where the flags are set
            with Watch():
                _leaves(module, specs, seed=1)
    except EdgeqError:  # not every operator runs below a dispatch mode
        _leaves(module, specs, seed=1)
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return ModelWork(
        convolution_macs=macs["convolution"],
        linear_macs=macs["linear"],
        lstm_macs=macs["LSTM"],
        gru_macs=macs["GRU"],
        rnn_macs=macs["RNN"],
        attention_macs=macs["attention"],
        attention_products=products,
        table_share=sum(held[table] for table in tables) / max(sum(held.values()), 1),
    )


def _recurrent_weights(module: Any) -> dict[str, list[Any]]:
    """Return the weights of recurrent layers by kind: of modules, eager or scripted, and of an exported program."""
    import torch

    found: dict[str, list[Any]] = {"LSTM": [], "GRU": [], "RNN": []}
    for inner in module.modules():
        kind = getattr(inner, "original_name", type(inner).__name__)
        if kind in found:
            found[kind] += inner.parameters()
    for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
        kind = str(node.target).removeprefix("aten.")[:4].strip("._").upper()
        if str(node.target).startswith("aten.") and kind in found:
            held = [operand.target for operand in node.all_input_nodes if operand.op == "get_attr"]
            found[kind] += [operator.attrgetter(name)(module) for name in held]
    return found
