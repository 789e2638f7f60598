"""Artifacts for GPUs: an exported program, or TorchScript for older machines. torch alone loads both.

Where this machine has a GPU and a compiler, an AOTInductor package for that GPU is written next to them.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.results.model import Companion, CudaFacts, Layer, LoweredModel, QuantizedModel
from edgeq.core.speedups import decomposed
from edgeq.lower.layers import archive_elements, graph_layer
from edgeq.lower.spec import LowerSpec
from edgeq.lower.torchscript import example_script
from edgeq.lower.torchscript_archive import strip_archive

EXPORTED = "model.pt2"

TORCHSCRIPT = "model.pt"

COMPILED = "model.aoti.pt2"

EXAMPLE = "run_example.py"

# what a node says of where it came from: paths of this machine, and names of the user's files
_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node")

# native arithmetic: half from compute capability 5.3 on, bfloat16 from 8.0 on (CUDA C++ Programming Guide, "Arithmetic
# Instructions"); float32 runs on whatever the box's torch was built for
_LEAST_CAPABILITY = {"fp16": "5.3", "bf16": "8.0"}


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Write `model.pt2`, or for the backend `cuda-torchscript` `model.pt`, with `run_example.py` beside it.

    Raises:
        UnsupportedError: torch cannot save or trace the model.
    """
    import torch

    with spec.progress.task(f"lower {spec.label}"):
        layers = _layers(quantized.exported)
        plain = _without_origins(quantized.exported)
        is_exported = spec.backend == "cuda"
        path = _saved(plain, spec.folder) if is_exported else _traced(plain, spec)
        stored = _elements(plain) if is_exported else archive_elements(path)
        companions: list[Companion] = [("example", _example(path.name, quantized.scheme, spec))]
    compiled, facts = None, cuda_facts(quantized.scheme)
    if is_exported and spec.native and can_compile():
        with spec.progress.task(f"compile {spec.label}"):
            compiled = compile_package(quantized.exported, spec.folder, "cuda")
        companions.append(("compiled", compiled))
        facts = dataclasses.replace(facts, cuda=str(torch.version.cuda), compiled_for=_capability())
    return LoweredModel(
        path=path,
        runtime="cuda",
        runtime_version=facts.torch,
        bytecode_version=None,
        passes=("export", "save" if is_exported else "trace", *(("aoti_compile_and_package",) if compiled else ())),
        operators=tuple(sorted({str(node.target) for node in plain.graph.nodes if node.op == "call_function"})),
        undelegated=(),
        layers=layers,
        delegated_macs=None,
        stored=stored,
        companions=tuple(companions),
        cuda=facts,
    )


def cuda_facts(scheme: str) -> CudaFacts:
    """Return the requirements of an artifact of this torch version that is not compiled for a specific GPU."""
    import torch

    version = str(torch.__version__).partition("+")[0]
    return CudaFacts(torch=version, cuda=None, compiled_for=None, least_capability=_LEAST_CAPABILITY.get(scheme))


def can_compile() -> bool:
    """Whether this machine has the GPU and the C++ compiler that AOTInductor needs."""
    import torch

    return bool(torch.cuda.is_available()) and shutil.which("g++") is not None


def compile_package(program: Any, folder: Path, device: str) -> Path:
    """Compile a program with AOTInductor for this machine's device, `cuda` or `cpu`, and return the package.

    Raises:
        UnsupportedError: AOTInductor cannot compile the model.
    """
    import torch
    from torch._inductor import aoti_compile_and_package
    from torch.export.passes import move_to_device_pass

    path = folder / COMPILED
    try:
        with torch.no_grad():
            aoti_compile_and_package(move_to_device_pass(program, device), package_path=str(path))
    except Exception as err:  # the compiler's stages raise many types
        what = f"AOTInductor cannot compile this model: {first_line(err)}"
        raise UnsupportedError(what, "package on a machine without a GPU, or for the backend cuda-torchscript") from err
    return path


def _capability() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def _without_origins(program: Any) -> Any:
    """Return the program without stack traces, names of the user's files and sample inputs."""
    plain = decomposed(program, {})  # a copy of the graph
    for part in plain.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            for key in _ORIGINS:
                node.meta.pop(key, None)
    plain._example_inputs = None
    return plain


def _saved(program: Any, folder: Path) -> Path:
    import torch

    path = folder / EXPORTED
    try:
        torch.export.save(program, path)
    except Exception as err:  # the serializer raises many types
        what = f"torch.export cannot save this model: {first_line(err)}"
        raise UnsupportedError(what, "replace the operator named in this error, or use another target") from err
    strip_archive(path)
    return path


def _traced(program: Any, spec: LowerSpec) -> Path:
    """Save the program as TorchScript, by way of memory: PyTorch's own writer ends the process on a full disk."""
    import torch

    path = spec.folder / TORCHSCRIPT
    inputs = tuple(torch.zeros(item.shape, dtype=getattr(torch, item.dtype)) for item in spec.inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit announces its deprecation on every call
            module = torch.jit.trace(_plain_call(program.module()), inputs, strict=False, check_trace=False)
            # not frozen: that folds constants, and so would widen what storage-fp16 stores
            path.write_bytes(module.save_to_buffer())
    except Exception as err:  # the tracer raises many types
        what = f"TorchScript cannot trace this model: {first_line(err)}"
        raise UnsupportedError(what, "use a target with the backend cuda") from err
    strip_archive(path)
    return path


def _plain_call(module: Any) -> Any:
    """Return the module without the guard of its inputs, which cannot be traced, under a class name of edgeq's own."""
    import torch

    for node in list(module.graph.nodes):
        if node.op == "call_module":
            module.graph.erase_node(node)
    graph = torch.fx.GraphModule(module, module.graph)  # an exported module refuses train(), which tracing calls

    class Model(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """Calls the graph."""

        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, *inputs: Any) -> Any:
            """Return what the graph returns."""
            return self.graph(*inputs)

    return Model().eval()


def _elements(program: Any) -> tuple[tuple[str, int], ...]:
    tally: Counter[str] = Counter()
    seen: set[int] = set()
    for tensor in (*program.state_dict.values(), *program.constants.values()):
        if hasattr(tensor, "data_ptr") and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tally[str(tensor.dtype).removeprefix("torch.")] += int(tensor.numel())
    return tuple(sorted(tally.items()))


def _layers(program: Any) -> tuple[Layer, ...]:
    """Return the convolutions and matrix products in the order of execution."""
    constants = frozenset(
        spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name != "USER_INPUT"
    )
    calls = [node for node in program.graph.nodes if node.op == "call_function" and hasattr(node.target, "__name__")]
    return tuple(layer for node in calls if (layer := graph_layer(node, constants, delegated=False)) is not None)


def _example(artifact: str, scheme: str, spec: LowerSpec) -> Path:
    path = spec.folder / EXAMPLE
    path.write_text(example_script(artifact, scheme, spec.inputs), encoding="utf-8")
    return path
