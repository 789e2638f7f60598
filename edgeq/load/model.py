"""Sources: what a user names becomes a `LoadedModel` in eval mode, contiguous, with its inputs known."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError, first_line, nearest
from edgeq.core.marks import weights_file
from edgeq.core.results.model import LoadedModel, SourceKind, TensorSpec, Weights
from edgeq.core.safe_load import check_torchscript
from edgeq.core.samples import Dataset, batches
from edgeq.core.sources import SOURCE_SUFFIXES, factory_model_name
from edgeq.load.exported import contiguous, exported_inputs, load_exported
from edgeq.load.inputs import parse_input, tensor_spec
from edgeq.load.onnx import load_onnx
from edgeq.load.user_code import UserFunction, load_function
from edgeq.load.weights import load_weights

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
    ignore_extra: bool = False,
) -> LoadedModel:
    """Load what `source` names.

    Args:
        source: torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.onnx, model.pte or model.ptl.
        weights: a checkpoint (`edgeq.load.weights`) or a torchvision weights name; None for none.
        inputs: texts of `--input`, in order; empty where the source brings example inputs.
        name: overrides the model's name.
        seed: of the random weights that a torchvision model without weights gets.
        trusted: whether code in the files of a model and its weights may run (`--trust-source`).
        ignore_extra: whether weights that the model has not are left out (`--ignore-extra-weights`).

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
    remarks: tuple[str, ...] = ()
    if weights is not None and origin == "own":
        remarks = load_weights(module, weights, trusted=trusted, ignore_extra=ignore_extra)
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
        remarks=remarks,
    )


def _load_file(
    path: Path, *, weights: str | None, inputs: Sequence[str], name: str | None, trusted: bool
) -> LoadedModel:
    if not path.is_file():
        raise UsageError(f"no file {path}", "check the path")
    if weights is not None:
        raise UnsupportedError(f"{path} brings its own weights; --weights cannot replace them", "leave out --weights")
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
            raise EnvironmentProblem(what, "download them elsewhere and give --weights FILE") from err
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
    path, key = weights_file(weights)
    is_path = path.is_file() or key is not None or path.name != weights
    return is_path or (path.suffix != "" and not path.stem.endswith("_Weights"))


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
            raise UsageError(f"{source} returned {came}, expected a torch.nn.Module", "return the model from it")
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
        raise UsageError(what, "give --input 1x3x224x224, or an example_inputs() beside the factory")
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
        raise UsageError(f"--input gives {repeated!r} twice", "give each input once")
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


# --- Batch-norm statistics for random weights.


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
    for name, _ in module.named_modules():
        # torch.fx writes names into the code that it generates
        if not name.isprintable():
            what = f"the model has a module named {name!r}, with characters that cannot be printed"
            raise UnsupportedError(what, "rename it: module names become part of generated code")
    module.eval()
    for part in module.modules():
        if isinstance(part, torch.nn.TransformerEncoder):
            part.use_nested_tensor = False  # of padded inputs: no runtime has these, and TorchScript cannot trace them
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.data.contiguous()
    return module
