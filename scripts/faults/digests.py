"""One release, built in processes with other hash seeds, time zones and umasks: one digest."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import bundles
from .tally import Outcome, Row, Trials

_ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Chatham")
_UMASKS = (0o022, 0o077, 0o002, 0o027, 0o000)
_EPOCH = "1790000000"


@contextlib.contextmanager
def _open(root: Path, _count: int | None) -> Iterator[Trials]:
    bundles.keys(root / "keys")
    for name, version in (("one", "1"), ("two", "2")):
        bundles.bundle(root / name, version)
    first = _built(root, 0)

    def trial(number: int) -> Outcome:
        digest = _built(root, number)
        return Outcome(seen=f"digest {digest[:12]}", wrong="" if digest == first else f"another digest: {digest}")

    yield Trials(run=trial)


def _built(root: Path, number: int) -> str:
    """Publish both releases in a new channel, and return the digest of all its files with their modes."""
    from edgeq.core.files import canonical_json, sha256_bytes, sha256_file

    channel = root / "channel"
    zone, umask = _ZONES[number % len(_ZONES)], _UMASKS[number % len(_UMASKS)]
    env = {**os.environ, "PYTHONHASHSEED": str(number), "TZ": zone, "SOURCE_DATE_EPOCH": _EPOCH}
    command = [sys.executable, "-m", "edgeq", "ota", "release", "--channel", str(channel), "--quiet", "--allow-expired"]
    for name in ("one", "two"):
        told = subprocess.run(
            [*command, "--keys", str(root / "keys"), str(root / name)], env=env, umask=umask, capture_output=True
        )
        if told.returncode:
            raise SystemExit(f"error: edgeq ota release ended with {told.returncode}: {told.stderr.decode()}")
    files = {str(path.relative_to(channel)): sha256_file(path) for path in channel.rglob("*") if path.is_file()}
    shutil.rmtree(channel)
    return sha256_bytes(canonical_json(files))


ROWS = (Row(name="builds", full=20, open=_open),)
