"""The content-addressed cache of finished bundles: the same command with nothing changed is answered from here.

Layout: `cells/<key>/<dependencies>/{entry.json, bundle/…}`. The key is over everything known before the model is
loaded (options, target, contents of named files, versions); the dependencies are the files that loading it opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq._io import canonical_json, lock_dir, sha256_bytes, sha256_file, staged_dir, write_atomic
from edgeq.errors import EdgeqError
from edgeq.pipeline.record import current_digest, package_folder

if TYPE_CHECKING:
    from edgeq.artifacts import DataFacts, Row
    from edgeq.job import Job
    from edgeq.target import TargetProfile

_TOOLS = ("torch", "torchvision", "torchao", "executorch", "numpy", "pillow", "safetensors", "scikit-learn")
_LOCK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """Where the cache is, and what it holds."""

    folder: Path
    entries: int
    size_bytes: int


def cache_folder() -> Path:
    """Return the user's cache folder; EDGEQ_CACHE_DIR overrides it."""
    import os

    from platformdirs import user_cache_path

    named = os.environ.get("EDGEQ_CACHE_DIR")
    return Path(named) if named else user_cache_path("edgeq")


def cache_info() -> CacheInfo:
    """Return where the cache is, how many bundles it holds, and their bytes on disk."""
    folder = cache_folder()
    files = [path for path in folder.rglob("*") if path.is_file()]
    entries = sum(path.name == "entry.json" for path in files)
    return CacheInfo(folder=folder, entries=entries, size_bytes=sum(path.stat().st_size for path in files))


def clear_cache() -> int:
    """Remove every entry, and return how many there were."""
    folder = cache_folder()
    entries = cache_info().entries
    if folder.exists():
        with lock_dir(folder, wait_s=_LOCK_S):
            shutil.rmtree(folder / "cells", ignore_errors=True)
    return entries


@functools.cache
def tool_versions() -> dict[str, str]:
    """Return the versions of what decides the result."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def _edgeq_digest() -> str:
    """Hash edgeq's own sources, so that a changed edgeq never answers with an old one's result."""
    root = package_folder()
    return sha256_bytes("".join(sha256_file(path) for path in sorted(root.rglob("*.py"))).encode())


@functools.cache
def _cpu() -> str:
    """Name this host's CPU: measured times and float kernels are its own."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cell_key(job: Job, target: TargetProfile, scheme: str) -> str:
    """Return the hash of everything known before the model is loaded."""
    options = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    for name in ("targets", "schemes", "out", "cache"):
        del options[name]
    named = (job.source, job.weights, job.data.calibration, job.data.evaluation, job.data.preprocess, job.data.labels)
    facts = {
        "options": json.loads(json.dumps(options, default=_plain)),
        "target": target.model_dump(mode="json"),
        "scheme": scheme,
        "files": {str(name): _content(Path(name)) for name in named if name is not None},
        "folder": str(Path.cwd()) if _is_relative_module(job) else None,
        "edgeq": _edgeq_digest(),
        "tools": tool_versions(),
        "host": [_cpu(), sys.platform],
    }
    return sha256_bytes(canonical_json(facts))


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _is_relative_module(job: Job) -> bool:
    """Whether a module is found by way of the current folder."""
    named = (job.source, job.data.calibration, job.data.evaluation, job.data.metric)
    return any(":" in name and not name.startswith("torchvision:") for name in named if name)


def _content(path: Path) -> str | None:
    """Return the hash of a file, or of all files below a folder; None for what is no path."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return None
    parts = [f"{p.relative_to(path)}:{sha256_file(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    return sha256_bytes("\n".join(parts).encode())


def look_up(key: str, target: Path) -> tuple[Row, DataFacts] | None:
    """Copy a valid entry's bundle to `target`, and return what it was; None where there is none.

    A torn, tampered or outdated entry is removed, not used.
    """
    for entry in _entries(key):
        try:
            facts = json.loads((entry / "entry.json").read_bytes())
        except (OSError, ValueError):
            _discard(entry)
            continue
        if any(current_digest(path) != digest for path, digest in facts["dependencies"].items()):
            continue  # another state of the user's files, which may come back
        found = _restored(entry, facts, target)
        if found is not None:
            return found
        _discard(entry)
    return None


def _entries(key: str) -> Iterator[Path]:
    folder = cache_folder() / "cells" / key
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _discard(entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)


def _restored(entry: Path, facts: Mapping[str, Any], target: Path) -> tuple[Row, DataFacts] | None:
    from pydantic import TypeAdapter, ValidationError

    from edgeq.artifacts import DataFacts
    from edgeq.bundle.reader import read_bundle
    from edgeq.bundle.report import read_report

    try:
        with staged_dir(target) as staging:
            shutil.copytree(entry / "bundle", staging, dirs_exist_ok=True)
            # the very bytes that are put in place are those that are checked
            bundle = read_bundle(staging)
            if bundle.digest != facts["digest"] or sha256_file(staging / "report.json") != facts["report_sha256"]:
                return None
            row = read_report(staging)
            data = TypeAdapter(DataFacts).validate_python(facts["data"])
    except (EdgeqError, OSError, KeyError, ValidationError):
        return None
    return dataclasses.replace(row, path=target, cached=True), data


def store(key: str, row: Row, data: DataFacts, dependencies: Mapping[str, str]) -> None:
    """Keep a finished bundle, accepted or rejected.

    Raises:
        EnvironmentProblem: another edgeq holds the cache's lock for a minute.
    """
    folder = cache_folder()
    name = sha256_bytes(canonical_json(dict(dependencies)))
    with lock_dir(folder, wait_s=_LOCK_S), staged_dir(folder / "cells" / key / name) as staging:
        shutil.copytree(row.path, staging / "bundle")
        entry = {
            "digest": row.digest,
            "report_sha256": sha256_file(staging / "bundle" / "report.json"),
            "dependencies": dict(dependencies),
            "data": dataclasses.asdict(data),
        }
        write_atomic(staging / "entry.json", canonical_json(entry))
