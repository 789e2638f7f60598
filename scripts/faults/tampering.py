"""A channel that was tampered with: single bits, files removed, swapped, added, signed by others; and an intact one."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from . import bundles
from .tally import Outcome, Row, Trials

_INTACT = 1000


class _Device:
    """A device one release behind a channel, which forgets after each try what it verified."""

    def __init__(self, root: Path) -> None:
        bundles.device_behind(root)
        self.root, self.channel = root, root / "channel"
        shutil.copytree(root / "target", root / "device", symlinks=True)
        shutil.copytree(self.channel, root / "good")

    def needed(self) -> list[Path]:
        """Return the files that it reads on its way to release 2."""
        files = sorted(path for path in self.channel.rglob("*") if path.is_file())
        return [path for path in files if path.name.startswith(("timestamp", "2.")) or path.suffix == ".patch"]

    def tried(self) -> str:
        """Let it follow the channel from the beginning; return "updated" or the exit code of the refusal.

        Raises:
            Exception: an error that is not an EdgeqError.
        """
        from edgeq.core.errors import EdgeqError

        shutil.rmtree(self.root / "target")
        shutil.copytree(self.root / "device", self.root / "target", symlinks=True)
        try:
            bundles.follow(self.root)
        except EdgeqError as err:
            return f"refused, exit {int(err.exit_code)}"
        return "updated"

    def refusal(self, what: str) -> Outcome:
        """Let it follow a channel that must be refused, and look at what it is left with."""
        try:
            seen = self.tried()
        except Exception as err:  # what the test looks for
            return Outcome(seen="traceback", wrong=f"{what}: {type(err).__name__}: {err}")
        if seen == "updated":
            return Outcome(seen="accepted", wrong=f"{what}: accepted")
        if bundles.device_release(self.root) != "1":
            return Outcome(seen="moved", wrong=f"{what}: refused, but the device is not at release 1 any more")
        return Outcome(seen=seen)

    def restore(self) -> None:
        """Put the good channel back."""
        shutil.rmtree(self.channel)
        shutil.copytree(self.root / "good", self.channel)


@contextlib.contextmanager
def _bits(root: Path, _count: int | None) -> Iterator[Trials]:
    device = _Device(root)
    files = device.needed()

    def trial(number: int) -> Outcome:
        rng = random.Random(f"bit-{number}")
        path = files[number % len(files)]
        good = path.read_bytes()
        at, bit = rng.randrange(len(good)), rng.randrange(8)
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
        try:
            return device.refusal(f"bit {bit} of byte {at} of {path.name}")
        finally:
            path.write_bytes(good)

    yield Trials(run=trial)


@contextlib.contextmanager
def _moved(root: Path, _count: int | None) -> Iterator[Trials]:
    device = _Device(root)
    changes = list(_changes(device))

    def trial(number: int) -> Outcome:
        what, change = changes[number]
        change()
        try:
            return device.refusal(what)
        finally:
            device.restore()

    yield Trials(run=trial, most=len(changes))


def _changes(device: _Device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every file removed, renamed, put in another's place, or with something after it; and wrong keys."""
    files = device.needed()
    for path in files:
        yield f"{path.name} is gone", path.unlink
        yield f"{path.name} is empty", lambda path=path: path.write_bytes(b"")
        yield f"{path.name} is renamed", lambda path=path: path.rename(path.with_name(f"9{path.name}"))
        yield f"{path.name} has more", lambda path=path: path.write_bytes(path.read_bytes() + b" ")
        yield f"{path.name} is a folder", lambda path=path: (path.unlink(), path.mkdir())
        for other in files:
            if other != path:
                what = f"{other.name} instead of {path.name}"
                yield what, lambda path=path, other=other: shutil.copyfile(other, path)
    for kept in ("1.root.json", None):
        yield f"signed by others, keeping {kept}", lambda kept=kept: _sign_anew(device, kept)


def _sign_anew(device: _Device, kept: str | None) -> None:
    """Publish both releases by keys that the device does not know, with the root that it trusts or a root of theirs."""
    root = device.root
    if not (root / "other").exists():
        bundles.keys(root / "other")
    shutil.rmtree(device.channel)
    for name in ("one", "two"):
        bundles.release(device.channel, root / "other", root / name)
    if kept:
        shutil.copyfile(root / "good/metadata" / kept, device.channel / "metadata" / kept)


@contextlib.contextmanager
def _intact(root: Path, _count: int | None) -> Iterator[Trials]:
    device = _Device(root)

    def trial(_number: int) -> Outcome:
        try:
            seen = device.tried()
        except Exception as err:  # any is a false alarm
            seen = f"{type(err).__name__}: {err}"
        if seen == "updated" and bundles.device_release(root) == "2":
            return Outcome(seen="updated")
        return Outcome(seen="false alarm", wrong=seen)

    yield Trials(run=trial)


ROWS = (
    Row(name="bits", full=10_000, open=_bits),
    Row(name="moved", full=None, open=_moved),
    Row(name="intact", full=_INTACT, open=_intact),
)
