"""Schemes that only change how weights are stored; the arithmetic stays float32."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import QuantizedModel
from edgeq.quantize.capture import example_tensors
from edgeq.quantize.fx_workarounds import open_layers
from edgeq.quantize.result import float_copy, quantized_model, type_names
from edgeq.quantize.spec import QuantizeSpec, inside, matched_names

_ALL = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding", "EmbeddingBag", "LSTM", "GRU", "RNN")


def weight_only_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Store the layers in int8, a scale for each output or row, for TorchScript.

    Raises:
        UnsupportedError: an exported program, or a model without such layers.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _stored(spec, "weight-only-int8", _ALL, bits=8)


def weight_only_linear_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Store linear layers and embeddings in int8, the only layers whose non-constant weights XNNPACK accepts.

    Raises:
        UnsupportedError: an exported program, or a model without such layers.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _stored(spec, "weight-only-int8", ("Linear", "Embedding", "EmbeddingBag"), bits=8)


def stored_half(spec: QuantizeSpec) -> QuantizedModel:
    """Store the layers in half, for TorchScript's CPU runtimes, which have no half kernels.

    Raises:
        UnsupportedError: an exported program, a weight beyond what half holds, or a model without such layers.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _stored(spec, "fp16", _ALL, bits=16)


def _stored(spec: QuantizeSpec, scheme: str, kinds: Sequence[str], *, bits: int) -> QuantizedModel:
    module = float_copy(spec, scheme)
    kept = matched_names(spec.keep_fp32, type_names(module))
    open_layers(module, example_tensors(spec.inputs))
    layers = {name: part for name, part in module.named_modules() if type(part) in KINDS}
    chosen = [name for name, part in layers.items() if type(part).__name__ in kinds and not inside(name, kept)]
    for name in chosen:
        part = layers[name]
        if bits == 16:
            check_half_range(name, part)
        try:
            exchanged = KINDS[type(part)](part, bits)
        except ValueError as err:
            raise UnsupportedError(f"{scheme} cannot store {name}: {err}", f"give --keep-fp32 {name}") from err
        module = _put(module, name, exchanged.eval())
    for owner in module.modules():
        if any(isinstance(part, _Stored) for part in owner.children()):
            owner.register_forward_pre_hook(_lend)
            owner.register_forward_hook(_take_back, always_call=True)
    covers = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    left = [name for name in layers if name not in chosen]
    return quantized_model(scheme, module, (chosen, left), covers=covers)


def check_half_range(name: str, part: Any) -> None:
    """Refuse a module with a weight that half precision cannot hold.

    Raises:
        UnsupportedError: which one.
    """
    import torch

    largest = torch.finfo(torch.float16).max
    for weight, value in part.named_parameters():
        most = float(value.detach().abs().max())
        if most > largest:
            what = f"{name}.{weight} holds {most:.3g}, but half precision holds at most {largest:.0f}"
            raise UnsupportedError(what, f"give --keep-fp32 {name}, or use another scheme")


def _put(module: Any, name: str, part: Any) -> Any:
    """Put `part` in the place of the module that `name` names, which may be the whole model.

    It gets the other one's settings, such as `num_embeddings`: forward may read them, as Whisper's does.
    """
    if not name:
        return part
    for setting, value in vars(module.get_submodule(name)).items():
        if isinstance(value, int | float | str | tuple) and not hasattr(part, setting):
            setattr(part, setting, value)
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)
    return module


# --- Tables of embeddings in int8, beside layers that dynamic-int8 computes in int8.

# what takes a table but no number of it, apart from lookups: a stored table has the same dtype, device and shape
_ASKING = (torch.Tensor.dtype, torch.Tensor.device, torch.Tensor.shape, torch.Tensor.requires_grad)
_NO_READERS = (
    *(functional.embedding, torch.embedding, functional.embedding_bag, torch.embedding_bag),
    *(each.__get__ for each in _ASKING),
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.is_floating_point),
)


def store_embeddings(module: Any, inputs: tuple[Any, ...], kept: Collection[str]) -> tuple[list[str], list[str]]:
    """Store the tables of a module's nn.Embedding and nn.EmbeddingBag layers in int8, with a scale for each row.

    A table that a function reads too stays in float: its product would be computed with weights that become float32 at
    each call. So does one of a subclass with a forward of its own.

    Args:
        module: changed in place.
        inputs: tensors that it takes.
        kept: names of modules that stay in float.

    Returns:
        The names of the layers whose tables are stored, and of those that stay in float.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)}
    tied = {name: part.weight for name, part in layers.items()}
    for part in layers.values():  # a tied head, which is packed by itself, has a weight of its own for the moment
        part.weight = nn.Parameter(part.weight.detach().clone(), requires_grad=False)
    read: set[int] = set()

    class Readers(TorchFunctionMode):  # type: ignore[misc]
        """Sees each function that takes a table."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func not in _NO_READERS:
                read.update(id(leaf) for leaf in torch.utils._pytree.tree_leaves((args, kwargs)))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Readers():
        module(*inputs)
    stored = [
        name
        for name, part in layers.items()
        if name  # not the whole model
        and type(part) in (nn.Embedding, nn.EmbeddingBag)
        and part.max_norm is None
        and id(part.weight) not in read
        and not inside(name, kept)
    ]
    for name in stored:
        _put(module, name, KINDS[type(layers[name])](layers[name], 8).eval())
    in_float = [name for name in layers if name not in stored]
    for name in in_float:  # it is stored once, with what it is tied to
        layers[name].weight = tied[name]
    return stored, in_float


def store_lookups(
    graph_module: Any, name_of: Callable[[Any], str], is_float: Callable[[Any], bool]
) -> tuple[list[str], list[str]]:
    """Store the tables of an exported graph's lookups in int8, with a scale for each row, as StoredEmbedding does.

    Args:
        graph_module: a torch.fx.GraphModule of ATen operators, changed in place.
        name_of: the name of a lookup's module.
        is_float: whether a lookup stays in float.

    Returns:
        The names of the modules whose tables are stored, and of those that stay in float.
    """
    aten, graph = torch.ops.aten, graph_module.graph
    stored: dict[str, None] = {}
    left: dict[str, None] = {}
    parts: dict[str, tuple[str, str]] = {}  # by a table's name, those of its int8 numbers and its scales
    for node in [node for node in graph.nodes if node.target is aten.embedding.default]:
        table, index = node.args[:2]
        if table.op != "get_attr" or index.op == "get_attr":  # a lookup of constant rows is a constant
            continue
        values = operator.attrgetter(table.target)(graph_module)
        name = name_of(node)
        if values.dtype != torch.float32 or is_float(node):
            left[name] = None
            continue
        stored[name] = None
        if table.target not in parts:
            part = _Stored(values.detach(), None, bits=8)
            own = f"{str(table.target).replace('.', '_')}_stored"
            graph_module.register_buffer(own, part.stored)
            graph_module.register_buffer(f"{own}_scale", part.scale)
            parts[table.target] = (own, f"{own}_scale")
        with graph.inserting_before(node):
            rows, scales = (
                graph.call_function(aten.embedding.default, (graph.get_attr(each), index))
                for each in parts[table.target]
            )
            in_float = graph.call_function(aten.to.dtype, (rows, torch.float32))
            product = graph.call_function(aten.mul.Tensor, (in_float, scales))
        for made in (rows, scales, in_float, product):
            made.meta = dict(node.meta)
        if "val" in node.meta:
            rows.meta["val"] = node.meta["val"].to(torch.int8)
            scales.meta["val"] = node.meta["val"][..., :1]
        node.replace_all_uses_with(product)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return [*stored], [name for name in left if name not in stored]


# --- Modules whose weights are stored in int8 or in half, and become float32 right before their use.


_STEPS = 127  # symmetric int8 leaves -128 out


class _Stored(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Holds a weight as int8 with a float32 scale for each of `axis`, or as half."""

    scale: Any
    bias: Any
    stored: Any
    like: Any = None

    def __init__(self, weight: Any, bias: Any, *, bits: int, axis: int = 0) -> None:
        super().__init__()
        scale = None
        if bits == 8:
            others = tuple(i for i in range(weight.ndim) if i != axis)
            scale = weight.abs().amax(dim=others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _STEPS
            weight = torch.round(weight / scale).to(torch.int8)
        else:
            weight = weight.half()
        self.register_buffer("stored", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> Any:
        """The float32 weight, for code that calls a function with it instead of the module.

        Its type is that of what the module around it was given: of a cast that needs no input, TorchScript would store
        the result.
        """
        like = torch.zeros(()) if self.like is None else self.like.reshape(-1)[:1].to(torch.float32)
        weight = self.stored.type_as(like)
        return weight if self.scale is None else weight * self.scale


def _lend(owner: Any, given: tuple[Any, ...]) -> None:
    """Show the stored layers of a module its first input."""
    tensors = [item for item in given if isinstance(item, torch.Tensor)]
    for part in owner.children():
        if isinstance(part, _Stored):
            part.like = tensors[0] if tensors else None


def _take_back(owner: Any, *_: Any) -> None:
    _lend(owner, ())


class StoredLinear(_Stored):
    """nn.Linear as a batched product, the only one that XNNPACK computes with non-constant weights."""

    def __init__(self, linear: Any, bits: int) -> None:
        super().__init__(linear.weight.t().contiguous(), linear.bias, bits=bits, axis=1)
        self.out_features = linear.out_features

    @property
    def weight(self) -> Any:
        """As of nn.Linear, [out, in]."""
        return super().weight.t()

    def forward(self, x: Any) -> Any:
        """Take [..., in], return [..., out]."""
        rows = x.reshape(1, -1, x.shape[-1])
        y = torch.bmm(rows, self.stored.type_as(x).unsqueeze(0))
        y = y if self.scale is None else y * self.scale
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)


class StoredConv(_Stored):
    """nn.Conv1d, 2d or 3d."""

    def __init__(self, conv: Any, bits: int) -> None:
        super().__init__(conv.weight, conv.bias, bits=bits)
        self.call = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[conv.weight.ndim]
        self.options = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding mode {conv.padding_mode}")

    def forward(self, x: Any) -> Any:
        """Take [N, C, …], return [N, out, …]."""
        y = self.call(x, self.stored.type_as(x), None, *self.options)
        shape = (1, -1, *[1] * (self.stored.ndim - 2))
        y = y if self.scale is None else y * self.scale.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)


class StoredEmbedding(_Stored):
    """nn.Embedding: only the rows that are looked up become float32."""

    def __init__(self, embedding: Any, bits: int) -> None:
        if embedding.max_norm is not None:
            raise ValueError("max_norm, which changes the rows that are looked up")
        super().__init__(embedding.weight, None, bits=bits)

    def forward(self, index: Any) -> Any:
        """Take whole numbers [...], return [..., width]."""
        rows = functional.embedding(index, self.stored).to(torch.float32)
        return rows if self.scale is None else rows * functional.embedding(index, self.scale)


class StoredEmbeddingBag(_Stored):
    """nn.EmbeddingBag: only the rows that are looked up become float32, all of them where a padding row is left out."""

    def __init__(self, bag: Any, bits: int) -> None:
        if bag.max_norm is not None:
            raise ValueError("max_norm, which changes the rows that are looked up")
        super().__init__(bag.weight, None, bits=bits)
        self.mode, self.padding_idx, self.include_last_offset = bag.mode, bag.padding_idx, bag.include_last_offset

    def forward(self, index: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:
        """Take whole numbers [N, L], or [L] with the offsets [N] of bags, return [N, width]."""
        if self.padding_idx is None:
            rows = functional.embedding(index, self.stored).to(torch.float32)
            rows = rows if self.scale is None else rows * functional.embedding(index, self.scale)
            if index.dim() == 2:
                rows = rows if per_sample_weights is None else rows * per_sample_weights.unsqueeze(-1)
                return rows.amax(1) if self.mode == "max" else rows.mean(1) if self.mode == "mean" else rows.sum(1)
            index = torch.arange(index.shape[0], device=index.device)
        else:
            # a cast that needs no input would be a constant of the archive
            rows = self.stored.type_as(index.reshape(-1)[:1].to(torch.float32))
            rows = rows if self.scale is None else rows * self.scale
        return functional.embedding_bag(
            index,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )


class StoredRecurrent(nn.Module):  # type: ignore[misc]
    """nn.LSTM, nn.GRU or nn.RNN; its biases stay as they are."""

    def __init__(self, recurrent: Any, bits: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        weights = recurrent._flat_weights
        self.stored = nn.ModuleList(
            _StoredMatrix(weight.detach(), None, bits=bits) if weight.ndim == 2 else nn.Identity() for weight in weights
        )

    def forward(self, x: Any, hx: Any = None) -> Any:
        """Take and return what the layer does."""
        before = self.recurrent._flat_weights
        pairs = zip(self.stored, before, strict=True)
        self.recurrent._flat_weights = [
            part(x) if isinstance(part, _StoredMatrix) else weight for part, weight in pairs
        ]
        try:
            return self.recurrent(x, hx)
        finally:
            self.recurrent._flat_weights = before


class _StoredMatrix(_Stored):
    def forward(self, like: Any) -> Any:
        """Return the matrix in the dtype of `like`."""
        weight = self.stored.type_as(like)
        return weight if self.scale is None else weight * self.scale


KINDS: dict[Any, Any] = {
    nn.Linear: StoredLinear,
    nn.Conv1d: StoredConv,
    nn.Conv2d: StoredConv,
    nn.Conv3d: StoredConv,
    nn.Embedding: StoredEmbedding,
    nn.EmbeddingBag: StoredEmbeddingBag,
    nn.LSTM: StoredRecurrent,
    nn.GRU: StoredRecurrent,
    nn.RNN: StoredRecurrent,
}
