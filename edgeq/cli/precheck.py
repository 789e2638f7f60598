"""Checks of a job that need no torch: files that do not exist, texts that do not parse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.errors import UsageError, nearest
from edgeq.job import RunConfig
from edgeq.marks import STATE_DICT_SUFFIXES, file_part, options_of

if TYPE_CHECKING:
    from edgeq.job import Job

_LOWERED = frozenset({".pte", ".ptl"})
_ARTIFACTS = _LOWERED | {".pt2", ".onnx"}
BUILT_IN = "digits"


def check_files(job: Job) -> None:
    """Check that the files a job names exist, and that its gates, texts and preprocessing are valid.

    Raises:
        UsageError: a file is missing, a text does not parse, calibration data is needed and not given, or a gate, a
            store limit or a CPU is unknown.
        UnsupportedError: a CPU that QEMU cannot emulate.
        EnvironmentProblem: QEMU or the compiler is missing, and a target is to be emulated.
    """
    from edgeq.check import validate_options
    from edgeq.device import check_cost_options
    from edgeq.verify.emulate.wanted import check_tools

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
        from edgeq.preprocess import load_preprocess

        load_preprocess(job.data.preprocess)
    if job.inputs:
        from edgeq.load.inputs import parse_input

        for index, text in enumerate(job.inputs):
            parse_input(text, index)


def _check_calibration(job: Job) -> None:
    from edgeq.pipeline.prepare import check_calibration, with_demo_data

    if Path(job.source).suffix not in _LOWERED:
        schemes = {scheme for target in job.targets for scheme in (job.schemes or target.schemes[:1])}
        check_calibration(with_demo_data(job), schemes)


def _check_texts(job: Job) -> None:
    from edgeq.manifest import check_slug

    if job.name is not None:
        check_slug(job.name, "--name")
    check_slug(job.model_version, "--model-version")


def check_source(source: str) -> None:
    """Refuse a source that names no file, or none that can be told; raises a UsageError."""
    if source == BUILT_IN or source.startswith("torchvision:"):
        return
    suffix = Path(source).suffix
    if suffix in _ARTIFACTS:
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
        forms = "torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.onnx, model.pte or model.ptl"
        raise UsageError(f"unknown model {source!r}.{hint}", f"give {forms}")


def _must_exist(path: str | None, option: str) -> None:
    if path is not None and not Path(path).exists():
        raise UsageError(f"{option}: no file or folder {path}", "check the path")
