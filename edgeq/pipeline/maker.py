"""Products on demand, each verified in a child process of its own that was started ahead of time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from edgeq.artifacts import LoadedModel
from edgeq.job import Job, Progress
from edgeq.pipeline import existing
from edgeq.pipeline.prepare import Prepared
from edgeq.pipeline.produce import Producer, Product, Recipe
from edgeq.verify.host import HostRuntime


class Maker:
    """Makes the products of one run."""

    def __init__(self, job: Job, work: Path, progress: Progress) -> None:
        self._job = job
        self._work = work
        self._progress = progress
        self._producer: Producer | None = None
        # importing torch there takes seconds, in which this process imports it too
        self._next = HostRuntime()

    def __enter__(self) -> Maker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next.close()

    def described(self, model: LoadedModel) -> LoadedModel:
        """Return an artifact that came as it is with its inputs filled in."""
        return existing.described(model, self._next)

    def product(self, prepared: Prepared, recipe: Recipe, label: str) -> Product:
        """Make and verify the artifact of one recipe.

        Raises:
            EdgeqError: the steps' own errors.
        """
        runtime, self._next = self._next, HostRuntime()
        with runtime:
            if prepared.model.kind in ("pte", "ptl"):
                existing.check_runtime(prepared.model, recipe)
                folder = self._work / f"{recipe.backend}-{recipe.threads}"
                return existing.take(self._job, prepared, recipe, folder, runtime, self._progress)
            if self._producer is None:
                self._producer = Producer(self._job, prepared, self._work, self._progress)
            return self._producer.make(recipe, label, runtime)
