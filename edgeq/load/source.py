"""Sources: what a user names becomes a `LoadedModel` in eval mode, contiguous, with its inputs known."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.artifacts import LoadedModel, SourceKind, TensorSpec, Weights
from edgeq.errors import EnvironmentProblem, UnsupportedError, UsageError, first_line, nearest
from edgeq.load.functions import UserFunction, load_function
from edgeq.load.inputs import parse_input
from edgeq.load.weights import load_state_dict

ARTIFACT_KINDS: dict[str, SourceKind] = {".pte": "pte", ".ptl": "ptl"}
_IMAGE_INPUT = "1x3x224x224"  # what torchvision's classification models are trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A source after its code ran, before its weights and inputs are settled."""

    name: str
    module: Any
    weights: Weights
    example_inputs: tuple[Any, ...] | None


def load_model(source: str, *, weights: str | None, inputs: Sequence[str], name: str | None, seed: int) -> LoadedModel:
    """Load what `source` names.

    Args:
        source: torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.pte or model.ptl.
        weights: a state dict (.safetensors, .pt, .pth) or a torchvision weights name; None for none.
        inputs: texts of `--input`, in order; empty where the source brings example inputs.
        name: overrides the model's name.
        seed: of the random weights that a torchvision model without weights gets.

    Raises:
        UsageError: the source, its weights or its inputs are not usable.
        EnvironmentProblem: weights could not be downloaded.
        UnsupportedError: weights given for a program that brings its own.
    """
    suffix = Path(source).suffix
    if suffix in (".pt2", *ARTIFACT_KINDS):
        return _load_file(Path(source), weights=weights, inputs=inputs, name=name)
    if source.startswith("torchvision:"):
        found = _torchvision(source.removeprefix("torchvision:"), weights, seed)
        inputs = inputs or (_IMAGE_INPUT,)
    else:
        found = _factory(source, seed)
    module = _settled(found.module, source)
    origin = found.weights
    if weights is not None and origin == "own":
        load_state_dict(module, Path(weights))
        origin = "file"
    specs = _specs(source, inputs, found.example_inputs, _forward_names(module))
    return LoadedModel(
        name=name or found.name,
        kind="module",
        model=module,
        inputs=specs,
        weights=origin,
        fp32_bytes=_fp32_bytes(module.state_dict().values()),
        source_sha256=_state_sha256(module),
    )


def _load_file(path: Path, *, weights: str | None, inputs: Sequence[str], name: str | None) -> LoadedModel:
    if not path.is_file():
        raise UsageError(f"no file {path}", "check the path")
    if weights is not None:
        raise UnsupportedError(f"{path} brings its own weights; --weights cannot replace them", "leave out --weights")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    kind = ARTIFACT_KINDS.get(path.suffix)
    if kind is not None:
        return LoadedModel(
            name=name or path.stem,
            kind=kind,
            model=path,
            inputs=_parsed(inputs),
            weights="own",
            fp32_bytes=0,
            source_sha256=sha256,
        )
    program = _load_exported(path)
    return LoadedModel(
        name=name or path.stem,
        kind="exported",
        model=program,
        inputs=_exported_inputs(program, path),
        weights="own",
        fp32_bytes=_fp32_bytes(program.state_dict.values()),
        source_sha256=sha256,
    )


def _load_exported(path: Path) -> Any:
    import torch

    try:
        return torch.export.load(path)
    except Exception as err:  # torch raises a different type for each way in which the archive is broken
        what = f"{path} is not an exported program that torch {torch.__version__} reads: {first_line(err)}"
        raise UsageError(what, "write it again with torch.export.save, or check that the copy is whole") from err


def _exported_inputs(program: Any, path: Path) -> tuple[TensorSpec, ...]:
    names = program.graph_signature.user_inputs
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in names:
        value = placeholders.get(name)
        if value is None or not hasattr(value, "shape"):
            raise UnsupportedError(f"{path}: input {name!r} is no tensor", "export the model with tensor inputs only")
        if not all(isinstance(side, int) for side in value.shape):
            what = f"{path}: input {name!r} has a dynamic shape {list(value.shape)}"
            raise UnsupportedError(what, "export it again with fixed shapes")
        specs.append(_spec(name, value))
    return tuple(specs)


def _torchvision(name: str, weights: str | None, seed: int) -> _Source:
    import torch
    import torchvision

    known = torchvision.models.list_models()
    if name not in known:
        raise UsageError(f"torchvision has no model {name!r}.{nearest(name, known)}", "see torchvision.models")
    from_file = weights is not None and (Path(weights).suffix != "" or Path(weights).is_file())
    options: dict[str, Any] = {"weights": None if from_file else weights}
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if weights is not None and not from_file:
        _check_weights_name(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = torchvision.models.get_model(name, **options)
        except OSError as err:
            what = f"could not download the weights {weights} of {name}: {first_line(err)}"
            raise EnvironmentProblem(what, "download them elsewhere and give --weights FILE") from err
    origin: Weights = "own" if from_file else "random" if weights is None else "pretrained"
    return _Source(name=name, module=module, weights=origin, example_inputs=None)


def _check_weights_name(model: str, weights: str) -> None:
    import torchvision

    names = [entry.name for entry in torchvision.models.get_model_weights(model)] + ["DEFAULT"]
    if weights not in names:
        what = f"{weights!r} is neither a file nor weights of {model}.{nearest(weights, names)}"
        raise UsageError(what, f"give a state dict, or one of: {', '.join(names)}")


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
    stem = Path(source.rpartition(":")[0]).stem if ".py:" in source else source.rpartition(":")[0].rpartition(".")[2]
    return _Source(name=stem, module=module, weights="own", example_inputs=examples)


def _example_inputs(make: UserFunction, module: Any) -> tuple[Any, ...] | None:
    """Return what `example_inputs()` beside the factory, or of the model, gives."""
    function = getattr(make.module, "example_inputs", None) or getattr(module, "example_inputs", None)
    if not callable(function):
        return None
    with make.guard():
        examples = function()
    return tuple(examples) if isinstance(examples, tuple | list) else (examples,)


def _settled(module: Any, source: str) -> Any:
    """Return a copy in eval mode and contiguous: lowering fails on channels_last weights, PTQ on training mode."""
    import torch

    try:
        module = copy.deepcopy(module)
    except Exception as err:  # deepcopy runs the user's own __deepcopy__
        raise UsageError(f"{source}: the model cannot be copied: {first_line(err)}", "make it deep-copyable") from err
    module = module.to(device="cpu", memory_format=torch.contiguous_format).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.contiguous()
    return module


def _parsed(texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(parse_input(text, index) for index, text in enumerate(texts))


def _specs(
    source: str, texts: Sequence[str], examples: tuple[Any, ...] | None, names: Sequence[str]
) -> tuple[TensorSpec, ...]:
    """Settle the inputs: `--input` wins over example inputs; names come from `forward` where none are given."""
    if texts:
        specs = _parsed(texts)
        if all(spec.name in names for spec in specs):
            return tuple(sorted(specs, key=lambda spec: list(names).index(spec.name)))
        if any("=" in text for text in texts):
            unknown = next(spec.name for spec in specs if spec.name not in names)
            what = f"the model has no input {unknown!r}.{nearest(unknown, names)}"
            raise UsageError(what, f"its forward takes: {', '.join(names)}")
        renamed = zip(specs, (*names, *(spec.name for spec in specs[len(names) :])), strict=False)
        return tuple(
            TensorSpec(name=name, dtype=spec.dtype, shape=spec.shape, low=spec.low, high=spec.high)
            for spec, name in renamed
        )
    if examples is None:
        what = f"the inputs of {source} are not known"
        raise UsageError(what, "give --input 1x3x224x224, or an example_inputs() beside the factory")
    for example in examples:
        if not hasattr(example, "dtype"):
            came = type(example).__name__
            raise UsageError(f"{source}: example_inputs() gave {came}, expected tensors", "return a tuple of tensors")
    padded = (*names, *(f"input{i}" for i in range(len(names), len(examples))))
    return tuple(_spec(name, example) for name, example in zip(padded, examples, strict=False))


def _spec(name: str, tensor: Any) -> TensorSpec:
    """Describe a tensor; integers without a stated range are drawn from the values that the example holds."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    high = 1.0
    if not tensor.dtype.is_floating_point and hasattr(tensor, "max") and type(tensor).__name__ != "FakeTensor":
        high = float(tensor.max())
    return TensorSpec(name=name, dtype=dtype, shape=tuple(int(side) for side in tensor.shape), high=high)


def _forward_names(module: Any) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds)


def _fp32_bytes(tensors: Any) -> int:
    return sum(4 * tensor.numel() for tensor in tensors if tensor.dtype.is_floating_point)


def _state_sha256(module: Any) -> str:
    """Hash names, dtypes, shapes and bytes of a module's state."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(_uint8()).numpy().tobytes())
    return digest.hexdigest()


def _uint8() -> Any:
    import torch

    return torch.uint8
