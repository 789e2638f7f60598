"""Sources: load what the user names as a contiguous `LoadedModel` in eval mode with known inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError, first_line, nearest, user_line
from edgeq.core.marks import weights_file
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import LanguageModel, LoadedModel, SourceKind, Weights
from edgeq.core.safe_load import check_torchscript, is_torchscript
from edgeq.core.samples import Dataset, batches
from edgeq.core.sources import (
    HUGGING_FACE,
    SOURCE_SUFFIXES,
    TIMM,
    TORCHSCRIPT_SUFFIXES,
    factory_model_name,
    unreadable,
)
from edgeq.core.system import quiet
from edgeq.load.exported import contiguous, exported_inputs, load_exported
from edgeq.load.inputs import parse_inputs, random_inputs
from edgeq.load.language import language_facts, language_inputs, with_cache
from edgeq.load.onnx import load_onnx
from edgeq.load.structure import Call, adapted, as_graph, call_with_examples, call_with_specs, with_bounds
from edgeq.load.user_code import UserFunction, load_function
from edgeq.load.weights import class_count, copied, load_weights

ARTIFACT_KINDS: dict[str, SourceKind] = {".pte": "pte", ".ptl": "ptl"}

_QUANTIZATION = "quantization."  # torchvision:quantization.NAME comes quantized, quantized_NAME does not

_IMAGE_INPUT = "1x3x224x224"  # what torchvision's classification models are trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A source after its code ran, before its weights and inputs are settled."""

    name: str
    module: Any
    weights: Weights
    example_inputs: Any
    preprocess: Preprocess | None = None
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    language: LanguageModel | None = None


def load_model(
    source: str,
    *,
    weights: str | None,
    inputs: Sequence[str],
    name: str | None,
    seed: int,
    trusted: bool = False,
    ignore_extra: bool = False,
    downloads: bool = True,
    context_length: int | None = None,
) -> LoadedModel:
    """Load what `source` names.

    Args:
        source: torchvision:NAME, timm:NAME, hf:FOLDER, pkg.mod:factory, file.py:factory, or a file: .pt2, .onnx, .pte,
            .ptl, or an archive of torch.jit.save.
        weights: a checkpoint (`edgeq.load.weights`) or a torchvision weights name; None for none.
        inputs: texts of `--input`, in order; empty where the source brings example inputs.
        name: overrides the model's name.
        seed: of the random weights that a torchvision model without weights gets.
        trusted: whether code in the files of a model and its weights may run (`--trust-source`).
        ignore_extra: whether weights that the model has not are left out (`--ignore-extra-weights`).
        downloads: whether weights that are named, and not in a file, are fetched; else random ones stand for them.
        context_length: tokens that a language model of transformers is to keep the keys and values of; None for none.

    Raises:
        UsageError: the source, its weights or its inputs are not usable.
        EnvironmentProblem: weights could not be downloaded.
        UnsupportedError: weights given for a program that brings its own.
    """
    suffix = Path(source).suffix
    if suffix in TORCHSCRIPT_SUFFIXES and ":" not in source:
        found = _archive(Path(source), trusted=trusted)
    elif suffix in SOURCE_SUFFIXES:
        return _load_file(Path(source), weights=weights, inputs=inputs, name=name, trusted=trusted)
    elif source.startswith("torchvision:"):
        build = functools.partial(_torchvision, downloads=downloads)
        found = _with_classes(build, source.removeprefix("torchvision:"), weights, seed, trusted=trusted)
        inputs = inputs or (_IMAGE_INPUT,)
    elif source.startswith(TIMM):
        build = functools.partial(_timm, downloads=downloads)
        found = _with_classes(build, source.removeprefix(TIMM), weights, seed, trusted=trusted)
    elif source.startswith(HUGGING_FACE):
        found = _hugging_face(Path(source.removeprefix(HUGGING_FACE)), trusted=trusted, context_length=context_length)
        inputs = inputs if found.language is None else language_inputs(found.language)
    else:
        found = _factory(source, seed)
    examples = found.example_inputs
    module = as_module(unwrapped(found.module), inputs, examples, source)
    module = settled(module, source, has_weights=weights is not None and found.weights == "own")
    origin = found.weights
    remarks = found.remarks
    if weights is not None and origin == "own":
        try:
            remarks += load_weights(module, weights, trusted=trusted, ignore_extra=ignore_extra)
        except UsageError as err:
            err.about(key="weights")
            raise
        origin = "file"
    call = _call(source, inputs, examples, module)
    sha256 = _state_sha256(module)
    call = with_bounds(module, call)
    remarks += call.remarks
    _use_linear_layers(module)
    module, output_names = adapted(module, call, seed)
    return LoadedModel(
        name=name or found.name,
        kind="module",
        model=module,
        inputs=call.specs,
        weights=origin,
        fp32_bytes=_fp32_bytes(_tensors(module).values()),
        source_sha256=sha256,
        remarks=remarks,
        notes=found.notes,
        preprocess=found.preprocess,
        output_names=output_names,
        language=found.language,
    )


def _with_classes(
    build: Callable[..., _Source], name: str, weights: str | None, seed: int, *, trusted: bool
) -> _Source:
    """Return a published architecture, with as many classes as the checkpoint of a fine-tuned one has."""
    found = build(name, weights, seed)
    if weights is None or found.weights != "own":
        return found
    count = class_count(found.module, weights, trusted=trusted)
    if count is None:
        return found
    built = build(name, weights, seed, num_classes=count)
    return dataclasses.replace(built, notes=(f"built with the {count} classes of the weights",))


def _call(source: str, inputs: Sequence[str], examples: Any, module: Any) -> Call:
    """Return how the model is called: `--input` wins over example inputs."""
    if inputs:
        named = any("=" in text for text in inputs)
        return call_with_specs(module, parse_inputs(inputs), named=named)
    if examples is None:
        what = f"the inputs of {source} are not known"
        raise UsageError(what, "give --input 1x3x224x224, or an example_inputs() beside the factory")
    return call_with_examples(module, examples, source)


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
            inputs=parse_inputs(inputs),
            weights="own",
            fp32_bytes=0,
            source_sha256=sha256,
        )
    program = load_exported(path, trusted=trusted)
    specs = exported_inputs(program, path, inputs)
    specs = with_bounds(program.module(), Call(specs=specs)).specs
    return LoadedModel(
        name=name or path.stem,
        kind="exported",
        model=contiguous(program, specs),
        inputs=specs,
        weights="own",
        fp32_bytes=_fp32_bytes(program.state_dict.values()),
        source_sha256=sha256,
    )


def _torchvision(
    name: str, weights: str | None, seed: int, *, downloads: bool, num_classes: int | None = None
) -> _Source:
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
    options: dict[str, Any] = {"weights": weights if downloads and not from_file else None}
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if comes_quantized:
        options["quantize"] = True
    if num_classes is not None:
        options["num_classes"] = num_classes
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


def _timm(name: str, weights: str | None, seed: int, *, downloads: bool, num_classes: int | None = None) -> _Source:
    """Return an architecture of timm with the preprocessing that its configuration states."""
    import timm
    import torch

    known = timm.list_models()
    architecture, _, tag = name.partition(".")
    if architecture not in known:
        raise UsageError(f"timm has no model {name!r}.{nearest(architecture, known)}", "see timm.list_models()")
    from_file = weights is not None and _is_file_name(weights)
    named = weights is not None and not from_file
    if named:
        name = architecture if weights in ("DEFAULT", "pretrained") else f"{architecture}.{weights}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            own = {} if num_classes is None else {"num_classes": num_classes}
            module = timm.create_model(name if named or tag else architecture, pretrained=named and downloads, **own)
        except Exception as err:  # its hub raises many types
            if not named:
                raise UsageError(f"timm cannot make {name}: {first_line(err)}", "check the name") from err
            what = f"could not download the weights {weights} of {architecture}: {first_line(err)}"
            raise EnvironmentProblem(what, "download them elsewhere and give --weights FILE") from err
    config = timm.data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    preprocess = Preprocess(
        color="rgb" if channels == 3 else "gray",
        resize=math.floor(min(height, width) / config.get("crop_pct", 1.0)),
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    how = config.get("interpolation", "bilinear")
    told = f"timm resizes the images of {name} by {how} interpolation, edgeq and apps by bilinear"
    return _Source(
        name=name.replace(".", "-"),
        module=module,
        weights="own" if from_file else "pretrained" if named else "random",
        example_inputs=(torch.zeros(1, channels, height, width),),
        preprocess=preprocess,
        remarks=() if how == "bilinear" else (told,),
    )


def _hugging_face(folder: Path, *, trusted: bool, context_length: int | None) -> _Source:
    """Return a model of transformers from a folder with config.json and .safetensors; nothing is downloaded.

    Raises:
        UsageError: the folder cannot be loaded, has not all weights (transformers would draw these at random), or has
            no causal language model for --context-length.
        UnsupportedError: transformers has no cache of fixed size for it.
    """
    import torch
    import transformers

    options = {"local_files_only": True, "trust_remote_code": trusted}
    has_bar = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        with quiet():  # the libraries that it imports have torch warn of their own types
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
            module, report = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as err:  # transformers raises many types
        what = f"transformers cannot load {folder}: {first_line(err)}"
        fix = "give the folder that save_pretrained() wrote, with config.json and .safetensors"
        if "custom code" in what:
            fix = "if you trust the code in it, give --trust-source; else give a folder without code of its own"
        raise UsageError(what, fix) from err
    finally:
        if has_bar:
            transformers.logging.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        what = f"{folder} has no weights for {len(missing)} tensors of {type(module).__name__} ({missing[0]}, …)"
        raise UsageError(what, "save the whole model with save_pretrained()")
    name = folder.resolve().name
    if context_length is None:
        return _Source(name=name, module=module, weights="own", example_inputs=_transformer_inputs(module))
    if not module.can_generate() or getattr(config, "is_encoder_decoder", False):
        what = f"--context-length is for causal language models, but {folder} has a {type(module).__name__}"
        raise UsageError(what, "omit it, or save the class that ends with ForCausalLM")
    language = language_facts(module, folder, context_length)
    cached = with_cache(module, context_length)
    return _Source(name=name, module=cached, weights="own", example_inputs=None, language=language)


def _transformer_inputs(module: Any) -> dict[str, Any] | None:
    """Return inputs of the sizes that a model of transformers states in its configuration; None where it does not."""
    import torch

    config = module.config
    size = getattr(config, "image_size", None)
    if module.main_input_name == "pixel_values" and size:
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), height, width)}
    if module.main_input_name == "input_features" and hasattr(config, "num_mel_bins"):
        return {"input_features": torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)}
    if module.main_input_name == "input_values":
        return {"input_values": torch.zeros(1, 16000)}
    vocabulary = getattr(config, "vocab_size", None)
    if module.main_input_name != "input_ids" or not vocabulary or getattr(config, "is_encoder_decoder", False):
        return None
    tokens = torch.zeros(1, min(128, getattr(config, "max_position_embeddings", 128)), dtype=torch.int64)
    tokens[0, -1] = vocabulary - 1  # the range of an example is that of the input
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _archive(path: Path, *, trusted: bool) -> _Source:
    """Return a scripted or traced module from a file."""
    import torch

    if not path.is_file():
        raise UsageError(f"no file {path}", "check the path")
    if not is_torchscript(path):
        what = f"{path} is not an archive of torch.jit.save"
        raise UsageError(what, f"name the model's factory, and give --weights {path} if it holds weights")
    if not trusted:
        check_torchscript(path)
    try:
        with quiet():
            module = torch.jit.load(path, map_location="cpu")
    except Exception as err:  # torch raises RuntimeError, and what its own C++ raises
        raise unreadable(path, first_line(err)) from err
    return _Source(name=path.stem, module=module, weights="own", example_inputs=None)


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


def _example_inputs(make: UserFunction, module: Any) -> Any:
    """Return what `example_inputs()` beside the factory, or of the model, gives."""
    function = getattr(make.module, "example_inputs", None) or getattr(module, "example_inputs", None)
    if not callable(function):
        return None
    with make.guard():
        return function()


def _fp32_bytes(tensors: Any) -> int:
    """Return the bytes of floating-point tensors in float32; a tied weight, which has two names, counts once."""
    floats = [one for one in tensors if one.dtype.is_floating_point or one.is_quantized]
    return sum(4 * count for _, count in {(one.data_ptr(), one.numel()) for one in floats})


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

    import torch

    module = copied(module)
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


def unwrapped(module: Any) -> Any:
    """Return what `torch.compile`, DataParallel and DistributedDataParallel wrap, at any depth; changes no wrapper."""
    import torch

    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while isinstance(module, wrappers) or hasattr(module, "_orig_mod"):
        module = module.module if isinstance(module, wrappers) else module._orig_mod
    return module


def _unwrap_parts(module: Any) -> None:
    """Put what is wrapped in place of the wrappers among a module's parts."""
    for part in list(module.modules()):
        part._compiled_call_impl = None  # of module.compile()
        for name, child in part.named_children():
            inner = unwrapped(child)
            if inner is not child:
                setattr(part, name, inner)


def as_module(module: Any, inputs: Sequence[str], examples: Any, source: str) -> Any:
    """Return a scripted or traced module as a graph that torch.export takes; others come back as they are.

    Args:
        module: a torch.nn.Module.
        inputs: texts of `--input`.
        examples: example inputs, or None.
        source: where it comes from, for messages.

    Raises:
        UsageError: its inputs are not known.
        UnsupportedError: it cannot be converted, or takes something else than tensors.
    """
    import torch

    if not isinstance(module, torch.jit.ScriptModule):
        return module
    from torch._export.converter import TS2EPConverter

    if not inputs and examples is None:
        raise UsageError(f"the inputs of {source} are not known", "give --input, such as --input 1x3x224x224")
    given = tuple(examples) if isinstance(examples, tuple | list) else (examples,)
    if inputs:
        specs = parse_inputs(inputs)
        given = tuple(map(torch.from_numpy, random_inputs(specs, 1, 0, None).read(0).inputs))
    frozen = module.eval()
    try:
        with quiet(), torch.no_grad():
            program = TS2EPConverter(frozen, given).convert()
            expected, came = frozen(*given), program.module()(*given)
    except Exception as err:  # the converter raises many types
        what = f"{source}: the TorchScript module cannot be converted{user_line(err)}: {first_line(err)}"
        raise UnsupportedError(what, "give the Python class that it was made from, as file.py:factory") from err
    leaves = torch.utils._pytree.tree_leaves
    pairs = [*zip(leaves(expected), leaves(came), strict=True)]
    if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True) for one, other in pairs):
        what = f"{source}: the TorchScript module was converted, and its outputs changed by that"
        raise UnsupportedError(what, "give the Python class that it was made from, as file.py:factory")
    # a scripted module has its arguments' names, the graph others
    names = [argument.name for argument in frozen.forward.schema.arguments[1:]]
    return as_graph(program, names[: len(given)], {name for name, _ in frozen.named_parameters()})


def settled(module: Any, source: str, *, has_weights: bool = False) -> Any:
    """Return a copy in eval mode and contiguous: lowering fails on channels_last weights, PTQ on training mode.

    Args:
        module: a torch.nn.Module.
        source: where it comes from, for messages.
        has_weights: whether a checkpoint will fill it, as a module on the meta device needs.

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
        module = copied(module)
    except Exception as err:  # deepcopy runs the user's own __deepcopy__
        raise UsageError(f"{source}: the model cannot be copied: {first_line(err)}", "make it deep-copyable") from err
    _unwrap_parts(module)
    _leave_meta(module, source, has_weights=has_weights)
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


def _use_linear_layers(module: Any) -> None:
    """Put linear layers in place of transformers' Conv1D, of GPT-2: quantizers know layers, not products by weights."""
    import torch

    made: dict[Any, Any] = {}
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            kind = type(child)
            if (kind.__module__, kind.__name__) != ("transformers.pytorch_utils", "Conv1D"):
                continue
            if child not in made:
                layer = torch.nn.Linear(*child.weight.shape).eval()
                layer.weight = torch.nn.Parameter(child.weight.t().contiguous(), requires_grad=False)
                layer.bias = child.bias
                made[child] = layer
            setattr(part, name, made[child])


def _leave_meta(module: Any, source: str, *, has_weights: bool) -> None:
    """Give a module without memory some, which its checkpoint fills."""
    meta = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if not meta:
        return
    computed = [name for name in meta if name not in module.state_dict()]
    if computed or not has_weights:
        what = f"{source}: {(computed or meta)[0]} is on the meta device, and so has no values"
        fix = "make the model on the CPU" if computed else "give --weights FILE, or make the model on the CPU"
        raise UsageError(what, fix)
    groups: dict[int, list[tuple[Any, str]]] = {}
    for part in module.modules():
        for name, tensor in part._parameters.items():
            groups.setdefault(id(tensor), []).append((part, name))
    module.to_empty(device="cpu")
    for (owner, first), *others in groups.values():  # it gives each name of a tied tensor memory of its own
        for part, name in others:
            part._parameters[name] = owner._parameters[first]
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.zero_()
