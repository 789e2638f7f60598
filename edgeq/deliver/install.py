"""Installation of a bundle into an app's project: complete and verified in place, or not at all."""

from __future__ import annotations

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeq.bundle.reader import open_regular, read_bundle, read_manifest
from edgeq.core.errors import EdgeqError, IntegrityError, UsageError, VerificationError
from edgeq.core.files import disk_errors, lock_dir, recover_dir, refuse_links, remove_dir, staged_dir
from edgeq.core.manifest import MANIFEST_NAME, UNLISTED_NAMES, Bundle, Manifest, contract_change
from edgeq.core.targets import TargetProfile
from edgeq.deliver.android import ABIS, Growth, growth_by_abi, keep_rules_note, no_compress_note
from edgeq.deliver.gradle import (
    BUILD,
    MAIN,
    SETTINGS,
    assets_folder,
    check_abi,
    check_runtime,
    find_module,
    is_gradle_project,
)
from edgeq.deliver.ios import check_swift, check_xcode, package_note, project_folder, write_swift

_XCODE = ("*.xcodeproj", "*.xcworkspace", "Package.swift")

# what stands in the root of a project of each platform, in words
PROJECT_FILES = f"android: {', '.join((*SETTINGS, *BUILD))}; ios: {', '.join(_XCODE)}"

_PLATFORMS = ("android", "ios")

_WAIT_S = 30.0

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallResult:
    """An installed bundle.

    Attributes:
        place: the folder inside the app's project.
        files: names of the installed files, sorted.
        size_bytes: of all of them together.
        digest: the bundle's digest.
        pruned: folders with other versions of the model, which were removed.
        package: files of the Swift package around an iOS project's models.
        growth: of an Android app, by ABI.
        notes: changes to make in the project's build.
    """

    place: Path
    files: tuple[str, ...]
    size_bytes: int
    digest: str
    pruned: tuple[Path, ...] = ()
    package: tuple[Path, ...] = ()
    growth: tuple[Growth, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """Where in an Android project a bundle goes.

    Attributes:
        module: Gradle's name of the module whose APK packs it, `:mobile`, or its folder; None for the only application.
        source_set: `main`, a flavour, a build type or a variant.
    """

    module: str | None = None
    source_set: str = MAIN


def install(
    bundle_folder: Path,
    app: Path,
    *,
    aar: Path | None = None,
    digest: str | None = None,
    replace: bool = False,
    within: Within = Within(),
) -> InstallResult:
    """Install a bundle into an Android or iOS project, in place of an older one of the same model and target.

    Other targets' bundles of the same model are removed where they have another version of it.

    Args:
        bundle_folder: what `edgeq package` wrote.
        app: the project's root folder, the folder of one of its Gradle modules, or its .xcodeproj.
        aar: the runtime's Android library, to compute the app's growth; None to search the builds' caches.
        digest: the expected digest of the bundle; None to accept any.
        replace: whether it may replace a model with different inputs, outputs or labels.
        within: the module and the source set of an Android project.

    Raises:
        UsageError: there is no bundle, AAR or project for the bundle's platform, no module of the project packs it into
            an app, or another model or other files are in the way.
        VerificationError: a gate failed, or the weights are random.
        IntegrityError: the bundle's files or digest differ from the expected ones.
        UnsupportedError: a newer edgeq wrote the bundle, or the app has an older runtime or another ABI than it needs.
        EnvironmentProblem: the disk is full or not writable, or another install holds the lock.
    """
    bundle = read_bundle(bundle_folder, digest=digest)
    check_releasable(bundle)
    target, runtime = bundle.manifest.target, bundle.manifest.runtime
    _check_platform(target.name, target.platform, app)
    if target.platform == "ios":
        root = project_folder(app)
        if within != Within():
            raise UsageError("--module and --source-set are for Android projects", "omit them")
        check_xcode(root, runtime.name, runtime.oldest_in_field)
        placed = _placed(bundle, root / "Models", app=root, replace=replace)
        note = package_note(root, root / "Models")
        return dataclasses.replace(placed, notes=(note,) if note else ())

    module = find_module(app, within.module)
    # as the user named it: a project may be reached through a link
    named = app if module.root == app.resolve() else module.root
    assets = assets_folder(module, within.source_set)
    if not assets.is_relative_to(module.root):
        what = f"the module {module.path} is outside of {module.root}: {assets}"
        raise UsageError(what, f"give its folder: --app {module.folder}")
    models = named / assets.relative_to(module.root) / "models"
    is_mobile = runtime.build == "mobile"
    check_abi(module, ABIS[target.arch])
    unknown = check_runtime(module, runtime.name, runtime.oldest_in_field, is_mobile=is_mobile)
    growth = growth_by_abi(target.arch, runtime.name, _size_bytes(bundle), aar)
    placed = _placed(bundle, models, app=named, replace=replace)
    notes = (unknown, no_compress_note(module, bundle.artifact.name), keep_rules_note(module, runtime.name))
    return dataclasses.replace(placed, growth=growth, notes=tuple(note for note in notes if note))


def check_app(app: Path, target: TargetProfile) -> None:
    """Refuse, before anything is built, an app that a target's bundles cannot be installed into.

    Raises:
        UsageError, UnsupportedError: as `install` does.
    """
    _check_platform(target.name, target.platform, app)
    if target.platform == "ios":
        check_xcode(project_folder(app), target.runtime, target.app.oldest)
        return
    module = find_module(app)
    check_abi(module, ABIS[target.arch])
    check_runtime(module, target.runtime, target.app.oldest, is_mobile=target.app.build == "mobile")


def _size_bytes(bundle: Bundle) -> int:
    return sum(entry.size_bytes for entry in bundle.manifest.files) + (bundle.folder / MANIFEST_NAME).stat().st_size


def _placed(bundle: Bundle, models: Path, *, app: Path, replace: bool) -> InstallResult:
    """Switch the bundle into its place, under the lock of all models."""
    manifest = bundle.manifest
    place = models / manifest.model.name / manifest.target.name
    is_ios = manifest.target.platform == "ios"
    refuse_links(place, below=app)  # before the lock, which makes folders
    with disk_errors(place), lock_dir(models, wait_s=_WAIT_S):
        _check_place(place)
        if not replace:
            _check_same_model(bundle, place)
        if is_ios:
            check_swift(models)
        with staged_dir(place, below=app) as staging:
            # copy without the reports, and verify the copy: the source may have changed since it was read
            for name in _names(bundle):
                with open_regular(bundle.folder / name) as source, (staging / name).open("wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
            if read_bundle(staging).digest != bundle.digest:
                raise IntegrityError(f"{bundle.folder} changed while it was installed", "run again when it is complete")
        pruned = prune(models, manifest)
        package = write_swift(models) if is_ios else ()
    return InstallResult(
        place=place,
        files=_names(bundle),
        size_bytes=_size_bytes(bundle),
        digest=bundle.digest,
        pruned=pruned,
        package=package,
    )


def project_platforms(app: Path) -> tuple[str, ...]:
    """Return the platforms of an app's project; empty where the folder is not a project."""
    is_xcode = any(next(project_folder(app).glob(marker), None) for marker in _XCODE)
    return tuple(name for name, found in zip(_PLATFORMS, (is_gradle_project(app), is_xcode), strict=True) if found)


def check_releasable(bundle: Bundle) -> None:
    """Refuse a bundle that must not ship.

    Raises:
        VerificationError: a gate failed, or the weights are random.
    """
    manifest = bundle.manifest
    if not manifest.accepted:
        failed = [gate for gate in manifest.gates if gate.outcome not in ("ok", "allowed")]
        what = f"{bundle.folder}: the bundle did not pass its gates: {', '.join(gate.name for gate in failed)}"
        settle = ""
        if all(gate.outcome == "unverified" for gate in failed):
            settle = ", or give --verdict FILE from `edgeq verify --write-verdict` on a device"
        raise VerificationError(what, f"use a bundle that passed{settle}; see report.json in its folder")
    if manifest.model.weights == "random":
        what = f"{bundle.folder}: the model has random weights, so the bundle can only be measured"
        raise VerificationError(what, "package it again with --weights")


def _check_platform(target: str, platform: str, app: Path) -> None:
    """Refuse a folder that is not a project for a target's platform."""
    if platform not in _PLATFORMS:
        what = f"target {target} runs on {platform}, but edgeq installs into apps for {' and '.join(_PLATFORMS)} only"
        raise UsageError(what, "copy the bundle's folder to the host")
    found = project_platforms(app)
    if platform in found:
        return
    if found:
        what = f"{app} is a project for {found[0]}, but the bundle is for {platform} ({target})"
        raise UsageError(what, f"install a bundle for a target on {found[0]}")
    below = [path for path in sorted(app.glob("*")) if path.is_dir() and platform in project_platforms(path)]
    fix = f"give {below[0]}" if below else "give the project's root folder"
    raise UsageError(f"{app} is not an app project; looked for {PROJECT_FILES}", fix)


def _check_place(place: Path) -> None:
    """Refuse to replace anything that edgeq did not install."""
    if not place.is_dir() or not any(place.iterdir()):
        return
    try:
        known = {entry.path for entry in read_manifest(place)[1].files} | {MANIFEST_NAME, *UNLISTED_NAMES}
    except EdgeqError as err:
        what = f"{place} holds files that are not a bundle: {err.what}"
        raise UsageError(what, "move it away, and install again") from err
    own = sorted({path.name for path in place.iterdir()} - known)
    if own:
        what = f"{place} holds files that edgeq did not install: {', '.join(own[:3])}"
        raise UsageError(what, "move them away, and install again")


def _check_same_model(bundle: Bundle, place: Path) -> None:
    """Refuse another model under the name of one that is there, for whichever target: the app was written for that.

    A new version may be trained, pruned or built otherwise, but is fed and read as the old one was.
    """
    if not place.parent.is_dir():
        return
    for other in sorted(place.parent.iterdir()):
        try:
            installed = read_manifest(other)[1]
        except EdgeqError:  # not a bundle, or a damaged one, which says nothing
            continue
        change = contract_change(installed, bundle.manifest)
        if change:
            what = f"{other} holds another model named {installed.model.name!r}: {change}"
            fix = (
                "package the model under another --name, or replace the installed one: edgeq install BUNDLE "
                "--app APP --replace"
            )
            raise UsageError(what, fix)


def _names(bundle: Bundle) -> tuple[str, ...]:
    return tuple(sorted((MANIFEST_NAME, *(entry.path for entry in bundle.manifest.files))))


# --- Taking bundles out of an app that it no longer uses: other versions of the model that was just installed.


_LEFT = re.compile(r"\.(.+)\.(?:[a-z0-9_]{8}|removed)\.tmp")


def prune(models: Path, installed: Manifest) -> tuple[Path, ...]:
    """Remove the other targets' bundles of a model that carry another version of it; an app ships one version.

    Only folders that hold a bundle and nothing else are removed. The caller holds the lock of `models`.

    Args:
        models: the app's folder of models.
        installed: of the bundle that was just installed.

    Returns:
        The folders that were removed, sorted.
    """
    folder = models / installed.model.name
    for place in sorted(folder.iterdir()):
        left = _LEFT.fullmatch(place.name)  # by a run that was killed
        if left is not None and left[1] not in (".", ".."):
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
    known = {entry.path for entry in manifest.files} | {MANIFEST_NAME, *UNLISTED_NAMES}
    same = (manifest.model.name, manifest.target.name) == (installed.model.name, place.name)
    own = any(path.name not in known for path in place.iterdir())
    return same and not own and manifest.model.version != installed.model.version
