"""Mutated artifacts in forks of a process that has imported the runtime: named endings, and the parent lives."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import bundles
from .tally import Outcome, Row, Trials

_RAN, _REFUSED, _SILENT = "loads and runs", "refused by the runtime", "ended without a word"
_CPU_S = 10  # a mutant that loops is killed


@contextlib.contextmanager
def _open(artifact: Path, root: Path, _count: int | None) -> Iterator[Trials]:
    import numpy as np

    from edgeq.core.manifest import parse_manifest
    from edgeq.verify.runtimes import RUNNERS

    manifest = parse_manifest((artifact.parent / "manifest.json").read_bytes())
    inputs = tuple(np.zeros(one.shape, one.dtype) for one in manifest.inputs)
    make = functools.partial(RUNNERS[manifest.target.runtime], backend=manifest.target.backend, threads=1, trusted=True)
    _import_runtime(manifest.target.runtime)
    good = artifact.read_bytes()
    path = root / f"mutant{artifact.suffix}"
    if (intact := _in_fork(lambda: make(artifact), inputs)) != _RAN:
        raise SystemExit(f"error: the intact {artifact.name}: {intact}")

    def trial(number: int) -> Outcome:
        path.write_bytes(_mutant(good, random.Random(f"artifact-{number}")))
        seen = _in_fork(lambda: make(path), inputs)
        return Outcome(seen=seen, wrong=seen if seen == _SILENT else "")

    yield Trials(run=trial)


def _mutant(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.randrange(6) == 0:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def _import_runtime(runtime: str) -> None:
    """Import what the forks need, so that each takes milliseconds; threads started here they would lack."""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if runtime == "executorch":
        from executorch.extension.pybindings import _C  # noqa: F401
    else:
        import torch.jit.mobile


def _in_fork(make: Callable[[], Any], inputs: tuple[object, ...]) -> str:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            runner = make()
            runner.load()
            runner.run(inputs)
        except BaseException:  # the runtimes' errors are of many kinds
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"the child died of {signal.Signals(os.WTERMSIG(status)).name}, which edgeq names"
    return {0: _RAN, 7: _REFUSED}.get(os.WEXITSTATUS(status), _SILENT)


ROWS = tuple(
    Row(
        name=f"artifacts.{suffix}",
        full=5000,
        open=functools.partial(_open, bundles.GOLDEN / folder / f"model.{suffix}"),
    )
    for suffix, folder in (("pte", "android-arm64-xnnpack"), ("ptl", "android-arm64-qnnpack"))
)
