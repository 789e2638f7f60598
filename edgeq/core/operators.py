"""What torch.export is given: operators that all runtimes have, what captures can follow, and sizes that vary."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.core.system import replaced

DEFORM = "torchvision.deform_conv2d.default"  # as a graph names it


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Let deformable convolutions, random relus and masks of transformers be captured or traced in the block.

    Deformable convolutions become `plain_deform_conv2d`: torchvision's own operator is missing from ExecuTorch 1.5,
    from the lite interpreter, from an x86 process without torchvision, and from opset 18, in which edgeq exports to
    ONNX (`DeformConv` came with opset 19). `nn.RReLU`, whose slope is random in training only, becomes a leaky relu: no
    other runtime has it. `nn.TransformerEncoder` and `nn.TransformerDecoder` ask whether a mask that
    they were given hides just what comes later, which torch.export cannot follow; the mask says it in any case.
    """
    import torch

    def is_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001
        return is_causal is True

    functional = torch.nn.functional
    random = functional.rrelu

    def rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False) -> Any:
        if training:
            return random(x, lower, upper, training, inplace)
        return functional.leaky_relu(x, (lower + upper) / 2, inplace)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(torch.nn.modules.transformer, "_detect_is_causal_mask", is_causal))
        stack.enter_context(replaced(functional, "rrelu", rrelu))
        if "torchvision" in sys.modules:
            stack.enter_context(replaced(torch.ops.torchvision, "deform_conv2d", plain_deform_conv2d))
        yield


@contextlib.contextmanager
def whole_recurrent() -> Iterator[None]:
    """Let recurrent layers be captured in the block without being unrolled over their steps.

    torch.export keeps them as one operator (torch 2.15), but finds the shapes of its results by unrolling it, which
    fixes the number of steps. Here only the shapes are computed; nothing runs in the block.
    """
    import torch
    from torch._decomp import decomposition_table

    # rest: weights, has_biases, layers, dropout, train, bidirectional, batch_first
    def sequence(x: Any, hidden: Any, rest: tuple[Any, ...]) -> Any:
        return x.new_empty((*x.shape[:2], hidden.shape[-1] * (2 if rest[5] else 1)))

    def gru(x: Any, hidden: Any, *rest: Any) -> tuple[Any, ...]:
        return sequence(x, hidden, rest), hidden.new_empty(hidden.shape)

    def lstm(x: Any, hidden: Any, *rest: Any) -> tuple[Any, ...]:
        return sequence(x, hidden[0], rest), *(state.new_empty(state.shape) for state in hidden)

    aten, key = torch.ops.aten, torch._C.DispatchKey.CompositeImplicitAutograd
    shapes = {aten.lstm.input: lstm, aten.gru.input: gru, aten.rnn_tanh.input: gru, aten.rnn_relu.input: gru}
    before = {op: (op.py_kernels[key], decomposition_table[op]) for op in shapes}
    try:
        for op, function in shapes.items():
            op.py_kernels[key] = decomposition_table[op] = function
            op._dispatch_cache.clear()
        yield
    finally:
        for op, (kernel, decomposition) in before.items():
            op.py_kernels[key], decomposition_table[op] = kernel, decomposition
            op._dispatch_cache.clear()


def plain_deform_conv2d(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Any:
    """Return what `torch.ops.torchvision.deform_conv2d` does, with its arguments.

    Every output pixel gets its kernel's samples side by side, kernel_h × kernel_w of them, so that what follows is a
    plain convolution of that kernel and stride with the same weights, which quantizes like any other. Source: Zhu et
    al., Deformable ConvNets v2, 2018, equation 1; the order of the offsets is torchvision's, (y, x) for each place.

    Args:
        x: [N, C, H, W].
        weight: [out, C / groups, kernel_h, kernel_w].
        offset: [N, offset_groups × kernel_h × kernel_w × 2, out_h, out_w], in pixels.
        mask: [N, offset_groups × kernel_h × kernel_w, out_h, out_w], a factor for each sample.
        bias: [out].
        stride_h: pixels from one output's kernel to the next below.
        stride_w: the same to the right.
        pad_h: rows of zeros above and below the image.
        pad_w: columns of zeros to its left and right.
        dilation_h: pixels from one place of the kernel to the next below.
        dilation_w: the same to the right.
        groups: parts of the channels with weights of their own.
        offset_groups: parts of the channels with offsets of their own.
        use_mask: whether `mask` is multiplied; else it is ignored.

    Returns:
        [N, out, out_h, out_w]
    """
    import torch
    from torch.nn import functional

    channels, height, width = x.shape[1:]
    kernel_h, kernel_w = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    rows, columns = out_h * kernel_h, out_w * kernel_w

    def side_by_side(values: Any, last: int) -> Any:
        """[N, offset_groups × kernel_h × kernel_w × last, out_h, out_w] to [N × offset_groups, rows, columns, last]."""
        parts = values.reshape(-1, kernel_h, kernel_w, last, out_h, out_w)
        return parts.permute(0, 4, 1, 5, 2, 3).reshape(-1, rows, columns, last)

    def places(out: int, kernel: int, stride: int, pad: int, dilation: int) -> Any:
        """[out × kernel], the pixel of each sample before it is moved."""
        first = torch.arange(out, device=x.device)[:, None] * stride - pad
        return (first + torch.arange(kernel, device=x.device) * dilation).reshape(-1).to(x.dtype)

    moved = side_by_side(offset, 2)
    # pixels as grid_sample counts them: -1 and 1 are the image's edges, not the middles of its first and last pixels
    at_y = places(out_h, kernel_h, stride_h, pad_h, dilation_h)[:, None]
    at_x = places(out_w, kernel_w, stride_w, pad_w, dilation_w)
    grid_y = (2 * (moved[..., 0] + at_y) + 1) / height - 1
    grid_x = (2 * (moved[..., 1] + at_x) + 1) / width - 1
    samples = functional.grid_sample(
        x.reshape(-1, channels // offset_groups, height, width),
        torch.stack((grid_x, grid_y), -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    if use_mask:
        samples = samples * side_by_side(mask, 1).permute(0, 3, 1, 2)
    samples = samples.reshape(-1, channels, rows, columns)
    # torchvision gives zeros for a missing bias; only one of the model's own belongs into the convolution
    own = bias if isinstance(bias, torch.nn.Parameter) else None
    result = functional.conv2d(samples, weight, own, (kernel_h, kernel_w), groups=groups)
    return result if own is not None else result + bias.reshape(-1, 1, 1)


# --- Recurrent cells as linear layers: nn.GRUCell and the like multiply in one operator, which no quantizer knows. The
# formulas are those of PyTorch's documentation of nn.LSTMCell, nn.GRUCell and nn.RNNCell.


def lstm_step(of_input: Any, of_hidden: Any, cell: Any) -> tuple[Any, Any]:
    """Return hidden state and cell state, [..., hidden], of both products, [..., 4 * hidden], and the last cell state.

    The products are those of input and hidden state with their weights, biases added.
    """
    import torch

    i, f, g, o = (of_input + of_hidden).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_step(of_input: Any, of_hidden: Any, hidden: Any) -> Any:
    """Return the hidden state, [..., hidden], of both products, [..., 3 * hidden], and the last hidden state."""
    import torch

    (r, z, n), (hidden_r, hidden_z, hidden_n) = of_input.chunk(3, -1), of_hidden.chunk(3, -1)
    z = torch.sigmoid(z + hidden_z)
    n = torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n)
    return n + z * (hidden - n)


def plain_cells() -> dict[str, Callable[..., Any]]:
    """Return what computes recurrent cells by linear layers: by the operator's name, with its arguments.

    These are input [N, in], hidden state [N, hidden], of an LSTM that and the cell state, the weights of input and
    hidden state, [gates * hidden, in or hidden], and their biases, or None.
    """
    import torch

    def products(x: Any, hidden: Any, weights: tuple[Any, ...]) -> tuple[Any, Any]:
        of_input, of_hidden, bias_of_input, bias_of_hidden = (*weights, None, None)[:4]
        linear = torch.nn.functional.linear
        return linear(x, of_input, bias_of_input), linear(hidden, of_hidden, bias_of_hidden)

    return {
        "lstm_cell": lambda x, state, *weights: lstm_step(*products(x, state[0], weights), state[1]),
        "gru_cell": lambda x, hidden, *weights: gru_step(*products(x, hidden, weights), hidden),
        "rnn_tanh_cell": lambda x, hidden, *weights: torch.tanh(sum(products(x, hidden, weights))),
        "rnn_relu_cell": lambda x, hidden, *weights: torch.relu(sum(products(x, hidden, weights))),
    }


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Let layers be captured in the block as what quantizers and runtimes know.

    Recurrent cells become `plain_cells`. Adaptive maximum pools become maxima over windows: ExecuTorch 1.5 has none,
    nor has ONNX where the windows differ. nn.Bilinear becomes a linear layer and a product: its own operator is in no
    quantizer, and not in ExecuTorch.
    """
    import torch

    functional = torch.nn.functional

    def bilinear(left: Any, right: Any, weight: Any, bias: Any = None) -> Any:
        outputs, width, _ = weight.shape  # [out, left, right]
        product = functional.linear(left, weight.transpose(1, 2).reshape(-1, width))
        result = (product.unflatten(-1, (outputs, -1)) * right.unsqueeze(-2)).sum(-1)
        return result if bias is None else result + bias

    def adaptive(axes: int) -> Callable[..., Any]:
        original = getattr(functional, f"adaptive_max_pool{axes}d")

        def pool(x: Any, output_size: Any, return_indices: bool = False) -> Any:
            counts = (output_size,) * axes if isinstance(output_size, int) else tuple(output_size)
            if return_indices:
                return original(x, output_size, return_indices)
            for axis, count in zip(range(-axes, 0), counts, strict=True):
                size = x.shape[axis]
                if count is None or (isinstance(size, int) and count == size):
                    continue
                if count == 1:
                    x = x.amax(axis, keepdim=True)
                    continue
                if not isinstance(size, int):
                    return original(x, output_size)
                # the windows of PyTorch's adaptive pools, which may overlap
                ends = [(index * size // count, -(-(index + 1) * size // count)) for index in range(count)]
                x = torch.cat(
                    [x.narrow(axis, start, end - start).amax(axis, keepdim=True) for start, end in ends], axis
                )
            return x

        return pool

    with contextlib.ExitStack() as stack:
        for name, cell in plain_cells().items():
            stack.enter_context(replaced(torch._VF, name, cell))
        stack.enter_context(replaced(functional, "bilinear", bilinear))
        for axes in (1, 2, 3):
            stack.enter_context(replaced(functional, f"adaptive_max_pool{axes}d", adaptive(axes)))
        yield


# --- Sizes that vary, as torch.export takes them.


BATCH = "batch"  # the size that --dynamic-batch leaves open


def with_open_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return inputs whose first size is any: what --dynamic-batch asks for, and what trains faster."""
    batch = VaryingSize(axis=0, name=BATCH, least=1, most=None)
    return tuple(dataclasses.replace(spec, varying=(batch, *spec.varying)) for spec in specs)


def traced_at(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs to capture a model with: an open size of one is two, since torch.export takes 1 for fixed."""
    return tuple(
        dataclasses.replace(
            spec,
            shape=tuple(
                2 * size if any(one.axis == axis and one.most is None for one in spec.varying) else size
                for axis, size in enumerate(spec.shape)
            ),
        )
        for spec in specs
    )


def exported(module: Any, inputs: tuple[Any, ...], specs: Sequence[TensorSpec]) -> Any:
    """Return a module as a torch.export.ExportedProgram whose sizes vary as `specs` say.

    Args:
        module: a torch.nn.Module.
        inputs: example tensors, as large as `traced_at` says.
        specs: its inputs.

    Raises:
        Exception: torch.export's own.
    """
    import torch

    with open_steps(specs):
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes(specs))


def open_steps(specs: Sequence[TensorSpec]) -> AbstractContextManager[None]:
    """Return a context in which torch leaves the number of a recurrent layer's steps open, where sizes vary."""
    return whole_recurrent() if any(spec.varying for spec in specs) else contextlib.nullcontext()


def dynamic_shapes(specs: Sequence[TensorSpec]) -> tuple[Any, ...] | None:
    """Return the sizes that vary as torch.export takes them; None if none does."""
    import torch

    dims: dict[str, Any] = {}
    for one in itertools.chain.from_iterable(spec.varying for spec in specs):
        if one.name in dims:
            continue
        if one.step == 1:
            dims[one.name] = torch.export.Dim(one.name, min=one.least, max=one.most)
        else:
            steps = torch.export.Dim(f"{one.name}_steps", min=one.least // one.step, max=(one.most or 0) // one.step)
            dims[one.name] = one.step * steps
    if not dims:
        return None
    return tuple({one.axis: dims[one.name] for one in spec.varying} or None for spec in specs)


def size_bound(size: Any) -> int:
    """Return a size of a captured graph, the largest that it takes where it varies."""
    if isinstance(size, int):
        return size
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    hint = size.node.hint
    return int(bound) if bound.is_number and bound.is_finite and not math.isinf(float(bound)) else int(hint)
