"""App stores' size limits as presets. store_limits.toml holds the figures, each with date, source and basis."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeq.check.gate import at_most
from edgeq.core.errors import ExitCode, UsageError, nearest
from edgeq.core.results.report import Gate
from edgeq.core.schema import read_toml
from edgeq.core.targets import TargetProfile
from edgeq.core.units import parse_size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimit:
    """One store's limit.

    Attributes:
        platform: the platform that the store serves.
        limit_bytes: the largest size that the store accepts.
        basis: which bytes the store counts.
        counts_app: whether app and model are counted together.
        as_of: year and month in which the figure was read.
        source: where the figure was read.
        note: further remarks.
    """

    platform: Literal["android", "ios", "any"]
    limit_bytes: int
    basis: Literal["compressed download", "uncompressed"]
    counts_app: bool
    as_of: str
    source: str
    note: str


@functools.cache
def store_limits() -> dict[str, StoreLimit]:
    """Return the presets by name."""
    tables = read_toml(Path(__file__).parent / "store_limits.toml")
    return {
        name: StoreLimit(
            platform=table["platform"],
            limit_bytes=parse_size_bytes(table["limit"]),
            basis=table["basis"],
            counts_app=table["counts_app"],
            as_of=table["as_of"],
            source=table["source"],
            note=table["note"],
        )
        for name, table in tables.items()
    }


def find_store_limit(preset: str, app_size_bytes: int | None, target: TargetProfile | None = None) -> StoreLimit:
    """Return a preset, after checking that it applies.

    Args:
        preset: its name.
        app_size_bytes: the app's size without the model, in the preset's basis; None where not given.
        target: the target whose artifact is judged; None to leave the platform unchecked.

    Raises:
        UsageError: the preset is unknown, needs --app-size, or is for another platform's store.
    """
    known = store_limits()
    if preset not in known:
        raise UsageError(f"unknown store limit {preset!r}.{nearest(preset, known)}", f"known: {', '.join(known)}")
    limit = known[preset]
    if limit.counts_app and app_size_bytes is None:
        raise UsageError(
            f"store limit {preset!r} counts the app and the model together, but the app's size is not known",
            f"give --app-size: the size of the app without the model ({limit.basis})",
        )
    if target is not None and limit.platform not in ("any", target.platform):
        raise UsageError(
            f"store limit {preset!r} is for {limit.platform}, but target {target.name!r} is for {target.platform}",
            "package this target in a run of its own, without that store limit",
        )
    return limit


def store_gate(
    preset: str, app_size_bytes: int | None, size_bytes: int, download_bytes: int, target: TargetProfile
) -> Gate:
    """Check the app with its model, or the model's own pack, against a store's limit (exit code 4).

    Args:
        preset: the limit's name.
        app_size_bytes: the app's size without the model; added where the store counts both together.
        size_bytes: the artifact's; used where the store counts uncompressed bytes.
        download_bytes: the published ZIP's; used where the store counts the compressed download.
        target: the target of the artifact.

    Raises:
        UsageError: as `find_store_limit` says.
    """
    limit = find_store_limit(preset, app_size_bytes, target)
    model = download_bytes if limit.basis == "compressed download" else size_bytes
    app = app_size_bytes if limit.counts_app and app_size_bytes is not None else 0
    what = "app and model together" if limit.counts_app else "the model by itself"
    return at_most(
        name=preset,
        limit=limit.limit_bytes,
        measured=app + model,
        dimension="bytes",
        code=ExitCode.SIZE,
        note=f"{what}, {limit.basis}, as of {limit.as_of}; {limit.note}",
    )


def store_warnings(presets: tuple[str, ...], target: TargetProfile) -> tuple[str, ...]:
    """Return store warnings for the target that do not depend on sizes."""
    plays = any(preset.startswith("play-") for preset in presets)
    if plays and target.platform == "android" and target.runtime == "torchscript":
        return (
            "pytorch_android_lite is not aligned to 16 KB pages, which Google Play asks of apps for Android 15 and"
            " later (pytorch#154449): prefer an ExecuTorch target",
        )
    return ()
