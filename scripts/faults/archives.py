"""Hostile archives: nothing outside the root, no traceback, at most 256 MB and 5 s of processor time each."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from . import bundles
from .tally import Outcome, Row, Trials

MOST_MB, MOST_S = 256, 5.0
_NAMES = (
    "../out", "a/../../out", "/out", "C:\\out", "c:out", "..\\out", "\\\\host\\out", "MODEL.PTE", "model.pte",
    "manifest.json", "Manifest.json", "golden.npz/", "in/out", ".out", "out\0.pte", "", "\u202eetp.ledom", "CON",
    "a" * 300,
)  # fmt: skip
_LINK, _FOLDER, _PIPE, _FILE = 0o120777, 0o040755, 0o010644, 0o100644


@contextlib.contextmanager
def _open(root: Path, _count: int | None) -> Iterator[Trials]:
    from edgeq.bundle.archive import bundle_zip

    good = bundle_zip(bundles.bundle(root / "one", "1"))
    outside = _names(root)
    yield Trials(run=lambda number: _trial(root, good, outside, number))


def _trial(root: Path, good: bytes, outside: set[str], number: int) -> Outcome:
    data = hostile(good, random.Random(f"archive-{number}"))
    place = root / "jail" / "in"
    place.mkdir(parents=True)
    start = time.process_time()
    seen, wrong = _unzipped(data, place)
    took = time.process_time() - start
    if any(path.is_symlink() for path in place.rglob("*")):
        wrong = "made a link"
    shutil.rmtree(place)
    if _names(root) - outside != {"jail"}:
        wrong = f"wrote outside: {sorted(_names(root) - outside)}"
    shutil.rmtree(root / "jail")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if peak_mb > MOST_MB or took > MOST_S:
        wrong = f"{peak_mb:.0f} MB, {took:.1f} s"
    return Outcome(seen=seen, wrong=wrong)


def _unzipped(data: bytes, place: Path) -> tuple[str, str]:
    from edgeq.core.errors import EdgeqError
    from edgeq.deliver.ota.patch import unzip

    try:
        unzip(data, place, most_bytes=1_000_000)
    except EdgeqError as err:
        return f"exit {int(err.exit_code)}", ""
    except Exception as err:  # what the test looks for
        return "traceback", f"{type(err).__name__}: {err}"
    return "a whole bundle", ""


def _names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def hostile(good: bytes, rng: random.Random) -> bytes:
    """Return an archive that is damaged, or holds a name, a link, a bomb or a twin."""
    kind = rng.randrange(6)
    if kind < 2:
        data = bytearray(good)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 2:
        cut = sorted(rng.sample(range(len(good)), 2))
        return good[: cut[0]] + good[cut[1] :]
    data = bytearray(_with_entry(good, rng, is_bomb=kind == 5))
    if rng.randrange(2):
        data[len(data) - rng.randrange(1, 200)] = rng.randrange(256)
    return bytes(data)


def _with_entry(good: bytes, rng: random.Random, *, is_bomb: bool) -> bytes:
    sink = io.BytesIO(good)
    with contextlib.suppress(UserWarning), zipfile.ZipFile(sink, "a", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("x")
        info.filename = "zeros.bin" if is_bomb else rng.choice(_NAMES)
        info.external_attr = rng.choice((_FILE, _LINK, _FOLDER, _PIPE)) << 16
        size = rng.choice((10, 100_000, 30_000_000)) if is_bomb else rng.randrange(60)
        archive.writestr(info, bytes(size), compress_type=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return sink.getvalue()


ROWS = (Row(name="archives", full=10_000, open=_open),)
