"""The delegates of ExecuTorch programs, by the backend's name in target profiles."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from edgeq.lower import coreml
from edgeq.lower.edge_speedups import speedups


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegate:
    """What a backend brings to a lowering.

    Attributes:
        title: of its partitioner, for the manifest.
        partitioner: makes it for a scheme, compile options included.
        around: what holds while a program is lowered.
        check: raises before a long run where something is missing here.
        library: what else decides the artifact, beside ExecuTorch; "" for nothing.
    """

    title: str
    partitioner: Callable[[str], Any]
    around: Callable[[Any], AbstractContextManager[None]]
    check: Callable[[], None]
    library: str = ""


def _xnnpack(_scheme: str) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


def _nothing() -> None:
    """XNNPACK comes with ExecuTorch."""


DELEGATES: dict[str, Delegate] = {
    "xnnpack": Delegate(title="XnnpackPartitioner", partitioner=_xnnpack, around=speedups, check=_nothing),
    "coreml": Delegate(
        title="CoreMLPartitioner",
        partitioner=coreml.partitioner,
        around=coreml.repeatable,
        check=coreml.check_coreml,
        library="coremltools",
    ),
}


def delegate_tools(backend: str) -> dict[str, str]:
    """Return the version of the library that a backend's delegate is made by, by its name; of most backends none."""
    library = DELEGATES[backend].library if backend in DELEGATES else ""
    return {library: importlib.metadata.version(library)} if library else {}


def check_delegates(backends: tuple[str, ...]) -> None:
    """Find out before a long run whether all these backends can be lowered for here.

    Raises:
        EnvironmentProblem: a library is missing.
    """
    for backend in backends:
        if backend in DELEGATES:
            DELEGATES[backend].check()
