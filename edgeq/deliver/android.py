"""The growth of an Android app by a bundle: the bundle's files and the runtime's library in the AAR, by ABI."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeq.core.errors import UsageError
from edgeq.deliver.gradle import LIBRARIES, GradleModule

# the manifest's words for an instruction set, in Android's
ABIS = {"arm64": "arm64-v8a", "x86_64": "x86_64"}

# part of the name of each runtime's native library
_NATIVE = {"executorch": "executorch", "torchscript": "pytorch_jni", "onnx": "onnxruntime", "litert": "litert_jni"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The size that an installed bundle adds to the app for one ABI.

    Attributes:
        abi: Android's name of the instruction set.
        bundle_bytes: size of the bundle's files, which the app stores uncompressed.
        library: the AAR's file name; None where none was found.
        library_bytes: uncompressed size of its native libraries for this ABI. All models of a runtime share them.
        compressed_bytes: deflated size of the same libraries in the AAR: close to the download size.
    """

    abi: str
    bundle_bytes: int
    library: str | None
    library_bytes: int | None
    compressed_bytes: int | None

    @property
    def total_bytes(self) -> int | None:
        """Bundle and library; None where the library is not known."""
        return None if self.library_bytes is None else self.bundle_bytes + self.library_bytes


def growth_by_abi(arch: str, runtime: str, bundle_bytes: int, aar: Path | None) -> tuple[Growth, ...]:
    """Return the growth for the bundle's ABI.

    Args:
        arch: the manifest's word for the instruction set.
        runtime: the manifest's runtime; its library is searched in Gradle's and Maven's caches.
        bundle_bytes: of the installed files.
        aar: the library as a file; None to look for it.

    Raises:
        UsageError: `aar` is not an AAR, or has no library for this ABI, or is another runtime's.
    """
    abi = ABIS[arch]
    found = aar or _newest(runtime)
    if found is None:
        return (Growth(abi=abi, bundle_bytes=bundle_bytes, library=None, library_bytes=None, compressed_bytes=None),)
    try:
        with zipfile.ZipFile(found) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.startswith(f"jni/{abi}/")]
    except (OSError, zipfile.BadZipFile) as err:
        raise UsageError(f"{found} is not an AAR: {err}", "give the .aar file that the app builds with") from err
    libraries = [entry for entry in entries if entry.filename.endswith(".so")]
    if not libraries:
        raise UsageError(f"{found} has no native library for {abi}", "give the AAR of the bundle's runtime")
    if not any(_NATIVE[runtime] in entry.filename for entry in libraries):
        names = ", ".join(sorted(Path(entry.filename).name for entry in libraries)[:3])
        what = f"{found} is not the library of {runtime}, which the bundle needs: it has {names}"
        raise UsageError(what, f"give the AAR of {LIBRARIES[runtime][0]}")
    raw, packed = sum(entry.file_size for entry in libraries), sum(entry.compress_size for entry in libraries)
    return (Growth(abi=abi, bundle_bytes=bundle_bytes, library=found.name, library_bytes=raw, compressed_bytes=packed),)


def _newest(runtime: str) -> Path | None:
    """Return the newest AAR of a runtime that a build on this machine has fetched."""
    found = list(_cached(*LIBRARIES[runtime][0].split(":")))
    return max(found, key=_version) if found else None


def _cached(group: str, name: str) -> Iterator[Path]:
    home = Path.home()
    yield from (home / ".gradle/caches/modules-2/files-2.1" / group / name).glob("*/*/*.aar")
    yield from (home / ".m2/repository" / group.replace(".", "/") / name).glob("*/*.aar")


def _version(path: Path) -> tuple[int, ...]:
    text = path.stem.rpartition("-")[2]
    return tuple(int(part) for part in text.split(".") if part.isdigit())


# --- What an Android project's build does to the model files that are put into its assets.


_NO_COMPRESS = re.compile(r"noCompress\w*[\s+=(]*((?:listOf\(|setOf\()?(?:\s*[\"'][^\"']*[\"']\s*,?)+)")


def no_compress_note(module: GradleModule, artifact: str) -> str | None:
    """Return the line to add to the build file, or None where it already keeps the artifact uncompressed.

    The store would deflate a compressed asset again, which makes it larger, and the app could not map it into memory.

    Args:
        module: whose APK packs the artifact.
        artifact: the artifact's file name.
    """
    suffix = artifact.rpartition(".")[2]
    if module.build is None:
        return None
    lists = [match[1] for match in _NO_COMPRESS.finditer(module.text)]
    kept = {name.lstrip(".") for names in lists for name in re.findall(r"[\"']([^\"']*)[\"']", names)}
    if suffix in kept or "" in kept:
        return None
    line = f'androidResources {{ noCompress += "{suffix}" }}'
    return f"{module.build.relative_to(module.root)} compresses .{suffix} files; add to its android block: {line}"


# the classes of each runtime that its native library finds by name
_FOUND_BY_NAME: Mapping[str, tuple[str, ...]] = {
    "executorch": ("org.pytorch.executorch", "com.facebook.jni"),
    "torchscript": ("org.pytorch", "com.facebook.jni"),
    "onnx": ("ai.onnxruntime",),
    "litert": ("com.google.ai.edge.litert",),
}


def keep_rules_note(module: GradleModule, runtime: str) -> str | None:
    """Return the rules to add for R8; None where a release is not shrunk, or its rules keep the runtime's classes.

    Without them the release build alone fails on the phone, in which these classes have other names or are gone.

    Args:
        module: of the app.
        runtime: the bundle's.
    """
    shrinks = re.search(r"\b(?:isMinifyEnabled|minifyEnabled)\b[\s=(]*true\b", module.text)
    if module.build is None or shrinks is None:
        return None
    files = [
        module.folder / name
        for line in re.findall(r"\bproguardFiles?\b([^\n]*(?:\n\s*[^\n{}]*?[\"'][^\n]*)*)", module.text)
        for name in re.findall(r"[\"']([^\"']+)[\"']", line)
    ]
    rules = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
    kept = re.findall(r"^\s*-keep(?:,\w+)*\s+(?:public\s+)?(?:class|interface|enum)\s+([\w.*]+)", rules, re.MULTILINE)
    missing = [
        package
        for package in _FOUND_BY_NAME[runtime]
        if not any(name.endswith("**") and f"{package}.".startswith(name.rstrip("*")) for name in kept)
    ]
    if not missing:
        return None
    build = module.build.relative_to(module.root)
    lines = " ".join(f"-keep class {package}.** {{ *; }}" for package in missing)
    return (
        f"{build} shrinks the release (isMinifyEnabled), and no rule keeps the classes that {runtime}'s native library "
        f"finds by name; add to the module's proguard-rules.pro: {lines}"
    )
