"""TorchScript lowering: trace, freeze, the mobile passes, and an archive without paths or debug records."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from edgeq.artifacts import LoweredModel, QuantizedModel
from edgeq.blame import user_line
from edgeq.errors import UnsupportedError, first_line
from edgeq.lower.archive import strip_archive
from edgeq.lower.eager import eager_layers
from edgeq.lower.spec import LowerSpec
from edgeq.lower.stored import archive_elements, stored_layers


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Trace, freeze and save for the lite interpreter; for x86 hosts the smaller of that and a full archive.

    Raises:
        UnsupportedError: TorchScript cannot express the model.
    """
    import torch

    if spec.backend not in torch.backends.quantized.supported_engines:
        what = f"this torch has no quantized engine {spec.backend!r}"
        raise UnsupportedError(what, "run on a host whose torch has it")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = spec.backend
    try:
        with spec.progress.task(f"lower {spec.label}"), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit announces its deprecation on every call
            inputs = _inputs(spec)
            versions = [value._version for value in inputs]
            layers = stored_layers(eager_layers(quantized.graph, inputs), quantized)
            # an artifact leaves to its caller what it was given, also where forward writes in place (x.sub_(0.5))
            written = frozenset(i for i, value in enumerate(inputs) if value._version != versions[i])
            module, passes = _optimized(_traced(quantized.graph, _inputs(spec), written), spec.backend)
            path = _save(module, spec)
            version, operators = _archive_facts(module)
    finally:
        torch.backends.quantized.engine = before
    return LoweredModel(
        path=path,
        runtime="torchscript",
        runtime_version=str(torch.__version__).partition("+")[0],
        bytecode_version=version,
        passes=passes,
        operators=operators,
        undelegated=(),
        layers=layers,
        delegated_macs=None,
        stored=archive_elements(path),
    )


def _inputs(spec: LowerSpec) -> tuple[Any, ...]:
    import torch

    # whole numbers at their highest: 0 may be out of range, and a mask of zeros leaves nothing to compute
    return tuple(
        torch.full(item.shape, int(item.high) if item.dtype.startswith(("int", "uint")) else 0).to(
            getattr(torch, item.dtype)
        )
        for item in spec.inputs
    )


def _traced(graph: Any, inputs: tuple[Any, ...], written: frozenset[int]) -> Any:
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            # strict=False lets a forward return a dict, as torchvision's segmentation models do
            traced = torch.jit.trace(_root(graph, written), inputs, strict=False, check_trace=False)
        except Exception as err:  # the tracer raises many types
            what = f"TorchScript cannot trace this model{user_line(err)}: {first_line(err)}"
            raise UnsupportedError(what, "use an ExecuTorch target, or make that line traceable") from err
    # of the tracer's other warnings, most concern shapes, which are fixed; values in Python are `eager_layers`' concern
    left = next((warning for warning in warned if "to a NumPy array" in str(warning.message)), None)
    if left is not None:
        what = f"the model leaves PyTorch for NumPy at {left.filename}:{left.lineno}: TorchScript would keep one result"
        raise UnsupportedError(what, "compute that in PyTorch, outside forward, or in preprocessing")
    return traced


def _root(graph: Any, written: frozenset[int]) -> Any:
    """Return a module of edgeq's own around `graph`: the archive names its root's class, which is the user's to know.

    The name of a user's file holds a hash of where it lies, and PyTorch counts the classes that it traced.

    Args:
        graph: what is traced.
        written: the places of inputs that it writes into, which it gets copies of.
    """
    import torch

    class Model(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """Calls the graph."""

        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, *inputs: Any) -> Any:
            """Return what the graph returns."""
            return self.graph(*(value.clone() if i in written else value for i, value in enumerate(inputs)))

    return Model().eval()


def _optimized(module: Any, backend: str) -> tuple[Any, tuple[str, ...]]:
    """Run the mobile passes: `optimize_for_mobile` where this torch has XNNPACK, else the same one by one.

    The passes of `optimize_for_mobile` beside freezing (conv-bn folding, dropout removal) and add-relu fusion
    prepack float layers for XNNPACK, which only builds that have it can run.
    """
    import torch
    import torch.backends.xnnpack

    frozen = torch.jit.freeze(module.eval())
    if backend == "qnnpack" and torch.backends.xnnpack.enabled:
        from torch.utils.mobile_optimizer import MobileOptimizerType, optimize_for_mobile

        # prepacked XNNPACK operators are not in every runtime in the field
        kept_out = {MobileOptimizerType.INSERT_FOLD_PREPACK_OPS}
        return optimize_for_mobile(frozen, kept_out), ("trace", "freeze", "optimize_for_mobile")
    torch._C._jit_pass_fuse_add_relu(frozen.graph)
    return frozen, ("trace", "freeze", "fuse_add_relu")


def _save(module: Any, spec: LowerSpec) -> Path:
    """Save and strip; x86 packing makes lite archives hold weights twice, so hosts take the smaller form.

    By way of memory: PyTorch's own file writer ends the process when the disk is full.
    """
    lite = spec.folder / "model.ptl"
    lite.write_bytes(module._save_to_buffer_for_lite_interpreter())
    strip_archive(lite)
    if spec.backend == "qnnpack":
        return lite
    full = spec.folder / "model.pt"
    full.write_bytes(module.save_to_buffer())
    strip_archive(full)
    smaller, larger = sorted((lite, full), key=lambda path: path.stat().st_size)
    larger.unlink()
    return smaller


def _archive_facts(module: Any) -> tuple[int, tuple[str, ...]]:
    """Return the bytecode version and the root operators of the lite form."""
    import io

    import torch
    from torch.jit.mobile import _get_model_bytecode_version

    buffer = io.BytesIO(module._save_to_buffer_for_lite_interpreter())
    return int(_get_model_bytecode_version(buffer)), tuple(sorted(torch.jit.export_opnames(module)))
