"""ExecuTorch's flatbuffers as plain data, by the compiler and the schemas that come with it. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One profile event; times are as the runtime's clock told them, in ns."""

    name: str
    in_delegate: bool
    start: int
    end: int


def tables(path: Path, folder: Path, schema: str, *options: str) -> dict[str, Any]:
    """Return a flatbuffer as JSON data; `folder` takes the compiler's output."""
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("executorch")
    root = Path(found.submodule_search_locations[0])
    command = [str(root / "data" / "bin" / "flatc"), "--json", "--strict-json", "--raw-binary", *options]
    command += ["-o", str(folder), str(root / schema), "--", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads((folder / f"{path.stem}.json").read_text())
    return content


def last_run(dump: Path) -> tuple[Event, ...]:
    """Return the events of an ETDump's last run, in the order in which they were logged."""
    content = tables(dump, dump.parent, "devtools/etdump/etdump_schema_flatcc.fbs", "--size-prefixed")
    logged = [event.get("profile_event", {}) for event in content["run_data"][-1]["events"]]
    return tuple(
        Event(
            name=str(event.get("delegate_debug_id_str") or event.get("name", "")),
            in_delegate="delegate_debug_id_str" in event,
            start=int(event.get("start_time", 0)),
            end=int(event.get("end_time", 0)),
        )
        for event in logged
    )
