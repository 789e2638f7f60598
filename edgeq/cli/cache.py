"""`edgeq cache`: the results of earlier runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import edgeq
from edgeq.cli.console import say, say_json
from edgeq.core.units import counted, format_bytes

if TYPE_CHECKING:
    import edgeq.pipeline.cache

app = typer.Typer(help="Show or clear the build cache.")


@app.command("info")
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the folder, entries and size of the cache, and the size of the devices' runtimes."""
    found = edgeq.pipeline.cache.cache_info()
    if as_json:
        facts = {
            "folder": str(found.folder),
            "entries": found.entries,
            "size_bytes": found.size_bytes,
            "runtimes_bytes": found.runtimes_bytes,
        }
        say_json({"schema_version": 1, "cache": facts})
    else:
        say(f"{found.folder}: {counted(found.entries, 'entry')}, {format_bytes(found.size_bytes)}")
        if found.runtimes_bytes:
            say(f"devices' runtimes: {format_bytes(found.runtimes_bytes)}, which `edgeq emulator` manages")


@app.command("clear")
def clear(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Remove every entry of the cache."""
    removed = edgeq.pipeline.cache.clear_cache()
    if as_json:
        say_json({"schema_version": 1, "removed": removed})
    else:
        say(f"removed {counted(removed, 'entry')}")
