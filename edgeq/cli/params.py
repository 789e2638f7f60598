"""The options that commands share, in groups: a command names a group, and gets its options as one object."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from edgeq.cli import data_flags, flags, views

if TYPE_CHECKING:
    from edgeq.cli.project import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """The model, and what its int8 ranges come from."""

    model: flags.Model = None
    target: flags.Target = None
    name: flags.Name = None
    weights: flags.Weights = None
    inputs: flags.Input = None
    input_dtype: flags.InputDtype = None
    calibration_data: data_flags.CalibrationData = None
    preprocess: data_flags.Preprocess = None
    data_lint: data_flags.DataLint = None
    skip_bad_images: data_flags.SkipBadImages = None
    seed: flags.Seed = None
    observer: flags.Observer = None
    keep_fp32: flags.KeepFp32 = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleParams:
    """What is made of the model, and where it goes."""

    scheme: flags.Scheme = None
    out: flags.Out = None
    model_version: flags.ModelVersion = None
    dynamic_batch: flags.DynamicBatch = None
    num_calibration_samples: data_flags.NumCalibrationSamples = None
    eval_data: data_flags.EvalData = None
    metric: data_flags.Metric = None
    labels: data_flags.Labels = None
    reuse_qparams_from: flags.ReuseQParams = None
    compare: flags.Compare = None
    install_into: flags.InstallInto = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeParams:
    """What only some schemes look at."""

    search_data: data_flags.SearchData = None
    num_search_samples: data_flags.NumSearchSamples = None
    qat_data: data_flags.QatData = None
    qat_samples: data_flags.QatSamples = None
    qat_epochs: data_flags.QatEpochs = None
    qat_lr: data_flags.QatLr = None
    qat_batch: data_flags.QatBatch = None
    qat_train: data_flags.QatTrain = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateParams:
    """The limits, and what may stay unmeasured."""

    limit: flags.Limit = None
    limit_on: flags.LimitOn = None
    shipped: flags.Shipped = None
    device: flags.Device = None
    allow_unmeasured: flags.AllowUnmeasured = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreParams:
    """The limits of an app store."""

    store_limit: flags.StoreLimit = None
    app_size: flags.AppSize = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceParams:
    """Whether and how the artifact runs on the device's own kernels."""

    on: flags.On = None
    cpu: flags.Cpu = None
    device_samples: flags.DeviceSamples = None
    timeout: flags.Timeout = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """How a run that makes bundles goes about it, and how its result is told."""

    config: flags.Config = None
    cache: flags.Cache = None
    dry_run: flags.DryRun = False
    as_json: flags.AsJson = False
    junit: views.Junit = None
    markdown: views.Markdown = None
    github: views.Github = False
    quiet: flags.Quiet = False
    verbose: flags.Verbose = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer, to which every option of a group is a parameter of its own.

    Args:
        command: has a parameter for each group, a dataclass of this module, beside those of its own.
    """
    signature = inspect.signature(command, eval_str=True)
    groups = {name: param.annotation for name, param in signature.parameters.items() if _is_group(param.annotation)}
    # by keyword only, so that they keep this order, which is that of the help, whether they have defaults or not
    flat = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, param in signature.parameters.items()
        for option in (_options(groups[name]) if name in groups else [param])
    ]

    @functools.wraps(command)
    def call(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    vars(call)["__signature__"] = signature.replace(parameters=flat)
    call.__annotations__ = {param.name: param.annotation for param in flat}
    return call


def _options(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=_default(field), annotation=hints[field.name])
        for field in dataclasses.fields(group)
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def to_options(*groups: object) -> Options:
    """Return the command line's options in the form of an `edgeq.toml`.

    Raises:
        UsageError: a value of the wrong type, or a limit that is none.
    """
    from edgeq.cli.merge import limit_table
    from edgeq.cli.project import validated

    values: dict[str, Any] = {}
    for path, given in _given(groups):
        table, _, key = path.rpartition(".")
        if path == "limit":
            values[path] = limit_table(given)
        else:
            (values.setdefault(table, {}) if table else values)[key] = given
    return validated(values, "command line")


def _given(groups: tuple[object, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the place in an edgeq.toml and the value of each option that was used."""
    for group in groups:
        for name, path in keys_of(type(group)).items():
            value = getattr(group, name)
            # typer gives an empty list for a repeatable option that was not used
            if value is not None and value not in ([], ()):
                yield path, list(value) if isinstance(value, list | tuple) else value


def keys_of(group: type[object]) -> dict[str, str]:
    """Return where each option of a group would stand in an edgeq.toml; none of those that have no place there."""
    hints = get_type_hints(group, include_extras=True)
    return {
        name: key.path
        for name, hint in hints.items()
        for key in getattr(hint, "__metadata__", ())
        if isinstance(key, flags.Key)
    }
