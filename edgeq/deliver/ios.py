"""The installed models of an iOS project as a Swift package of resources, which Xcode adds as a local package."""

from __future__ import annotations

from pathlib import Path

from edgeq.core.errors import UsageError
from edgeq.core.files import refuse_links, write_atomic

_MARK = "// Written by edgeq install; the next install replaces it."

_PACKAGE = "Package.swift"

_SOURCE = "EdgeqModels.swift"

_PACKAGE_TEXT = """// swift-tools-version: 5.9
{mark}
import PackageDescription

let package = Package(
    name: "EdgeqModels",
    platforms: [.iOS(.v17)],
    products: [.library(name: "EdgeqModels", targets: ["EdgeqModels"])],
    targets: [
        .target(
            name: "EdgeqModels",
            path: ".",
            sources: ["{source}"],
            resources: [{resources}]
        )
    ]
)
"""

_SOURCE_TEXT = """{mark}
import Foundation

public enum EdgeqModels {{
    /// The folder of an installed bundle: manifest.json, the artifact and golden.npz; nil where there is none.
    public static func bundle(model: String, target: String) -> URL? {{
        Bundle.module.resourceURL?
            .appendingPathComponent(model, isDirectory: true)
            .appendingPathComponent(target, isDirectory: true)
            .existing
    }}
}}

private extension URL {{
    var existing: URL? {{ (try? checkResourceIsReachable()) == true ? self : nil }}
}}
"""


def check_swift(models: Path) -> None:
    """Refuse to replace the user's own package.

    Raises:
        UsageError: there is one.
    """
    for name in (_PACKAGE, _SOURCE):
        path = models / name
        refuse_links(path.parent, below=models)
        if path.is_symlink() or (path.exists() and _MARK not in _text(path)):
            what = f"{path} was not written by edgeq"
            raise UsageError(what, "move it away, and install again; edgeq writes its own Swift package there")


def write_swift(models: Path) -> tuple[Path, ...]:
    """Write the package for all models in a folder, and return its files. The caller holds the folder's lock."""
    names = sorted(path.name for path in models.iterdir() if path.is_dir() and not path.name.startswith("."))
    resources = ", ".join(f'.copy("{name}")' for name in names)
    write_atomic(
        models / _PACKAGE, _PACKAGE_TEXT.format(mark=_MARK, source=_SOURCE, resources=resources).encode(), below=models
    )
    write_atomic(models / _SOURCE, _SOURCE_TEXT.format(mark=_MARK).encode(), below=models)
    return (models / _PACKAGE, models / _SOURCE)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
