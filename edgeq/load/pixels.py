"""A model that takes pixels as bytes: the preprocessing's arithmetic becomes the first thing that it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeq.artifacts import FILE_KINDS, LoadedModel, TensorSpec
from edgeq.errors import UnsupportedError, UsageError, first_line
from edgeq.preprocess import Preprocess

MEAN, STD = "edgeq_pixel_mean", "edgeq_pixel_std"


def takes_pixels(model: LoadedModel, preprocess: Preprocess) -> LoadedModel:
    """Return the model with a uint8 input, normalised inside: (pixels - mean / scale) / (std / scale), in float32.

    Not in the first layer's weights: a convolution that pads with zeros pads with what the mean becomes, which no
    weight can say. Subtraction and division are what no quantizer here takes for a layer, so that they stay in float.

    Args:
        model: takes one image, float32 [N, C, H, W], or [N, H, W, C] as `preprocess.layout` says.
        preprocess: what the float route does; must not give bytes already.

    Raises:
        UsageError: the preprocessing gives bytes already, or its channels are not the input's.
        UnsupportedError: an artifact that came as it is, several inputs, another dtype, or a model without a class.
    """
    spec = _image(model)
    if preprocess.dtype == "uint8":
        what = "the preprocessing feeds bytes already (dtype uint8), so that there is nothing to normalise"
        raise UsageError(what, "leave out --input-dtype")
    mean, std = _constants(preprocess, spec)
    pixels = replace(spec, dtype="uint8", low=0.0, high=255.0)
    if model.kind == "exported":
        return replace(model, model=_program(model.model, mean, std, pixels), inputs=(pixels,))
    return replace(model, model=_module(model.model, mean, std), inputs=(pixels,))


def _image(model: LoadedModel) -> TensorSpec:
    """Return the one input that takes an image."""
    if model.kind in FILE_KINDS:
        what = f"{model.model} is lowered already, and nothing can be put in front of it"
        raise UnsupportedError(what, "give the PyTorch model, or leave out --input-dtype")
    if len(model.inputs) != 1 or model.inputs[0].dtype != "float32" or len(model.inputs[0].shape) != 4:
        takes = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in model.inputs)
        what = f"--input-dtype uint8 is for a model that takes one image, float32 of rank 4; this one takes {takes}"
        raise UnsupportedError(what, "leave out --input-dtype, or normalise in the model's own forward")
    return model.inputs[0]


def _constants(preprocess: Preprocess, spec: TensorSpec) -> tuple[Any, Any]:
    """Return mean and standard deviation of the pixels themselves, 0 to 255, shaped to meet the input's channels."""
    import torch

    first = preprocess.layout == "NCHW"
    channels = spec.shape[1] if first else spec.shape[3]
    given = 1 if preprocess.color == "gray" else 3
    if channels != given:
        what = f"the preprocessing gives {given} channels ({preprocess.layout}), input {spec.name!r} has {channels}"
        raise UsageError(what, "give the --preprocess that the model was trained with")
    shape = (1, -1, 1, 1) if first else (1, 1, 1, -1)
    pairs = (preprocess.mean, preprocess.std)
    mean, std = ((torch.tensor(values, dtype=torch.float64) / preprocess.scale).float() for values in pairs)
    return mean.reshape(shape), std.reshape(shape)


def _module(module: Any, mean: Any, std: Any) -> Any:
    """Return the same module with another forward: of a wrapper, every layer would have another name."""
    import torch

    kind = type(module)
    if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
        what = f"--input-dtype uint8 gives the model's class another forward, and {kind.__name__} has none of its own"
        raise UnsupportedError(what, "return the nn.Module from the factory, not what was traced from it")

    def forward(self: Any, pixels: Any) -> Any:
        mean, std = self.edgeq_pixel_mean, self.edgeq_pixel_std
        return kind.forward(self, (pixels.to(mean.dtype) - mean) / std)

    # by name: nn.Sequential would run a part that is added to it
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    module.register_buffer(MEAN, mean)
    module.register_buffer(STD, std)
    return module


def _program(program: Any, mean: Any, std: Any, pixels: TensorSpec) -> Any:
    """Return an exported program captured again behind the arithmetic."""
    import torch

    class Pixels(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """Runs a program on what it makes of pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.program = program.module()
            self.register_buffer(MEAN, mean)
            self.register_buffer(STD, std)

        def forward(self, pixels: Any) -> Any:
            return self.program((pixels.to(torch.float32) - self.edgeq_pixel_mean) / self.edgeq_pixel_std)

    try:
        captured = torch.export.export(Pixels(), (torch.zeros(pixels.shape, dtype=torch.uint8),))
    except Exception as err:  # export raises many types
        what = f"the exported program cannot be captured again behind the normalisation: {first_line(err)}"
        raise UnsupportedError(what, "give the model's factory, or leave out --input-dtype") from err
    _keep_modules(program, captured)
    return captured


def _keep_modules(program: Any, captured: Any) -> None:
    """Let each operator know its module again, which capturing a program forgets; the new ones come first."""
    before, after = ([node for node in one.graph.nodes if node.op == "call_function"] for one in (program, captured))
    after = after[len(after) - len(before) :]
    if [node.target for node in before] == [node.target for node in after]:
        for old, new in zip(before, after, strict=True):
            new.meta |= {key: old.meta[key] for key in ("nn_module_stack", "stack_trace") if key in old.meta}
