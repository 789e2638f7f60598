"""A user's module, made what the later steps start from."""

from __future__ import annotations

import copy
from typing import Any

from edgeq.errors import UnsupportedError, UsageError, first_line


def settled(module: Any, source: str) -> Any:
    """Return a copy in eval mode and contiguous: lowering fails on channels_last weights, PTQ on training mode.

    Args:
        module: a torch.nn.Module.
        source: where it comes from, for messages.

    Raises:
        UsageError: it cannot be copied, or has layers whose shapes are not known yet.
        UnsupportedError: its weights are not float32.
    """
    import torch

    for name, tensor in module.named_parameters():
        if torch.nn.parameter.is_lazy(tensor):
            what = f"{source}: the shape of {name} is not known yet (a lazy module that has not run)"
            raise UsageError(what, "run the model once on an example in the factory, before its weights are loaded")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            what = f"{source}: expected float32 weights to start from, but {name} is {dtype}"
            raise UnsupportedError(what, "return model.float() from the factory, and give float32 example inputs")
    try:
        module = copy.deepcopy(module)
    except Exception as err:  # deepcopy runs the user's own __deepcopy__
        raise UsageError(f"{source}: the model cannot be copied: {first_line(err)}", "make it deep-copyable") from err
    module.to(device="cpu")
    module.eval()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.data.contiguous()
    return module
