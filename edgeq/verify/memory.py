"""Peak memory of a model in this process, by what the kernel counts (proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The state before a model is loaded, in bytes."""

    resident: int
    of_files: int


def mark() -> Mark | None:
    """Reset the high-water mark of the resident set and return the state; None where /proc does not tell."""
    try:
        (_SELF / "clear_refs").write_text("5")
        return Mark(resident=_status("VmRSS"), of_files=_status("RssFile"))
    except (OSError, KeyError):
        return None


def peak_bytes(since: Mark | None, model: Path) -> int | None:
    """Return the peak of allocated memory since `since`, with the part of the model's file that is mapped.

    Pages of libraries that are touched for the first time are left out: they depend on how the process was started,
    and an app has them whatever it runs.
    """
    if since is None:
        return None
    try:
        libraries = _status("RssFile") - since.of_files - _mapped(model)
        return max(0, _status("VmHWM") - since.resident - max(0, libraries))
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    fields = dict(line.split(":", 1) for line in (_SELF / "status").read_text().splitlines())
    return int(fields[key].split()[0]) * 1024


def _mapped(path: Path) -> int:
    """Return how many bytes of a file are mapped and resident."""
    total = 0
    inside = False
    for line in (_SELF / "smaps").read_text().splitlines():
        first = line.split(None, 1)[0]
        if not first.endswith(":"):
            inside = line.endswith(f" {path}")
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total
