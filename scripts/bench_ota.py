"""Measure updates: verify a 100 MB bundle, release a 4 MB model with a patch, follow it; sizes of the patches.

Times are this machine's, in one run; a patch's share is of the full download. The weights are invented int8-like bytes.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


def main() -> None:
    """Print what was measured, and which figures were reached."""
    from faults import bundles

    print(f"{datetime.date.today()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="edgeq-bench-") as name:
        work = Path(name)
        large = bundles.bundle_of(work / "large", "1", weights(100_000_000))
        from edgeq.bundle.reader import read_bundle

        _line("verify a 100 MB bundle", _seconds(lambda: read_bundle(large)), 1.0)
        bundles.keys(work / "keys")
        old = weights(4_000_000)
        first = bundles.bundle_of(work / "one", "1", old)
        bundles.release(work / "channel", work / "keys", first)
        for label, changed in (("2% scattered", scattered(old, 0.02)), ("11.6% scattered", scattered(old, 0.116))):
            new = bundles.bundle_of(work / label, label.split("%")[0], changed)
            took = _seconds(lambda new=new: bundles.release(work / "channel", work / "keys", new))
            _line(f"release of a 4 MB model, {label}, with a patch", took, 10.0)
            _sizes(work / "channel")
        trust = work / "channel/metadata/1.root.json"
        took = _seconds(lambda: bundles.update(work / "store", work / "channel", trust))
        print(f"  {'update, full download, without the self-test':<52}{took:8.2f} s")


def weights(count: int) -> bytes:
    """Return bytes that are distributed like int8 weights."""
    return np.clip(np.random.default_rng(0).normal(0, 25, count), -127, 127).astype(np.int8).tobytes()


def scattered(data: bytes, share: float) -> bytes:
    """Return the bytes with a share of them one step up or down."""
    rng = np.random.default_rng(1)
    array = np.frombuffer(data, np.int8).copy()
    chosen = rng.random(len(array)) < share
    array[chosen] += rng.choice(np.array([-1, 1], np.int8), int(chosen.sum()))
    return array.tobytes()


def _sizes(channel: Path) -> None:
    from edgeq.deliver.ota.channel import open_channel

    opened = open_channel(channel)
    if opened is None:
        raise SystemExit("the channel is gone")
    full = opened.index.bundles[0].file.size_bytes
    for delta in opened.index.deltas:
        size = delta.file.size_bytes
        print(f"    patch {size / 1e3:.0f} kB by {delta.facts.algorithm}, {size / full:.1%} of {full / 1e6:.2f} MB")


def _seconds(run: Callable[[], object]) -> float:
    start, cpu = time.perf_counter(), time.process_time()
    run()
    took = time.perf_counter() - start
    if took > 2 * (time.process_time() - cpu) + 0.5:
        print("  (the machine was busy: the next time is more than twice its CPU time of", end=" ")
        print(f"{time.process_time() - cpu:.2f} s)")
    return took


def _line(label: str, seconds: float, most: float) -> None:
    verdict = "reached" if seconds <= most else "MISSED"
    print(f"  {label:<52}{seconds:8.2f} s   at most {most:g}: {verdict}", flush=True)


if __name__ == "__main__":
    main()
