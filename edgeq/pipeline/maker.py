"""Products on demand, each verified in a child process of its own that was started ahead of time."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import TracebackType

from edgeq.artifacts import FILE_KINDS, LoadedModel
from edgeq.job import Job, Progress
from edgeq.pipeline import existing
from edgeq.pipeline.onnx_file import FileMaker
from edgeq.pipeline.prepare import Prepared
from edgeq.pipeline.produce import Producer
from edgeq.pipeline.product import Product, Recipe
from edgeq.verify.child import calm_openmp, forked
from edgeq.verify.host import HostRuntime

PRELOADED = "edgeq.pipeline.preload"


_used = False  # whether this process has used torch, and not only imported it


def use_torch() -> None:
    """Say that this process uses torch from now on: its children are started anew, since a fork could hang."""
    global _used
    _used = True


def torch_was_used() -> bool:
    """Return whether this process has used torch: a fork of it could hang."""
    return _used


class Maker:
    """Makes the products of one run."""

    def __init__(self, job: Job, work: Path, progress: Progress, *, products: int) -> None:
        self._job = job
        self._work = work
        self._progress = progress
        self._producer: Producer | None = None
        self._left = products
        # a worker of a project has torch from the process that it was forked from, and has not used it
        self._is_fresh = not torch_was_used() and ("torch" not in sys.modules or PRELOADED in sys.modules)
        self._states: list[Path] = []
        # scratch folders in `work` go with it, even when a killed run left them
        if self._fork():
            self._runtimes = [HostRuntime(forked, folder=work, trusted=True) for _ in range(products)]
        else:
            self._runtimes = [HostRuntime(folder=work, trusted=True)]

    def _fork(self) -> bool:
        """Import torch, so that the children share it, where it was not used before."""
        if self._is_fresh:
            with self._progress.task("import torch"):
                calm_openmp()
                import torch  # noqa: F401
            # a collection writes to every object that it looks at, and so would copy the pages that the children share
            gc.collect()
            gc.freeze()
        return self._is_fresh

    def __enter__(self) -> Maker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        use_torch()
        for runtime in self._runtimes:
            runtime.close()
        if kind is None:
            for state in self._states:  # kept until now: a run that ends before its bundles need not train again
                state.unlink(missing_ok=True)

    def described(self, model: LoadedModel) -> LoadedModel:
        """Return an artifact that came as it is with its inputs filled in."""
        return existing.described(model, self._runtimes[0])

    def product(self, prepared: Prepared, recipe: Recipe, label: str, *, emulated: bool) -> Product:
        """Make and verify the artifact of one recipe.

        Args:
            prepared: the model and its data.
            recipe: what to make.
            label: for progress, in words.
            emulated: whether a device's kernels are to run a part of the samples afterwards.

        Raises:
            EdgeqError: the steps' own errors.
        """
        self._left -= 1
        with self._runtimes.pop(0) as runtime:
            if not self._is_fresh and self._left:
                self._runtimes.append(
                    HostRuntime(folder=self._work, trusted=True)
                )  # importing torch there takes seconds: ahead of time
            if prepared.model.kind in FILE_KINDS:
                existing.check_runtime(prepared.model, recipe)
                if prepared.model.kind == "onnx":
                    files = FileMaker(self._job, prepared, self._work, self._progress, runtime)
                    return files.from_source(recipe, label, emulated=emulated)
                folder = self._work / recipe.folder
                return existing.take(self._job, prepared, recipe, folder, runtime, self._progress, emulated=emulated)
            if self._producer is None:
                self._producer = Producer(self._job, prepared, self._work, self._progress)
            product = self._producer.make(recipe, label, runtime, emulated=emulated)
            states = (product.tuning.state if product.tuning is not None else None, product.search_state)
            self._states += [state for state in states if state is not None]
            return product
