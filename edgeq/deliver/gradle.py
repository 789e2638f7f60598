"""What an Android project's build does to the model files that are put into its assets."""

from __future__ import annotations

import re
from pathlib import Path

_BUILD_FILES = ("app/build.gradle.kts", "app/build.gradle")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_NO_COMPRESS = re.compile(r"noCompress\w*[\s+=(]*((?:listOf\(|setOf\()?(?:\s*[\"'][^\"']*[\"']\s*,?)+)")


def no_compress_note(app: Path, artifact: str) -> str | None:
    """Return what to add to the build file, or None where it keeps the artifact uncompressed already.

    A compressed asset is deflated a second time by the store, grows by that, and cannot be read in place.

    Args:
        app: the project's root.
        artifact: the artifact's file name.
    """
    suffix = artifact.rpartition(".")[2]
    build = next((app / name for name in _BUILD_FILES if (app / name).is_file()), None)
    if build is None:
        return None
    text = _COMMENT.sub("", build.read_text(encoding="utf-8", errors="replace"))
    lists = [match[1] for match in _NO_COMPRESS.finditer(text)]
    kept = {name.lstrip(".") for names in lists for name in re.findall(r"[\"']([^\"']*)[\"']", names)}
    if suffix in kept or "" in kept:
        return None
    line = f'androidResources {{ noCompress += "{suffix}" }}'
    return f"{build.relative_to(app)} compresses .{suffix} files; add to its android block: {line}"
