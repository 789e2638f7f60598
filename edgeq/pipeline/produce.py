"""Quantize, lower and verify once for all targets that need the very same artifact."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import GoldenSet, LoweredModel, QParams, QuantizedModel, VerifyReport
from edgeq.job import Job, Progress
from edgeq.memory import release_memory
from edgeq.pipeline.forward import float_module, forward, remembered
from edgeq.pipeline.prepare import Prepared
from edgeq.pipeline.product import Product, Recipe
from edgeq.places import cache_folder
from edgeq.quantize import find_method
from edgeq.scheme import NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.target import why_not_run

if TYPE_CHECKING:
    from edgeq.quantize.spec import QatSpec, StickySpec
    from edgeq.verify.emulate.subset import Subset
    from edgeq.verify.host import HostRuntime
    from edgeq.verify.spec import VerifySpec

_MEMO_BYTES = 256 * 10**6  # reference outputs beyond this are computed again rather than kept


class Producer:
    """Makes products for one prepared model; the capture and the fp32 outputs are shared."""

    def __init__(self, job: Job, prepared: Prepared, folder: Path, progress: Progress) -> None:
        self._job = job
        self._prepared = prepared
        self._folder = folder
        self._progress = progress
        # importing torchao makes torch log of an enumeration that only concerns torchao's authors
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        self._reference = remembered(forward(float_module(prepared)), _MEMO_BYTES)

    @functools.cached_property
    def _captured(self) -> Any:
        from edgeq.quantize.capture import capture, dynamic_capture

        model = self._prepared.model
        with self._progress.task("capture the model"):
            return dynamic_capture(model) if self._job.dynamic_batch else capture(model)

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
            runtime: a child process, started early; it has ended afterwards.
            emulated: whether a device's kernels are to run a part of the samples afterwards.

        Raises:
            EdgeqError: the step's own errors.
        """
        # the scheme's operators are the runtime's own, which no PyTorch graph has
        if find_method(recipe.runtime, recipe.scheme).function is None:
            return self._from_float_file(recipe, label, runtime, emulated=emulated)
        quantized = self._quantized(recipe, label)
        release_memory()
        lowered = self._lowered(quantized, recipe, label, self._folder / recipe.folder)
        release_memory()
        kept = subset(self._job, self._prepared, recipe.scheme, lowered.macs) if emulated else None
        verified, golden = self._verified(quantized, lowered, recipe, label, runtime, kept)
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
            remarks=quantized.remarks,
            layer_sqnrs=quantized.layer_sqnrs,
        )

    def _from_float_file(self, recipe: Recipe, label: str, runtime: HostRuntime, *, emulated: bool) -> Product:
        """Export the float model, and let the runtime's own tools quantize that."""
        from edgeq.pipeline.onnx_file import FileMaker, check_equivalence

        floats = dataclasses.replace(recipe, scheme="fp32", file_format="onnx")
        lowered = self._lowered(self._quantized(floats, label), floats, label, self._folder / f"{recipe.folder}-float")
        check_equivalence(lowered, self._reference, self._prepared)
        release_memory()
        maker = FileMaker(self._job, self._prepared, self._folder, self._progress, runtime)
        keep = _kept_layers(self._job, float_module(self._prepared), lowered)
        return maker.make(lowered.path, self._reference, recipe, label, emulated=emulated, keep=keep)

    def _lowered(self, quantized: QuantizedModel, recipe: Recipe, label: str, folder: Path) -> LoweredModel:
        from edgeq.lower import lower
        from edgeq.lower.spec import LowerSpec

        folder.mkdir(parents=True)
        spec = LowerSpec(
            inputs=self._prepared.model.inputs,
            backend=recipe.backend,
            folder=folder,
            progress=self._progress,
            label=label,
            native=recipe.native,
            file_format=recipe.file_format,
            dynamic_batch=self._job.dynamic_batch,
        )
        return lower(recipe.runtime, quantized, spec)

    def _verified(
        self,
        quantized: QuantizedModel,
        lowered: LoweredModel,
        recipe: Recipe,
        label: str,
        runtime: HostRuntime,
        kept: Subset | None,
    ) -> tuple[VerifyReport, GoldenSet]:
        """Run the artifact beside its graph and fp32; where nothing here runs it, judge its graph."""
        from edgeq.verify.run import judge, run_artifact
        from edgeq.verify.unrun import judge_graph

        spec = dataclasses.replace(
            verify_spec(self._job, self._prepared, recipe, lowered, self._progress, label),
            graph=forward(quantized.graph, recipe.engine),
            fp32=None if recipe.scheme == "pretrained" else self._reference,  # there it is no float model
            output_steps=quantized.output_steps,
            observe=kept,
        )
        why = why_not_run(recipe.backend)
        if why:
            return judge_graph(spec, why=why)
        ran = run_artifact(spec, runtime)
        runtime.close()  # the artifact is done; the graph takes memory too
        return judge(spec, ran)

    def _quantized(self, recipe: Recipe, label: str) -> QuantizedModel:
        from edgeq.quantize import quantize
        from edgeq.quantize.spec import QuantizeSpec

        search = None
        if recipe.scheme in NEEDS_SEARCH:
            from edgeq.pipeline.searching import search_spec

            search = search_spec(
                self._job, self._prepared, self._reference, lambda graph: forward(graph, recipe.engine)
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
        return sticky_spec(folder, self._prepared, self._reference, lambda graph: forward(graph, recipe.engine))

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


def _kept_layers(job: Job, module: Any, lowered: LoweredModel) -> tuple[str, ...]:
    """Return the layers of a float file that lie in the modules that are to stay in float."""
    from edgeq.quantize.names import inside, matched_names
    from edgeq.quantize.result import type_names

    kept = matched_names(job.keep_fp32, type_names(module))
    # of one module's layers, all but the first have a number
    return tuple(layer.name for layer in lowered.layers if inside(layer.name.partition("#")[0], kept))


def subset(job: Job, prepared: Prepared, scheme: str, macs: int) -> Subset:
    """Return what keeps the samples that are to be emulated."""
    from edgeq.samples import batch_size
    from edgeq.verify.emulate.subset import Subset, subset_size
    from edgeq.verify.tally import GOLDEN_SAMPLES

    rows = batch_size(prepared.samples, prepared.model.inputs) or 1
    limit = job.device.samples or subset_size(macs, scheme)
    return Subset(count=prepared.samples.count, rows=rows, limit=limit, first=GOLDEN_SAMPLES)


def verify_spec(
    job: Job, prepared: Prepared, recipe: Recipe, lowered: LoweredModel, progress: Progress, label: str
) -> VerifySpec:
    """Return the verify step's input for an artifact that is compared with nothing yet."""
    from edgeq.verify.spec import VerifySpec

    return VerifySpec(
        lowered=lowered,
        inputs=prepared.model.inputs,
        graph=None,
        fp32=None,
        output_steps=(),
        samples=prepared.samples,
        is_evaluation=prepared.is_evaluation,
        metric=prepared.metric,
        metric_name=(job.data.metric or "").rpartition(":")[2] or "top1",
        scheme=recipe.scheme,
        backend=recipe.backend,
        threads=recipe.threads,
        progress=progress,
        label=label,
    )
