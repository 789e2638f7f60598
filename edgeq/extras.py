"""Runtimes that come with an extra of edgeq: what they need, and how to get it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from edgeq.errors import EnvironmentProblem

# by runtime: the extra, and the modules that it brings
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {"onnx": ("onnx", ("onnx", "onnxscript", "onnxruntime"))}


def check_extras(runtimes: Iterable[str]) -> None:
    """Find out before a long run whether the runtimes' extras are installed; imports none of them.

    Raises:
        EnvironmentProblem: one is missing (named, with the command that installs it).
    """
    for runtime in sorted(set(runtimes)):
        extra, modules = EXTRAS.get(runtime, ("", ()))
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise missing_extra(runtime, extra, ", ".join(missing))


def missing_module(text: str) -> EnvironmentProblem | None:
    """Return the error for a child's ModuleNotFoundError, where an extra brings the module; else None."""
    for runtime, (extra, modules) in EXTRAS.items():
        for name in modules:
            if text.startswith(f"ModuleNotFoundError: No module named '{name}"):
                return missing_extra(runtime, extra, name)
    return None


def missing_extra(runtime: str, extra: str, modules: str) -> EnvironmentProblem:
    """Return the error for an extra that is not there."""
    return EnvironmentProblem(f"the {runtime} runtime needs {modules}, not installed", f"pip install 'edgeq[{extra}]'")
