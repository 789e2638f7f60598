"""What a job comes to: a cell for each target and scheme, and which of them the cache has already."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.artifacts import DataFacts, Row
from edgeq.errors import EdgeqError, first_line
from edgeq.job import Job
from edgeq.pipeline import cache
from edgeq.pipeline.product import Recipe
from edgeq.target import TargetProfile
from edgeq.verify.emulate.wanted import wants_emulation

Finished = dict[str, tuple[Row, DataFacts]]
COMPARED = " compared"  # in the keys of --compare: the same bundle, with more in its report


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One target and scheme of a run.

    Attributes:
        scheme: its name, or `auto`.
        key: its place in the cache.
    """

    target: TargetProfile
    scheme: str
    key: str

    @property
    def recipe(self) -> Recipe:
        """What the artifact depends on."""
        target = self.target
        return Recipe(
            runtime=target.runtime,
            backend=target.backend,
            scheme=self.scheme,
            threads=target.device.threads,
            reduce_range=target.runtime == "onnx" and not target.device.vnni,
            file_format=target.file_format,
        )

    @property
    def label(self) -> str:
        """The cell in words, for progress."""
        return f"{self.target.name} {self.scheme}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job with what is there of it already.

    Attributes:
        facts: what the cells' keys are over.
        finished: by the cells' keys.
    """

    job: Job
    facts: dict[str, Any]
    cells: tuple[Cell, ...]
    finished: Finished

    @property
    def missing(self) -> tuple[Cell, ...]:
        """The cells that are still to be made."""
        return tuple(cell for cell in self.cells if cell.key not in self.finished)


def plan(job: Job, work: Path) -> Plan:
    """Return the job's cells, and those that the cache has, each bundle copied into the work folder."""
    facts = cache.job_facts(job)
    note = COMPARED if job.compare else ""
    cells = tuple(
        cell_of(job, facts, target, scheme, note=note) for target in job.targets for scheme in job.schemes_of(target)
    )
    return Plan(job=job, facts=facts, cells=cells, finished=look_up(cells, work) if job.cache else {})


def cell_of(job: Job, facts: Mapping[str, Any], target: TargetProfile, scheme: str, *, note: str = "") -> Cell:
    """Return a cell of a job; `note` tells results apart that hold more than the scheme's bundle."""
    key = cache.cell_key(facts, target, scheme + note, emulated=wants_emulation(target, job.device))
    return Cell(target=target, scheme=scheme, key=key)


def look_up(cells: Sequence[Cell], work: Path) -> Finished:
    """Return what the cache has, each bundle copied into the work folder."""
    found: Finished = {}
    for index, cell in enumerate(cells):
        hit = cache.look_up(cell.key, work / f"cached-{index}")
        if hit is not None:
            found[cell.key] = hit
    return found


def grouped(cells: Iterable[Cell]) -> dict[Recipe, list[Cell]]:
    """Return the cells by what their artifacts depend on."""
    groups: dict[Recipe, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe, []).append(cell)
    return groups


def stored(made: Finished, dependencies: Mapping[str, str]) -> Finished:
    """Keep what was made in the cache; a cache that cannot be written to costs a warning, not the result."""
    kept = {}
    for key, (row, data) in made.items():
        if _may_pass_later(row):
            kept[key] = (row, data)
            continue
        try:
            cache.store(key, row, data, dependencies)
        except (EdgeqError, OSError) as err:
            why = err.what if isinstance(err, EdgeqError) else first_line(err)
            row = with_warning(row, f"the result was not kept in the cache: {why}")
        kept[key] = (row, data)
    return kept


def with_warning(row: Row, text: str) -> Row:
    """Return a row with one more warning."""
    return dataclasses.replace(row, checked=dataclasses.replace(row.checked, warnings=(*row.checked.warnings, text)))


def _may_pass_later(row: Row) -> bool:
    """Whether the same may pass with nothing changed but how busy the machine is: that is to be measured again.

    Load can only lengthen a time, so one that kept its limit is as good from the cache. The peak memory of a run
    differs by what the allocator had at hand.
    """
    verified = row.verified
    if verified.emulation is not None and verified.emulation.problem:
        return True
    predicted = {"latency"} if verified.cost is not None and verified.cost.prediction is not None else set()
    measured = {"latency", "load", "peak_memory"} - predicted
    return any(gate.outcome == "failed" and gate.name in measured for gate in row.checked.gates)
