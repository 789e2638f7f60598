"""From a `PackageConfig` to a `Job`: look up every name and parse every value before anything slow starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from edgeq.config.options import Values, merge, to_config, validated, values_of
from edgeq.core.config import DeviceConfig, GateOptions, Job, PackageConfig, RunConfig
from edgeq.core.errors import FoundErrors, UnsupportedError, UsageError, nearest
from edgeq.core.schema import explain
from edgeq.core.schemes import (
    AUTO,
    LIMITS,
    NEEDS_CALIBRATION,
    NEEDS_SEARCH,
    NEEDS_TRAINING,
    SEARCH_LIMITS,
    AskedScheme,
    LimitName,
    parse_limit,
)
from edgeq.core.sources import BUILT_IN, DIGITS
from edgeq.core.targets import App, TargetGroup, TargetProfile, load_target_or_group, schemes_instead
from edgeq.core.units import parse_quantity, parse_size_bytes
from edgeq.verify.remote.link import is_link, parse_link


def with_demo_data(job: Job) -> Job:
    """Add the digits data and labels if the source is the built-in demo and none were given."""
    if job.source != DIGITS:
        return job
    data = dataclasses.replace(
        job.data,
        calibration=job.data.calibration or "edgeq.demo.digits:calibration_data",
        evaluation=job.data.evaluation or "edgeq.demo.digits:evaluation_data",
    )
    return dataclasses.replace(job, data=data, name=job.name or DIGITS)


_Name = TypeVar("_Name", bound=str)

_LIMIT_ON: tuple[Literal["interval", "point"], ...] = ("interval", "point")

_ON: tuple[Literal["emulator", "host", "cuda"], ...] = ("emulator", "host", "cuda")


def request(command_line: Values, project: Values) -> Job:
    """Return the job for the command line's options over those of the project file.

    Args:
        command_line: its options in the form of edgeq.toml, validated.
        project: those of the file, paths relative to the current folder.

    Raises:
        UsageError: something is missing, unknown or not usable; the nearest known name is offered.
        UnsupportedError: a scheme that edgeq, or one of the targets, cannot do.
    """
    job = resolve(to_config(merge(command_line, project)))
    # refuse options of the command line that would change nothing; those of a project's file may wait
    for name in command_line.get("limit", {}):
        if LIMITS[name].measured_by != "package":
            what = f"the limit {name} is measured when a bundle is released"
            raise UsageError(what, "give it to `edgeq ota release`, or write it into [limit] of edgeq.toml")
    data = command_line.get("data", {})
    if "metric" in data and job.data.evaluation is None and job.source != BUILT_IN:
        raise UsageError("--metric was given without --eval-data", "add --eval-data, or omit --metric")
    schemes = _possible_schemes(job)
    qat = next(iter(command_line.get("qat", ())), None)
    for option, given, needed_by, kind in (
        ("--observer", "observer" in command_line, NEEDS_CALIBRATION, "calibrate"),
        (f"--qat-{qat}", qat is not None, NEEDS_TRAINING, "train"),
        ("--search-data", "search" in data, NEEDS_SEARCH, "search"),
        ("--num-search-samples", "num_search_samples" in data, NEEDS_SEARCH, "search"),
    ):
        if given and not schemes & needed_by:
            what = f"{option} is for schemes that {kind}, but this run has {', '.join(sorted(schemes))}"
            raise UsageError(what, f"add --scheme {' or '.join(sorted(needed_by))}, or omit the option")
    return job


def resolve(config: PackageConfig) -> Job:
    """Look up the targets of a configuration, parse its limits, and check its values.

    Raises:
        UsageError: a value that is not allowed, an unknown name (the nearest is offered), or a search without a limit
            that ends it.
        UnsupportedError: a scheme that one of the targets does not have.
    """
    values = validated(values_of(config), "PackageConfig")
    config = to_config(values)  # tuples and paths where Python gave lists and texts
    # those of a release wait for `edgeq ota release`
    limits = {name: text for name, text in values.get("limit", {}).items() if LIMITS[name].measured_by == "package"}
    found = FoundErrors()
    schemes: tuple[AskedScheme, ...] = ()
    with found.of("targets"):
        targets, groups = _profiles(config)
    with found.of("schemes"):
        schemes = _schemes(config.schemes, *((), ()) if found.errors else (targets, groups))
    with found.of("device"):
        device = device_options(config.device)
    with found.of("limit"):
        gates = gate_options(values | {"limit": limits})
    found.raise_all()
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)}
    looked_up = {"device": device, "install_into": tuple(dict.fromkeys(config.install_into))}
    job = Job(
        **shared | looked_up,
        source=config.model,
        targets=targets,
        groups=groups,
        schemes=schemes,
        # ONNX Runtime's own calibrators have no histogram observer
        observer=config.observer or ("minmax" if config.model.endswith(".onnx") else "histogram"),
        gates=gates,
    )
    # auto leaves out what it has no limit for
    searches = _possible_schemes(job) & NEEDS_SEARCH
    if searches and AUTO not in job.schemes and not any(name in SEARCH_LIMITS for name, _ in job.gates.limits):
        what = f"{next(iter(searches))} needs an accuracy limit to search against, and none was given"
        raise UsageError(what, "add --limit accuracy_drop=0.5pp, sqnr=30dB or agreement=99%")
    if job.time_budget is not None:
        parse_quantity(job.time_budget, "s")
        if AUTO not in job.schemes:
            what = f"--time-budget is for --scheme {AUTO}, but this run has {', '.join(sorted(_possible_schemes(job)))}"
            raise UsageError(what, f"add --scheme {AUTO}, or omit --time-budget")
    return job


def _possible_schemes(job: Job) -> set[str]:
    return {scheme for target in job.all_targets for scheme in job.possible_schemes(target)}


def _profiles(config: PackageConfig) -> tuple[tuple[TargetProfile, ...], tuple[TargetGroup, ...]]:
    """Return the profiles, and the groups; the runtimes that the project's app carries take the place of their own."""
    found = FoundErrors()
    loaded = []
    for name in dict.fromkeys(config.targets):
        with found.of("targets"):
            loaded.append(load_target_or_group(name))
    found.raise_all()
    known: dict[str, TargetProfile | TargetGroup] = {}

    def named(one: TargetProfile, *, is_candidate: bool = False) -> TargetProfile:
        in_field = config.app.runtimes.get(one.runtime)
        if in_field:
            one = one.model_copy(update={"app": _app(one.app, in_field, one.runtime)})
        if known.setdefault(one.name, one) != one or (not is_candidate and known[one.name] is not one):
            raise UsageError(f"two targets are named {one.name!r}", "change the `name` of one of them")
        return one

    targets = tuple(named(one) for one in loaded if isinstance(one, TargetProfile))
    groups = []
    for group in loaded:
        if isinstance(group, TargetGroup):
            candidates = tuple(named(one, is_candidate=True) for one in group.candidates)
            groups.append(group.model_copy(update={"candidates": candidates}))
            if known.setdefault(group.name, group) is not group:
                raise UsageError(f"two targets are named {group.name!r}", "change the `name` of one of them")
    return targets, tuple(groups)


def _app(own: App, versions: Sequence[str], runtime: str) -> App:
    """Return the target's own app with other runtimes: what else it says of the builds in the field holds on."""
    try:
        return App.model_validate(own.model_dump() | {"runtimes": tuple(versions)})
    except ValidationError as err:
        raise explain(err, f"app.runtimes.{runtime}", App) from err


def _schemes(
    names: Sequence[AskedScheme], targets: Iterable[TargetProfile], groups: Iterable[TargetGroup]
) -> tuple[AskedScheme, ...]:
    chosen = tuple(dict.fromkeys(names))
    if AUTO in chosen and len(chosen) > 1:
        others = ", ".join(name for name in chosen if name != AUTO)
        what = f"--scheme {AUTO} chooses the scheme, but {others} was also given"
        raise UsageError(what, f"give {AUTO} alone; add --compare to compare with fp32 and fp16")
    for target in targets:
        for scheme in chosen:
            if scheme != AUTO and scheme not in target.schemes:
                what = f"target {target.name} does not support the scheme {scheme}"
                raise UnsupportedError(what, schemes_instead(target, scheme))
    for group in groups:  # a candidate without a scheme is left out, unless none has it
        known = list(dict.fromkeys(scheme for target in group.candidates for scheme in target.schemes))
        for scheme in chosen:
            if scheme != AUTO and scheme not in known:
                what = f"no candidate of {group.name} supports the scheme {scheme}"
                raise UnsupportedError(what, f"their schemes: {', '.join(known)}")
    return chosen


def _choice(option: str, name: str, known: Sequence[_Name]) -> _Name:
    for choice in known:
        if choice == name:
            return choice
    raise UsageError(f"unknown value of {option} {name!r}.{nearest(name, known)}", f"use one of: {', '.join(known)}")


def device_options(device: DeviceConfig) -> DeviceConfig:
    """Return the options after checking --on, with each CPU once.

    Raises:
        UsageError: an unknown value of --on.
    """
    on = parse_link(device.on).name if is_link(device.on) else _choice("--on", device.on, _ON)
    names = [name.strip() for text in device.cpu for name in text.split(",")]
    return dataclasses.replace(device, on=on, cpu=tuple(dict.fromkeys(name for name in names if name)))


def gate_options(values: Mapping[str, Any]) -> GateOptions:
    """Return the limits of `edgeq package` or `verify` in base units.

    Args:
        values: validated options in the form of edgeq.toml; those that are not limits are ignored.

    Raises:
        UsageError: a limit that cannot be parsed, an unknown word of --limit-on, or --app-size without --store-limit.
    """
    stores, app_size = tuple(dict.fromkeys(values.get("store_limits", ()))), values.get("app_size")
    if app_size is not None and not stores:
        what = "--app-size was given without --store-limit"
        raise UsageError(what, "add --store-limit NAME, or omit --app-size")
    drop_on, latency_on = _split_limit_on(values.get("limit_on", "interval"))
    return GateOptions(
        limits=tuple(_limits(values.get("limit", {}))),
        limit_on=drop_on,
        latency_on=latency_on,
        shipped=None if "shipped" not in values else Path(values["shipped"]),
        device=values.get("predict_for"),
        allow_unmeasured=tuple(dict.fromkeys(values.get("allow_unmeasured", ()))),
        store_limits=stores,
        app_size_bytes=None if app_size is None else parse_size_bytes(app_size),
        times_on=values.get("build", {}).get("latency_cpu"),
    )


def among_several(job: Job) -> Job:
    """Return a job whose parts several machines build: times count only on the kind that is named."""
    gates = dataclasses.replace(job.gates, times_on=job.build.latency_cpu or "")
    return dataclasses.replace(job, gates=gates)


def _split_limit_on(text: str) -> tuple[Literal["interval", "point"], Literal["measured", "predicted"]]:
    """Return what --limit-on says about the accuracy drop, and about latency."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    rest = [word for word in words if word != "predicted"]
    for word in rest:
        _choice("--limit-on", word, (*_LIMIT_ON, "predicted"))
    drop_on = _choice("--limit-on", rest[-1], _LIMIT_ON) if rest else "interval"
    return drop_on, "predicted" if len(rest) < len(words) else "measured"


def _limits(table: Mapping[str, str]) -> Iterable[tuple[LimitName, float]]:
    found = FoundErrors()
    for name, text in table.items():
        with found.of(f"limit.{name}"):
            try:
                yield parse_limit(f"{name}={text}")
            except UsageError as err:
                raise UsageError(f"limit {name}: {err.what}", err.fix) from err
    found.raise_all()
