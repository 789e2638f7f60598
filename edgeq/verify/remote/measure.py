"""What one inference takes on a real device."""

from __future__ import annotations

from pathlib import Path

from edgeq.artifacts import DeviceMeasures
from edgeq.verify.emulate.container import Arrays
from edgeq.verify.emulate.runner import run_all
from edgeq.verify.emulate.runtimes import Installed
from edgeq.verify.emulate.work import Work
from edgeq.verify.metrics import percentile_ms
from edgeq.verify.remote.session import Session

WARMUP, RUNS = 5, 50


def measure(
    session: Session, runtime: Installed, artifact: Path, sample: Arrays, *, threads: int, timeout_s: float
) -> DeviceMeasures:
    """Time one sample in a process of its own, whose load is cold for the runtime, if not for the disk's cache.

    Raises:
        EdgeqError: as `run_all`, or the connection broke.
    """
    board = session.board
    work = Work(
        runtime=runtime,
        cpu=None,
        model=artifact,
        samples=(sample,),
        warmup=WARMUP,
        runs=RUNS,
        threads=threads,
        where=board.name,
    )
    (ran,) = run_all((work,), timeout_s=timeout_s, parallel=1, launcher=session)
    (latencies,) = ran.latencies_ms
    return DeviceMeasures(
        device=board.title,
        platform=board.platform,
        os=board.os,
        arch=board.arch,
        cores=board.cores,
        is_virtual=board.is_virtual,
        runtime=runtime.wheel.title,
        threads=ran.threads,
        warmup=WARMUP,
        runs=len(latencies),
        p50_ms=percentile_ms(latencies, 0.5),
        p90_ms=percentile_ms(latencies, 0.9),
        load_ms=ran.load_ms,
        peak_memory_bytes=ran.peak_memory_bytes,
        latencies_ms=latencies,
    )
