"""The size of the whole app: all models for one ABI together with the runtimes' own libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeq.check.gate import at_most, unverified
from edgeq.core.errors import ExitCode
from edgeq.core.results.report import AppOptions, Gate, Library, PackageResult
from edgeq.core.targets import TargetProfile
from edgeq.core.units import counted, format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A bundle of the app, with the target that it is for."""

    row: PackageResult
    target: TargetProfile


def abi_of(target: TargetProfile) -> str:
    """Return the name of the app's build for a target."""
    return f"{target.platform}-{target.arch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What is summed up and held to a limit."""

    name: str
    limit_of: Callable[[AppOptions], int | None]
    bytes_of: Callable[[PackageResult], int]
    library_bytes_of: Callable[[Library], int]


_KINDS = (
    _Kind(
        name="size",
        limit_of=lambda options: options.size_bytes,
        bytes_of=lambda row: row.size_bytes,
        library_bytes_of=lambda library: library.size_bytes,
    ),
    _Kind(
        name="download",
        limit_of=lambda options: options.download_bytes,
        bytes_of=lambda row: row.download_bytes,
        library_bytes_of=lambda library: library.download_bytes,
    ),
)

Libraries = Mapping[tuple[str, str], Library]


def app_gates(
    shipped: Sequence[Shipped],
    options: AppOptions,
    *,
    found: Libraries,
    missing: Sequence[str],
    refused: Sequence[tuple[str, TargetProfile]] = (),
) -> tuple[Gate, ...]:
    """Check the total size of an ABI's bundles and runtime libraries against the app's limits.

    Every target's bundle of a model is in the app; of several schemes of one target the largest counts, since only one
    of them ships. A library whose size is not known leaves the gate unverified, unless the models alone are over the
    limit.

    Args:
        shipped: bundles, accepted or not: a rejected one counts, since it will be fixed rather than dropped.
        options: the limits, and library sizes that the user gave, which take precedence.
        found: libraries found on this machine, by (runtime, ABI).
        missing: names of models that could not be built.
        refused: models, each with the target that it could not be built for.
    """
    given = {
        key: Library(size_bytes=size, download_bytes=size, origin="as given") for key, size in options.runtime_bytes
    }
    gates = []
    absent = [(f"{model} for {target.name}", abi_of(target)) for model, target in refused]
    for abi in dict.fromkeys((*(abi_of(item.target) for item in shipped), *(abi for _, abi in absent))):
        own = [item for item in shipped if abi_of(item.target) == abi]
        lacking = [*missing, *(name for name, without in absent if without == abi)]
        for kind in _KINDS:
            limit = kind.limit_of(options)
            if limit is not None:
                gates.append(_gate(f"{kind.name} of the app for {abi}", limit, own, kind, {**found, **given}, lacking))
    return tuple(gates)


def _gate(name: str, limit: int, own: Sequence[Shipped], kind: _Kind, known: Libraries, missing: Sequence[str]) -> Gate:
    largest: dict[tuple[str, str], int] = {}
    for item in own:
        key = (item.row.model, item.row.named_target)
        largest[key] = max(largest.get(key, 0), kind.bytes_of(item.row))
    models = sum(largest.values())
    runtimes = sorted({(item.target.runtime, abi_of(item.target)) for item in own})
    unknown = [key[0] for key in runtimes if key not in known]
    libraries = sum(kind.library_bytes_of(known[key]) for key in runtimes if key in known)
    named = ", ".join(_library_text(key[0], known.get(key), kind) for key in runtimes)
    sizes = f"{counted(len(largest), 'bundle')} {format_bytes(models)}, runtimes {named}"
    gate = at_most(
        name=name, limit=limit, measured=models + libraries, dimension="bytes", code=ExitCode.SIZE, note=sizes
    )
    if not gate.passed or not (unknown or missing):
        return gate
    why = [
        f"the library size of {runtime} is not known: set it in [app.runtime_size] of edgeq.toml" for runtime in unknown
    ]
    why += [f"{model} could not be built" for model in missing]
    return unverified(name, gate.limit, f"{'; '.join(why)}; {sizes}")


def _library_text(runtime: str, library: Library | None, kind: _Kind) -> str:
    if library is None:
        return f"{runtime} unknown"
    return f"{runtime} {format_bytes(kind.library_bytes_of(library))} ({library.origin})"
