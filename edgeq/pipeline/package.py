"""`edgeq package`, the main path: check, plan, restore from the cache, build, verify, gate, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

from edgeq.check.fidelity import certain_loss, looks_lost
from edgeq.config.resolve import with_demo_data
from edgeq.core.config import Job, Progress
from edgeq.core.errors import AccuracyError, EdgeqError, EnvironmentProblem, UnsupportedError, first_line, user_line
from edgeq.core.files import cache_folder, disk_errors, lock_dir
from edgeq.core.manifest import ETRECORD_NAME
from edgeq.core.operators import with_open_batch
from edgeq.core.results.artifact import Artifact, Inputs
from edgeq.core.results.model import ASKED, FILE_KINDS, LoadedModel, LoweredModel, QParams, QuantizedModel
from edgeq.core.results.report import ModelError, Reuse, RunReport
from edgeq.core.samples import varying_sizes
from edgeq.core.schemes import AUTO, DEFAULT, FLOAT_SCHEMES, NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.core.system import edgeq_digest, rare_collections, release_memory, replaced, tool_versions
from edgeq.core.targets import TargetProfile, why_fixed_sizes, why_not_run
from edgeq.core.units import counted
from edgeq.deliver.ota.patch import make_patch
from edgeq.load.structure import sized_by_data
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.pipeline.auto import REFUSALS, choose_default, choose_defaults, choose_schemes, restore_defaults
from edgeq.pipeline.baselines import with_float_baselines
from edgeq.pipeline.cache import group_unit_of, job_facts, keep, restore, unit_of
from edgeq.pipeline.devices import Emulator
from edgeq.pipeline.fastest import choose_fastest
from edgeq.pipeline.from_file import build_from_file, build_onnx, check_equivalence, described
from edgeq.pipeline.plan import (
    COMPARED,
    ArtifactSpec,
    BuildStep,
    BuildUnit,
    GroupUnit,
    Plan,
    Results,
    Run,
    group_by_artifact,
)
from edgeq.pipeline.preflight import fixed_sizes_error, left_out_candidates, preflight, refused_targets
from edgeq.pipeline.prepare import float_module, prepare, subset, verify_spec
from edgeq.pipeline.profile import with_cost
from edgeq.pipeline.publish import check_owner, publish, write_reports, write_result
from edgeq.pipeline.quantize_specs import read_shipped, reuse_spec, search_spec
from edgeq.pipeline.reports import find_bundles, write_index
from edgeq.pipeline.tracking import recording
from edgeq.quantize import exchanges_modules, find_method, quantize
from edgeq.quantize.capture import capture, dynamic_capture
from edgeq.quantize.graph_runner import forward, remembered
from edgeq.quantize.result import type_names
from edgeq.quantize.spec import QatSpec, QuantizeSpec, inside, matched_names
from edgeq.verify.emulate.support import wants_emulation
from edgeq.verify.host import HostRuntimes
from edgeq.verify.metrics import SetMetric
from edgeq.verify.verify import judge, judge_graph, look_first, run_artifact


def package(job: Job, progress: Progress) -> RunReport:
    """Build, verify, gate and publish one model for every target and scheme of `job`.

    Bundles that pass every gate go to `OUT/<model>/<target>/`, the others to `OUT/rejected/…`. A target or scheme that
    edgeq cannot build (one of `REFUSALS`) becomes an entry of `RunReport.refused`. After any other error the output
    folder is as it was before.

    Raises:
        EdgeqError: the first error of a step, or the refusal if no target could be built. A failed gate raises
            nothing: the report holds it.
    """
    preflight(job)  # files, tools and options; imports no torch
    job = with_demo_data(job)
    with disk_errors(job.out), lock_dir(job.out, wait_s=0), work_folder(job.out) as work:
        plan = make_plan(job, work)  # one unit per target and scheme, with the bundles that the cache has
        plan = complete(plan, work, progress)
        report = publish(plan)  # copy every bundle, then rename
        if len(find_bundles(job.out)) + len(report.refused) > 1:
            write_index(job.out, report.rows, report.data, refused=report.refused)
    return report


def make_plan(job: Job, work: Path, machine: Mapping[str, Any] | None = None) -> Plan:
    """Return the units of a job. Bundles that the cache has are copied into `work`.

    Args:
        job: the job.
        work: a folder on the disk of the output.
        machine: the facts of the machines that build; None for this one's.
    """
    facts = job_facts(job, machine)
    note = COMPARED if job.compare else ""
    cannot = refused_targets(job)
    groups: list[GroupUnit] = []
    for group in job.groups:
        for scheme in job.schemes or (DEFAULT,):
            left_out = left_out_candidates(job, group, scheme)
            candidates = [
                unit_of(job, facts, target, job.schemes_of(target)[0] if scheme == DEFAULT else scheme, note=note)
                for target in group.candidates
                if target.name not in left_out
            ]
            groups.append(group_unit_of(facts, group, scheme, candidates, left_out))
    units = tuple(
        unit_of(job, facts, target, scheme, note=note)
        for target in job.targets
        for scheme in (target.schemes[:1] if target.name in cannot else job.schemes_of(target))
    )
    every: tuple[BuildUnit | GroupUnit, ...] = (*units, *groups)
    refused = {unit.key: _model_error(cannot[unit.name]) for unit in every if unit.name in cannot}
    finished = restore([unit for unit in every if unit.key not in refused], work, job) if job.cache else {}
    if job.cache and not job.compare:
        chosen, known = restore_defaults([unit for unit in units if unit.scheme == DEFAULT], facts, work, job)
        units, finished = tuple(chosen.get(unit.key, unit) for unit in units), finished | known
    return Plan(job=job, facts=facts, units=units, finished=finished, refused=refused, groups=tuple(groups))


def complete(plan: Plan, work: Path, progress: Progress, *, raises: bool = True) -> Plan:
    """Build the units that the plan misses, and return the plan with their results and refusals.

    Args:
        plan: what is to be built, and what the cache had of it.
        work: an empty folder, for this run alone.
        progress: gets each step.
        raises: whether it is an error that nothing could be built.

    Raises:
        EdgeqError: the first error of a step, or with `raises` the refusals where nothing was built.
    """
    if plan.is_complete:
        return plan
    run = Run(job=plan.job, facts=plan.facts, work=work, progress=progress)
    missing = {unit.key: unit for unit in plan.missing}
    # a candidate may be named as a target of its own too
    missing |= {unit.key: unit for group in plan.missing_groups for unit in group.candidates}
    if plan.job.compare:
        results = with_float_baselines(run, tuple(missing.values()), build_units)
    elif any(unit.scheme == AUTO for unit in missing.values()):
        results = choose_schemes(run, tuple(missing.values()), build_units)
    else:
        results = build_units(run, tuple(missing.values()))
    fastest = choose_fastest(run, plan.missing_groups, results)
    units = tuple(results.chosen.get(unit.key, unit) for unit in plan.units)
    own = {unit.key for unit in units}  # the refusals of candidates are in their group's result
    errors = {key: err for key, err in results.refused.items() if key in own} | fastest.refused
    done = dataclasses.replace(
        plan,
        units=units,
        finished=plan.finished | results.finished | fastest.finished,
        refused={**plan.refused, **{key: _model_error(err) for key, err in errors.items()}},
    )
    if done.finished or not raises:
        return done
    first = min(errors.values(), key=lambda err: err.exit_code)
    if len({error.what for error in done.refused.values()}) == 1:
        raise first
    kind = next(kind for kind in REFUSALS if isinstance(first, kind))
    raise kind(done.refusal.what, first.fix) from first


def build_units(run: Run, units: Sequence[BuildUnit]) -> Results:
    """Return units of named schemes, from the cache or newly built. Units with equal `ArtifactSpec` share one artifact.

    Raises:
        EdgeqError: any but those of `REFUSALS`, which end one artifact or one unit only.
    """
    job, folder, progress = run.job, run.folder(), run.progress
    results = Results(finished=restore(units, folder, job) if job.cache else {}, refused={})
    missing = [unit for unit in units if unit.key not in results.finished]
    if not missing:
        return results
    emulator = Emulator(job.device, progress)
    artifacts = len(group_by_artifact(missing))
    artifacts_per_group = 1 if job.reuse_qparams_from is None else 2
    built = Results(finished={}, refused={})
    with (
        HostRuntimes(artifacts * artifacts_per_group, folder=folder, progress=progress) as runtimes,
        _quick_registrations(),
        recording() as recorder,
        contextlib.ExitStack() as later,
    ):
        # preflight asked for what the first default needs
        needs = frozenset(unit.target.schemes[0] if unit.scheme == DEFAULT else unit.scheme for unit in missing)
        inputs = prepare(job, progress, schemes=needs, describe=lambda model: described(model, runtimes.first))
        recorder.on = False  # from here on, only the user's own functions open files of the user
        check_owner(job, inputs.model.name)
        results = choose_defaults(run, missing, inputs, results)
        chosen = [results.chosen.get(unit.key, unit) for unit in missing]
        missing = [unit for unit in chosen if unit.key not in results.finished]
        emulator.prepare([unit.target for unit in missing])  # downloads and self-tests, before the long steps
        metric = inputs.metric
        if isinstance(metric, SetMetric):
            metric = SetMetric(row=recorder.recorded(metric.row), score=recorder.recorded(metric.score))
        elif metric is not None:
            metric = recorder.recorded(metric)
        train = None if inputs.train is None else recorder.recorded(inputs.train)
        inputs = dataclasses.replace(inputs, metric=metric, train=train)
        later.enter_context(rare_collections())  # from here on, torch and the model are there
        builder = ArtifactBuilder(job, inputs, runtimes, folder, progress)
        for spec, group in group_by_artifact(missing).items():
            start = time.perf_counter()
            emulated = any(wants_emulation(unit.target, job.device) for unit in group)
            try:
                target = group[0].target
                artifact = builder.build(spec, group[0].label, emulated=emulated, target=target)
                if job.reuse_qparams_from is not None:
                    label = f"{group[0].label}, all ranges new"
                    fresh = dataclasses.replace(spec, fresh=True)
                    without = builder.build(fresh, label, emulated=False, target=target)
                    # the patches from the shipped artifact: to one with its ranges, and to one with all ranges new
                    bundle, _ = read_shipped(job.reuse_qparams_from)
                    before = b"".join((bundle.folder / one.path).read_bytes() for one in bundle.manifest.model_files)
                    after = [b"".join(map(Path.read_bytes, one.lowered.files)) for one in (artifact, without)]
                    patches = [len(make_patch(before, data).data) for data in after]
                    artifact = dataclasses.replace(
                        artifact,
                        reuse=Reuse(
                            shipped=bundle.digest,
                            tensors=len(artifact.quantized.qparams),
                            fresh=artifact.quantized.fresh,
                            kept=artifact.quantized.kept,
                            patch_bytes=patches[0],
                            patch_bytes_without=patches[1],
                            fidelity_without=without.verified.fidelity,
                            parity_without=without.verified.parity,
                        ),
                    )
            except REFUSALS as err:
                _release(err, folder)
                built.refused.update((unit.key, err) for unit in group)
                continue
            make_s = time.perf_counter() - start
            for unit in group:
                start = time.perf_counter()
                place = folder / f"bundle-{missing.index(unit)}"
                try:
                    on_device = emulator.run(artifact, inputs, unit.target, unit.scheme, unit.label)
                    on_device = with_cost(on_device, inputs, job.gates, job.device, unit.target, progress)
                    result = write_result(unit, on_device, inputs, job, place, deflated=run.deflated)  # gates, bundle
                except REFUSALS as err:
                    _release(err, folder)
                    built.refused[unit.key] = err
                    continue
                seconds = {"make": round(make_s, 3)}
                if on_device is not artifact:
                    seconds["emulate"] = round(time.perf_counter() - start, 3)
                result = write_reports(dataclasses.replace(result, seconds=seconds), inputs.data)
                # kept at once: a run that is interrupted in a later unit starts there the next time
                built.finished.update(keep(run, {unit.key: (result, inputs.data)}, recorder.dependencies()))
        builder.remove_states()
    return dataclasses.replace(results, finished=results.finished | built.finished, refused=built.refused)


@contextlib.contextmanager
def _quick_registrations() -> Iterator[None]:
    """Let libraries that are imported in the block register operators of torch without a search for their sources.

    torch asks `inspect` for the place and the module of each registration, which looks for the real paths of all loaded
    modules, 20,000 questions to the disk. A frame knows its file and its module's name.
    """
    import torch.library
    from torch._library import utils

    def get_source(stacklevel: int) -> str:
        frame = sys._getframe(stacklevel)
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def getmodule(frame: FrameType) -> ModuleType | None:
        return sys.modules.get(frame.f_globals.get("__name__", ""))

    inspect = SimpleNamespace(**vars(torch.library.inspect) | {"getmodule": getmodule})
    with replaced(utils, "get_source", get_source), replaced(torch.library, "inspect", inspect):
        yield


# words of torch and ExecuTorch about sizes that depend on values
_OF_DATA = re.compile("data-dependent|symbolic expression|unbacked")

_GUARD = re.compile("Could not guard on data-dependent expression.*", re.DOTALL)

_WORTH_BYTES = 16 * 10**6

# samples that are looked at before a graph is lowered: the first say whether to look at the others, and these decide.
# Where all of 64 spread samples are lost, so are 95% of all with a certainty of 96%, and 90% with one of 99.9%
_FIRST_LOOK, _SECOND_LOOK = 4, 64

_MEMO_BYTES = 256 * 10**6  # reference outputs beyond this are computed again rather than kept


class ArtifactBuilder:
    """Builds the artifacts of one run; they share the exported graph and the outputs of fp32."""

    def __init__(self, job: Job, inputs: Inputs, runtimes: HostRuntimes, folder: Path, progress: Progress) -> None:
        self._job = job
        self._inputs = inputs
        self._runtimes = runtimes
        self._folder = folder
        self._progress = progress
        self._states: list[Path] = []
        # importing torchao makes torch log about an enumeration that concerns torchao's authors only
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

    def build(self, spec: ArtifactSpec, label: str, *, emulated: bool, target: TargetProfile) -> Artifact:
        """Quantize, lower and verify one artifact.

        Args:
            spec: what to build.
            label: names it in the progress.
            emulated: whether a device's kernels will run a subset of the samples afterwards.
            target: one of those that get the artifact, for advice.

        Raises:
            EdgeqError: the error of a step.
        """
        inputs = self._inputs
        with self._runtimes.next() as runtime:
            step = BuildStep(
                job=self._job,
                inputs=inputs,
                spec=spec,
                folder=self._folder / spec.folder,
                runtime=runtime,
                progress=self._progress,
                label=label,
                emulated=emulated,
            )
            if varying_sizes(inputs.model.inputs) and why_fixed_sizes(spec.backend):
                raise fixed_sizes_error(target.name, spec.backend)
            if inputs.model.kind in FILE_KINDS:  # .onnx, .pte, .ptl
                return build_from_file(step)
            if find_method(spec.runtime, spec.scheme).function is None:
                return self._build_from_float_onnx(step)
            try:
                quantized = quantize(spec.runtime, spec.scheme, self._quantize_spec(spec, label))
                self._refuse_certain_loss(quantized, step, target)
                self._release_graphs()
                lowered = _lower(quantized, step)
            except (OSError, MemoryError):
                raise
            except Exception as err:  # the libraries raise many types for what a model holds
                explained = self._explained(err, spec)
                if explained is err:
                    raise
                raise explained from err
            self._release_graphs()
            kept = subset(step, lowered.macs) if emulated else None
            verify = dataclasses.replace(
                verify_spec(step, lowered),
                graph=forward(quantized.runs_as or quantized.graph, spec.engine),
                fp32=None if spec.scheme == "pretrained" else self._reference,  # the source is int8 already
                output_steps=quantized.output_steps,
                observe=kept,
                observe_sizes=kept.keep if kept else None,
            )
            if why := why_not_run(spec.backend):
                verified, golden = judge_graph(verify, why=why)
            else:
                ran = run_artifact(verify, runtime)
                runtime.close()  # the graph needs the memory now
                verified, golden = judge(verify, ran)
                if kept:
                    kept.observed += ran.continuation
        states = (quantized.tuning.state if quantized.tuning is not None else None, quantized.search_state)
        self._states += [state for state in states if state is not None]
        asked: tuple[str, ...] = ()
        if self._job.keep_fp32:
            asked = _asked_layers(self._job, float_module(inputs), lowered, quantized.in_float.get(ASKED, ()))
        in_float = {why: names for why, names in quantized.in_float.items() if why != ASKED}
        return Artifact(
            quantized=dataclasses.replace(
                quantized, graph=None, exported=None, runs_as=None, grouped=(), in_float=in_float
            ),
            lowered=lowered,
            verified=verified,
            golden=golden,
            asked_fp32=asked,
            observed=tuple(kept.observed) if kept else (),
        )

    def _refuse_certain_loss(self, quantized: QuantizedModel, step: BuildStep, target: TargetProfile) -> None:
        """Refuse a graph whose outputs are lost for certain, before the long steps; raises an AccuracyError.

        A few samples tell whether to look at more of them. No other scheme's samples are run twice: fp32's outputs are
        remembered.
        """
        scheme, options = step.spec.scheme, self._job.gates
        if scheme in FLOAT_SCHEMES or scheme == "pretrained" or quantized.graph is None:
            return
        spec = dataclasses.replace(
            verify_spec(step, None),
            graph=forward(quantized.runs_as or quantized.graph, step.spec.engine),
            fp32=self._reference,
        )
        if not looks_lost(*look_first(spec, _FIRST_LOOK), options):
            return
        seen, best_db = look_first(spec, _SECOND_LOOK)
        why = certain_loss(scheme, seen, best_db, options)
        if not why:
            return
        count = min(_SECOND_LOOK, spec.samples.count)
        what = f"{scheme} loses this model: on {counted(count, 'sample')}, {why}; it was not lowered"
        raise AccuracyError(what, self._instead(scheme, target))

    def _instead(self, scheme: str, target: TargetProfile) -> str:
        """Return what to try where a scheme loses the model."""
        best, why = choose_default(target, self._inputs.work)
        others = [
            name for name in (best, "weight-only-int8", "fp16", "fp32") if name in target.schemes and name != scheme
        ]
        named = f"--scheme {others[0]}" if others else "another target"
        because = f" ({why})" if others and others[0] == best and why else ""
        layers = "`edgeq sensitivity` lists the layers that --keep-fp32 can leave in float"
        data = "check that the calibration data resembles the evaluation data"
        return f"try {named}{because}; {data}; {layers}; --limit sqnr=0 turns this check off"

    def remove_states(self) -> None:
        """Remove what a killed run would resume its training and searches from."""
        for state in self._states:
            state.unlink(missing_ok=True)

    def _release_graphs(self) -> None:
        """Release what the last step left behind, several copies of the weights, if they are worth the look."""
        if self._inputs.model.fp32_bytes > _WORTH_BYTES:
            release_memory()

    @functools.cached_property
    def _reference(self) -> Any:
        return remembered(forward(float_module(self._inputs)), _MEMO_BYTES)

    @functools.cached_property
    def _captured(self) -> Any:
        with self._progress.task("capture the model"):
            model = self._inputs.model
            return dynamic_capture(model) if self._job.dynamic_batch else capture(model)

    @functools.cached_property
    def _as_layers(self) -> LoadedModel:
        """The model with modules as its layers, to fuse or exchange: exported and scripted ones have operators only."""
        import torch

        from edgeq.quantize.fx_export import exported_graph

        model = self._inputs.model
        graph = model.model.graph if model.kind == "exported" or isinstance(model.model, torch.fx.GraphModule) else None
        if graph is None or not any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes):
            return model
        try:
            module = exported_graph(float_module(self._inputs), model.inputs)
        except Exception as err:  # torch.export raises many types
            what = f"the layers of the model cannot be found in its graph{user_line(err)}: {first_line(err)}"
            raise UnsupportedError(what, "give the model's factory, or use an ExecuTorch or ONNX target") from err
        return dataclasses.replace(model, kind="module", model=module)

    def _explained(self, err: Exception, spec: ArtifactSpec) -> EdgeqError:
        """Return the error to show for one of a step's: libraries name no line for sizes that the data decide.

        An error that no step foresaw ends this target and scheme alone, as a refusal.
        """
        if not isinstance(err, EdgeqError):
            what = f"{spec.scheme} fails on this model{user_line(err)}: {type(err).__name__}: {first_line(err)}"
            fix = "try another --scheme or target; `edgeq --debug` shows the traceback to report"
            return UnsupportedError(what, fix)
        if not isinstance(err, UnsupportedError) or not _OF_DATA.search(err.what):
            return err
        place = sized_by_data(float_module(self._inputs), self._inputs.model.inputs)
        if place:
            what = f"the model has no fixed sizes: the data decide how many values there are{place}"
            fix = "remove the post-processing: return the tensors that go into it, and do the rest in the app"
            return UnsupportedError(what, fix)
        plain = _GUARD.sub("forward decides by values of its inputs", err.what)
        return err if plain == err.what else UnsupportedError(plain, err.fix)

    @functools.cached_property
    def _shipped_qparams(self) -> tuple[QParams, ...]:
        folder = self._job.reuse_qparams_from
        return () if folder is None else read_shipped(folder)[1]

    def _quantize_spec(self, spec: ArtifactSpec, label: str) -> QuantizeSpec:
        job, inputs, shipped = self._job, self._inputs, self._job.reuse_qparams_from
        run_graph = functools.partial(forward, engine=spec.engine)
        searches, trains = spec.scheme in NEEDS_SEARCH, spec.scheme in NEEDS_TRAINING
        reuses = shipped is not None and not spec.fresh
        return QuantizeSpec(
            model=self._as_layers if exchanges_modules(spec.runtime, spec.scheme) else inputs.model,
            captured=None if spec.runtime == "torchscript" else self._captured,
            reduce_range=spec.reduce_range,
            backend=spec.backend,
            observer=job.observer,
            keep_fp32=job.keep_fp32,
            int4_group=job.int4_group,
            calibration=inputs.calibration,
            progress=self._progress,
            label=label,
            qat=_qat_spec(job, inputs) if trains else None,
            shipped=self._shipped_qparams if reuses else (),
            sticky=reuse_spec(shipped, inputs, self._reference, run_graph) if shipped and reuses else None,
            search=search_spec(job, inputs, self._reference, run_graph) if searches else None,
        )

    def _build_from_float_onnx(self, step: BuildStep) -> Artifact:
        """Export the float model, for ONNX Runtime's own tools to quantize: PyTorch has no such operators."""
        spec = dataclasses.replace(step.spec, scheme="fp32", file_format="onnx")
        floats = dataclasses.replace(step, spec=spec, folder=self._folder / f"{step.spec.folder}-float")
        lowered = _lower(quantize(spec.runtime, spec.scheme, self._quantize_spec(spec, step.label)), floats)
        check_equivalence(lowered, self._reference, self._inputs)
        self._release_graphs()
        names = matched_names(self._job.keep_fp32, type_names(float_module(self._inputs)))
        # the layers of one module are numbered from the second on: conv, conv#1
        keep = tuple(layer.name for layer in lowered.layers if inside(layer.name.partition("#")[0], names))
        return build_onnx(step, lowered.path, self._reference, keep=keep)


def _lower(quantized: QuantizedModel, step: BuildStep) -> LoweredModel:
    spec, inputs = step.spec, step.inputs.model.inputs
    step.folder.mkdir(parents=True)
    return lower(
        spec.runtime,
        quantized,
        LowerSpec(
            inputs=with_open_batch(inputs) if step.job.dynamic_batch else inputs,
            backend=spec.backend,
            folder=step.folder,
            progress=step.progress,
            label=step.label,
            native=spec.native,
            npu=spec.npu,
            etrecord=step.folder / ETRECORD_NAME if step.job.devtools else None,
            file_format=spec.file_format,
            output_names=step.inputs.model.output_names,
            language=step.inputs.model.language,
        ),
    )


def _qat_spec(job: Job, inputs: Inputs) -> QatSpec:
    return QatSpec(
        samples=inputs.training,
        options=job.qat,
        logits=inputs.logits,
        seed=job.seed,
        train=inputs.train,
        state_folder=cache_folder() / "qat" if job.cache else None,
        identity=(inputs.data.qat_sha256 or "", edgeq_digest(), tool_versions()["torch"]),
    )


def _asked_layers(job: Job, module: Any, lowered: LoweredModel, others: Collection[str]) -> tuple[str, ...]:
    """Return the names of the artifact's layers in modules that --keep-fp32 names, after quantization checked them.

    An entry that matches only names of an exported program's own, and no module here, excuses no layer.

    Args:
        job: with the entries.
        module: the float model.
        lowered: with the artifact's layers.
        others: names of modules that quantization gave to such modules.
    """
    kept = {name for name, kind in type_names(module).items() if name in job.keep_fp32 or kind in job.keep_fp32}
    values = (*module.named_parameters(), *module.named_buffers())  # a product with one is a layer of its name
    kept |= {*others, *(name for name, _ in values if name in job.keep_fp32)}
    return tuple(layer.name for layer in lowered.layers if inside(layer.name.partition("#")[0], kept))


def _model_error(err: EdgeqError) -> ModelError:
    """Return an error without its frames, which hold models: it outlives them, and crosses to a worker's parent."""
    trace = "".join(traceback.format_exception(err))
    return ModelError.of(err, trace)


def _release(err: EdgeqError, folder: Path) -> None:
    """Release the models and tensors in an error's frames, while the run goes on.

    Raises:
        EdgeqError: the error itself if the disk is full, which is not the target's fault.
    """
    if _is_full(folder):
        raise err
    cause: BaseException | None = err
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    release_memory()


WORK_NAME = ".edgeq-work"

_LEAST_FREE_BYTES = 64 * 1024


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`, without the leftovers of a killed run."""
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
