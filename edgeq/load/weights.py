"""State dicts: read without running code, checked against the model; batch-norm statistics for random weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from edgeq.errors import UsageError, first_line
from edgeq.samples import Dataset, batches

_NESTED = ("state_dict", "model_state_dict", "model")
_SHOWN = 3
_QUOTED = 100


def load_state_dict(module: Any, path: Path) -> None:
    """Fill `module` with the state dict in `path`.

    Accepted: .safetensors, or what torch.save wrote of a state dict, plain or under `state_dict`,
    `model_state_dict` or `model`; a `module.` prefix (DistributedDataParallel) is dropped.

    Raises:
        UsageError: the file is missing, broken or more than weights, or its keys or shapes do not fit.
    """
    state = _read(path)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    own = module.state_dict()
    # checkpoints from before PyTorch 0.4.1 have no such counter, torchvision's own resnet18 among them
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        parts = [f"{len(keys)} {word} ({_some(keys)})" for word, keys in _words(missing, unexpected) if keys]
        raise UsageError(f"{path} does not fit the model: {'; '.join(parts)}", "give the model that it was saved from")
    for key, value in state.items():
        if not hasattr(value, "shape"):  # a quantized layer's packed weight and bias, or its dtype
            continue
        if tuple(value.shape) != tuple(own[key].shape):
            what = f"{path}: {key} has shape {list(value.shape)}, the model wants {list(own[key].shape)}"
            raise UsageError(what, "give the model that it was saved from")
        if value.dtype.is_floating_point != own[key].dtype.is_floating_point:
            what = f"{path}: {key} is {_dtype(value)}, the model wants {_dtype(own[key])}"
            is_float = value.dtype.is_floating_point
            fix = (
                "the weights of the quantized model" if is_float else "the float weights, from before any quantization"
            )
            raise UsageError(what, f"give {fix}")
    own.update(state)  # and not a new dict: quantized layers read their version from what this one carries
    module.load_state_dict(own)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _words(missing: list[str], unexpected: list[str]) -> tuple[tuple[str, list[str]], ...]:
    return (("missing keys", missing), ("unknown keys", unexpected))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")


def _read(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise UsageError(f"no checkpoint {path}", "check --weights")
    try:
        state = (
            _read_safetensors(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as err:
        what = f"{path} is not a plain state dict: it is damaged, or holds pickled objects, which could run code"
        raise UsageError(what, "save model.state_dict() with torch.save, or use .safetensors") from err
    except Exception as err:  # torch and safetensors raise many types for a truncated file
        what = f"{path} cannot be read as a checkpoint: {_why(err)}"
        raise UsageError(what, "check that the copy is whole, or save it again") from err
    return _tensors(state, path)


def _why(err: Exception) -> str:
    """Return the reason in a few words; for a file that was cut off, torch's own say nothing more."""
    if isinstance(err, EOFError) or "PytorchStreamReader" in str(err):
        return "it is cut off or damaged"
    return first_line(err, _QUOTED)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _tensors(state: Any, path: Path) -> dict[str, Any]:
    import torch

    if isinstance(state, dict):
        nested = next((state[key] for key in _NESTED if isinstance(state.get(key), dict)), state)
        # quantized layers keep weight and bias as a pair, and their dtype beside it
        kinds = (torch.Tensor, tuple, torch.dtype)
        if nested and all(isinstance(k, str) and isinstance(v, kinds) for k, v in nested.items()):
            return dict(nested)
    what = f"{path} holds {type(state).__name__}, expected a state dict of tensors"
    raise UsageError(what, "save model.state_dict() with torch.save, or use .safetensors")


def estimate_batch_norm(module: Any, dataset: Dataset, specs: Any) -> Any:
    """Return a copy whose batch-norm statistics are those of `dataset`, for models with random weights.

    Untrained statistics (mean 0, variance 1) let activations vanish in deep models, so that int8 would be judged
    on noise. Uses the cumulative average (momentum None) over all batches. A norm that sees one value for each
    channel, as after global pooling of a single image, has no variance to learn and stays as it is.
    """
    import copy

    import torch

    module = copy.deepcopy(module)
    norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    hooks = [norm.register_forward_pre_hook(_train_where_it_varies) for norm in norms]
    with torch.no_grad():
        for batch in batches(dataset, specs):
            # copied, since a model may work in place on what it is given
            module(*(torch.from_numpy(array.copy()) for array in batch.inputs))
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return module


def _train_where_it_varies(norm: Any, args: tuple[Any, ...]) -> None:
    (features,) = args
    norm.train(features.numel() > features.shape[1])
