"""The app as a whole: what all models that one ABI gets weigh together, with the runtimes' own libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeq.artifacts import Gate, Row
from edgeq.check.outcome import at_most, unverified
from edgeq.errors import ExitCode
from edgeq.project import AppOptions
from edgeq.target import TargetProfile
from edgeq.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A bundle of the app, with the target that it is for."""

    row: Row
    target: TargetProfile

    @property
    def abi(self) -> str:
        """What the app's build for it is called."""
        return f"{self.target.platform}-{self.target.arch}"


_KINDS: tuple[tuple[str, Callable[[AppOptions], int | None], Callable[[Row], int]], ...] = (
    ("size", lambda options: options.size_bytes, lambda row: row.size_bytes),
    ("download", lambda options: options.download_bytes, lambda row: row.download_bytes),
)


def app_gates(shipped: Sequence[Shipped], options: AppOptions, *, missing: Sequence[str]) -> tuple[Gate, ...]:
    """Hold the sum of all bundles that one ABI gets, and their runtimes' libraries, to the app's limits.

    Every target's bundle of a model is in the app; of several schemes of one target the largest counts, since only
    one of them will be. A library whose size is not known leaves the gate unverified, unless the models alone are
    over the limit.

    Args:
        shipped: bundles, accepted or not: what was rejected is to be mended, not left out.
        options: the limits, and the libraries' sizes.
        missing: names of models that could not be built.
    """
    gates = []
    for abi in dict.fromkeys(item.abi for item in shipped):
        own = [item for item in shipped if item.abi == abi]
        for kind, limit_of, bytes_of in _KINDS:
            limit = limit_of(options)
            if limit is not None:
                gates.append(_gate(f"{kind} of the app for {abi}", limit, own, bytes_of, options, missing))
    return tuple(gates)


def _gate(
    name: str,
    limit: int,
    own: Sequence[Shipped],
    bytes_of: Callable[[Row], int],
    options: AppOptions,
    missing: Sequence[str],
) -> Gate:
    largest: dict[tuple[str, str], int] = {}
    for item in own:
        key = (item.row.model, item.row.target)
        largest[key] = max(largest.get(key, 0), bytes_of(item.row))
    models = sum(largest.values())
    known = dict(options.runtime_bytes)
    runtimes = sorted({(item.target.runtime, item.abi) for item in own})
    unknown = [runtime for runtime, abi in runtimes if (runtime, abi) not in known]
    libraries = sum(known.get(key, 0) for key in runtimes)
    told = f"{len(largest)} bundles {format_bytes(models)}, runtimes {_libraries(runtimes, known)}"
    gate = at_most(
        name=name, limit=limit, measured=models + libraries, dimension="bytes", code=ExitCode.SIZE, note=told
    )
    if not gate.passed or not (unknown or missing):
        return gate
    why = [f"the size of the library of {runtime} is not known: give [app.runtime_size]" for runtime in unknown]
    why += [f"{model} could not be built" for model in missing]
    return unverified(name, gate.limit, f"{'; '.join(why)}; {told}")


def _libraries(runtimes: Sequence[tuple[str, str]], known: dict[tuple[str, str], int]) -> str:
    parts = [f"{key[0]} {format_bytes(known[key]) if key in known else 'unknown'}" for key in runtimes]
    return ", ".join(parts)
