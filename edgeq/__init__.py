"""edgeq: package a trained PyTorch model for phones and edge hosts, and refuse one that must not ship.

The public API is what `__all__` names; docs/api.md describes it. Names are loaded when they are first used, so that
`import edgeq` costs nothing and loads neither torch nor pydantic.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeq.api import build, compare, inspect, install, load_config, package, schemes, sensitivity, targets
    from edgeq.api import verify as verify
    from edgeq.core.config import Limits, PackageConfig
    from edgeq.core.errors import EdgeqError
    from edgeq.core.manifest import Bundle
    from edgeq.core.results.report import Gate, GateFailed, PackageResult, RunReport
    from edgeq.core.targets import TargetProfile as Target
    from edgeq.verify.detection import MeanAveragePrecision

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "EdgeqError",
    "Gate",
    "GateFailed",
    "Limits",
    "MeanAveragePrecision",
    "PackageConfig",
    "PackageResult",
    "RunReport",
    "Target",
    "__version__",
    "build",
    "compare",
    "inspect",
    "install",
    "load_config",
    "package",
    "schemes",
    "sensitivity",
    "targets",
    "verify",
]

_API = "edgeq.api"

# where each public name is defined, and its name there
_PLACES = {
    "Bundle": ("edgeq.core.manifest", "Bundle"),
    "EdgeqError": ("edgeq.core.errors", "EdgeqError"),
    "Gate": ("edgeq.core.results.report", "Gate"),
    "GateFailed": ("edgeq.core.results.report", "GateFailed"),
    "Limits": ("edgeq.core.config", "Limits"),
    "MeanAveragePrecision": ("edgeq.verify.detection", "MeanAveragePrecision"),
    "PackageConfig": ("edgeq.core.config", "PackageConfig"),
    "PackageResult": ("edgeq.core.results.report", "PackageResult"),
    "RunReport": ("edgeq.core.results.report", "RunReport"),
    "Target": ("edgeq.core.targets", "TargetProfile"),
    **{
        name: (_API, name)
        for name in (
            *("build", "compare", "inspect", "install", "load_config"),
            *("package", "schemes", "sensitivity", "targets"),
        )
    },
}


# packages that the commands reach by name, so that they are imported when a command runs
_ROOMS = frozenset({"bundle", "check", "config", "core", "deliver", "lower", "pipeline", "report"})


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name == "verify" or name in _ROOMS:
        return importlib.import_module(f"edgeq.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _VerifyPackage(ModuleType):
    """`edgeq.verify` is a function of the API and the package of the verify step at once: a package to be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `edgeq.api.verify`."""
        return importlib.import_module(_API).verify(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """The function's own signature, for help() and editors in notebooks."""
        import inspect as python_inspect

        return python_inspect.signature(importlib.import_module(_API).verify)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # importing edgeq.verify, or anything in it, binds the package to the name that the API has too
        if name == "verify" and type(value) is ModuleType:
            value.__class__ = _VerifyPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
