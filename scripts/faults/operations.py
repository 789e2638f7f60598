"""What writes: release, update, roll back, install, package; the state before each, and how to read what is left."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import bundles

SHIM = "EDGEQ_FAULT_SHIM"  # the environment variable that names the shim, which LD_PRELOAD loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that writes.

    Attributes:
        prepare: makes the state before it in an empty folder; what it writes to is `target` there.
        run: does it there.
        read: fails if the state is torn; returns what it is, in one word.
        measured: names of files that hold times, which differ from run to run.
        full: how many kills issue 7 asks for.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    read: Callable[[Path], str]
    measured: tuple[str, ...] = ()
    full: int = 1000


def _release(work: Path) -> None:
    from edgeq.core.errors import UsageError

    try:
        bundles.release(work / "target", work / "keys", work / "two")
    except UsageError as err:  # the run that was killed had published it
        if "already" not in err.what:
            raise


def _released(work: Path) -> str:
    from edgeq.deliver.ota.channel import open_channel

    with tempfile.TemporaryDirectory(prefix="edgeq-fault-") as name:
        bundles.update(Path(name) / "store", work / "target", work / "target" / "metadata" / "1.root.json")
        newest = sorted(path.name for path in (Path(name) / "store" / "slots").iterdir())
    channel = open_channel(work / "target")
    if channel is None:
        raise FileNotFoundError("there is no channel any more")
    for name in channel.targets.signed.targets:
        channel.read(name)
    return newest[-1]


def _new_device(work: Path) -> None:
    bundles.two_bundles(work)
    shutil.move(work / "target", work / "channel")
    (work / "target").mkdir()


def _device_ahead(work: Path) -> None:
    bundles.device_behind(work)
    bundles.follow(work)


def _app_before(work: Path) -> None:
    from edgeq.deliver.install import install

    (work / "target" / "app").mkdir(parents=True)
    (work / "target" / "settings.gradle.kts").write_text('include(":app")')
    (work / "target" / "app/build.gradle.kts").write_text('plugins { id("com.android.application") }')
    install(bundles.bundle(work / "one", "1"), work / "target")
    bundles.bundle(work / "two", "2")


def _install(work: Path) -> None:
    from edgeq.deliver.install import install

    install(work / "two", work / "target")


def _installed(work: Path) -> str:
    from edgeq.bundle.reader import read_bundle

    models = work / "target/app/src/main/assets/models/digits"
    with _recovered(models, "android-arm64-xnnpack") as folder:
        return read_bundle(folder).manifest.model.version


def _warm_before(work: Path) -> None:
    (work / "target").mkdir()
    _package(work)
    _package(work, version="0")  # the cache knows both; the bundle in place is another than the one to come
    if not (work / "cache").is_dir():
        raise SystemExit("error: edgeq package kept nothing in its cache, which was to be warm")


def _cold_before(work: Path) -> None:
    _warm_before(work)
    shutil.rmtree(work / "cache")


def _package(work: Path, version: str = "1") -> None:
    from edgeq.cli.main import run
    from edgeq.core.errors import EdgeqError, ExitCode
    from edgeq.pipeline import tracking

    # a result is kept only where every library and every module of the user's is known to open files through Python;
    # the shim opens none, and these tests, which name ExecuTorch, are not the user's
    own = tuple(str(Path(path).resolve().parent) + os.sep for path in (os.environ[SHIM], __file__))
    tracking._ROOTS = (*(root for root in tracking._ROOTS if root not in own), *own)
    os.environ["EDGEQ_CACHE_DIR"] = str(work / "cache")
    options = ["-t", "linux-x86_64-x86", "-o", str(work / "target"), "--model-version", version, "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(["package", "digits", *options])
    if code:
        problem = EdgeqError(f"edgeq package ended with {code}", "")
        problem.exit_code = ExitCode(code)
        raise problem


def _packaged(work: Path) -> str:
    from edgeq.bundle.reader import read_bundle

    with _recovered(work / "target" / "digits", "linux-x86_64-x86") as folder:
        return read_bundle(folder).digest[:8]


@contextlib.contextmanager
def _recovered(parent: Path, name: str) -> Iterator[Path]:
    """Yield a copy of a folder as the next run would see it, which mends a kill between two renames."""
    from edgeq.core.files import recover_dir

    with tempfile.TemporaryDirectory(prefix="edgeq-fault-") as place:
        copy = Path(place) / "copy"
        shutil.copytree(parent, copy)
        recover_dir(copy / name)
        yield copy / name


_TIMES = ("report.json", "report.html")  # where the cache could not be used they are measured again
OPERATIONS: dict[str, Operation] = {
    "release": Operation(prepare=bundles.two_bundles, run=_release, read=_released),
    "update": Operation(prepare=bundles.device_behind, run=bundles.follow, read=bundles.device_release),
    "first-update": Operation(prepare=_new_device, run=bundles.follow, read=bundles.device_release),
    "roll-back": Operation(
        prepare=_device_ahead, run=lambda work: bundles.go_back(work / "target"), read=bundles.device_release
    ),
    "install": Operation(prepare=_app_before, run=_install, read=_installed),
    "package": Operation(prepare=_warm_before, run=_package, read=_packaged, measured=_TIMES),
    "cold-package": Operation(prepare=_cold_before, run=_package, read=_packaged, measured=_TIMES, full=50),
}
