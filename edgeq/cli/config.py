"""From options to a job: the command line over `edgeq.toml`, every name checked before anything slow starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import ValidationError

from edgeq.cli.merge import given, merge
from edgeq.cli.precheck import BUILT_IN
from edgeq.cli.project import DataTable, DeviceTable, LimitTable, Options
from edgeq.errors import UnsupportedError, UsageError, nearest
from edgeq.job import INPUT_DTYPES, DataOptions, DeviceOptions, GateOptions, Job, QatOptions
from edgeq.scheme import (
    AUTO,
    LIMITS,
    NEEDS_CALIBRATION,
    NEEDS_SEARCH,
    NEEDS_TRAINING,
    OBSERVERS,
    SCHEMES,
    SEARCH_LIMITS,
    AskedScheme,
    LimitName,
    ObserverName,
    SchemeName,
    parse_limit,
)
from edgeq.target import App, explain, load_target
from edgeq.units import parse_size_bytes

if TYPE_CHECKING:
    from edgeq.target import TargetProfile

_T = TypeVar("_T")
_Name = TypeVar("_Name", bound=str)
_LIMIT_ON: tuple[Literal["interval", "point"], ...] = ("interval", "point")
_ON: tuple[Literal["emulator", "host", "cuda"], ...] = ("emulator", "host", "cuda")
_LINT: tuple[Literal["error", "warn"], ...] = ("error", "warn")
DEFAULT_OUT = "out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job, and where its bundles are to be installed afterwards."""

    job: Job
    install_into: tuple[Path, ...]


def request(command_line: Options, project: Options) -> Request:
    """Return what the command line, over the project's file, asks for.

    Raises:
        UsageError: something is missing, unknown or not usable; the nearest known name is offered.
        UnsupportedError: a scheme that edgeq, or one of the targets, cannot do.
    """
    options = merge(command_line, project)
    source, targets = _model(options), _targets(options)
    job = Job(
        source=source,
        targets=targets,
        out=Path(_or(options.out, DEFAULT_OUT)),
        schemes=_schemes(options.schemes or [], targets),
        name=options.name,
        model_version=_or(options.model_version, "1"),
        weights=options.weights,
        inputs=tuple(options.inputs or ()),
        input_dtype=_optional("value of --input-dtype", options.input_dtype, INPUT_DTYPES),
        dynamic_batch=_or(options.dynamic_batch, False),
        seed=_or(options.seed, 0),
        observer=_observer(options.observer, source),
        keep_fp32=tuple(options.keep_fp32 or ()),
        reuse_qparams_from=None if options.reuse_qparams_from is None else Path(options.reuse_qparams_from),
        data=_data(options.data),
        qat=QatOptions(**given(options.qat)),
        gates=_gates(options),
        device=device_options(options.device),
        compare=_or(options.compare, False),
        cache=_or(options.cache, True),
    )
    _check_metric(command_line, job)
    _check_observer(command_line, job)
    _check_qat(command_line, job)
    _check_search(command_line, job)
    return Request(job=job, install_into=tuple(Path(app) for app in _unique(options.install_into or [])))


def _observer(name: str | None, source: str) -> ObserverName:
    """Return the observer; of ONNX Runtime's own calibrators, which know no histogram's least error, its default."""
    return _choice("observer", name, OBSERVERS, default="minmax" if source.endswith(".onnx") else "histogram")


def _check_metric(command_line: Options, job: Job) -> None:
    """Refuse a metric that would score nothing; that of a project's file may wait for its data."""
    if command_line.data.metric is not None and job.data.evaluation is None and job.source != BUILT_IN:
        what = "--metric says how evaluation data is scored, and none is given"
        raise UsageError(what, "add --eval-data, or leave --metric out")


def _check_observer(command_line: Options, job: Job) -> None:
    """Refuse an observer that would observe nothing."""
    schemes = {scheme for target in job.targets for scheme in job.possible_schemes(target)}
    if command_line.observer is not None and not schemes & NEEDS_CALIBRATION:
        what = f"--observer is for schemes with ranges of samples, and this run has {', '.join(sorted(schemes))}"
        raise UsageError(what, f"add --scheme {' or '.join(sorted(NEEDS_CALIBRATION))}, or leave the option out")


def _check_qat(command_line: Options, job: Job) -> None:
    """Refuse options of a training that no scheme of the run does; those of a project's file may wait."""
    schemes = {scheme for target in job.targets for scheme in job.possible_schemes(target)}
    asked = given(command_line.qat)
    if asked and not schemes & set(NEEDS_TRAINING):
        what = f"--qat-{next(iter(asked))} is for schemes that train, and this run has {', '.join(sorted(schemes))}"
        raise UsageError(what, f"add --scheme {next(iter(NEEDS_TRAINING))}, or leave the option out")


def _check_search(command_line: Options, job: Job) -> None:
    """Refuse a search that nothing would end, and options of one where none is done."""
    schemes = {scheme for target in job.targets for scheme in job.possible_schemes(target)}
    searches = schemes & NEEDS_SEARCH
    asked = [name for name in ("search", "num_search_samples") if getattr(command_line.data, name) is not None]
    if asked and not searches:
        option = {"search": "--search-data"}.get(asked[0], "--num-search-samples")
        what = f"{option} is for schemes that search, and this run has {', '.join(sorted(schemes))}"
        raise UsageError(what, f"add --scheme {next(iter(NEEDS_SEARCH))}, or leave the option out")
    # auto leaves out what it has no limit for
    if searches and AUTO not in job.schemes and not any(name in SEARCH_LIMITS for name, _ in job.gates.limits):
        what = f"{next(iter(searches))} searches for the least that keeps an accuracy, and none was asked for"
        raise UsageError(what, "add --limit accuracy_drop=0.5pp, sqnr=30dB or agreement=99%")


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _model(options: Options) -> str:
    if options.model is None:
        raise UsageError(
            "no model given",
            "name one, such as torchvision:mobilenet_v2, model.py:factory, model.pt2, or digits, the built-in one",
        )
    return options.model


def _targets(options: Options) -> tuple[TargetProfile, ...]:
    """Return the profiles; the runtimes that the project's app carries take the place of the target's own."""
    if not options.targets:
        raise UsageError("no target given", "add --target NAME; `edgeq targets list` shows the names")
    in_field = options.app.runtimes
    profiles: dict[str, TargetProfile] = {}
    for name in _unique(options.targets):
        profile = load_target(name)
        if in_field.get(profile.runtime):
            profile = profile.model_copy(update={"app": _app(profile.app, in_field[profile.runtime], profile.runtime)})
        if profile.name in profiles:
            raise UsageError(f"two targets are named {profile.name!r}", "give one of them another `name`")
        profiles[profile.name] = profile
    return tuple(profiles.values())


def _app(own: App, versions: Sequence[str], runtime: str) -> App:
    """Return the target's own app with other runtimes: what else it says of the builds in the field holds on."""
    try:
        return App.model_validate(own.model_dump() | {"runtimes": tuple(versions)})
    except ValidationError as err:
        raise explain(err, f"app.runtimes.{runtime}", App) from err


def _schemes(names: Sequence[str], targets: Iterable[TargetProfile]) -> tuple[AskedScheme, ...]:
    if AUTO in names:
        others = [name for name in _unique(names) if name != AUTO]
        if others:
            what = f"--scheme {AUTO} chooses one scheme, and {', '.join(others)} is asked for too"
            raise UsageError(what, f"give {AUTO} alone, or --compare to see fp32 and fp16 beside it")
        return (AUTO,)
    chosen = tuple(_scheme(name) for name in _unique(names))
    for target in targets:
        for scheme in chosen:
            if scheme not in target.schemes:
                what = f"target {target.name} cannot do scheme {scheme}"
                raise UnsupportedError(what, f"its schemes: {', '.join(target.schemes)}")
    return chosen


def _scheme(name: str) -> SchemeName:
    for known in SCHEMES:
        if known == name:
            return known
    known_names = (*SCHEMES, AUTO)
    raise UsageError(f"unknown scheme {name!r}.{nearest(name, known_names)}", f"schemes: {', '.join(known_names)}")


def _choice(kind: str, name: str | None, known: Sequence[_Name], *, default: _Name) -> _Name:
    chosen = _optional(kind, name, known)
    return default if chosen is None else chosen


def _optional(kind: str, name: str | None, known: Sequence[_Name]) -> _Name | None:
    if name is None:
        return None
    for choice in known:
        if choice == name:
            return choice
    raise UsageError(f"unknown {kind} {name!r}.{nearest(name, known)}", f"use one of: {', '.join(known)}")


def _data(table: DataTable) -> DataOptions:
    return DataOptions(
        calibration=table.calibration,
        evaluation=table.evaluation,
        metric=table.metric,
        preprocess=table.preprocess,
        labels=None if table.labels is None else Path(table.labels),
        search=table.search,
        num_calibration_samples=_or(table.num_calibration_samples, 128),
        num_search_samples=_or(table.num_search_samples, DataOptions().num_search_samples),
        lint=_choice("value of --data-lint", table.lint, _LINT, default="error"),
        skip_bad_images=_or(table.skip_bad_images, False),
    )


def device_options(table: DeviceTable, *, default: Literal["emulator", "host"] = "emulator") -> DeviceOptions:
    """Return what the options say of the device's kernels.

    Raises:
        UsageError: an unknown place to run on.
    """
    from edgeq.verify.remote.link import is_link, parse_link

    if table.on is not None and is_link(table.on):
        on = parse_link(table.on).name
    else:
        on = _choice("value of --on", table.on, _ON, default=default)
    names = [name.strip() for text in table.cpu or () for name in text.split(",")]
    return DeviceOptions(
        on=on,
        cpu=tuple(_unique(name for name in names if name)),
        samples=table.samples,
        timeout_s=_or(table.timeout_s, DeviceOptions().timeout_s),
    )


def _gates(options: Options) -> GateOptions:
    stores = tuple(_unique(options.store_limits or []))
    if options.app_size is not None and not stores:
        raise UsageError(
            "--app-size is for --store-limit, and none is given", "add --store-limit NAME, or leave it out"
        )
    drop_on, latency_on = split_limit_on(options.limit_on)
    return GateOptions(
        limits=tuple(_limits(options.limit)),
        limit_on=drop_on,
        latency_on=latency_on,
        shipped=None if options.shipped is None else Path(options.shipped),
        device=options.predict_for,
        allow_unmeasured=tuple(_unique(options.allow_unmeasured or [])),
        store_limits=stores,
        app_size_bytes=None if options.app_size is None else parse_size_bytes(options.app_size),
    )


def split_limit_on(
    text: str | None,
) -> tuple[Literal["interval", "point"], Literal["measured", "predicted"]]:
    """Return what --limit-on says of the accuracy drop, and of latency.

    Raises:
        UsageError: an unknown word.
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    rest = [word for word in words if word != "predicted"]
    for word in rest:
        _choice("value of --limit-on", word, (*_LIMIT_ON, "predicted"), default="interval")
    drop_on = _choice("value of --limit-on", rest[-1] if rest else None, _LIMIT_ON, default="interval")
    return drop_on, "predicted" if len(rest) < len(words) else "measured"


def _limits(table: LimitTable) -> Iterable[tuple[LimitName, float]]:
    for name in LIMITS:
        text = getattr(table, name)
        if text is None or LIMITS[name].measured_by != "package":
            continue
        try:
            yield parse_limit(f"{name}={text}")
        except UsageError as err:
            raise UsageError(f"limit {name}: {err.what}", err.fix) from err


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
