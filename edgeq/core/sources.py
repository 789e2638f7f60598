"""Sources by their text alone: the model's name in bundles, its origin, and the formats of files."""

from __future__ import annotations

from pathlib import Path

from edgeq.core.errors import UsageError

DIGITS = "digits"


BUILT_IN = "digits"


# functions whose name says nothing of the model: it is then named after their file or module
GENERIC_FACTORIES = (
    *("model", "get_model", "build_model", "create_model", "make_model", "load_model", "net", "get_net", "build_net"),
    *("create_net", "make_net", "network", "build", "make", "create", "factory"),
)

# archives of torch.jit.save; a .pt file may also be weights, which its content tells
TORCHSCRIPT_SUFFIXES = (".pt", ".torchscript", ".jit")

SOURCE_SUFFIXES = (".pt2", ".onnx", ".pte", ".ptl", *TORCHSCRIPT_SUFFIXES)

# a folder of Hugging Face's transformers: config.json beside .safetensors
HUGGING_FACE = "hf:"

# an architecture of timm
TIMM = "timm:"

# what a file is by its name, and what writes one
_FORMATS = {
    ".pte": ("ExecuTorch program", "to_executorch()"),
    ".ptl": ("TorchScript archive", "_save_for_lite_interpreter()"),
    ".pt": ("TorchScript archive", "torch.jit.save"),
    ".onnx": ("ONNX file", "torch.onnx.export"),
    ".ort": ("ORT file", "onnxruntime.tools.convert_onnx_models_to_ort"),
    ".xml": ("OpenVINO model", "openvino.serialize"),
    ".tflite": ("LiteRT model", "litert_torch.convert"),
    ".pt2": ("exported program", "torch.export.save"),
}


def unreadable(path: Path, why: str) -> UsageError:
    """Return the error for a model file that its format's reader refuses.

    Args:
        path: the file as it was named.
        why: the reader's message.
    """
    noun, writer = _FORMATS[path.suffix]
    what = f"{path} is not a valid {noun}: {why}"
    return UsageError(what, f"check that the file is complete, or write it again ({writer})")


def factory_model_name(source: str) -> str:
    """Return the name of the model that `file.py:function` or `pkg.mod:function` gives.

    Two models of one file must not replace each other, so the function names them, unless it is a generic one.
    """
    place, _, function = source.rpartition(":")
    if function.lower() not in GENERIC_FACTORIES:
        return function.strip("_") or function
    return Path(place).stem if place.endswith(".py") or "/" in place else place.rpartition(".")[2]


def origin(source: str) -> str:
    """Return what distinguishes a source from others with the same model name: a file with its folder.

    The folders above are left out, so that the result does not depend on a checkout's path.
    """
    if source.startswith(HUGGING_FACE):
        return HUGGING_FACE + "/".join(Path(source.removeprefix(HUGGING_FACE)).absolute().parts[-2:])
    place, colon, function = source.rpartition(":")
    is_file = place.endswith(".py") or "/" in place
    path = Path(place if is_file else source)
    if not is_file and path.suffix not in SOURCE_SUFFIXES:
        return source
    return "/".join(path.absolute().parts[-2:]) + (f"{colon}{function}" if is_file else "")
