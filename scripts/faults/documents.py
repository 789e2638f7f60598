"""Mutated documents: manifests, indexes, state files and target profiles end well, or with a named error."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from . import bundles
from .tally import Outcome, Row, Trials

_JSON = (b'"', b"{", b"}", b"[", b"]", b"null", b"-1", b"1e999", b"NaN", b"../x", b"\xff", b"9" * 30, b"true", b",")
_TOML = (b'"', b"[", b"]", b"[[", b"=", b"-1", b"inf", b"nan", b"../x", b"\xff", b"9" * 30, b"true", b"\n", b"'''")

Parse = Callable[[bytes], object]
Opened = tuple[bytes, Parse, tuple[bytes, ...]]  # a good document, what reads it, pieces that mean something there


@contextlib.contextmanager
def _open(opened: Callable[[Path], Opened], root: Path, _count: int | None) -> Iterator[Trials]:
    good, parse, pieces = opened(root)
    parse(good)
    yield Trials(run=lambda number: _trial(mutant(good, pieces, number), parse))


def _trial(data: bytes, parse: Parse) -> Outcome:
    from edgeq.core.errors import EdgeqError

    try:
        parse(data)
    except EdgeqError as err:
        return Outcome(seen=f"exit {int(err.exit_code)}")
    except Exception as err:  # what the test looks for
        return Outcome(seen="traceback", wrong=f"{type(err).__name__}: {err}")
    return Outcome(seen="accepted")


def mutant(good: bytes, pieces: tuple[bytes, ...], number: int) -> bytes:
    """Return a document with one to four changes: a byte, a piece put in, a part cut out, a part repeated."""
    rng = random.Random(f"document-{number}")
    data = bytearray(good)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at : at + rng.randrange(12)] = rng.choice(pieces)
        elif kind == 2:
            del data[at : at + rng.randrange(40)]
        else:
            other = rng.randrange(len(data))
            data[at:at] = data[other : other + rng.randrange(60)]
        data = data or bytearray(b"{")
    return bytes(data)


def _manifest(root: Path) -> Opened:
    from edgeq.core.manifest import parse_manifest

    return (bundles.bundle(root / "one", "1") / "manifest.json").read_bytes(), parse_manifest, _JSON


def _index(root: Path) -> Opened:
    """The targets' metadata, read as if its signature held."""
    from tuf.api.metadata import Metadata, Targets
    from tuf.api.serialization import DeserializationError

    from edgeq.core.errors import IntegrityError
    from edgeq.deliver.ota.index import parse_index

    bundles.device_behind(root)

    def parse(data: bytes) -> None:
        try:
            targets = Metadata[Targets].from_bytes(data).signed.targets
        except DeserializationError as err:  # python-tuf's named error, which the client translates
            raise IntegrityError(str(err), "") from err
        parse_index(targets)

    return (root / "channel/metadata/2.targets.json").read_bytes(), parse, _JSON


def _state(root: Path) -> Opened:
    from edgeq.deliver.ota.store import Store

    bundles.device_behind(root)
    path = root / "target/state.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        Store(root / "target").state()

    return path.read_bytes(), parse, _JSON


def _profile(root: Path) -> Opened:
    from edgeq.core.targets import load_target

    path = root / "profile.toml"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        load_target(str(path))

    return (bundles.ROOT / "targets/android-arm64-xnnpack.toml").read_bytes(), parse, _TOML


ROWS = tuple(
    Row(name=name, full=10_000, open=functools.partial(_open, opened))
    for name, opened in (("manifests", _manifest), ("indexes", _index), ("states", _state), ("profiles", _profile))
)
