"""The installed models of an iOS project as a Swift package of resources, which Xcode adds as a local package."""

from __future__ import annotations

import re
from pathlib import Path

from edgeq.core.errors import UnsupportedError, UsageError
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
    /// The folder of an installed bundle: manifest.json, the artifact and golden.npz; nil if there is none.
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


# --- The Xcode project: whether it builds an app, whether that takes the package, and which runtime it carries.


_SUFFIXES = (".xcodeproj", ".xcworkspace")

# where the app gets each runtime from: a Swift package's address, or a pod
_SOURCES = {"executorch": r"pytorch/executorch", "onnx": r"onnxruntime", "torchscript": r"LibTorch-Lite"}


def project_folder(app: Path) -> Path:
    """Return the folder of a project that was given by its .xcodeproj or .xcworkspace."""
    return app.parent if app.suffix in _SUFFIXES else app


def check_xcode(app: Path, runtime: str, oldest: str) -> None:
    """Refuse a project that builds no app, or whose runtime is older than the bundle needs.

    Args:
        app: the project's folder.
        runtime: the bundle's.
        oldest: the oldest version of it that loads the bundle.

    Raises:
        UsageError: its targets are libraries and tests only.
        UnsupportedError: an older runtime.
    """
    projects = _projects(app)
    kinds = {kind for text in projects.values() for kind in re.findall(r"productType = \"?([\w.\-]+)", text)}
    if kinds and not any(kind.startswith("com.apple.product-type.application") for kind in kinds):
        names = ", ".join(path.parent.name for path in projects)
        what = (
            f"{app}: {names} has no application target, so no app packs the model (it has {', '.join(sorted(kinds))})"
        )
        raise UsageError(what, "give the folder of the app's .xcodeproj")
    files = [app / name for name in ("Podfile", _PACKAGE) if (app / name).is_file()]
    for name, text in (
        *((path.parent.name, text) for path, text in projects.items()),
        *((f.name, _text(f)) for f in files),
    ):
        have = _runtime_version(text, runtime)
        if have and have < tuple(int(part) for part in oldest.split(".")[:2]):
            version = ".".join(map(str, have))
            what = f"{name} takes {runtime} {version}, but the bundle needs {oldest} or newer"
            fix = f'change it there, or package for the older runtime ([app] runtimes = ["{version}"] in the target)'
            raise UnsupportedError(what, fix)


def package_note(app: Path, models: Path) -> str | None:
    """Return what is to do in Xcode before the app carries the models; None where it takes the package already."""
    texts = _projects(app)
    known = "\n".join((*texts.values(), _text(app / _PACKAGE)))
    folder = re.escape(models.name)
    uses = re.search(rf"relativePath = \"?(?:\./)?{folder}/?\"?;|\.package\([^)]*path:\s*\"(?:\./)?{folder}/?\"", known)
    if uses and "EdgeqModels" in known:
        return None
    what = ", ".join(path.parent.name for path in texts) or "the project"
    steps = f"File > Add Package Dependencies > Add Local, {models}, and add EdgeqModels to the app's target"
    return f"the app does not carry the model yet: {what} does not use the package {models}; in Xcode: {steps}"


def _projects(app: Path) -> dict[Path, str]:
    return {path: _text(path) for path in sorted(app.glob("*.xcodeproj/project.pbxproj"))}


def _runtime_version(text: str, runtime: str) -> tuple[int, ...]:
    """Return major and minor of the runtime that a project, a Package.swift or a Podfile takes; () if it names none."""
    source = _SOURCES.get(runtime)
    if source is None:
        return ()
    near = re.search(rf"{source}[^\n]*(?:\n[^\n]*){{0,4}}", text)
    before = r"swiftpm-|(?:minimumVersion|version) = \"?|(?:from|exact):\s*\"|,\s*['\"][~>= ]*"
    found = re.search(rf"(?:{before})(\d+)\.(\d+)", near[0] if near else "")
    return (int(found[1]), int(found[2])) if found else ()
