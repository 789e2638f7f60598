"""The public functions of `edgeq`; docs/api.md describes them, with the types that they return.

Each function calls the same pipeline function as the command of the same name, so Python and the command line build the
same bundles. Heavy libraries are imported when a function is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from edgeq.config.options import (
    Values,
    filled,
    merge,
    read_project,
    to_config,
    validated,
    values_of,
)
from edgeq.config.project_file import read_models, read_released
from edgeq.config.resolve import device_options, gate_options, request, resolve
from edgeq.core.config import DataConfig, DeviceConfig, Job, Limits, PackageConfig, Progress
from edgeq.core.errors import UsageError, nearest
from edgeq.core.manifest import Bundle
from edgeq.core.profiles import profile_files
from edgeq.core.results.report import (
    AppOptions,
    BundleVerification,
    PackageResult,
    Project,
    ProjectReport,
    RunReport,
)
from edgeq.core.targets import TargetProfile, load_target
from edgeq.deliver.install import InstallResult, Within
from edgeq.deliver.install import install as deliver
from edgeq.load.live import LiveObjects, save_program
from edgeq.pipeline.compare import BundleComparison, compare_bundles
from edgeq.pipeline.inspect import ArtifactInspection, BundleInspection, inspect_path
from edgeq.pipeline.measurement import settled_bundle
from edgeq.pipeline.package import package as run
from edgeq.pipeline.plan import match_apps
from edgeq.pipeline.preflight import preflight
from edgeq.pipeline.project import build_project
from edgeq.pipeline.sensitivity import Ranking
from edgeq.pipeline.sensitivity import sensitivity as ranked
from edgeq.pipeline.verify import verify_bundle
from edgeq.quantize import METHODS
from edgeq.report.progress import Interruptible, Quiet, shown_progress
from edgeq.verify.children import use_torch

BundleLike = str | os.PathLike[str] | Bundle | PackageResult


def package(
    model: Any,
    *,
    targets: str | TargetProfile | Sequence[str | TargetProfile] = (),
    example_inputs: Any = None,
    calibration: Any = None,
    evaluation: Any = None,
    metric: Any = None,
    schemes: str | Sequence[str] = (),
    limits: Limits | Mapping[str, str] | None = None,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocess: str | os.PathLike[str] | None = None,
    on: str | None = None,
    options: Mapping[str, Any] | None = None,
    config: PackageConfig | str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> RunReport:
    """Package a model for each target, gated and verified, as `edgeq package` does.

    Args:
        model: a `torch.nn.Module` (it is copied, and the copy put into eval mode on the CPU), a
            `torch.export.ExportedProgram`, or what the command line takes: "torchvision:resnet18",
            "file.py:function", a .pt2, .onnx, .pte or .ptl file, or "digits". Runs with live objects (a module, a
            program, data or functions given as Python objects) are not cached.
        targets: names, .toml files or `Target` objects; see `edgeq.targets()`.
        example_inputs: of a live module: a tensor, a tuple of the arguments of `forward` in order, or a dict of them by
            name, each tensor with the batch axis, such as float32 [1, 3, 224, 224]. A module with a method
            `example_inputs()` needs none.
        calibration: samples for int8 ranges: a DataLoader or another iterable, a map-style Dataset, an array [N, …],
            a tuple of inputs [N, …] and labels [N], a dict of such arrays by input name (labels as "y"), a function
            that returns one of these, or what --calibration-data takes. The items of an iterable are (inputs, label)
            pairs, inputs alone, or dicts; an item with as many axes as the model's input is a batch. The dtype must
            be the input's; float64 is rounded to float32.
        evaluation: labelled samples for the accuracy gates, in the same forms. Must not overlap the calibration data.
        metric: called with (outputs, label) of one sample: `outputs` is a tuple of NumPy arrays without the batch
            axis; it returns a float, higher is better. Or what --metric takes. Default: top-1 accuracy.
        schemes: names of `edgeq.schemes()`, or "auto"; default: by the model, most often the first of each target.
        limits: limits that the gates check for each artifact.
        out: output folder; default "out".
        name: of the model in bundles; default: from the source or the module's class.
        weights: a state dict file or the name of torchvision weights, as for --weights; for a model given as text.
        preprocess: how uint8 images [H, W] or [H, W, C] become inputs: "imagenet", "unit" or a .toml file.
        on: "emulator" (the default), "host" or "cuda", as --on.
        options: all other options, by their keys in edgeq.toml (docs/options.md): `{"seed": 1, "qat": {"epochs": 3}}`.
        config: an edgeq.toml or `PackageConfig` with the options that are not given here.
        progress: whether to show progress on stderr; or your own object (`edgeq.core.config.Progress`).

    Returns:
        The report. A failed gate does not raise: see `ok`, `exit_code` and `raise_if_failed()`.

    Raises:
        EdgeqError: the run failed; `what`, `fix` and `exit_code` are those of the command line.
        TypeError: the model is of another type.
    """
    own = _options(options)
    given: Values = {
        "schemes": [schemes] if isinstance(schemes, str) else list(schemes),
        "limit": _limit_values(limits),
        "out": out,
        "name": name,
        "weights": weights,
        "data": {"preprocess": preprocess},
        "device": {"on": on},
    }
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder, LiveObjects() as live:
        given["targets"] = _target_names(targets, Path(folder))
        given |= _model_values(live, model, example_inputs, Path(folder))
        own = _with_live_data(live, own, calibration=calibration, evaluation=evaluation, metric=metric)
        job = request(validated(merge(_present(given), own), "edgeq.package()"), _base(config))
        if live.count or not isinstance(model, str | os.PathLike):
            # nobody can tell whether what a live object depends on has changed
            job = dataclasses.replace(job, cache=False)
        return _packaged(job, progress)


def _packaged(job: Job, progress: bool | Progress) -> RunReport:
    apps = match_apps(job)
    with _progress(progress) as shown:
        # this process is the caller's: it may have threads, which a fork of it would lose in the middle of their work
        use_torch()
        report = run(job, shown)
    if report.ok:
        for app, names in apps.items():
            for row in report.rows:
                if row.target in names:
                    deliver(row.path, app, digest=row.digest)
    return report


def build(
    config: PackageConfig | str | os.PathLike[str] = "edgeq.toml",
    *,
    models: Sequence[str] = (),
    client: Any = None,
    progress: bool | Progress = True,
) -> ProjectReport:
    """Build all models of an edgeq.toml in worker processes, as `edgeq build` does.

    A model that fails does not stop the others.

    Args:
        config: the file, or the configuration of one model.
        models: names of the file's models to build; none for all. The limits of the app as a whole are judged only
            when all are built.
        client: a `distributed.Client` of the Dask cluster whose workers build; default: `[build] cluster` of the
            file, or this machine.
        progress: as for `package`.

    Returns:
        The report: `report["model"]` is a model's `RunReport`; `ok`, `exit_code` and `raise_if_failed()` as there.

    Raises:
        EdgeqError: the file cannot be read, or another edgeq writes to the output folder. What ends one model only
            is in the report.
    """
    if isinstance(config, PackageConfig):
        if models:
            raise UsageError(
                ("models= selects models of a file, but a PackageConfig holds only one model"), "omit models="
            )
        project = Project(jobs=(resolve(config),), out=config.out, app=AppOptions())
    else:
        wanted = read_models(Path(config), models)
        is_whole = len(wanted.models) == len(wanted.names)
        project = Project(jobs=wanted.models, out=wanted.out, app=wanted.app if is_whole else AppOptions())
    with _progress(progress) as shown, _without_main():
        return build_project(project, shown, client)


def verify(
    bundle: BundleLike,
    *,
    on: str = "host",
    limits: Limits | Mapping[str, str] | None = None,
    evaluation: Any = None,
    metric: Any = None,
    digest: str | None = None,
    verdict: str | os.PathLike[str] | None = None,
    run: bool = True,
    options: Mapping[str, Any] | None = None,
    trust_source: bool = False,
    progress: bool | Progress = True,
) -> BundleVerification:
    """Verify a bundle: its hashes, its gates, and its outputs on this host or on a device, as `edgeq verify` does.

    Args:
        bundle: its folder, a `Bundle`, or a result of `package`, whose digest is then checked too.
        on: "host", "emulator", "cuda", or a device by ssh or adb ("ssh:HOST", "adb").
        limits: limits on this run's measurements, in addition to those from packaging.
        evaluation: labelled samples to score, in the forms that `package` takes.
        metric: as for `package`.
        digest: SHA-256 in hexadecimal that the bundle must have.
        verdict: a file of measurements from another device (`edgeq verify --write-verdict`).
        run: whether the artifact runs; else files, recorded gates and size limits are checked, with no runtime.
        options: other options by their keys in edgeq.toml, such as `{"allow_unmeasured": ["latency"]}`.
        trust_source: let code in the bundle's artifact run: pickled objects, machine code.
        progress: as for `package`.

    Returns:
        The result: `ok`, `exit_code`, `gates`, `raise_if_failed()`.

    Raises:
        EdgeqError: the bundle is missing or damaged, or cannot be run.
    """
    own = merge(_present({"limit": _limit_values(limits), "device": {"on": on}}), _options(options))
    with LiveObjects() as live:
        own = _with_live_data(live, own, evaluation=evaluation, metric=metric)
        values = validated(own, "edgeq.verify()")
        device = device_options(filled(DeviceConfig, values.get("device", {})))
        if verdict is not None and device.on != "host":
            what = f"verdict= (measurements from another device) cannot be combined with on={device.on!r}"
            raise UsageError(what, "omit one of them")
        if device.cpu and device.on != "emulator":
            raise UsageError('options["cpu"] needs on="emulator"', 'give on="emulator"')
        with _progress(progress) as shown:
            return verify_bundle(
                _folder(bundle),
                data=filled(DataConfig, values.get("data", {})),
                gates=gate_options(values),
                device=device,
                progress=shown,
                digest=digest or _digest(bundle),
                verdict=None if verdict is None else Path(verdict),
                trusted=trust_source,
                run=run,
            )


def compare(
    fp32: BundleLike,
    quantized: BundleLike,
    *,
    evaluation: Any = None,
    metric: Any = None,
    samples: int = 1000,
    layers: bool = False,
    trust_source: bool = False,
    progress: bool | Progress = True,
) -> BundleComparison:
    """Run an fp32 bundle and another one of the same model on the same inputs, as `edgeq compare` does.

    Args:
        fp32: a bundle of scheme fp32.
        quantized: the other bundle.
        evaluation: the inputs, in the forms that `package` takes; default: seeded random inputs.
        metric: as for `package`; needs `evaluation`.
        samples: maximum number of inputs.
        layers: whether to also compare the layers' outputs (`layers` of the result).
        trust_source: as for `verify`.
        progress: as for `package`.

    Returns:
        Figures without a verdict: `outputs.sqnr_db` (decibels), `outputs.max_abs_error`, `outputs.agreeing` of
        `outputs.ranked` samples with the same argmax, and more.

    Raises:
        EdgeqError: they are not bundles of one model, or one does not run here.
    """
    if samples < 1:
        raise UsageError(f"samples: expected 1 or more, got {samples}", "omit samples= for the default of 1000")
    with LiveObjects() as live:
        own = _with_live_data(live, {}, evaluation=evaluation, metric=metric)
        data = filled(DataConfig, validated(own, "edgeq.compare()").get("data", {}))
        with _progress(progress) as shown:
            return compare_bundles(
                _folder(fp32),
                _folder(quantized),
                data=data,
                samples=samples,
                layers=layers,
                progress=shown,
                trusted=trust_source,
            )


def inspect(
    path: BundleLike, *, trust_source: bool = False, progress: bool | Progress = False
) -> BundleInspection | ArtifactInspection:
    """Describe a bundle or a bare artifact, as `edgeq inspect` does.

    Args:
        path: a bundle, or a .pte, .ptl, .onnx, .ort, .tflite, OpenVINO's .xml or TorchScript .pt file.
        trust_source: as for `verify`.
        progress: as for `package`.

    Returns:
        Of a bundle: `bundle.manifest`, `download_bytes`, `layers`. Of an artifact: `runtime`, `size_bytes`, `stated`
        (its inputs and outputs), `facts.operators`, `facts.delegates`.

    Raises:
        EdgeqError: it is neither, or damaged.
    """
    with _progress(progress) as shown:
        return inspect_path(_folder(path), shown, trusted=trust_source)


def install(
    bundle: BundleLike,
    app: str | os.PathLike[str],
    *,
    aar: str | os.PathLike[str] | None = None,
    digest: str | None = None,
    verdict: str | os.PathLike[str] | None = None,
    replace: bool = False,
    module: str | None = None,
    source_set: str = "main",
) -> InstallResult:
    """Install a bundle into an Android or iOS project, as `edgeq install` does.

    Args:
        bundle: its folder, a `Bundle`, or a result of `package`, whose digest is then checked too.
        app: the project's root folder, or a Gradle module of it.
        aar: the runtime's Android library, to compute how much the app grows.
        digest: SHA-256 in hexadecimal that the bundle must have.
        verdict: measurements from a device for the gates that were not measured at packaging.
        replace: whether it may replace a model with other inputs, outputs or labels.
        module: the Gradle module whose APK packs the model, such as ":mobile"; None for the only application.
        source_set: of that module: "main", a flavour or a build type.

    Returns:
        Its folder in the app (`place`), `files`, `size_bytes`, `growth` and `notes`.

    Raises:
        EdgeqError: a gate failed, the weights are random, or the folder is not a project for the bundle's platform.
    """
    app, library = Path(app), None if aar is None else Path(aar)
    digest = digest or _digest(bundle)
    within = Within(module=module, source_set=source_set)
    if verdict is None:
        return deliver(_folder(bundle), app, aar=library, digest=digest, replace=replace, within=within)

    with settled_bundle(_folder(bundle), Path(verdict), digest=digest) as settled:
        result = deliver(settled.folder, app, aar=library, replace=replace, within=within)
    return dataclasses.replace(result, notes=(*result.notes, settled.told))


def sensitivity(
    model: Any,
    *,
    target: str | TargetProfile,
    example_inputs: Any = None,
    calibration: Any = None,
    evaluation: Any = None,
    metric: Any = None,
    num_samples: int = 32,
    options: Mapping[str, Any] | None = None,
    progress: bool | Progress = True,
) -> Ranking:
    """Rank a model's layers by the error that int8 causes in each, as `edgeq sensitivity` does.

    Args:
        model: as for `package`.
        target: one target.
        example_inputs: as for `package`.
        calibration: as for `package`.
        evaluation: as for `package`; the layers are then ranked by score.
        metric: as for `package`.
        num_samples: maximum number of calibration samples.
        options: other options by their keys in edgeq.toml.
        progress: as for `package`.

    Returns:
        `layers`, the most sensitive one first, each with `alone_db` and `but_one_db`: SQNR of the outputs against fp32
        in decibels, with that layer alone in int8, and with all but that one. `found.best_kept` is the layer whose stay
        in float gains most.

    Raises:
        EdgeqError: the model or its data cannot be used, or the target's runtime has no ranking.
        TypeError: the model is of another type.
    """
    own = merge(_options(options), {"data": {"num_calibration_samples": num_samples}})
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder, LiveObjects() as live:
        given = {"targets": _target_names(target, Path(folder)), "schemes": ["static-int8"], "device": {"on": "host"}}
        given |= _model_values(live, model, example_inputs, Path(folder))
        own = _with_live_data(live, own, calibration=calibration, evaluation=evaluation, metric=metric)
        job = request(validated(merge(given, own), "edgeq.sensitivity()"), {})
        preflight(job)
        with _progress(progress) as shown:
            return ranked(job, shown)


def load_config(path: str | os.PathLike[str] = "edgeq.toml", model: str | None = None) -> PackageConfig:
    """Return the options of an edgeq.toml; paths in it are relative to the file.

    Args:
        path: the file.
        model: which [[model]] entry, by name; None for a file of one model.

    Raises:
        EdgeqError: there is no such file or model, an unknown key (the nearest is offered), or a value that is not
            allowed.
    """
    if not Path(path).is_file():
        raise UsageError(f"no file {Path(path)}", "write one with `edgeq init MODEL`")
    return to_config(read_project(Path(path)) if model is None else read_released(Path(path), [model]))


def targets() -> tuple[TargetProfile, ...]:
    """Return the shipped targets, as `edgeq targets list` shows them."""
    return tuple(load_target(name) for name in profile_files())


def schemes(runtime: str | None = None) -> dict[str, str]:
    """Return the quantization schemes by name, each with a description of its method.

    Args:
        runtime: "executorch", "torchscript", "onnx", "openvino", "litert" or "cuda"; None for all; each scheme is then
            described for the first runtime that has it.

    Raises:
        UsageError: an unknown runtime.
    """
    runtimes = tuple(dict.fromkeys(name for name, _ in METHODS))
    if runtime is not None and runtime not in runtimes:
        raise UsageError(
            (f"unknown runtime {runtime!r}.{nearest(runtime, runtimes)}"), f"use one of: {', '.join(runtimes)}"
        )
    found: dict[str, str] = {}
    for (where, scheme), method in METHODS.items():
        if runtime in (None, where):
            found.setdefault(scheme, method.description.format(backend="target's"))
    return found


# ---- from Python's values to those of edgeq.toml


def _options(options: Mapping[str, Any] | None) -> Values:
    """Return options as an edgeq.toml would hold them: lists for tuples, text for paths."""
    return {key: _toml_value(value) for key, value in (options or {}).items()}


def _toml_value(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return values_of(value)
    if isinstance(value, Mapping):
        return {str(key): _toml_value(item) for key, item in value.items()}
    if isinstance(value, tuple | list) and all(isinstance(item, str | os.PathLike) for item in value):
        return [_toml_value(item) for item in value]
    return value  # a live object too


def _present(values: Mapping[str, Any]) -> Values:
    """Return what was given: neither None nor empty."""
    found: Values = {}
    for key, value in values.items():
        value = _present(value) if isinstance(value, Mapping) else _toml_value(value)
        if value is not None and value not in ([], {}):
            found[key] = value
    return found


def _limit_values(limits: Limits | Mapping[str, str] | None) -> dict[str, Any]:
    return values_of(limits) if isinstance(limits, Limits) else dict(limits or {})


def _base(config: PackageConfig | str | os.PathLike[str] | None) -> Values:
    if config is None:
        return {}
    if isinstance(config, PackageConfig):
        return validated(values_of(config), "PackageConfig")
    return read_project(Path(config))


def _target_names(given: str | TargetProfile | Iterable[str | TargetProfile], folder: Path) -> list[str]:
    """Return targets as names or files; a `Target` that is not shipped as it is gets a file."""
    found = []
    for index, target in enumerate([given] if isinstance(given, str | TargetProfile) else given):
        if not isinstance(target, TargetProfile):
            found.append(os.fspath(target))
        elif target.name in profile_files() and load_target(target.name) == target:
            found.append(target.name)
        else:
            found.append(str(_target_file(target, folder / f"target-{index}.toml")))
    return found


def _target_file(target: TargetProfile, path: Path) -> Path:
    import json

    values = target.model_dump(mode="json", exclude_none=True, exclude={"extends"})
    # an inline table of TOML differs from a JSON object in its `=` only
    path.write_text("".join(f"{key} = {_toml_text(value, json.dumps)}\n" for key, value in values.items()))
    return path


def _toml_text(value: Any, scalar: Callable[[Any], str]) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)} = {_toml_text(item, scalar)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_text(item, scalar) for item in value) + "]"
    return scalar(value)


def _model_values(live: LiveObjects, model: Any, example_inputs: Any, folder: Path) -> Values:
    """Return the option `model` for whatever the caller gave as one."""
    if isinstance(model, str | os.PathLike):
        if example_inputs is not None:
            what = f"example_inputs needs a live module, but the model is {os.fspath(model)!r}"
            raise UsageError(what, 'give its inputs by options={"inputs": ["1x3x224x224"]}')
        return {"model": os.fspath(model)}
    torch = sys.modules.get("torch")  # whoever has a module has torch
    if torch is not None and isinstance(model, torch.nn.Module):
        return {"model": live.add_model(model, example_inputs)}
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        if example_inputs is not None:
            raise UsageError(
                ("example_inputs was given, but an ExportedProgram already states its inputs"), "omit example_inputs"
            )
        return {"model": str(save_program(model, folder))}
    raise TypeError(f"model: expected a torch.nn.Module, an ExportedProgram, a str or a path, got {type(model)}")


def _with_live_data(live: LiveObjects, own: Values, **given: Any) -> Values:
    """Return options with data and functions in place: texts as they are, live objects by the names they get.

    Data and functions among `own` (`data.search`, `qat.data`, `qat.train`) may be live too.
    """
    found = merge({"data": {key: value for key, value in given.items() if value is not None}}, own)
    for table, keys in (("data", ("calibration", "evaluation", "search", "metric")), ("qat", ("data", "train"))):
        for key in keys:
            value = found.get(table, {}).get(key)
            if value is None or isinstance(value, str):
                continue
            if isinstance(value, os.PathLike):
                text = os.fspath(value)
            elif key in ("metric", "train"):
                if not callable(value):
                    raise TypeError(f"{key}: expected a function or a str, got {type(value)}")
                text = live.add_function(key, value)
            else:
                text = live.add_data("training" if table == "qat" else key, value)
            found = merge({table: {key: text}}, found)
    return found


def _folder(bundle: BundleLike) -> Path:
    if isinstance(bundle, Bundle):
        return bundle.folder
    return bundle.path if isinstance(bundle, PackageResult) else Path(bundle)


def _digest(bundle: BundleLike) -> str | None:
    return bundle.digest if isinstance(bundle, Bundle | PackageResult) else None


# ---- the caller's process


@contextlib.contextmanager
def _progress(asked: bool | Progress) -> Iterator[Progress]:
    with contextlib.ExitStack() as stack:
        shown: Progress
        if asked is True:
            shown = stack.enter_context(shown_progress(_write_line))
        else:
            shown = Quiet() if asked is False else asked
        yield Interruptible(shown, stack.enter_context(_interrupts()))


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C, which still raises KeyboardInterrupt; a handler of the caller's own stays in place."""
    came: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield came
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _write_line(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # progress that nobody can read ends no run
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep worker processes from running the caller's script again.

    multiprocessing has each of them import the main module, for functions that are defined there. The workers need
    none, and a script that calls `build` without an `if __name__ == "__main__":` would start workers from workers.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)
