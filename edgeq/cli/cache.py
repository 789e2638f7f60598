"""`edgeq cache`: the results of earlier runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

import edgeq
from edgeq.cli.console import say, say_json
from edgeq.core.config import LOCAL
from edgeq.core.errors import UsageError
from edgeq.core.units import counted, format_bytes, parse_size_bytes

if TYPE_CHECKING:
    import edgeq.pipeline.cache

app = typer.Typer(help="Show, clear or prune the build cache.")

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_Levels = Annotated[
    list[str] | None,
    typer.Option(
        "--cache",
        metavar="URL",
        help="A shared cache (s3://BUCKET/PREFIX, file:///FOLDER, …) or local; repeatable. [default: local]",
    ),
]

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@app.command("info")
def info(cache: _Levels = None, as_json: _AsJson = False) -> None:
    """Show the place, entries and size of each level, and the size of the devices' runtimes."""
    found = [edgeq.pipeline.cache.cache_info(level) for level in cache or (LOCAL,)]
    if as_json:
        levels = [
            {
                "folder": one.place,
                "entries": one.entries,
                "size_bytes": one.size_bytes,
                "runtimes_bytes": one.runtimes_bytes,
            }
            for one in found
        ]
        say_json({"schema_version": 1, "cache": levels[0], "levels": levels})
        return
    for one in found:
        say(f"{one.place}: {counted(one.entries, 'entry')}, {format_bytes(one.size_bytes)}")
        if one.runtimes_bytes:
            say(f"devices' runtimes: {format_bytes(one.runtimes_bytes)}, which `edgeq emulator` manages")


@app.command("clear")
def clear(cache: _Levels = None, as_json: _AsJson = False) -> None:
    """Remove every entry of each level."""
    removed = sum(edgeq.pipeline.cache.clear_cache(level) for level in cache or (LOCAL,))
    if as_json:
        say_json({"schema_version": 1, "removed": removed})
    else:
        say(f"removed {counted(removed, 'entry')}")


@app.command("prune")
def prune(
    cache: _Levels = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove entries older than this: 90m, 12h, 30d or 4w."),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Then remove the oldest until a level has at most this: 20GB.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Remove old entries. The age is that of the last use in the local cache, and of the writing in a shared one."""
    if older_than is None and max_size is None:
        raise UsageError("edgeq cache prune removes nothing without a rule", "give --older-than 30d or --max-size 20GB")
    age_s = None if older_than is None else _seconds(older_than)
    size_bytes = None if max_size is None else parse_size_bytes(max_size)
    pruned = [
        (level, *edgeq.pipeline.cache.prune_cache(level, older_than_s=age_s, max_size_bytes=size_bytes))
        for level in cache or (LOCAL,)
    ]
    if as_json:
        levels = [{"cache": level, "removed": count, "size_bytes": size} for level, count, size in pruned]
        say_json({"schema_version": 1, "levels": levels})
    else:
        for level, count, size in pruned:
            say(f"{level}: removed {counted(count, 'entry')}, {format_bytes(size)}")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([mhdw])", text)
    if found is None:
        raise UsageError(f"--older-than: expected a number with m, h, d or w, got {text!r}", "for example 30d")
    return float(found[1]) * _UNITS_S[found[2]]
