"""What a source is called, by its text alone: the model's name in bundles, and what tells two sources apart."""

from __future__ import annotations

from pathlib import Path

# functions whose name says nothing of the model: it is then named after their file or module
GENERIC_FACTORIES = (
    *("model", "get_model", "build_model", "create_model", "make_model", "load_model", "net", "get_net", "build_net"),
    *("create_net", "make_net", "network", "build", "make", "create", "factory"),
)


def factory_model_name(source: str) -> str:
    """Return the name of the model that `file.py:function` or `pkg.mod:function` gives.

    Two models of one file must not replace each other, so the function names them, unless it is a generic one.
    """
    place, _, function = source.rpartition(":")
    if function.lower() not in GENERIC_FACTORIES:
        return function.strip("_") or function
    return Path(place).stem if place.endswith(".py") or "/" in place else place.rpartition(".")[2]


def origin(source: str) -> str:
    """Return what tells a source from others of the same model name: a file with the folder that it lies in.

    The folders above are left out, so that a checkout may lie anywhere.
    """
    place, colon, function = source.rpartition(":")
    is_file = place.endswith(".py") or "/" in place
    path = Path(place if is_file else source)
    if not is_file and path.suffix not in (".pt2", ".onnx", ".pte", ".ptl"):
        return source
    return "/".join(path.absolute().parts[-2:]) + (f"{colon}{function}" if is_file else "")
