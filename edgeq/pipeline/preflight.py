"""Checks of a job that need no torch: missing files, values that do not parse."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from edgeq.check.evaluate import check_cost_options, validate_options
from edgeq.check.limits import counts_on
from edgeq.config.resolve import with_demo_data
from edgeq.core.config import GateOptions, Job, RunConfig
from edgeq.core.errors import (
    AccuracyError,
    EdgeqError,
    EnvironmentProblem,
    FoundErrors,
    UnsupportedError,
    UsageError,
    VerificationError,
    nearest,
)
from edgeq.core.manifest import check_slug
from edgeq.core.marks import STATE_DICT_SUFFIXES, DataPath, Option, file_part, options_of
from edgeq.core.preprocess import load_preprocess
from edgeq.core.results.report import ModelError
from edgeq.core.safe_load import is_torchscript, pickled_module, whole_module
from edgeq.core.samples import varying_sizes
from edgeq.core.schemes import AUTO, DEFAULT, NEEDS_CALIBRATION
from edgeq.core.sources import BUILT_IN, HUGGING_FACE, TIMM
from edgeq.core.system import check_extras, host_arch, processor_kind
from edgeq.core.targets import TargetGroup, TargetProfile, schemes_instead, why_fixed_sizes, why_not_run
from edgeq.load.dataset import has_no_labels
from edgeq.load.inputs import parse_input, parse_inputs, parse_states
from edgeq.lower.executorch import check_delegates
from edgeq.pipeline.quantize_specs import check_reuse
from edgeq.pipeline.stores import check_shared
from edgeq.verify.emulate.support import check_options, check_tools


def refused_targets(job: Job) -> dict[str, EdgeqError]:
    """Return, by name, why a target of the job cannot be built, or why edgeq cannot verify what it would build.

    A target that stands for several is refused where all its candidates are.
    """
    refused: dict[str, EdgeqError] = {}
    refused |= {target.name: why for target in job.targets if (why := _refusal(job, target)) is not None}
    for group in job.groups:
        left_out = [left_out_candidates(job, group, scheme) for scheme in job.schemes or (DEFAULT,)]
        if all(len(names) == len(group.candidates) for names in left_out):
            refused[group.name] = no_candidate(group.name, left_out[0])
    return refused


def _refusal(job: Job, target: TargetProfile) -> UnsupportedError | None:
    if job.input_dtype is not None and (why := why_not_run(target.backend)):
        what = f"edgeq has not verified --input-dtype {job.input_dtype} on {target.name}: {why}"
        return UnsupportedError(what, "omit --input-dtype, or drop this target")
    if job.context_length is not None and target.backend != "xnnpack":
        what = f"--context-length needs a target with XNNPACK, but {target.name} has {target.backend}"
        return UnsupportedError(what, "use a target such as android-arm64-xnnpack, or omit it")
    if job.dynamic_batch and target.runtime != "onnx":
        what = (
            f"--dynamic-batch is for ONNX targets; {target.name} runs {target.runtime} with one batch size per artifact"
        )
        return UnsupportedError(what, "omit it, and give --input with the app's batch size")
    try:
        varies = bool(varying_sizes(parse_inputs(job.inputs)))
    except UsageError:  # a finding of its own
        varies = False
    return fixed_sizes_error(target.name, target.backend) if varies and why_fixed_sizes(target.backend) else None


def left_out_candidates(job: Job, group: TargetGroup, scheme: str) -> dict[str, ModelError]:
    """Return, by name, why candidates cannot be built here: a scheme or inputs that they lack, or a missing package."""
    found = {}
    for target in group.candidates:
        try:
            if scheme not in (AUTO, DEFAULT, *target.schemes):
                what = f"{target.name} does not support the scheme {scheme}"
                raise UnsupportedError(what, schemes_instead(target, scheme))
            if (why := _refusal(job, target)) is not None:
                raise why
            check_extras((target.runtime, target.backend))
        except EdgeqError as err:
            found[target.name] = ModelError.of(err)
    return found


def no_candidate(name: str, why: Mapping[str, ModelError]) -> EdgeqError:
    """Return the error of a target that stands for several, where none could be built; its code is their lowest."""
    first = min(why.values(), key=lambda err: err.exit_code)
    kinds = (UnsupportedError, AccuracyError, VerificationError, EnvironmentProblem)
    kind: type[EdgeqError] = next(one for one in kinds if one.exit_code == first.exit_code)
    reasons = "; ".join(f"{target}: {err.what}" for target, err in why.items())
    return kind(f"no candidate of {name} could be built: {reasons}", first.fix)


def fixed_sizes_error(name: str, backend: str) -> UnsupportedError:
    """Return the refusal of inputs whose sizes vary, for a target that takes one size."""
    what = f"{name} cannot take inputs whose sizes vary: {why_fixed_sizes(backend)}"
    return UnsupportedError(what, "give fixed sizes in --input, or drop this target")


def check_calibration(job: Job, schemes: Collection[str]) -> None:
    """Refuse schemes that need calibration data if there is none; raises a UsageError."""
    if job.data.calibration is None and not NEEDS_CALIBRATION.isdisjoint(schemes):
        what = "int8 ranges need real samples, but no calibration data was given"
        raise UsageError(what, "give --calibration-data, or --scheme fp32")


DROP = "accuracy_drop"

_LOWERED = frozenset({".pte", ".ptl"})

_ARTIFACTS = _LOWERED | {".pt2", ".onnx"}

# ways in which a file gives itself names that only running it tells, such as `exec` or `setattr(sys.modules[…], …)`
_MAKES_NAMES = frozenset({"exec", "globals", "locals", "vars", "modules", "import_module", "__dict__"})


def preflight(job: Job, *, builds_here: bool = True) -> None:
    """Check a job before anything slow starts, without torch: files, texts, options, extras and tools.

    All errors are found, and shown together, each with the option that it is about.

    Args:
        job: the job.
        builds_here: whether this machine needs the tools; a cluster's workers have their own.

    Raises:
        Findings: several of the errors below.
        VerificationError: a limit on the accuracy drop without evaluation data.
        UsageError: a file is missing, a value does not parse, calibration data is needed but not given, or a gate,
            store limit or CPU is unknown.
        UnsupportedError: a CPU that QEMU cannot emulate, or inputs that none of the targets can take.
        EnvironmentProblem: an extra of edgeq, QEMU or the compiler is missing.
        IntegrityError: the files of the bundle of --reuse-qparams-from are not those that it lists.
    """
    found = FoundErrors()
    with found.of("model"):
        check_source(job.source)
    with found.of("name"):
        if job.name is not None:
            check_slug(job.name, "--name")
    with found.of("model_version"):
        check_slug(job.model_version, "--model-version")
    with found.of("data.calibration"):
        _check_calibration(job)
    with found.of(f"limit.{DROP}"):
        _check_drop(job)
    with found.of("limit"):
        validate_options(job.gates, job.all_targets)
    with found.of("limit"):
        check_cost_options(job.gates, job.all_targets)
    with found.of("targets"):
        check_delegates(tuple(target.backend for target in job.targets))
    with found.of("targets"):
        check_extras(
            [name for target in job.targets for name in (target.runtime, target.backend)]
            + [_kind(job.source), *job.schemes]
        )
    if job.data.metric == "map":
        with found.of("data.metric"):
            check_extras(["map"])
    for group in job.groups:
        with found.of("targets"):
            _check_group(job, group, builds_here=builds_here)
    with found.of("targets"):
        _check_targets(job)
    with found.of("device"):
        (check_tools if builds_here else check_options)(job.device, job.all_targets)
    for option in options_of(RunConfig):
        for text in option.texts_in(job):
            with found.of(option.key):
                _check_path(option, text)
    with found.of("build.cache"):
        None if not job.cache else check_shared(job.build)
    with found.of("data.preprocess"):
        None if job.data.preprocess is None else load_preprocess(job.data.preprocess)
    for index, text in enumerate(job.inputs):
        with found.of("inputs"):
            parse_input(text, index)
    if all(error.key != "inputs" for error in found.errors):
        with found.of("inputs"):
            _check_sizes(job)
    with found.of("state"):
        _check_states(job)
    with found.of("context_length"):
        if job.context_length is not None and not job.source.startswith(HUGGING_FACE):
            what = f"--context-length is for language models of transformers, but MODEL is {job.source}"
            raise UsageError(what, "give hf:FOLDER, or make the cache an input and an output, for --state")
    with found.of("devtools"):
        _check_devtools(job)
    # a missing folder is a finding of its path already, by the name of its option
    if job.reuse_qparams_from is None or job.reuse_qparams_from.exists():
        with found.of("reuse_qparams_from"):
            check_reuse(job)
    found.raise_all()


def _check_sizes(job: Job) -> None:
    """Refuse sizes that contradict each other or --dynamic-batch."""
    if varying_sizes(parse_inputs(job.inputs)) and job.dynamic_batch:
        what = "--dynamic-batch cannot be combined with sizes that vary within a range"
        raise UsageError(what, "omit it, and let the batch vary within a range too, such as {batch=1..8}x{seq=8..128}")


def _check_states(job: Job) -> None:
    """Refuse states that are written wrongly, or that contradict other options."""
    if not parse_states(job.state):
        return
    if job.dynamic_batch:
        what = "--state cannot be combined with --dynamic-batch: a state belongs to one stream"
        raise UsageError(what, "omit --dynamic-batch")
    if Path(job.source).suffix in _LOWERED:
        what = f"{job.source} is already lowered, and has no float model whose states it could be compared with"
        raise UsageError(what, "give the PyTorch or ONNX model with --state")
    if varying := [spec.name for spec in (parse_input(text, i) for i, text in enumerate(job.inputs)) if spec.varying]:
        what = f"--state needs inputs of one size, but --input {varying[0]} varies"
        raise UsageError(what, "give fixed sizes in --input: those of one step")


def _check_devtools(job: Job) -> None:
    """Refuse --devtools where no program is made whose files they could be."""
    if job.devtools and all(target.runtime != "executorch" for target in job.all_targets):
        what = "--devtools writes files for ExecuTorch's developer tools, but no target runs ExecuTorch"
        raise UsageError(what, "add an ExecuTorch target, such as android-arm64-xnnpack, or omit --devtools")
    if job.devtools and Path(job.source).suffix in _LOWERED:
        what = f"--devtools needs the graph that a program was lowered from, but {job.source} is already lowered"
        raise UsageError(what, "give the PyTorch model, or omit --devtools")


def _kind(source: str) -> str:
    return "onnx" if source.endswith(".onnx") else source.partition(":")[0]


def _check_targets(job: Job) -> None:
    cannot = refused_targets(job)
    if len(cannot) == len(job.targets) + len(job.groups):
        raise next(iter(cannot.values()))


def _check_group(job: Job, group: TargetGroup, *, builds_here: bool) -> None:
    """Refuse to choose by times that nobody measures, or that do not count.

    Raises:
        UsageError: several machines build, or --latency-cpu names another kind of machine.
        EnvironmentProblem: this machine has another architecture.
    """
    named = f"name one of its candidates: {', '.join(one.name for one in group.candidates)}"
    if not builds_here:
        what = f"{group.name} is chosen by times of the machine that builds it, but a cluster's workers build here"
        raise UsageError(what, f"build this model without --cluster, or {named}")
    if not counts_on(job.gates.times_on, processor_kind()):
        what = f"{group.name} is chosen by times of this machine, but only those of another kind of machine count"
        raise UsageError(f"{what} (--latency-cpu {job.gates.times_on})", f"build it on such a machine, or {named}")
    if group.arch != host_arch():
        what = f"the candidates of {group.name} are timed on this host, which is {host_arch()}, not {group.arch}"
        raise EnvironmentProblem(what, f"build it on such a host, or {named}")


def _check_path(option: Option, text: str) -> None:
    """Refuse a file that does not exist, and a function that its file does not define."""
    if (path := option.path) is None or (flag := option.flag) is None:
        return
    if (missing := path.missing(text)) is not None:
        raise UsageError(f"{flag.name}: no such {path.noun}: {missing}", path.fix)
    if isinstance(path, DataPath) and path.is_path(text, Path()):
        _check_function(text, flag.name)


def limits_drop(gates: GateOptions) -> bool:
    """Whether a limit on the accuracy drop must be measured."""
    return any(name == DROP for name, _ in gates.limits) and DROP not in gates.allow_unmeasured


def _check_drop(job: Job) -> None:
    """Refuse a limit on the accuracy drop that no data can settle; raises a VerificationError."""
    given = with_demo_data(job)
    if not limits_drop(job.gates) or Path(job.source).suffix in _LOWERED:
        return
    if given.data.evaluation is None:
        what = "--limit accuracy_drop cannot be measured: there is no evaluation data"
        raise VerificationError(what, "give labelled --eval-data, or --allow-unmeasured accuracy_drop")
    if given.data.metric is None and has_no_labels(Path(given.data.evaluation)):
        raise without_labels(given.data.evaluation)


def without_labels(evaluation: str) -> VerificationError:
    """Return the error of a limit on the accuracy drop for data that nothing can score."""
    what = f"--limit accuracy_drop cannot be measured: {evaluation} has no labels"
    return VerificationError(what, "give labelled --eval-data, a --metric, or --allow-unmeasured accuracy_drop")


def _check_calibration(job: Job) -> None:
    if Path(job.source).suffix not in _LOWERED:
        planned = [(scheme, target) for target in job.all_targets for scheme in job.schemes_of(target)]
        schemes = {target.schemes[0] if scheme == DEFAULT else scheme for scheme, target in planned}
        check_calibration(with_demo_data(job), schemes)


def check_source(source: str) -> None:
    """Refuse a source that does not exist or has an unknown form; raises a UsageError."""
    if source == BUILT_IN:
        return
    if source.startswith(("torchvision:", TIMM)):
        _check_zoo_name(*source.split(":", 1))
        return
    suffix = Path(source).suffix
    if source.startswith(HUGGING_FACE):
        folder = Path(source.removeprefix(HUGGING_FACE))
        if not (folder / "config.json").is_file():
            what = f"MODEL: {folder} is not a folder of a transformers model: it has no config.json"
            raise UsageError(what, "give the folder that save_pretrained() wrote; models are not downloaded")
    elif suffix in _ARTIFACTS or is_torchscript(Path(source)):
        _must_exist(source, "MODEL")
    elif ":" in source:
        _must_exist(file_part(source), "MODEL")
        _check_function(source, "MODEL")
    elif suffix in STATE_DICT_SUFFIXES and (kind := pickled_module(Path(source))):
        raise whole_module(Path(source), (), kind)
    elif suffix in STATE_DICT_SUFFIXES:
        what = f"{source} holds only weights, without a model"
        raise UsageError(what, f"give the model, and --weights {source}")
    elif suffix == ".py":
        raise UsageError(
            f"{source} does not name a factory function",
            f"name the function that returns the model, such as {source}:model",
        )
    else:
        hint = nearest(source, (BUILT_IN,))
        forms = "torchvision:NAME, timm:NAME, hf:FOLDER, pkg.mod:factory, file.py:factory, or a file: .pt2, .onnx, "
        forms += ".pte, .ptl, .pt (torch.jit.save)"
        raise UsageError(f"unknown model {source!r}.{hint}", f"give {forms}")


def _must_exist(path: str | None, option: str) -> None:
    if path is not None and not Path(path).exists():
        raise UsageError(f"{option}: no such file or folder: {path}", "check the path")


def _check_zoo_name(library: str, name: str) -> None:
    """Refuse an architecture that torchvision or timm does not register, by their source: importing them takes seconds.

    A name that is registered in another way than by a decorated function is left to the library.
    """
    spec = importlib.util.find_spec(library)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"
    if folder is None or not folder.is_dir():
        return
    decorated = re.compile(
        r"^@register_model\b(?:\(\s*(?:name\s*=\s*)?[\"'](?P<name>\w+)[\"'][^\n]*\)|[^\n]*)\n"
        r"(?:(?!def )[^\n]*\n)*def (?P<own>\w+)",  # below other decorators, of several lines too
        re.MULTILINE,
    )
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.py")))
    known = [match["name"] or match["own"] for text in texts for match in decorated.finditer(text)]
    plain = name.removeprefix("quantization.").partition(".")[0]
    if known and plain not in known and f"quantized_{plain}" not in known:
        raise UsageError(f"{library} has no model {plain!r}.{nearest(plain, known)}", f"see the models of {library}")


def _check_function(text: str, option: str) -> None:
    """Refuse a function that its file does not define, where the file's names can be read without running it."""
    path, name = file_part(text), text.rpartition(":")[2]
    if path is None or path == text:
        return
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # loading it has a better message
        return
    defined: list[str] = []
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined += [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.append(node.id)
        elif isinstance(node, ast.Name) and node.id != "modules":
            used.add(node.id)
        elif isinstance(node, ast.Attribute) and (node.attr != "modules" or ast.unparse(node.value) == "sys"):
            used.add(node.attr)  # `net.modules()` and a list of modules make no names, `sys.modules` may
    computed = {"*", "__getattr__"} & {*defined} or _MAKES_NAMES & used
    if not computed and name.isidentifier() and name not in defined:
        functions = [one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)]
        what = f"{option}: no {name!r} in {path}.{nearest(name, functions)}"
        raise UsageError(what, f"it has: {', '.join(functions) or 'no functions'}")
