"""The module of an Android project whose APK packs the models, found in the project's own Gradle files.

Nothing is run: the settings, the build files and the version catalogues are read as text. What they compute at run time
(a loop over folders, a version from a remote BOM) is not known, and is said to be so.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, nearest

MAIN = "main"

SETTINGS = ("settings.gradle.kts", "settings.gradle")

BUILD = ("build.gradle.kts", "build.gradle")

# the plugins whose output is a file that goes to the store: an APK, or a split of one
_APPLICATION = "com.android.application"

_FEATURE = "com.android.dynamic-feature"

_LIBRARY = "com.android.library"

# Maven's names of the libraries that load each runtime's artifacts
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "executorch": (
        "org.pytorch:executorch-android",
        "org.pytorch:executorch-android-qnn",
        "org.pytorch:executorch-android-vulkan",
    ),
    "torchscript": ("org.pytorch:pytorch_android_lite",),
    "onnx": ("com.microsoft.onnxruntime:onnxruntime-android", "com.microsoft.onnxruntime:onnxruntime-mobile"),
    "litert": ("com.google.ai.edge.litert:litert",),
}

_DEPTH = 3  # folders below the root in which a module may be, where the settings compute their includes


@dataclass(frozen=True, slots=True, kw_only=True)
class GradleModule:
    """A module of an Android project.

    Attributes:
        root: the folder with the settings, or of the build file if there are none.
        path: Gradle's name, `:app`; `:` for the root's own.
        folder: the module's folder.
        build: its build file; None where it has none.
        text: of the build file and of the project's own plugins that it applies, without comments.
        plugins: ids of the plugins that it applies, those of the project's own plugins included.
    """

    root: Path
    path: str
    folder: Path
    build: Path | None
    text: str
    plugins: frozenset[str]

    @property
    def is_application(self) -> bool:
        """Whether it builds an app; only an application has an `applicationId`."""
        return _APPLICATION in self.plugins or re.search(r"\bapplicationId\b", self.text) is not None


def is_gradle_project(app: Path) -> bool:
    """Whether a folder is a Gradle project's root, or one of its modules."""
    return any((app / name).is_file() for name in (*SETTINGS, *BUILD))


def find_module(app: Path, module: str | None = None) -> GradleModule:
    """Return the module of a project that packs the models.

    Args:
        app: the project's root, or the module's own folder.
        module: Gradle's name of the module, `:mobile`, or its folder below the root; None for the only application.

    Raises:
        UsageError: no application, or several of them, or one that does not pack the assets of the asked module.
    """
    root, named = _root(app)
    modules = _Project(root).modules()
    if named is not None and named not in modules:
        settings = next(root / name for name in SETTINGS if (root / name).is_file())
        what = f"{settings} does not include {app.resolve().relative_to(root)}, so no APK packs its assets"
        raise UsageError(what, f"include it there, or give the folder of one of: {', '.join(modules) or 'none'}")
    applications = [one for one in modules.values() if one.is_application]
    if module is not None:
        name = _module_name(module, root, modules)
        if name not in modules:
            what = f"--module {module}: {root} has no such module.{nearest(name, modules)}"
            raise UsageError(what, f"give one of: {', '.join(modules) or 'none'}")
        return _packed(modules[name], applications, modules)
    if named is not None and (named != ":" or modules[":"].is_application):
        return _packed(modules[named], applications, modules)
    if len(applications) == 1:
        return applications[0]
    if applications:
        names = ", ".join(one.path for one in applications)
        what = f"{app} has {len(applications)} application modules: {names}"
        fix = "give the folder of the one whose APK carries the model, or name it for `edgeq install`: "
        raise UsageError(what, f"{fix}--module {applications[0].path}")
    seen = ", ".join(name for name in modules if name != ":") or "none"
    what = f"{app}: no module applies the plugin {_APPLICATION}, so no APK packs the model; modules: {seen}"
    raise UsageError(what, "give the root of the app's project, or the folder of its application module")


def _root(app: Path) -> tuple[Path, str | None]:
    """Return the root of a project and, where `app` is one of its modules, the module's name."""
    app = app.resolve()
    if any((app / name).is_file() for name in SETTINGS):
        return app, None
    for folder in app.parents:
        if any((folder / name).is_file() for name in SETTINGS):
            folders = {one.folder.resolve(): one.path for one in _Project(folder).modules().values()}
            return folder, folders.get(app, f":{':'.join(app.relative_to(folder).parts)}")
    return app, ":"


def _module_name(module: str, root: Path, modules: Mapping[str, GradleModule]) -> str:
    """Return Gradle's name of a module that was given by name or by folder."""
    name = module if module.startswith(":") else f":{module}"
    if name in modules:
        return name
    for folder in (root / module, Path(module)):
        found = next((one.path for one in modules.values() if one.folder.resolve() == folder.resolve()), None)
        if found is not None:
            return found
    return name


def _packed(
    module: GradleModule, applications: list[GradleModule], modules: Mapping[str, GradleModule]
) -> GradleModule:
    """Return a module that was asked for by name; refuse one whose assets reach no APK."""
    if module.is_application or _FEATURE in module.plugins:
        return module
    users = [one.path for one in applications if module.path in _needs(one, modules)]
    if users and (_LIBRARY in module.plugins or "namespace" in module.text):
        return module
    why = "no application depends on it" if _LIBRARY in module.plugins else f"it does not apply {_APPLICATION}"
    names = ", ".join(one.path for one in applications) or "none"
    raise UsageError(f"no APK packs the assets of {module.path}: {why}", f"give an application module: {names}")


def _needs(module: GradleModule, modules: Mapping[str, GradleModule]) -> frozenset[str]:
    """Return the modules that a module depends on, near and far."""
    found: set[str] = set()
    open_ = [module.path]
    while open_:
        text = modules[open_.pop()].text
        named = re.findall(r"project\s*\(\s*(?:path\s*[:=]\s*)?[\"'](:[^\"']+)[\"']", text)
        # projects.feature.login is Gradle's accessor of :feature:login
        accessors = {re.sub(r"[-_]", "", path).lower(): path for path in modules}
        named += [
            accessors.get(":" + accessor.replace(".", ":").lower(), "")
            for accessor in re.findall(r"\bprojects\.([\w.]+)", text)
        ]
        new = {path for path in named if path in modules} - found
        found |= new
        open_ += sorted(new)
    return frozenset(found)


class _Project:
    """The files of one Gradle build, as text without comments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = next((read_code(root / name) for name in SETTINGS if (root / name).is_file()), "")
        found = []
        for path in sorted((root / "gradle").glob("*.toml")):
            try:
                found.append(tomllib.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):  # Gradle itself will report it
                continue
        self.catalogs = tuple(found)

    def modules(self) -> dict[str, GradleModule]:
        """Return the modules that the settings include, by Gradle's name; the root's own too if it has a build file."""
        folders = {":": self.root} | self._included()
        found = {}
        for path, folder in sorted(folders.items()):
            # some projects name the file after the module
            names = (*BUILD, f"{path.rpartition(':')[2]}.gradle.kts", f"{path.rpartition(':')[2]}.gradle")
            build = next((folder / name for name in names if (folder / name).is_file()), None)
            text = "" if build is None else read_code(build)
            if path == ":" and build is None:
                continue
            plugins = frozenset(self._plugins(text))
            code = "\n".join((text, *(self._convention(name) for name in sorted(plugins))))
            module = GradleModule(
                root=self.root,
                path=path,
                folder=folder,
                build=build,
                text=code,
                plugins=plugins | frozenset(self._plugins(code)),
            )
            found[path] = module
        return found

    def _included(self) -> dict[str, Path]:
        calls = re.findall(r"\binclude\s*\(?((?:\s*[\"'][^\"']+[\"']\s*,?)+)", self.settings)
        names = [name for call in calls for name in _strings(call) if "$" not in name]
        found = {}
        for name in names:
            parts = [part for part in name.split(":") if part]
            # Gradle makes the modules on the way to a nested one too
            for end in range(1, len(parts) + 1):
                found[":" + ":".join(parts[:end])] = self.root.joinpath(*parts[:end])
        moved = re.findall(
            r"project\s*\(\s*[\"']([^\"']+)[\"']\s*\)\s*\.\s*projectDir\s*=\s*[^\n]*?[\"']([^\"']+)[\"'][^\"'\n]*$",
            self.settings,
            re.MULTILINE,
        )
        for name, place in moved:
            folder = self.root / re.sub(r"^\$\{?(?:rootDir|settingsDir|rootProject\.projectDir)\}?/", "", place)
            path = name if name.startswith(":") else f":{name}"
            found |= {
                inner: folder.joinpath(*inner.removeprefix(path).strip(":").split(":"))
                for inner in found
                if inner == path or inner.startswith(f"{path}:")
            }
        if re.search(r"\binclude(?!\w)\s*\(?\s*[^\s\"'(]|\binclude\s*\(?\s*[\"'][^\"']*\$", self.settings):
            found = self._below() | found
        return found

    def _below(self) -> dict[str, Path]:
        """Return every folder with a build file, for settings that compute what they include."""
        globs = ("/".join(["*"] * depth) for depth in range(1, _DEPTH + 1))
        others = self._included_builds()
        folders = (path for glob in globs for path in self.root.glob(glob) if path.is_dir())
        return {
            ":" + ":".join(folder.relative_to(self.root).parts): folder
            for folder in folders
            if any((folder / name).is_file() for name in BUILD) and folder.relative_to(self.root).parts[0] not in others
        }

    def _included_builds(self) -> tuple[str, ...]:
        named = re.findall(r"\bincludeBuild\s*\(?\s*[\"']([^\"']+)[\"']", self.settings)
        return (*named, "buildSrc")

    def _plugins(self, text: str) -> Iterator[str]:
        """Yield the ids of the plugins that a build file applies."""
        applied = re.sub(r"[^\n]*\bapply\s*\(?\s*false[^\n]*", "", text)
        yield from re.findall(r"\bid\s*\(?\s*[\"']([\w.\-]+)[\"']", applied)
        yield from re.findall(r"\bapply\s*\(?\s*plugin\s*[:=]\s*[\"']([\w.\-]+)[\"']", applied)
        yield from re.findall(r"\b(?:pluginManager|plugins)\s*\.\s*apply\s*\(\s*[\"']([\w.\-]+)[\"']", applied)
        yield from re.findall(r"\bapply\s*\(\s*[\"']([\w.\-]+)[\"']\s*\)", applied)
        yield from re.findall(r"^\s*`([\w.\-]+)`\s*$", applied, re.MULTILINE)
        for accessor in re.findall(r"\b(?:alias|id)\s*\(?\s*\w+\.plugins\.([\w.]+)", applied):
            yield from self._aliased(accessor)

    def _aliased(self, accessor: str) -> Iterator[str]:
        accessor = re.sub(r"\.(?:get|asProvider)\b.*", "", accessor)
        for catalog in self.catalogs:
            for alias, plugin in catalog.get("plugins", {}).items():
                if re.sub(r"[-_]", ".", alias) == accessor:
                    yield (plugin.get("id") or "") if isinstance(plugin, dict) else str(plugin).partition(":")[0]

    def _convention(self, plugin: str) -> str:
        """Return the code of a plugin that the project defines, in buildSrc or an included build; "" for none."""
        if plugin.startswith(("com.android.", "org.jetbrains.")):
            return ""
        files = [
            path
            for name in self._included_builds()
            for path in sorted((self.root / name).rglob("*"))
            if path.suffix in (".kt", ".kts", ".gradle", ".groovy", ".java") and path.is_file()
        ]
        scripts = [path for path in files if path.name in (f"{plugin}.gradle.kts", f"{plugin}.gradle")]
        if scripts:
            return read_code(scripts[0])
        for path in files:
            if path.name not in BUILD:
                continue
            registered = re.findall(
                r"\bid\s*=\s*([^\n]+)\s+implementationClass\s*=\s*[\"']([\w.]+)[\"']", read_code(path)
            )
            for written, name in registered:
                accessor = re.search(r"\.plugins\.([\w.]+)", written)
                ids = [*_strings(written), *(self._aliased(accessor[1]) if accessor else ())]
                if plugin in ids:
                    kind = name.rpartition(".")[2]
                    return next((read_code(one) for one in files if one.stem == kind), "")
        return ""


# a string, or a comment; strings are kept, since they may hold what begins a comment: 'https://…', '**/*.jar'
_STRING_OR_COMMENT = re.compile(r"(\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?\*/", re.DOTALL)


def read_code(path: Path) -> str:
    """Return a Gradle file's text without its comments."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return _STRING_OR_COMMENT.sub(lambda match: match[1] or "", text)


def _strings(text: str) -> list[str]:
    return re.findall(r"[\"']([^\"']*)[\"']", text)


def _blocks(text: str, name: str) -> Iterator[str]:
    """Yield the inside of each `name { … }`."""
    for match in re.finditer(rf"\b{name}\s*(?:\([^()]*\)\s*)?\{{", text):
        depth, start = 1, match.end()
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                yield text[start:at]
                break


# --- The source set: where a module's assets are.


def assets_folder(module: GradleModule, source_set: str = MAIN) -> Path:
    """Return the folder whose content the module packs as assets for a source set.

    Raises:
        UsageError: the module has no such source set.
    """
    if source_set != MAIN:
        types = ["debug", "release", *_declared(module.text, "buildTypes")]
        flavours = list(_declared(module.text, "productFlavors"))
        variants = [flavour + kind[:1].upper() + kind[1:] for flavour in flavours for kind in types]
        known = tuple(dict.fromkeys((MAIN, *flavours, *types, *variants)))
        if source_set not in known:
            what = f"--source-set {source_set}: {module.path} has no such flavour, build type or variant."
            raise UsageError(what + nearest(source_set, known), f"give one of: {', '.join(known)}")
    root = module.folder / "src" / source_set
    named = re.escape(source_set)
    body = "\n".join(_source_set_bodies(module.text, named))
    moved = re.search(r"\b(?:setRoot\s*\(|root\s*=)\s*[\"']([^\"']+)[\"']", body)
    if moved:
        root = module.folder / moved[1]
    replaced = re.search(r"\bassets\s*\.\s*(?:srcDirs\s*=|setSrcDirs\s*\()([^\n;]*)", body)
    if replaced and (folders := _strings(replaced[1])):
        return module.folder / re.sub(r"^\$\{?(?:projectDir|layout\.projectDirectory)\}?/", "", folders[0])
    return root / "assets"


def _source_set_bodies(text: str, named: str) -> Iterator[str]:
    for block in _blocks(text, "sourceSets"):
        yield from _blocks(block, rf"(?:getByName|named|create|register)\s*\(\s*[\"']{named}[\"']\s*\)")
        yield from _blocks(block, rf"[\"']?{named}[\"']?")
        yield from re.findall(rf"^\s*{named}\s*\.\s*([^\n]+)", block, re.MULTILINE)
        yield from re.findall(rf"[\"']{named}[\"']\s*\)\s*\.\s*([^\n{{]+)$", block, re.MULTILINE)
    yield from re.findall(rf"\bsourceSets\s*\[\s*[\"']{named}[\"']\s*\]\s*\.\s*([^\n]+)", text)
    yield from re.findall(rf"\bsourceSets\s*\.\s*{named}\s*\.\s*([^\n]+)", text)


def _declared(text: str, container: str) -> Iterator[str]:
    for block in _blocks(text, container):
        yield from re.findall(r"\b(?:create|register|maybeCreate)\s*\(\s*[\"'](\w+)[\"']", block)
        depth = 0
        for word, brace in re.findall(r"(?:^|\n)\s*(\w+)\s*(?=\{)|([{}])", block):
            if word and not depth:
                yield word
            depth += {"{": 1, "}": -1}.get(brace, 0)


# --- What the app itself carries: its runtime library and its ABIs.


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A runtime's library that an app declares.

    Attributes:
        name: Maven's group and name.
        version: as written, or as the catalogue and the properties have it; "" where it is not known.
        module: which declares it.
    """

    name: str
    version: str
    module: str


def runtime_libraries(module: GradleModule) -> tuple[Dependency, ...]:
    """Return the libraries of edgeq's runtimes that an application declares, itself or by a module that it needs."""
    project = _Project(module.root)
    modules = project.modules()
    names = {name for names in LIBRARIES.values() for name in names}
    found = []
    for path in (module.path, *sorted(_needs(module, modules))):
        for name, version in _declarations(modules[path].text, project):
            if name in names:
                found.append(Dependency(name=name, version=_resolved(version, modules[path], project), module=path))
    return tuple(found)


def _declarations(text: str, project: _Project) -> Iterator[tuple[str, str]]:
    """Yield the name and the version, as they are written, of each dependency."""
    for name, version in re.findall(r"[\"']([\w.\-]+:[\w.\-]+)(?::([^\"'@:]+))?(?:@\w+)?[\"']", text):
        yield name, version
    for group, name, version in re.findall(
        r"group\s*[:=]\s*[\"']([^\"']+)[\"']\s*,\s*name\s*[:=]\s*[\"']([^\"']+)[\"']"
        r"(?:\s*,\s*version\s*[:=]\s*[\"']?([^\"'\s,)]+))?",
        text,
    ):
        yield f"{group}:{name}", version
    for catalog in project.catalogs:
        libraries = catalog.get("libraries", {})
        used = {re.sub(r"\.(?:get|asProvider)$", "", one) for one in re.findall(r"\blibs\.([\w.]+)", text)}
        bundles = {
            library
            for alias, inner in catalog.get("bundles", {}).items()
            if "bundles." + re.sub(r"[-_]", ".", alias) in used
            for library in inner
        }
        for alias, library in libraries.items():
            if alias in bundles or re.sub(r"[-_]", ".", alias) in used:
                yield _from_catalog(library, catalog.get("versions", {}))


def _from_catalog(library: Any, versions: Mapping[str, Any]) -> tuple[str, str]:
    if isinstance(library, str):
        group, name, written = (*library.split(":"), "", "")[:3]
        return f"{group}:{name}", written
    version = library.get("version", "")
    if isinstance(version, dict):
        version = versions.get(version["ref"], "") if "ref" in version else version
    if isinstance(version, dict):
        version = version.get("strictly") or version.get("require") or version.get("prefer") or ""
    name = library.get("module") or f"{library.get('group', '')}:{library.get('name', '')}"
    return str(name), str(version)


def _resolved(version: str, module: GradleModule, project: _Project) -> str:
    """Return a version with its variable looked up in the module, the root and gradle.properties."""
    variable = re.fullmatch(r"\$\{?(?:[\w.]+\.)?(\w+)\}?|(?:rootProject\.)?(?:ext\.)?([A-Za-z_]\w*)", version)
    if variable is None:
        return version
    name = variable[1] or variable[2]
    properties = project.root / "gradle.properties"
    texts = [module.text, *(read_code(project.root / one) for one in BUILD if (project.root / one).is_file())]
    texts += [properties.read_text(encoding="utf-8", errors="replace")] if properties.is_file() else []
    for text in texts:
        found = re.search(rf"\b{re.escape(name)}[\"']?\]?\s*[:=,]\s*[\"']?(\d[\w.\-]*)", text)
        if found:
            return found[1]
    return ""


def check_runtime(module: GradleModule, runtime: str, oldest: str, *, is_mobile: bool = False) -> str | None:
    """Compare the app's own runtime library with what a bundle needs.

    Args:
        module: of the app.
        runtime: the bundle's.
        oldest: the oldest version of it that loads the bundle.
        is_mobile: whether ONNX Runtime's reduced build loads it too.

    Returns:
        What could not be compared, as a line of text; None where the app's library loads the bundle.

    Raises:
        UnsupportedError: the app declares an older version, which cannot load the bundle.
    """
    expected = [name for name in LIBRARIES[runtime] if is_mobile or not name.endswith("onnxruntime-mobile")]
    found = runtime_libraries(module)
    for one in found:
        have, need = _numbers(one.version), _numbers(oldest)
        if one.name in expected and have and have[:2] < need[:2]:
            what = f"{one.module} depends on {one.name}:{one.version}, but the bundle needs {oldest} or newer"
            fix = f"change the app's dependency to {one.name}:{oldest} or newer, or package for the older runtime"
            raise UnsupportedError(what, f'{fix} ([app] runtimes = ["{".".join(map(str, have[:2]))}"] in the target)')
    mine = [one for one in found if one.name in expected]
    if any(_numbers(one.version) for one in mine):
        return None
    if mine:
        return f"the version of {mine[0].name} in {mine[0].module} is not known; the bundle needs {oldest} or newer"
    others = ", ".join(f"{one.name}:{one.version or '?'}" for one in found)
    has = f" (it has {others})" if others else ""
    return (
        f'{module.path} declares no {expected[0]}{has}; add: implementation("{expected[0]}:VERSION"), {oldest} or newer'
    )


def check_abi(module: GradleModule, abi: str) -> None:
    """Refuse an app that is built without the bundle's ABI.

    Raises:
        UnsupportedError: `abiFilters` leaves it out.
    """
    lists = re.findall(
        r"\babiFilters\w*[\s.+=(]*((?:add\w*\(|listOf\(|setOf\(|\[)?(?:\s*[\"'][^\"']+[\"']\s*,?)+)", module.text
    )
    kept = {name for names in lists for name in _strings(names)}
    if kept and abi not in kept:
        what = f"{module.path} is built for {', '.join(sorted(kept))} (abiFilters), but the bundle is for {abi}"
        raise UnsupportedError(what, f"add {abi} to abiFilters, or install a bundle for one of the app's ABIs")


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d+(?:\.\d+)*)", version)
    return (*(int(part) for part in match[1].split(".")), 0) if match and "+" not in version else ()
