"""Checks of a job that need no torch: files that do not exist, texts that do not parse."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from edgeq.check.evaluate import validate_options
from edgeq.config.resolve import with_demo_data
from edgeq.core.config import GateOptions, Job, RunConfig
from edgeq.core.devices import load_device
from edgeq.core.errors import UnsupportedError, UsageError, nearest
from edgeq.core.manifest import check_slug
from edgeq.core.marks import STATE_DICT_SUFFIXES, file_part, options_of
from edgeq.core.preprocess import load_preprocess
from edgeq.core.safe_load import is_torchscript
from edgeq.core.schemes import NEEDS_CALIBRATION
from edgeq.core.sources import BUILT_IN, HUGGING_FACE, TIMM
from edgeq.core.system import check_extras
from edgeq.core.targets import TargetProfile, why_not_run
from edgeq.load.inputs import parse_input
from edgeq.lower.executorch import check_delegates
from edgeq.pipeline.quantize_specs import check_reuse
from edgeq.verify.emulate.support import check_tools


def check_cost_options(options: GateOptions, targets: Sequence[TargetProfile] = ()) -> None:
    """Refuse, before a long run, what cannot be counted or predicted.

    Raises:
        UsageError: --shipped is not a bundle, an unknown --device, one without --limit-on predicted, or the reverse,
            or a target that asks for more threads than the device has.
    """
    if options.latency_on == "predicted" and options.device is None:
        what = "--limit-on predicted needs the device to predict for"
        raise UsageError(what, "add --device NAME; `edgeq devices list` shows the names")
    if options.latency_on == "predicted" and not any(name == "latency" for name, _ in options.limits):
        what = "--limit-on predicted is for a limit on latency, and none is given"
        raise UsageError(what, "add --limit latency=40ms")
    if options.device is not None:
        if options.latency_on != "predicted":
            raise UsageError("--device is for --limit-on predicted", "add it, or leave --device out")
        profile = load_device(options.device)
        for target in targets:
            profile.check_threads(target.device.threads)
    if options.shipped is not None and not (options.shipped / "manifest.json").is_file():
        what = f"no bundle at {options.shipped}, which --shipped names: expected a folder with manifest.json"
        raise UsageError(what, "give the folder that `edgeq package` wrote, OUT/<model>/<target>")


def check_job(job: Job) -> None:
    """Check before a long run what would end it; raises what the steps would.

    Raises:
        EdgeqError: what ends the run, such as a reason for which each of the targets is refused.
    """

    validate_options(job.gates, job.targets)
    check_delegates(tuple(target.backend for target in job.targets))
    kind = "onnx" if job.source.endswith(".onnx") else job.source.partition(":")[0]
    check_extras([*(target.runtime for target in job.targets), kind])
    cannot = refused_targets(job)
    if len(cannot) == len({target.name for target in job.targets}):
        raise next(iter(cannot.values()))
    check_tools(job.device, job.targets)
    check_cost_options(job.gates, job.targets)
    check_reuse(job)


def refused_targets(job: Job) -> dict[str, UnsupportedError]:
    """Return, by a target's name, why it cannot take such inputs, or why nothing here could show that it does."""
    refused = {}
    for target in job.targets:
        if job.input_dtype is not None and (why := why_not_run(target.backend)):
            what = f"--input-dtype {job.input_dtype} was never seen to work on {target.name}: {why}"
            refused[target.name] = UnsupportedError(what, "leave out --input-dtype, or this target")
        elif job.dynamic_batch and target.runtime != "onnx":
            what = (
                f"--dynamic-batch is for ONNX targets; {target.name} runs {target.runtime}, one batch size an artifact"
            )
            fix = "leave it out, and give --input with the batch that the app feeds"
            refused[target.name] = UnsupportedError(what, fix)
    return refused


def check_calibration(job: Job, schemes: Collection[str]) -> None:
    """Refuse schemes that observe ranges where there is nothing to observe; raises a UsageError."""
    if job.data.calibration is None and not NEEDS_CALIBRATION.isdisjoint(schemes):
        what = "int8 ranges must come from real samples, and no calibration data was given"
        raise UsageError(what, "give --calibration-data, or --scheme fp32")


_LOWERED = frozenset({".pte", ".ptl"})

_ARTIFACTS = _LOWERED | {".pt2", ".onnx"}


def check_files(job: Job) -> None:
    """Check that the files a job names exist, and that its gates, texts and preprocessing are valid.

    Raises:
        UsageError: a file is missing, a text does not parse, calibration data is needed and not given, or a gate, a
            store limit or a CPU is unknown.
        UnsupportedError: a CPU that QEMU cannot emulate.
        EnvironmentProblem: QEMU or the compiler is missing, and a target is to be emulated.
    """

    check_source(job.source)
    _check_texts(job)
    _check_calibration(job)
    validate_options(job.gates, job.targets)
    check_tools(job.device, job.targets)
    check_cost_options(job.gates, job.targets)
    for option in options_of(RunConfig):
        path, flag = option.path, option.flag
        if path is None or flag is None:
            continue
        for text in option.texts_in(job):
            if (missing := path.missing(text)) is not None:
                raise UsageError(f"{flag.name}: no {path.noun} {missing}", path.fix)
    if job.data.preprocess is not None:
        load_preprocess(job.data.preprocess)
    if job.inputs:
        for index, text in enumerate(job.inputs):
            parse_input(text, index)


def _check_calibration(job: Job) -> None:
    if Path(job.source).suffix not in _LOWERED:
        schemes = {scheme for target in job.targets for scheme in (job.schemes or target.schemes[:1])}
        check_calibration(with_demo_data(job), schemes)


def _check_texts(job: Job) -> None:
    if job.name is not None:
        check_slug(job.name, "--name")
    check_slug(job.model_version, "--model-version")


def check_source(source: str) -> None:
    """Refuse a source that names no file, or none that can be told; raises a UsageError."""
    if source == BUILT_IN or source.startswith(("torchvision:", TIMM)):
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
    elif suffix in STATE_DICT_SUFFIXES:
        what = f"{source} holds weights, and no model to put them into"
        raise UsageError(what, f"name the model, and give --weights {source}")
    elif suffix == ".py":
        raise UsageError(f"{source} names no factory", f"say which function makes the model, such as {source}:model")
    else:
        hint = nearest(source, (BUILT_IN,))
        forms = "torchvision:NAME, timm:NAME, hf:FOLDER, pkg.mod:factory, file.py:factory, or a file: .pt2, .onnx, "
        forms += ".pte, .ptl, .pt (torch.jit.save)"
        raise UsageError(f"unknown model {source!r}.{hint}", f"give {forms}")


def _must_exist(path: str | None, option: str) -> None:
    if path is not None and not Path(path).exists():
        raise UsageError(f"{option}: no file or folder {path}", "check the path")
