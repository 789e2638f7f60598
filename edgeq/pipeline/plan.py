"""The build matrix of a job: a unit for each target and scheme, what its artifact depends on, and `--dry-run`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import LOCAL, Job, Progress
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.intervals import least_provable_drop
from edgeq.core.results.artifact import Inputs
from edgeq.core.results.model import ModelFacts
from edgeq.core.results.report import DataFacts, ModelError, PackageResult
from edgeq.core.runtimes import ETHOS_U, FLOAT_TABLES, INT8_TABLES, NO_4_BIT_TABLES
from edgeq.core.schemes import (
    AUTO,
    DEFAULT,
    LIMITS,
    NEEDS_CALIBRATION,
    NEEDS_SEARCH,
    NEEDS_TRAINING,
    PlannedScheme,
    SchemeName,
    auto_schemes,
    default_schemes,
    used_observer,
)
from edgeq.core.system import host_arch
from edgeq.core.targets import FileFormat, TargetGroup, TargetProfile, why_not_run
from edgeq.core.units import counted, format_bytes, format_quantity
from edgeq.deliver.install import PROJECT_FILES, check_app, project_platforms
from edgeq.pipeline.preflight import left_out_candidates
from edgeq.quantize import find_file_method, find_method
from edgeq.report.text import share, table, wrapped
from edgeq.verify.emulate.support import wants_emulation
from edgeq.verify.host import HostRuntime


def match_apps(job: Job) -> dict[Path, tuple[str, ...]]:
    """Return, for each app, the names of the targets whose bundles go into it.

    Raises:
        UsageError: a folder that is not an app's project, that no target is for, or that several schemes are for; a
            project without an application that packs the models.
        UnsupportedError: an app with an older runtime than a target's, or without its ABI.
    """
    matched = {}
    for app in job.install_into:
        platforms = _platforms(app)
        names = tuple(target.name for target in job.targets if target.platform in platforms)
        if not names:
            what = f"--install-into {app}: no target of this run is for {' or '.join(platforms)}"
            raise UsageError(what, f"add a --target for {platforms[0]}, or leave the app out")
        if len(job.schemes) > 1:
            what = f"--install-into {app}: {len(job.schemes)} schemes of a target would go into one place"
            raise UsageError(what, "name one --scheme, or install the bundle that you choose with `edgeq install`")
        for target in job.targets:
            if target.name in names:
                check_app(app, target)
        matched[app] = names
    return matched


def _platforms(app: Path) -> tuple[str, ...]:
    if not app.is_dir():
        raise UsageError(f"--install-into {app}: no such folder", "give the root of the app's project")
    found = project_platforms(app)
    if not found:
        what = f"--install-into {app}: no app's project; looked for {PROJECT_FILES}"
        raise UsageError(what, "give the project's root")
    return found


Finished = dict[str, tuple[PackageResult, DataFacts]]

COMPARED = " compared"  # in the keys of --compare: the same bundle, with more in its report


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildUnit:
    """One target and scheme of a run.

    Attributes:
        scheme: its name, `auto`, or `default`.
        key: its place in the cache.
        by_default: why the target's default is this scheme for this model; "" where the job names the scheme.
    """

    target: TargetProfile
    scheme: str
    key: str
    by_default: str = ""

    @property
    def spec(self) -> ArtifactSpec:
        """What the artifact depends on."""
        target = self.target
        return ArtifactSpec(
            runtime=target.runtime,
            backend=target.backend,
            scheme=self.scheme,
            threads=target.device.threads,
            reduce_range=target.reduce_range,
            native=target.runtime == "cuda" and target.arch == host_arch(),
            file_format=target.file_format,
            npu=(target.npu.accelerator, target.npu.system_config, target.npu.memory_mode) if target.npu else None,
        )

    @property
    def name(self) -> str:
        """The target as the run named it, and the folder of its bundle."""
        return self.target.name

    @property
    def label(self) -> str:
        """The unit in words, for progress."""
        return f"{self.target.name} {self.scheme}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUnit:
    """A target that stands for several, with one scheme: it gets the result of the fastest.

    Attributes:
        scheme: its name, `auto`, or `default`.
        key: its place in the cache.
        candidates: units of those that can be built here.
        left_out: why the others cannot, by their names.
    """

    group: TargetGroup
    scheme: str
    key: str
    candidates: tuple[BuildUnit, ...]
    left_out: Mapping[str, ModelError]

    @property
    def name(self) -> str:
        """The target as the run named it, and the folder of its bundle."""
        return self.group.name

    @property
    def label(self) -> str:
        """The unit in words, for progress."""
        return f"{self.name} {self.scheme}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The units of a job, with the results that are there already.

    Attributes:
        facts: what the units' keys are hashed from.
        finished: by the units' keys.
        refused: why a unit cannot be built, by its key.
        groups: units that get the result of one of several candidates, which are not among `units`.
    """

    job: Job
    facts: dict[str, Any]
    units: tuple[BuildUnit, ...]
    finished: Finished
    refused: Mapping[str, ModelError] = dataclasses.field(default_factory=dict)
    groups: tuple[GroupUnit, ...] = ()

    @property
    def all_units(self) -> tuple[BuildUnit | GroupUnit, ...]:
        """Every unit that has a bundle or a refusal in the end."""
        return (*self.units, *self.groups)

    @property
    def missing(self) -> tuple[BuildUnit, ...]:
        """The units that are still to be built, without those that are candidates only."""
        return tuple(unit for unit in self.units if unit.key not in self.finished and unit.key not in self.refused)

    @property
    def missing_groups(self) -> tuple[GroupUnit, ...]:
        """The groups whose fastest candidate is not known yet."""
        return tuple(unit for unit in self.groups if unit.key not in self.finished and unit.key not in self.refused)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is to be built or chosen."""
        return not self.missing and not self.missing_groups

    @property
    def refusal(self) -> ModelError:
        """Why nothing could be built, where every unit was refused."""
        first = min(self.refused.values(), key=lambda error: error.exit_code)
        if len({error.what for error in self.refused.values()}) == 1:
            return first
        reasons = "; ".join(f"{unit.label}: {self.refused[unit.key].what}" for unit in self.all_units)
        return dataclasses.replace(first, what=f"nothing could be made: {reasons}")


def group_by_artifact(units: Iterable[BuildUnit]) -> dict[ArtifactSpec, list[BuildUnit]]:
    """Return the units by what their artifacts depend on."""
    groups: dict[ArtifactSpec, list[BuildUnit]] = {}
    for unit in units:
        groups.setdefault(unit.spec, []).append(unit)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job under way.

    Attributes:
        facts: what the units' keys are hashed from.
        work: a folder on the disk of the output, removed at the end.
        deflated: size of each written file in a ZIP, in bytes, by its sha256; targets share artifacts.
    """

    job: Job
    facts: Mapping[str, Any]
    work: Path
    progress: Progress
    deflated: dict[str, int] = dataclasses.field(default_factory=dict)

    def folder(self) -> Path:
        """Return a new folder in the work folder."""
        return Path(tempfile.mkdtemp(prefix="units-", dir=self.work))


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Results of units by their keys: bundles, and for units that cannot be built the reason.

    Attributes:
        chosen: by the key of a unit of the default scheme, the unit of the scheme that the model calls for: it has the
            result.
    """

    finished: Finished
    refused: dict[str, EdgeqError]
    chosen: Mapping[str, BuildUnit] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSpec:
    """What an artifact depends on, apart from the job: units with equal specs share one artifact.

    Attributes:
        fresh: whether all ranges are new ones, though the job names a shipped model whose are to be reused.
        native: whether it may be compiled for this machine; of runtimes that compile nothing, no.
        npu: what an Ethos-U is compiled for, as `LowerSpec` has it.
    """

    runtime: str
    backend: str
    scheme: str
    threads: int
    fresh: bool = False
    reduce_range: bool = False
    native: bool = False
    file_format: FileFormat = "onnx"
    npu: tuple[str, str, str] | None = None

    @property
    def folder(self) -> str:
        """A folder's name for it."""
        own = f"-{self.file_format}" if self.runtime == "onnx" else ""
        marks = f"{'-fresh' if self.fresh else ''}{'-native' if self.native else ''}"
        own += f"-{'-'.join(self.npu)}" if self.npu else ""
        return f"{self.backend}-{self.scheme}-{self.threads}{own}{marks}"

    @property
    def engine(self) -> str | None:
        """The quantized engine that runs these graphs; None where they are of plain operators."""
        return self.backend if self.runtime == "torchscript" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep:
    """One artifact to build, with all that its steps need.

    Attributes:
        folder: for its files; the step makes it.
        runtime: a child process for the verification, already started.
        label: names the artifact in the progress.
        emulated: whether a device's kernels will run a subset of the samples afterwards.
    """

    job: Job
    inputs: Inputs
    spec: ArtifactSpec
    folder: Path
    runtime: HostRuntime
    progress: Progress
    label: str
    emulated: bool


# --- What a worker of a cluster gets, and what comes back: parts of models.


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
    looked_at: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, Kept] = dataclasses.field(default_factory=dict)
    differing: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)


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


# --- What `--dry-run` prints: each step of each target, as it would be done.


_Steps = list[tuple[str, str]]

# by target, the default scheme for the model and the reason; none where the model was not loaded
Defaults = Mapping[str, tuple[SchemeName, str]]


def plan_json(job: Job, defaults: Defaults, facts: ModelFacts | None = None) -> dict[str, Any]:
    """Return the plan for machines: a list of steps for the run, and one for each target and scheme."""
    job = _with_own_data(job)
    targets: list[dict[str, Any]] = [
        {"target": name, "scheme": scheme, "steps": _steps_json(steps)}
        for name, scheme, steps in _planned(job, job.targets, job.schemes, defaults, facts)
    ]
    for group in job.groups:
        for scheme in job.schemes or (DEFAULT,):
            named, choice, candidates = _choice(job, group, scheme, defaults, facts)
            targets.append(
                {
                    "target": group.name,
                    "scheme": named,
                    "steps": _steps_json(choice),
                    "candidates": [
                        {"target": name, "scheme": own, "steps": _steps_json(steps)} for name, own, steps in candidates
                    ],
                }
            )
    return {
        "schema_version": 1,
        "plan": {
            "source": job.source,
            "out": str(job.out),
            "steps": _steps_json(_shared(job, facts)),
            "targets": targets,
        },
    }


def plan_text(job: Job, defaults: Defaults, facts: ModelFacts | None = None, width: int | None = None) -> str:
    """Return the plan for people.

    Args:
        job: what is planned.
        defaults: the default schemes for the model.
        facts: of the model, where it was loaded.
        width: where its lines are wrapped; None to wrap none.
    """
    job = _with_own_data(job)
    lines = [f"plan for {job.source}; nothing is written", *_lines(_shared(job, facts), width)]
    for _, name, scheme, steps in _all_planned(job, defaults, facts):
        lines += ["", f"{name}, {scheme}", *_lines(steps, width)]
    return "\n".join(lines)


def plans_text(looked_at: Sequence[tuple[Job, Defaults, ModelFacts | None]], width: int) -> str:
    """Return the plans of several models for people: what is the same is said once, what differs is a table.

    The steps of all bundles are compared part by part, a part being what stands between two commas.

    Args:
        looked_at: the models, the default schemes of each, and what loading it showed.
        width: columns of the terminal.
    """
    # the parts of each step: those that a model's entry decides, by bundle, and the others, by what is built for it
    entries: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    built: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    bundle_of: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    names: dict[str, None] = {}
    for given, defaults, facts in looked_at:
        job = _with_own_data(given)
        model, place, limits = job.name or job.source, str(job.out / "MODEL" / "TARGET"), _limits(job)
        for bundle, target, scheme, own in _all_planned(job, defaults, facts):
            entry = entries.setdefault((model, *bundle), {"check": limits})
            shared = [step for step in _shared(job, facts) if step[0] != _SHAPES]  # --verbose has them
            for name, text in shared:
                entry[name] = [part for part in text.split(", ") if part != f"name {model}"]
            bundle_of[model, target, scheme] = (model, *bundle)
            steps = built.setdefault((model, target, scheme), {})
            for name, text in own:
                parts = (place if name == "bundle" else text).split(", ")
                unsaid = [part for part in parts if name != "check" or part not in (*limits, _NO_GATES)]
                steps.setdefault(name, []).extend(unsaid)
            names |= dict.fromkeys(name for name, _ in (*shared, *own))
    for_all = {
        name: [*_take_common([*entries.values()], name), *_take_common([*built.values()], name)] for name in names
    }
    for_kinds = {
        kind: {name: _take_common([steps for key, steps in built.items() if key[1:] == kind], name) for name in names}
        for kind in dict.fromkeys(key[1:] for key in built)
    }
    # what is left differs from model to model; the bundles of a model that do not differ share a row
    for key, steps in built.items():
        for name, parts in steps.items():
            entry = entries[bundle_of[key]]
            entry[name] = [*dict.fromkeys((*entry.get(name, []), *parts))]
    heads = [name for name in names if any(entry.get(name) for entry in entries.values())]
    rows: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for (model, target, scheme), entry in entries.items():
        rows.setdefault((model, *("\n".join(entry.get(name, [])) for name in heads)), []).append((target, scheme))
    has_same_targets = len({tuple(target for target, _ in bundles) for bundles in rows.values()}) == 1
    schemes = {
        row: [bundles[0][1]]
        if has_same_targets and len({scheme for _, scheme in bundles}) == 1
        else [f"{target}, {scheme}" for target, scheme in bundles]
        for row, bundles in rows.items()
    }
    lines = [f"plan for {counted(len(looked_at), 'model')}, {counted(len(entries), 'bundle')}; nothing is written", ""]
    lines += table(("model", *heads, "scheme"), [(*row, "\n".join(schemes[row])) for row in rows], width)
    titled = [("all", for_all), *((f"{target}, {scheme}", steps) for (target, scheme), steps in for_kinds.items())]
    for title, steps in titled:
        lines += ["", title, *_lines([(name, _joined(parts)) for name, parts in steps.items() if parts], width)]
    return "\n".join([*lines, "", "--verbose shows the steps of each bundle"])


def _take_common(bundles: list[dict[str, list[str]]], name: str) -> list[str]:
    """Return the parts of a step that all these bundles have, and remove them there."""
    same = [part for part in bundles[0].get(name, []) if all(part in steps.get(name, []) for steps in bundles)]
    for steps in bundles:
        steps[name] = [part for part in steps.get(name, []) if part not in same]
    return same


def _all_planned(
    job: Job, defaults: Defaults, facts: ModelFacts | None
) -> list[tuple[tuple[str, str], str, str, _Steps]]:
    """Return what is planned for each target, each choice of a target, and each of its candidates.

    Returns:
        The bundle that it is for, by target and scheme, then its own name, scheme and steps.
    """
    planned = [
        ((name, scheme), name, scheme, steps)
        for name, scheme, steps in _planned(job, job.targets, job.schemes, defaults, facts)
    ]
    for group in job.groups:
        for wanted in job.schemes or (DEFAULT,):
            named, choice, candidates = _choice(job, group, wanted, defaults, facts)
            bundle = (group.name, named)
            planned.append((bundle, *bundle, choice))
            planned += [(bundle, f"{group.name}: {name}", scheme, steps) for name, scheme, steps in candidates]
    return planned


def _planned(
    job: Job,
    targets: Iterable[TargetProfile],
    schemes: Iterable[PlannedScheme],
    defaults: Defaults,
    facts: ModelFacts | None,
) -> list[tuple[str, str, _Steps]]:
    """Return the name, scheme and steps of each target and scheme; of no schemes, with each target's default."""
    return [
        (target.name, _named(target, scheme, defaults), _own(job, target, scheme, defaults, facts))
        for target in targets
        for scheme in tuple(schemes) or job.schemes_of(target)
    ]


def _choice(
    job: Job, group: TargetGroup, scheme: PlannedScheme, defaults: Defaults, facts: ModelFacts | None
) -> tuple[str, _Steps, list[tuple[str, str, _Steps]]]:
    """Return the scheme and the steps of a choice, and the name, scheme and steps of each candidate.

    The scheme is `default` where candidates have different ones.
    """
    left_out = left_out_candidates(job, group, scheme)
    built = [target for target in group.candidates if target.name not in left_out]
    candidates = _planned(job, built, () if scheme == DEFAULT else (scheme,), defaults, facts)
    steps = [
        ("choose", f"the fastest on this host that passes every gate: {', '.join(target.name for target in built)}"),
        *(
            ("leave out", f"{'' if name in error.what else f'{name}: '}{error.what}; {error.fix}")
            for name, error in left_out.items()
        ),
        ("bundle", str(job.out / (job.name or "<model>") / group.name)),
    ]
    schemes = list(dict.fromkeys(own for _, own, _ in candidates))
    named = schemes[0] if len(schemes) == 1 else scheme
    # the group's bundle is theirs
    return named, steps, [(name, own, [step for step in its if step[0] != "bundle"]) for name, own, its in candidates]


def _named(target: TargetProfile, scheme: PlannedScheme, defaults: Defaults) -> str:
    return defaults.get(target.name, (target.schemes[0],))[0] if scheme == DEFAULT else scheme


def _with_own_data(job: Job) -> Job:
    """Return the job with the name and the data that the built-in model brings with it."""
    return with_demo_data(job)


def _lines(steps: _Steps, width: int | None) -> list[str]:
    lines = [f"  {name:9}  {text}" for name, text in steps]
    return lines if width is None else [part for line in lines for part in wrapped(line, width, hanging=13)]


def _steps_json(steps: _Steps) -> list[dict[str, str]]:
    return [{"step": name, "what": text} for name, text in steps]


_FINDINGS = {
    "error": "certain findings are errors",
    "strict": "findings are errors",
    "warn": "findings are warnings",
}


_NO_GATES = "compatibility only"


_SHAPES = "shapes"


def _shared(job: Job, facts: ModelFacts | None) -> _Steps:
    data = job.data
    load = [
        job.source,
        f"name {job.name}" if job.name else "",
        f"version {job.model_version}",
        f"weights {job.weights}" if job.weights else "",
        f"inputs {' '.join(job.inputs)}" if job.inputs else "",
        f"state {' '.join(job.state)}" if job.state else "",
        f"pixels as {job.input_dtype}, normalised by the artifact" if job.input_dtype else "",
        f"seed {job.seed}",
        *(() if facts is None else facts.notes),
    ]
    samples = [
        f"calibration {data.calibration}" if data.calibration else "",
        f"evaluation {data.evaluation}" if data.evaluation else "no evaluation data given",
        f"preprocess {data.preprocess}" if data.preprocess else "",
        f"labels {data.labels}" if data.labels else "",
        "bad images skipped" if data.skip_bad_images else "",
        _FINDINGS[data.lint],
    ]
    shared = ", ".join(url for url in job.build.cache if url != LOCAL)
    cache = _joined(["used", f"shared at {shared}" if shared else ""]) if job.cache else "not used"
    shapes = [] if facts is None else [(_SHAPES, _inputs_to_outputs(facts))]
    return [("load", _joined(load)), *shapes, ("data", _joined(samples)), ("cache", cache)]


def _inputs_to_outputs(facts: ModelFacts) -> str:
    inputs, outputs = (
        " and ".join(f"{one.name} {one.dtype} {one.shape_text()[1:-1].replace(', ', 'x')}" for one in specs)
        for specs in (facts.inputs, facts.outputs)
    )
    return f"{inputs} -> {outputs}" if outputs else inputs


def _own(job: Job, target: TargetProfile, scheme: str, defaults: Defaults, facts: ModelFacts | None) -> _Steps:
    if scheme == DEFAULT and target.name in defaults:
        named, why = defaults[target.name]
        steps = _own(job, target, named, defaults, facts)
        return steps if named == target.schemes[0] else [("choose", f"{why}. Choose another with --scheme"), *steps]
    if scheme == DEFAULT:
        first, other = default_schemes(target.schemes)[:2]
        when = f"{first}, but {other} for a model of attention or recurrent layers, which is known once it is loaded"
        return [("choose", f"{when}. Choose another with --scheme"), *_own(job, target, first, defaults, facts)]
    apps = [str(app) for app, names in match_apps(job).items() if target.name in names]
    model = job.name or "<model>"
    where = "by TOSA's reference model, in place of the NPU" if target.backend in ETHOS_U else "on this host"
    if why := why_not_run(target.backend):
        where = f"{why}: its converted graph only"
    verify = f"{where}, {job.data.metric or 'top-1'}" if job.data.evaluation else f"{where}, against fp32"
    return [
        *_quantize(job, target, scheme),
        *_tables(target, scheme, facts),
        ("lower", f"{target.runtime}, {target.backend}, for runtime {target.app.oldest} and newer"),
        ("check", _joined(_gates(job, target, scheme, facts)) or _NO_GATES),
        ("verify", verify),
        *([("emulate", _emulated(job, target))] if wants_emulation(target, job.device) else []),
        *([("compare", "fp32 and fp16 of the same target, which are then dropped")] if job.compare else []),
        ("bundle", f"{job.out / model / target.name}"),
        *(("install", app) for app in apps),
    ]


def _emulated(job: Job, target: TargetProfile) -> str:
    runtimes = f"{target.runtime} {', '.join(target.app.runtimes)}"
    return f"{runtimes} under QEMU, {', '.join(job.device.cpu or target.device.cpu)}"


def _quantize(job: Job, target: TargetProfile, scheme: str) -> _Steps:
    if scheme == AUTO:
        tries = ", ".join(auto_schemes(target.schemes))
        return [
            ("choose", f"the first of {tries} that passes every gate; what the model is made of says which is first")
        ]
    if scheme == "fp32":
        return []
    if job.source.endswith(".onnx"):
        method = find_file_method(scheme, Path(job.source).name, target.runtime).description
    else:
        method = find_method(target.runtime, scheme).description.format(backend=target.backend)
    kept = f"in float: {', '.join(job.keep_fp32)}" if job.keep_fp32 else ""
    samples = (
        counted(job.data.num_calibration_samples, "sample") if job.data.calibration else "no calibration data given"
    )
    steps = [("quantize", _joined([method, kept]))]
    if scheme in NEEDS_CALIBRATION:
        steps.append(("calibrate", f"{samples}, {used_observer(scheme, job.observer)} observer"))
    if job.reuse_qparams_from is not None:
        steps.append(("reuse", f"scales and zero points of {job.reuse_qparams_from} where they fit"))
    if scheme in NEEDS_TRAINING:
        steps.append(("train", _training(job)))
    if scheme in NEEDS_SEARCH:
        data = job.data.search or "the rest of the calibration data"
        steps.append(("search", f"the layers to leave in float, on at most {job.data.num_search_samples} of {data}"))
    return steps


def _tables(target: TargetProfile, scheme: str, facts: ModelFacts | None) -> _Steps:
    """Return what becomes of the tables of embeddings, of a model that has some."""
    if facts is None or facts.work is None or facts.work.table_share < _FEW:
        return []
    size = f"{share(facts.work.table_share)} of the weights"
    instead = next((name for name in INT8_TABLES if name in target.schemes), None)
    if scheme in INT8_TABLES:
        why = NO_4_BIT_TABLES.get(target.runtime)
        return [("tables", f"embeddings, {size}, in int8{f'; not in 4 bits: {why}' if why else ''}")]
    if scheme in NEEDS_CALIBRATION and target.backend in FLOAT_TABLES:
        advice = f"; --scheme {instead} stores them in int8" if instead else ""
        return [("tables", f"embeddings, {size}, in float32{advice}")]
    return []


_FEW = 0.01  # of the weights: smaller tables change no size that counts


def _training(job: Job) -> str:
    qat = job.qat
    data = f"at most {counted(qat.samples, 'sample')} of {qat.data or job.data.calibration or 'the calibration data'}"
    if qat.train:
        return _joined([qat.train, data])
    return _joined(
        [f"distil fp32 in {counted(qat.epochs, 'epoch')}", f"learning rate {qat.lr:g}", f"batch {qat.batch}", data]
    )


def _limits(job: Job) -> list[str]:
    return [
        f"{name} {'>=' if LIMITS[name].at_least else '<='} {format_quantity(value, LIMITS[name].dimension)}"
        for name, value in job.gates.limits
    ]


def _gates(job: Job, target: TargetProfile, scheme: str, facts: ModelFacts | None) -> list[str]:
    gates = job.gates
    lines = _limits(job)
    drop = dict(gates.limits).get("accuracy_drop")
    if drop is not None:
        count = facts.evaluation_samples if facts and gates.limit_on == "interval" else None
        least = least_provable_drop(count) if count else 0.0
        proof = f" ({count:,} samples prove {least:.2f} pp at best: it cannot pass)" if count and least > drop else ""
        lines.append(f"the drop's {gates.limit_on} counts{proof}")
    if gates.latency_on == "predicted":
        lines.append(f"latency as predicted for {gates.device} counts")
    if gates.shipped is not None:
        lines.append(f"instructions <= 1.1 x those of {gates.shipped}")
    audit = next((audit for name, audit in target.audit.items() if name == scheme), None)
    if audit is not None:
        lines += [f"{key} >= {value:.0%}" for key, value in audit if value]
    if gates.store_limits and gates.app_size_bytes is not None:
        lines.append(f"{', '.join(gates.store_limits)} with an app of {format_bytes(gates.app_size_bytes)}")
    if gates.allow_unmeasured:
        lines.append(f"may stay unmeasured: {', '.join(gates.allow_unmeasured)}")
    return lines


def _joined(parts: list[str]) -> str:
    return ", ".join(part for part in parts if part)
