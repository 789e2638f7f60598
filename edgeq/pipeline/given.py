"""Model files that people give, read by their runtime: what it refuses is bad input, and no verdict on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.errors import EdgeqError
from edgeq.sources import unreadable

if TYPE_CHECKING:
    from edgeq.verify.host import HostRuntime, Loaded


def load_given(
    runtime: HostRuntime, given: Path, *, name: str, backend: str, threads: int = 1, copy: Path | None = None
) -> Loaded:
    """Load a file in a runtime of this host, by its own name or as a copy of it.

    Args:
        runtime: the child process.
        given: the file as it was named.
        name: the runtime's, such as executorch.
        backend: the engine, as `HostRuntime.load` takes it.
        threads: of the runtime.
        copy: what is loaded in its place.

    Raises:
        UsageError: the runtime refuses the file.
        EdgeqError: what else `HostRuntime.load` raises, with the file's name.
    """
    from edgeq.verify.host import Refused

    path = copy or given
    try:
        return runtime.load(path, runtime=name, backend=backend, threads=threads)
    except Refused as err:
        raise unreadable(given, err.what.removeprefix(f"failed while loading {path.name}: ")) from err
    except EdgeqError as err:
        raise type(err)(f"{given}: {err.what}", err.fix) from err
