"""What a worker of a cluster gets, and what comes back: parts of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq.core.results.report import ModelError
from edgeq.pipeline.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an entry of a cache needs besides a result.

    Attributes:
        dependencies: what the user's code looked at, by paths relative to the project's folder.
        is_bound: whether it is good for the project's own folder only.
    """

    dependencies: Mapping[str, str]
    is_bound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a part ended.

    Attributes:
        outcome: its plan with the results, or the error that ended it.
        looked_at: the states of all that the user's code looked at on the worker, complete or not, in the form of
            `Kept.dependencies`; the coordinator compares them with its own.
        kept: by the keys of units whose results may be kept.
        differing: the facts that are not those of the coordinator, each with both values; then nothing was made.
    """

    outcome: Plan | ModelError | None
    looked_at: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A model's units that share what is built, as a worker gets them.

    Attributes:
        name: the model, for messages.
        plan: of these units only.
        project: the folder of the project's files on the worker.
        module_folders: where modules are looked for before the worker's own folders, in the project.
        work: an empty folder for the results.
        threads: for torch.
    """

    name: str
    plan: Plan
    project: Path
    module_folders: tuple[str, ...]
    work: Path
    threads: int = 1
