"""The quantization steps of a TorchScript model's outputs, seen in a run."""

from __future__ import annotations

from typing import Any

from edgeq.errors import UnsupportedError, first_line

# what moves values and changes none of them
_REARRANGING = frozenset({"view", "_unsafe_view", "clone", "permute", "transpose", "squeeze", "unsqueeze", "select"})


def output_steps(converted: Any, inputs: tuple[Any, ...]) -> tuple[float | None, ...]:
    """Return the scale of each output that leaves the graph straight from a quantized tensor.

    Seen in a run: which operators keep a scale is PyTorch's to know.

    Args:
        converted: a quantized module.
        inputs: tensors that it takes.

    Raises:
        UnsupportedError: the engine of the process cannot run it.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    steps: list[tuple[Any, float]] = []  # the tensors too, so that no id is used again

    def step_of(tensor: Any) -> float | None:
        return next((step for known, step in steps if known is tensor), None)

    class Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operator."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            op = func.__name__.partition(".")[0]
            if op == "dequantize" and args[0].qscheme() == torch.per_tensor_affine:
                steps.append((result, float(args[0].q_scale())))
            elif op in _REARRANGING and (step := step_of(args[0])) is not None:
                steps.append((result, step))
            return result

    try:
        with torch.no_grad(), Recorder():
            outputs = torch.utils._pytree.tree_leaves(converted(*inputs))
    except Exception as err:  # each engine lacks operators, shapes and ratios of scales, and says so in its own way
        what = f"the {torch.backends.quantized.engine} engine cannot run the quantized model: {first_line(err)}"
        fix = "leave the module that it fails in in float (--keep-fp32), or use an ExecuTorch target"
        raise UnsupportedError(what, fix) from err
    return tuple(step_of(leaf) for leaf in outputs)
