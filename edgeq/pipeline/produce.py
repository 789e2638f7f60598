"""Quantize, lower and verify once for all targets that need the very same artifact."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import (
    GoldenSet,
    KeptValues,
    LoweredModel,
    QParams,
    QuantizedModel,
    Reuse,
    Search,
    Tuning,
    VerifyReport,
)
from edgeq.job import Job, Progress
from edgeq.memory import release_memory
from edgeq.pipeline.prepare import Prepared
from edgeq.places import cache_folder
from edgeq.samples import Batch
from edgeq.scheme import NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.target import why_not_run

if TYPE_CHECKING:
    from edgeq.quantize.spec import QatSpec, StickySpec
    from edgeq.verify.emulate.subset import Observed, Subset
    from edgeq.verify.host import HostRuntime

_MEMO_BYTES = 256 * 10**6  # reference outputs beyond this are computed again rather than kept

Forward = Callable[[Batch], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an artifact depends on, apart from the job: targets with equal recipes share it.

    Attributes:
        fresh: whether all ranges are new ones, though the job names a shipped model whose are to be reused.
    """

    runtime: str
    backend: str
    scheme: str
    threads: int
    fresh: bool = False
    reduce_range: bool = False

    @property
    def folder(self) -> str:
        """A folder's name for it."""
        return f"{self.backend}-{self.scheme}-{self.threads}{'-fresh' if self.fresh else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An artifact with all that is known of it.

    Attributes:
        output_steps: quantization steps of the outputs, where known.
        observed: the sub-set of the samples that a device's kernels are to run too; none where no target wants that.
        qparams, fresh, kept: as in QuantizedModel.
        reuse: what came of the shipped model's scales and zero points; None where they were not asked for.
    """

    lowered: LoweredModel
    verified: VerifyReport
    golden: GoldenSet
    quantized: tuple[str, ...]
    kept_fp32: tuple[str, ...]
    output_steps: tuple[float | None, ...] = ()
    observed: tuple[Observed, ...] = ()
    tuning: Tuning | None = None
    qparams: tuple[QParams, ...] = ()
    fresh: tuple[str, ...] = ()
    kept: KeptValues | None = None
    reuse: Reuse | None = None
    search: Search | None = None
    search_state: Path | None = None


class Producer:
    """Makes products for one prepared model; the capture and the fp32 outputs are shared."""

    def __init__(self, job: Job, prepared: Prepared, folder: Path, progress: Progress) -> None:
        self._job = job
        self._prepared = prepared
        self._folder = folder
        self._progress = progress
        # importing torchao makes torch log of an enumeration that only concerns torchao's authors
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        self._reference = _remembered(_forward(_float_module(prepared)), _MEMO_BYTES)

    @functools.cached_property
    def _captured(self) -> Any:
        from edgeq.quantize.capture import capture

        with self._progress.task("capture the model"):
            return capture(self._prepared.model)

    @functools.cached_property
    def _shipped(self) -> tuple[QParams, ...]:
        from edgeq.pipeline.reuse import shipped_qparams

        folder = self._job.reuse_qparams_from
        return () if folder is None else shipped_qparams(folder)

    def make(self, recipe: Recipe, label: str, runtime: HostRuntime, *, emulated: bool) -> Product:
        """Quantize, lower and verify.

        Args:
            recipe: what to make.
            label: for progress, in words.
            runtime: a child process, started early.
            emulated: whether a device's kernels are to run a part of the samples afterwards.

        Raises:
            EdgeqError: the step's own errors.
        """
        from edgeq.lower import lower
        from edgeq.lower.spec import LowerSpec
        from edgeq.verify.run import VerifySpec, verify
        from edgeq.verify.unrun import judge_graph

        prepared = self._prepared
        folder = self._folder / recipe.folder
        folder.mkdir(parents=True)
        quantized = self._quantized(recipe, label)
        release_memory()
        lowered = lower(
            recipe.runtime,
            quantized,
            LowerSpec(
                inputs=prepared.model.inputs,
                backend=recipe.backend,
                folder=folder,
                progress=self._progress,
                label=label,
            ),
        )
        release_memory()
        kept = subset(self._job, prepared, recipe.scheme, lowered.macs) if emulated else None
        spec = VerifySpec(
            lowered=lowered,
            inputs=prepared.model.inputs,
            graph=_forward(quantized.graph, engine_of(recipe)),
            fp32=None if recipe.scheme == "pretrained" else self._reference,  # there it is no float model
            output_steps=quantized.output_steps,
            samples=prepared.samples,
            is_evaluation=prepared.is_evaluation,
            metric=prepared.metric,
            metric_name=metric_name(self._job),
            scheme=recipe.scheme,
            backend=recipe.backend,
            threads=recipe.threads,
            progress=self._progress,
            label=label,
            observe=kept,
        )
        only = why_not_run(recipe.backend)
        verified, golden = judge_graph(spec, why=only) if only else verify(spec, runtime)
        return Product(
            lowered=lowered,
            verified=verified,
            golden=golden,
            quantized=quantized.quantized,
            kept_fp32=quantized.kept_fp32,
            output_steps=quantized.output_steps,
            observed=tuple(kept.observed) if kept else (),
            tuning=quantized.tuning,
            qparams=quantized.qparams,
            fresh=quantized.fresh,
            kept=quantized.kept,
            search=quantized.search,
            search_state=quantized.search_state,
        )

    def _quantized(self, recipe: Recipe, label: str) -> QuantizedModel:
        from edgeq.quantize import quantize
        from edgeq.quantize.spec import QuantizeSpec

        search = None
        if recipe.scheme in NEEDS_SEARCH:
            from edgeq.pipeline.searching import search_spec

            search = search_spec(
                self._job, self._prepared, self._reference, lambda graph: _forward(graph, engine_of(recipe))
            )
        spec = QuantizeSpec(
            model=self._prepared.model,
            captured=None if recipe.runtime == "torchscript" else self._captured,
            reduce_range=recipe.reduce_range,
            backend=recipe.backend,
            observer=self._job.observer,
            keep_fp32=self._job.keep_fp32,
            calibration=self._prepared.calibration,
            progress=self._progress,
            label=label,
            qat=self._qat() if recipe.scheme in NEEDS_TRAINING else None,
            shipped=() if recipe.fresh else self._shipped,
            sticky=None if recipe.fresh else self._sticky(recipe),
            search=search,
        )
        return quantize(recipe.runtime, recipe.scheme, spec)

    def _sticky(self, recipe: Recipe) -> StickySpec | None:
        from edgeq.pipeline.reuse import sticky_spec

        folder = self._job.reuse_qparams_from
        if folder is None:
            return None
        return sticky_spec(folder, self._prepared, self._reference, lambda graph: _forward(graph, engine_of(recipe)))

    def _qat(self) -> QatSpec:
        from edgeq.pipeline.cache import edgeq_digest, tool_versions
        from edgeq.quantize.spec import QatSpec

        prepared, job = self._prepared, self._job
        return QatSpec(
            samples=prepared.training,
            options=job.qat,
            logits=prepared.logits,
            seed=job.seed,
            train=prepared.train,
            state_folder=cache_folder() / "qat" if job.cache else None,
            identity=(prepared.data.qat_sha256 or "", edgeq_digest(), tool_versions()["torch"]),
        )


def engine_of(recipe: Recipe) -> str | None:
    """Return the quantized engine that runs a recipe's graphs; None where they are of plain operators."""
    return recipe.backend if recipe.runtime == "torchscript" else None


def subset(job: Job, prepared: Prepared, scheme: str, macs: int) -> Subset:
    """Return what keeps the samples that are to be emulated."""
    from edgeq.samples import batch_size
    from edgeq.verify.emulate.subset import Subset, subset_size
    from edgeq.verify.run import GOLDEN_SAMPLES

    rows = batch_size(prepared.samples, prepared.model.inputs) or 1
    limit = job.device.samples or subset_size(macs, scheme)
    return Subset(count=prepared.samples.count, rows=rows, limit=limit, first=GOLDEN_SAMPLES)


def metric_name(job: Job) -> str:
    """Return the name of the score: the user's function, or top1."""
    return (job.data.metric or "").rpartition(":")[2] or "top1"


def _float_module(prepared: Prepared) -> Any:
    model = prepared.model
    return model.model.module() if model.kind == "exported" else model.model


def _forward(module: Any, engine: str | None = None) -> Forward:
    """Return a function from a batch to the module's outputs as arrays; `engine` is set while it runs."""
    import torch

    def run(batch: Batch) -> tuple[Any, ...]:
        before = torch.backends.quantized.engine
        if engine is not None:
            torch.backends.quantized.engine = engine
        try:
            with torch.no_grad():
                result = module(*(torch.from_numpy(array.copy()) for array in batch.inputs))
        finally:
            torch.backends.quantized.engine = before
        return tuple(leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(result))

    return run


def _remembered(forward: Forward, budget_bytes: int) -> Forward:
    """Keep outputs by the samples' digests, up to `budget_bytes`, since every target compares with fp32."""
    kept: dict[tuple[str, ...], tuple[Any, ...]] = {}
    left = budget_bytes

    def run(batch: Batch) -> tuple[Any, ...]:
        nonlocal left
        key = tuple(sample.digest for sample in batch.samples)
        if key not in kept:
            outputs = forward(batch)
            size = sum(array.nbytes for array in outputs)
            if size > left:
                return outputs
            left -= size
            kept[key] = outputs
        return kept[key]

    return run
