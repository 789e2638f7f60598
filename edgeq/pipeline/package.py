"""`build`: the steps in order, shared between targets, answered from the cache where nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import Job, Progress
from edgeq.core.errors import EdgeqError, EnvironmentProblem, UnsupportedError, first_line, user_line
from edgeq.core.files import cache_folder, disk_errors, lock_dir
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import FILE_KINDS, LoadedModel, LoweredModel, QParams, QuantizedModel
from edgeq.core.results.report import GoldenSet, ModelError, PackageResult, Reuse, RunReport
from edgeq.core.schemes import NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.core.system import edgeq_digest, release_memory, tool_versions
from edgeq.core.targets import why_not_run
from edgeq.core.units import counted
from edgeq.deliver.ota.patch import make_patch
from edgeq.load.structure import sized_by_data
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.pipeline import cache, from_file
from edgeq.pipeline.auto import REFUSALS, obtain_all
from edgeq.pipeline.baselines import compared
from edgeq.pipeline.cache import keep, look_up_units, unit_of
from edgeq.pipeline.devices import Emulator
from edgeq.pipeline.from_file import FileMaker, check_equivalence
from edgeq.pipeline.plan import COMPARED, Artifact, ArtifactSpec, BuildUnit, Inputs, Obtained, Plan, Run, grouped
from edgeq.pipeline.preflight import check_job, refused_targets
from edgeq.pipeline.prepare import float_module, prepare, subset, verify_spec
from edgeq.pipeline.profile import with_cost
from edgeq.pipeline.publish import bundled, check_owner, publish, write_reports
from edgeq.pipeline.quantize_specs import _shipped, search_spec, shipped_qparams, sticky_spec
from edgeq.pipeline.reports import write_page
from edgeq.pipeline.tracking import Recorder, recording
from edgeq.quantize import find_method, quantize
from edgeq.quantize.capture import capture, dynamic_capture, example_tensors
from edgeq.quantize.graph_runner import forward, remembered
from edgeq.quantize.result import type_names
from edgeq.quantize.spec import QatSpec, QuantizeSpec, ReuseSpec, inside, matched_names
from edgeq.verify.emulate.emulate import Subset
from edgeq.verify.emulate.support import wants_emulation
from edgeq.verify.host import PRELOADED, HostRuntime, calm_openmp, forked, torch_was_used, use_torch
from edgeq.verify.metrics import SetMetric
from edgeq.verify.verify import judge, judge_graph, run_artifact


def plan(job: Job, work: Path) -> Plan:
    """Return the job's cells, and those that the cache has, each bundle copied into the work folder."""
    facts = cache.job_facts(job)
    note = COMPARED if job.compare else ""
    cells = tuple(
        unit_of(job, facts, target, scheme, note=note) for target in job.targets for scheme in job.schemes_of(target)
    )
    cannot = refused_targets(job)
    refused = {cell.key: _model_error(cannot[cell.target.name]) for cell in cells if cell.target.name in cannot}
    asked = tuple(cell for cell in cells if cell.key not in refused)
    finished = look_up_units(asked, work) if job.cache else {}
    return Plan(job=job, facts=facts, cells=cells, finished=finished, refused=refused)


def reusing_product(
    job: Job, maker: Maker, prepared: Inputs, recipe: ArtifactSpec, label: str, *, emulated: bool
) -> Artifact:
    """Make the artifact of a recipe; where a shipped model's ranges are reused, that without them too, to compare.

    Args:
        job: names the shipped model's bundle, or none.
        maker: has products left for both.
        prepared: the model and its data.
        recipe: what to make.
        label: for progress, in words.
        emulated: whether a device's kernels are to run a part of the samples afterwards.
    """
    product = maker.product(prepared, recipe, label, emulated=emulated)
    if job.reuse_qparams_from is None:
        return product
    without = dataclasses.replace(recipe, fresh=True)
    own = maker.product(prepared, without, f"{label}, all ranges new", emulated=False)
    return dataclasses.replace(product, reuse=_facts(job.reuse_qparams_from, product, own))


def _facts(folder: Path, product: Artifact, own: Artifact) -> Reuse:
    bundle, _ = _shipped(folder)
    before = bundle.artifact.read_bytes()
    patches = [len(make_patch(before, one.lowered.path.read_bytes()).data) for one in (product, own)]
    return Reuse(
        shipped=bundle.digest,
        tensors=len(product.qparams),
        fresh=product.fresh,
        kept=product.kept,
        patch_bytes=patches[0],
        patch_bytes_without=patches[1],
        fidelity_without=own.verified.fidelity,
    )


WORK_NAME = ".edgeq-work"

_LEAST_FREE_BYTES = 64 * 1024


def build(job: Job, progress: Progress) -> RunReport:
    """Package a model for every target and scheme of `job`.

    Bundles whose gates passed lie in `OUT/<model>/<target>/`, others in `OUT/rejected/…`. A target or scheme that
    cannot be done (`REFUSALS`) is reported beside the bundles of the others. On any error nothing that was there before
    is touched, and nothing is left behind.

    Raises:
        EdgeqError: a step's own errors, a refusal where it leaves no bundle at all. A failed gate is a row of the
            report, not an error.
    """
    job = with_demo_data(job)
    check_job(job)
    with disk_errors(job.out), lock_dir(job.out, wait_s=0), work_folder(job.out) as work:
        report = publish(complete(plan(job, work), work, progress))
        if len(report.rows) + len(report.refused) > 1:
            title = f"{report.rows[0].model} for {counted(len(report.rows) + len(report.refused), 'target')}"
            write_page(job.out, report.rows, report.data, title=title, refused=report.refused)
    return report


def complete(planned: Plan, work: Path, progress: Progress) -> Plan:
    """Make what is missing, and keep it in the cache.

    Raises:
        EdgeqError: the steps' own errors, and why nothing at all could be made.
    """
    missing, job = planned.missing, planned.job
    if not missing:
        return planned
    run = Run(job=job, facts=planned.facts, work=work, progress=progress)
    made = compared(run, missing, obtain) if job.compare else obtain_all(run, missing, obtain)
    finished = planned.finished | made.finished
    refused = {**planned.refused, **{key: _model_error(err) for key, err in made.refused.items()}}
    if finished:
        return dataclasses.replace(planned, finished=finished, refused=refused)
    least = min(made.refused.values(), key=lambda err: err.exit_code)
    if len({error.what for error in refused.values()}) > 1:
        told = "; ".join(f"{cell.label}: {refused[cell.key].what}" for cell in planned.cells)
        kind = next(kind for kind in REFUSALS if isinstance(least, kind))
        raise kind(f"nothing could be made: {told}", least.fix) from least
    raise least


def _model_error(err: EdgeqError) -> ModelError:
    """Return an error without what its frames hold: it outlives them, and crosses from a worker to its parent."""
    trace = "".join(traceback.format_exception(err))
    return ModelError(what=err.what, fix=err.fix, exit_code=err.exit_code, trace=trace)


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`; what a killed run left there goes first."""
    work = out / WORK_NAME
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    except Exception as err:
        # torch reports a full disk in its own words
        if not isinstance(err, EnvironmentProblem | OSError) and _is_full(work):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work)) from err
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _LEAST_FREE_BYTES


# --- Build the units of a run: reuse cached results, make one artifact for units that share it, cache the rest.


def obtain(run: Run, cells: Sequence[BuildUnit], *, refusals: tuple[type[EdgeqError], ...] = ()) -> Obtained:
    """Return cells from the cache; make what is missing, cells of one recipe together, and keep it there.

    Args:
        run: whose cells they are.
        cells: of named schemes.
        refusals: errors that end the cells of one artifact, or one cell, alone; all others are raised.
    """
    folder = run.folder()
    found = look_up_units(cells, folder) if run.job.cache else {}
    missing = tuple(cell for cell in cells if cell.key not in found)
    if not missing:
        return Obtained(finished=found, refused={})
    made, dependencies = _made(run, missing, folder, refusals)
    return Obtained(finished=found | keep(run, made.finished, dependencies), refused=made.refused)


def _made(
    run: Run, cells: Sequence[BuildUnit], folder: Path, refusals: tuple[type[EdgeqError], ...]
) -> tuple[Obtained, dict[str, str] | None]:
    """Build the cells.

    Returns:
        What was made, and what the user's code looked at; None for the latter where that changed meanwhile.
    """

    job, groups = run.job, grouped(cells)
    emulator = Emulator(job.device, run.progress)
    emulator.prepare(tuple(cell.target for cell in cells))
    products = len(groups) * (1 if job.reuse_qparams_from is None else 2)
    made = Obtained(finished={}, refused={})
    with Maker(job, folder, run.progress, products=products) as maker, recording() as recorder:
        prepared = _prepared(run, cells, maker, recorder)
        for recipe, group in groups.items():
            start = time.perf_counter()
            emulated = any(wants_emulation(cell.target, job.device) for cell in group)
            try:
                product = reusing_product(job, maker, prepared, recipe, group[0].label, emulated=emulated)
            except refusals as err:
                _put_aside(err, folder)
                made.refused.update((cell.key, err) for cell in group)
                continue
            made_s = time.perf_counter() - start
            for cell in group:
                place = folder / f"bundle-{cells.index(cell)}"
                try:
                    row = _bundled(run, prepared, product, cell, place, emulator, made_s)
                except refusals as err:
                    _put_aside(err, folder)
                    made.refused[cell.key] = err
                    continue
                made.finished[cell.key] = (row, prepared.data)
        return made, recorder.dependencies()


def _put_aside(err: EdgeqError, folder: Path) -> None:
    """Let go of the models and tensors in an error's frames, while the run goes on.

    Raises:
        EdgeqError: the error itself where the disk is full: that says nothing of the target.
    """
    if _is_full(folder):
        raise err
    cause: BaseException | None = err
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    release_memory()


def _prepared(run: Run, cells: Sequence[BuildUnit], maker: Maker, recorder: Recorder) -> Inputs:
    """Load the model and its data; what the user's functions open later is recorded while they run."""
    schemes = frozenset(cell.scheme for cell in cells)
    prepared = prepare(run.job, run.progress, schemes=schemes, describe=maker.described)
    recorder.on = False
    check_owner(run.job, prepared.model.name)  # before the minutes that follow
    # a built-in score of a whole set runs no code of the user's
    score = prepared.metric
    metric = score if isinstance(score, SetMetric) else recorder.heard(score)
    return dataclasses.replace(prepared, metric=metric, train=recorder.heard(prepared.train))


def _bundled(
    run: Run, prepared: Inputs, product: Artifact, cell: BuildUnit, place: Path, emulator: Emulator, made_s: float
) -> PackageResult:
    """Run the product on the cell's device, and write the bundle with its report and its page."""
    job, start = run.job, time.perf_counter()
    on_device = emulator.product(prepared, product, cell.target, cell.scheme, cell.label)
    on_device = with_cost(job.gates, job.device, prepared, on_device, cell.target, run.progress)
    row = bundled(job, prepared, on_device, cell.target, cell.scheme, place, deflated=run.deflated)
    seconds = {"make": round(made_s, 3)}
    if on_device is not product:
        seconds["emulate"] = round(time.perf_counter() - start, 3)
    return write_reports(dataclasses.replace(row, seconds=seconds), prepared.data)


# --- Products on demand, each verified in a child process of its own that was started ahead of time.


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
        return from_file.described(model, self._runtimes[0])

    def product(self, prepared: Inputs, recipe: ArtifactSpec, label: str, *, emulated: bool) -> Artifact:
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
                from_file.check_runtime(prepared.model, recipe)
                if prepared.model.kind == "onnx":
                    files = FileMaker(self._job, prepared, self._work, self._progress, runtime)
                    return files.from_source(recipe, label, emulated=emulated)
                folder = self._work / recipe.folder
                return from_file.take(self._job, prepared, recipe, folder, runtime, self._progress, emulated=emulated)
            if self._producer is None:
                self._producer = Producer(self._job, prepared, self._work, self._progress)
            product = self._producer.make(recipe, label, runtime, emulated=emulated)
            states = (product.tuning.state if product.tuning is not None else None, product.search_state)
            self._states += [state for state in states if state is not None]
            return product


# --- Quantize, lower and verify once for all targets that need the very same artifact.


# in torch's and ExecuTorch's words, for sizes that depend on values
_OF_DATA = re.compile("data-dependent|symbolic expression|unbacked")

_GUARD = re.compile("Could not guard on data-dependent expression.*", re.DOTALL)

_MEMO_BYTES = 256 * 10**6  # reference outputs beyond this are computed again rather than kept


class Producer:
    """Makes products for one prepared model; the capture and the fp32 outputs are shared."""

    def __init__(self, job: Job, prepared: Inputs, folder: Path, progress: Progress) -> None:
        self._job = job
        self._prepared = prepared
        self._folder = folder
        self._progress = progress
        # importing torchao makes torch log of an enumeration that only concerns torchao's authors
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        self._reference = remembered(forward(float_module(prepared)), _MEMO_BYTES)

    @functools.cached_property
    def _captured(self) -> Any:
        model = self._prepared.model
        with self._progress.task("capture the model"):
            return dynamic_capture(model) if self._job.dynamic_batch else capture(model)

    @functools.cached_property
    def _as_layers(self) -> LoadedModel:
        """The model with modules as its layers, which FX fuses: exported and scripted ones have operators only."""
        import torch

        from edgeq.quantize.fx_export import exported_graph

        model = self._prepared.model
        graph = model.model.graph if model.kind == "exported" or isinstance(model.model, torch.fx.GraphModule) else None
        if graph is None or not any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes):
            return model
        try:
            module = exported_graph(float_module(self._prepared), example_tensors(model.inputs))
        except Exception as err:  # torch.export raises many types
            what = f"the layers of the model cannot be found in its graph{user_line(err)}: {first_line(err)}"
            raise UnsupportedError(what, "give the model's factory, or use an ExecuTorch or ONNX target") from err
        return dataclasses.replace(model, kind="module", model=module)

    @functools.cached_property
    def _shipped(self) -> tuple[QParams, ...]:
        folder = self._job.reuse_qparams_from
        return () if folder is None else shipped_qparams(folder)

    def make(self, recipe: ArtifactSpec, label: str, runtime: HostRuntime, *, emulated: bool) -> Artifact:
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
        try:
            quantized = self._quantized(recipe, label)
            release_memory()
            lowered = self._lowered(quantized, recipe, label, self._folder / recipe.folder)
        except (OSError, MemoryError):
            raise
        except Exception as err:  # the libraries raise many types for what a model holds
            explained = self._explained(err, recipe)
            if explained is err:
                raise
            raise explained from err
        release_memory()
        kept = subset(self._job, self._prepared, recipe.scheme, lowered.macs) if emulated else None
        verified, golden = self._verified(quantized, lowered, recipe, label, runtime, kept)
        return Artifact(
            lowered=lowered,
            verified=verified,
            golden=golden,
            quantized=quantized.quantized,
            kept_fp32=quantized.kept_fp32,
            asked_fp32=_asked_layers(self._job, float_module(self._prepared), lowered) if self._job.keep_fp32 else (),
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

    def _from_float_file(self, recipe: ArtifactSpec, label: str, runtime: HostRuntime, *, emulated: bool) -> Artifact:
        """Export the float model, and let the runtime's own tools quantize that."""
        floats = dataclasses.replace(recipe, scheme="fp32", file_format="onnx")
        lowered = self._lowered(self._quantized(floats, label), floats, label, self._folder / f"{recipe.folder}-float")
        check_equivalence(lowered, self._reference, self._prepared)
        release_memory()
        maker = FileMaker(self._job, self._prepared, self._folder, self._progress, runtime)
        keep = _kept_layers(self._job, float_module(self._prepared), lowered)
        return maker.make(lowered.path, self._reference, recipe, label, emulated=emulated, keep=keep)

    def _explained(self, err: Exception, recipe: ArtifactSpec) -> EdgeqError:
        """Return the error to show for one of a step's: what libraries say of sizes that the data decide names no line.

        An error that no step foresaw ends this target and scheme alone, as a refusal.
        """
        if not isinstance(err, EdgeqError):
            what = f"{recipe.scheme} fails on this model{user_line(err)}: {type(err).__name__}: {first_line(err)}"
            fix = "try another --scheme or target; `edgeq --debug` shows the traceback to report"
            return UnsupportedError(what, fix)
        if not isinstance(err, UnsupportedError) or not _OF_DATA.search(err.what):
            return err
        place = sized_by_data(float_module(self._prepared), self._prepared.model.inputs)
        if place:
            what = f"no fixed sizes: the data decide how many values there are{place}"
            fix = "leave out the post-processing: return the tensors that go into it, and do the rest in the app"
            return UnsupportedError(f"the model has {what}", fix)
        plain = _GUARD.sub("forward decides by values of its inputs", err.what)
        return err if plain == err.what else UnsupportedError(plain, err.fix)

    def _lowered(self, quantized: QuantizedModel, recipe: ArtifactSpec, label: str, folder: Path) -> LoweredModel:

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
            output_names=self._prepared.model.output_names,
        )
        return lower(recipe.runtime, quantized, spec)

    def _verified(
        self,
        quantized: QuantizedModel,
        lowered: LoweredModel,
        recipe: ArtifactSpec,
        label: str,
        runtime: HostRuntime,
        kept: Subset | None,
    ) -> tuple[VerifyReport, GoldenSet]:
        """Run the artifact beside its graph and fp32; where nothing here runs it, judge its graph."""
        spec = dataclasses.replace(
            verify_spec(self._prepared, recipe, lowered, self._progress, label),
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

    def _quantized(self, recipe: ArtifactSpec, label: str) -> QuantizedModel:

        search = None
        if recipe.scheme in NEEDS_SEARCH:
            search = search_spec(
                self._job, self._prepared, self._reference, lambda graph: forward(graph, recipe.engine)
            )
        spec = QuantizeSpec(
            model=self._as_layers if recipe.runtime == "torchscript" else self._prepared.model,
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

    def _sticky(self, recipe: ArtifactSpec) -> ReuseSpec | None:
        folder = self._job.reuse_qparams_from
        if folder is None:
            return None
        return sticky_spec(folder, self._prepared, self._reference, lambda graph: forward(graph, recipe.engine))

    def _qat(self) -> QatSpec:

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

    kept = matched_names(job.keep_fp32, type_names(module))
    # of one module's layers, all but the first have a number
    return tuple(layer.name for layer in lowered.layers if inside(layer.name.partition("#")[0], kept))


def _asked_layers(job: Job, module: Any, lowered: LoweredModel) -> tuple[str, ...]:
    """Return the names of the artifact's layers in modules that --keep-fp32 names, after quantization checked them.

    An entry that matches only names of an exported program's own, and no module here, excuses no layer.
    """
    kept = {name for name, kind in type_names(module).items() if name in job.keep_fp32 or kind in job.keep_fp32}
    return tuple(layer.name for layer in lowered.layers if inside(layer.name.partition("#")[0], kept))
