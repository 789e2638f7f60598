"""Sources: load what the user names as a contiguous `LoadedModel` in eval mode with known inputs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError, first_line, nearest
from edgeq.core.results.model import LoadedModel, SourceKind, TensorSpec, Weights
from edgeq.core.safe_load import check_torchscript
from edgeq.core.samples import Dataset, batches
from edgeq.core.sources import SOURCE_SUFFIXES, factory_model_name
from edgeq.load.exported import contiguous, exported_inputs, load_exported
from edgeq.load.inputs import parse_input, tensor_spec
from edgeq.load.onnx import load_onnx
from edgeq.load.user_code import UserFunction, load_function

ARTIFACT_KINDS: dict[str, SourceKind] = {".pte": "pte", ".ptl": "ptl"}

_QUANTIZATION = "quantization."  # torchvision:quantization.NAME comes quantized, quantized_NAME does not

_IMAGE_INPUT = "1x3x224x224"  # what torchvision's classification models are trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A source after its code ran, before its weights and inputs are settled."""

    name: str
    module: Any
    weights: Weights
    example_inputs: tuple[Any, ...] | None


def load_model(
    source: str,
    *,
    weights: str | None,
    inputs: Sequence[str],
    name: str | None,
    seed: int,
    trusted: bool = False,
) -> LoadedModel:
    """Load what `source` names.

    Args:
        source: torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.onnx, model.pte or model.ptl.
        weights: a state dict (.safetensors, .pt, .pth) or a torchvision weights name; None for none.
        inputs: texts of `--input`, in order; empty where the source brings example inputs.
        name: overrides the model's name.
        seed: of the random weights that a torchvision model without weights gets.
        trusted: whether code in a model's file may run (`--trust-source`).

    Raises:
        UsageError: the source, its weights or its inputs are not usable.
        EnvironmentProblem: weights could not be downloaded.
        UnsupportedError: weights given for a program that brings its own.
    """
    suffix = Path(source).suffix
    if suffix in SOURCE_SUFFIXES:
        return _load_file(Path(source), weights=weights, inputs=inputs, name=name, trusted=trusted)
    if source.startswith("torchvision:"):
        found = _torchvision(source.removeprefix("torchvision:"), weights, seed)
        inputs = inputs or (_IMAGE_INPUT,)
    else:
        found = _factory(source, seed)
    module = settled(found.module, source)
    origin = found.weights
    if weights is not None and origin == "own":
        load_state_dict(module, Path(weights))
        origin = "file"
    specs = _specs(source, inputs, found.example_inputs, module)
    return LoadedModel(
        name=name or found.name,
        kind="module",
        model=module,
        inputs=specs,
        weights=origin,
        fp32_bytes=_fp32_bytes(_tensors(module).values()),
        source_sha256=_state_sha256(module),
    )


def _load_file(
    path: Path, *, weights: str | None, inputs: Sequence[str], name: str | None, trusted: bool
) -> LoadedModel:
    if not path.is_file():
        raise UsageError(f"no file {path}", "check the path")
    if weights is not None:
        raise UnsupportedError(f"{path} contains its own weights; --weights cannot replace them", "omit --weights")
    if path.suffix == ".onnx":
        return load_onnx(path, inputs=inputs, name=name)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    kind = ARTIFACT_KINDS.get(path.suffix)
    if kind is not None:
        if kind == "ptl" and not trusted:
            check_torchscript(path)
        return LoadedModel(
            name=name or path.stem,
            kind=kind,
            model=path,
            inputs=_parsed(inputs),
            weights="own",
            fp32_bytes=0,
            source_sha256=sha256,
        )
    program = load_exported(path, trusted=trusted)
    specs = exported_inputs(program, path, inputs)
    return LoadedModel(
        name=name or path.stem,
        kind="exported",
        model=contiguous(program, specs),
        inputs=specs,
        weights="own",
        fp32_bytes=_fp32_bytes(program.state_dict.values()),
        source_sha256=sha256,
    )


def _torchvision(name: str, weights: str | None, seed: int) -> _Source:
    import torch
    import torchvision

    known = torchvision.models.list_models()
    comes_quantized = name.startswith(_QUANTIZATION)
    name = f"quantized_{name.removeprefix(_QUANTIZATION)}" if comes_quantized else name
    if name not in known:
        raise UsageError(f"torchvision has no model {name!r}.{nearest(name, known)}", "see torchvision.models")
    from_file = weights is not None and _is_file_name(weights)
    if weights is not None and not from_file:
        weights = _weights_entry(name, weights)
    options: dict[str, Any] = {"weights": None if from_file else weights}
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if comes_quantized:
        options["quantize"] = True
    with torch.random.fork_rng(devices=[]), _engine_restored():
        torch.manual_seed(seed)
        try:
            module = torchvision.models.get_model(name, **options)
        except (OSError, HTTPException, RuntimeError) as err:  # RuntimeError: the hash of what came is wrong
            what = f"could not download the weights {weights} of {name}: {first_line(err)}"
            raise EnvironmentProblem(what, "download them on another machine and give --weights FILE") from err
    origin: Weights = "own" if from_file else "random" if weights is None else "pretrained"
    return _Source(name=name, module=module, weights=origin, example_inputs=None)


@contextlib.contextmanager
def _engine_restored() -> Iterator[None]:
    """Set the quantized engine back that torchvision sets to the one that a quantized model was made for."""
    import torch

    before = torch.backends.quantized.engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def _is_file_name(weights: str) -> bool:
    path = Path(weights)
    return path.is_file() or path.name != weights or (path.suffix != "" and not path.stem.endswith("_Weights"))


def _weights_entry(model: str, weights: str) -> str:
    """Return `IMAGENET1K_V1` for that or for `ResNet18_Weights.IMAGENET1K_V1`."""
    import torchvision

    kind = torchvision.models.get_model_weights(model)
    prefix, _, entry = weights.rpartition(".")
    names = [*kind.__members__, "DEFAULT"]
    if entry not in names or prefix not in ("", kind.__name__):
        what = f"{weights!r} is neither a file nor weights of {model}.{nearest(entry.upper(), names)}"
        raise UsageError(what, f"give a state dict, or one of: {', '.join(sorted(set(names)))}")
    return entry


def _factory(source: str, seed: int) -> _Source:
    import torch

    if source == "digits":
        source = "edgeq.demo.digits:model"
    make = load_function(source, "model factory")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        if not isinstance(module, torch.nn.Module):
            came = type(module).__name__
            raise UsageError(
                (f"{source} returned {came}, expected a torch.nn.Module"), "return the model from the factory"
            )
        examples = _example_inputs(make, module)
    return _Source(name=factory_model_name(source), module=module, weights="own", example_inputs=examples)


def _example_inputs(make: UserFunction, module: Any) -> tuple[Any, ...] | None:
    """Return what `example_inputs()` beside the factory, or of the model, gives."""
    function = getattr(make.module, "example_inputs", None) or getattr(module, "example_inputs", None)
    if not callable(function):
        return None
    with make.guard():
        examples = function()
    return tuple(examples) if isinstance(examples, tuple | list) else (examples,)


def _parsed(texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(parse_input(text, index) for index, text in enumerate(texts))


def _specs(source: str, texts: Sequence[str], examples: tuple[Any, ...] | None, module: Any) -> tuple[TensorSpec, ...]:
    """Settle the inputs: `--input` wins over example inputs; names come from `forward` where none are given."""
    names, takes_more = _forward_names(module)
    if texts:
        return _ordered(_parsed(texts), names, takes_more=takes_more, named=any("=" in text for text in texts))
    if examples is None:
        what = f"the inputs of {source} are not known"
        raise UsageError(what, "give --input, such as 1x3x224x224, or define example_inputs() next to the factory")
    padded = (*names, *(f"input{i}" for i in range(len(names), len(examples))))
    return tuple(tensor_spec(name, example, source) for name, example in zip(padded, examples, strict=False))


def _ordered(
    specs: tuple[TensorSpec, ...], names: tuple[str, ...], *, takes_more: bool, named: bool
) -> tuple[TensorSpec, ...]:
    """Return the inputs in the order of `forward`, which is called by position."""
    if not named:
        padded = (*names, *(spec.name for spec in specs[len(names) :]))
        return tuple(replace(spec, name=name) for spec, name in zip(specs, padded, strict=False))
    given = [spec.name for spec in specs]
    repeated = next((name for name in given if given.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"--input {repeated!r} is given twice", "give each input once")
    if takes_more and not set(given) <= set(names):
        return specs
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        what = f"the model has no input {unknown!r}.{nearest(unknown, names)}"
        raise UsageError(what, f"its forward takes: {', '.join(names)}")
    by_place = sorted(specs, key=lambda spec: names.index(spec.name))
    skipped = next((name for spec, name in zip(by_place, names, strict=False) if spec.name != name), None)
    if skipped is not None:
        what = f"--input gives {by_place[-1].name!r} but not {skipped!r}, which comes before it in forward"
        raise UsageError(what, f"give --input {skipped}=… too: runtimes take inputs by position")
    return tuple(by_place)


def _forward_names(module: Any) -> tuple[tuple[str, ...], bool]:
    """Return the names of the positional arguments of `forward`, and whether it takes more of them."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind in kinds)
    return names, any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters)


def _fp32_bytes(tensors: Any) -> int:
    return sum(4 * tensor.numel() for tensor in tensors if tensor.dtype.is_floating_point or tensor.is_quantized)


def _tensors(module: Any) -> dict[str, Any]:
    """Return the tensors of the state dict; modules may add others, and quantized ones pair weight and bias."""
    found: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        parts = {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
        found |= {key: part for key, part in parts.items() if hasattr(part, "numel")}
    return found


def _state_sha256(module: Any) -> str:
    """Hash names, dtypes, shapes and bytes of a module's state."""
    import torch

    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(_tensors(module).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        for values in _plain(tensor.detach()):
            digest.update(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(tensor: Any) -> tuple[Any, ...]:
    """Return a tensor's values as plain tensors: of a quantized one its integers and its scales."""
    import torch

    if not tensor.is_quantized:
        return (tensor,)
    if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        return tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return tensor.int_repr(), torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())])


# --- State dicts: read without running code, checked against the model; batch-norm statistics for random weights.


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
        raise UsageError(f"{path} does not match the model: {'; '.join(parts)}", "give the checkpoint of this model")
    for key, value in state.items():
        if not hasattr(value, "shape"):  # a quantized layer's packed weight and bias, or its dtype
            continue
        if tuple(value.shape) != tuple(own[key].shape):
            what = f"{path}: {key} has shape {list(value.shape)}, the model expects {list(own[key].shape)}"
            raise UsageError(what, "give the checkpoint of this model")
        if value.dtype.is_floating_point != own[key].dtype.is_floating_point:
            what = f"{path}: {key} is {_dtype(value)}, the model expects {_dtype(own[key])}"
            is_float = value.dtype.is_floating_point
            fix = "the weights of the quantized model" if is_float else "the float weights from before quantization"
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
        what = f"{path} is not a plain state dict: it is damaged, or holds pickled objects that could run code"
        raise UsageError(what, "save model.state_dict() with torch.save, or use .safetensors") from err
    except Exception as err:  # torch and safetensors raise many types for a truncated file
        what = f"{path} cannot be read as a checkpoint: {_why(err)}"
        raise UsageError(what, "check that the file is complete, or save it again") from err
    return _tensors_of(state, path)


def _why(err: Exception) -> str:
    """Return the reason in a few words; for a file that was cut off, torch's own say nothing more."""
    if isinstance(err, EOFError) or "PytorchStreamReader" in str(err):
        return "it is truncated or damaged"
    return first_line(err, _QUOTED)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _tensors_of(state: Any, path: Path) -> dict[str, Any]:
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


# --- A user's module, made what the later steps start from.


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
            what = f"{source}: the shape of {name} is not known yet (a lazy module that has not been run)"
            raise UsageError(what, "run the model once on an example input in the factory, before loading its weights")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            dtype = str(tensor.dtype).removeprefix("torch.")
            what = f"{source}: expected float32 weights to start from, but {name} is {dtype}"
            raise UnsupportedError(what, "return model.float() from the factory, and give float32 example inputs")
    try:
        module = copy.deepcopy(module)
    except Exception as err:  # deepcopy runs the user's own __deepcopy__
        raise UsageError(f"{source}: the model cannot be copied: {first_line(err)}", "make it deep-copyable") from err
    module.to(device="cpu")
    for name, _ in module.named_modules():
        # torch.fx writes names into the code that it generates
        if not name.isprintable():
            what = f"the name of the module {name!r} has characters that cannot be printed"
            raise UnsupportedError(what, "rename it: module names become part of generated code")
    module.eval()
    for part in module.modules():
        if isinstance(part, torch.nn.TransformerEncoder):
            part.use_nested_tensor = False  # of padded inputs: no runtime has these, and TorchScript cannot trace them
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.data.contiguous()
    return module
