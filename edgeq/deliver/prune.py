"""Taking bundles out of an app that it no longer uses: other versions of the model that was just installed."""

from __future__ import annotations

import re
from pathlib import Path

from edgeq._io import recover_dir, remove_dir
from edgeq.bundle.reader import read_manifest
from edgeq.errors import EdgeqError
from edgeq.manifest import MANIFEST_NAME, REPORT_NAMES, Manifest

_LEFT = re.compile(r"\.(.+)\.(?:[a-z0-9_]{8}|removed)\.tmp")


def prune(models: Path, installed: Manifest) -> tuple[Path, ...]:
    """Remove the other targets' bundles of a model that carry another version of it; an app ships one version.

    Only folders that hold a bundle and nothing else are touched. The caller holds the lock of `models`.

    Args:
        models: the app's folder of models.
        installed: of the bundle that was just installed.

    Returns:
        The folders that were removed, sorted.
    """
    folder = models / installed.model.name
    for place in sorted(folder.iterdir()):
        left = _LEFT.fullmatch(place.name)  # by a run that was killed
        if left is not None:
            recover_dir(folder / left[1])
    doomed = [place for place in sorted(folder.iterdir()) if _stale(place, installed)]
    for place in doomed:
        remove_dir(place, below=models)
    return tuple(doomed)


def _stale(place: Path, installed: Manifest) -> bool:
    if place.name == installed.target.name or place.is_symlink() or not place.is_dir():
        return False
    try:
        manifest = read_manifest(place)[1]
    except EdgeqError:
        return False  # a user's own
    known = {entry.path for entry in manifest.files} | {MANIFEST_NAME, *REPORT_NAMES}
    same = (manifest.model.name, manifest.target.name) == (installed.model.name, place.name)
    own = any(path.name not in known for path in place.iterdir())
    return same and not own and manifest.model.version != installed.model.version
