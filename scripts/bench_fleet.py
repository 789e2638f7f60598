"""What a fleet costs: `edgeq build` of many tiny models here and on a LocalCluster, and the scheduling of many units.

scripts/bench fleet [--models 60] [--targets 4] [--workers 2] [--units 100,1000,10000]: builds with an empty, a
half-filled and a full cache, then parts that only sleep, through the coordinator's own loop.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TARGETS = ("linux-x86_64-x86", "linux-x86_64-ort", "linux-x86_64-fbgemm", "linux-x86_64-xnnpack")

MODEL = """
import torch


def model():
    torch.manual_seed({seed})
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()


def example_inputs():
    return (torch.zeros(1, 16),)
"""


def project(folder: Path, models: int, targets: Sequence[str]) -> None:
    entries = [f"targets = {json.dumps(list(targets))}", 'schemes = ["fp32"]', 'device.on = "host"']
    for number in range(models):
        (folder / f"net{number}.py").write_text(MODEL.format(seed=number))
        entries.append(f'[[model]]\nname = "net{number}"\nsource = "net{number}.py:model"')
    (folder / "edgeq.toml").write_text("\n".join(entries) + "\n")


def build(folder: Path, cache: Path, *args: str) -> tuple[float, int, set[str]]:
    """Return the seconds of a build, how many units came from the cache, and the digests."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "edgeq", "build", "--json", "--quiet", *args]
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, "EDGEQ_CACHE_DIR": str(cache)}, capture_output=True, text=True
    )
    took_s = time.perf_counter() - start
    if ran.returncode:
        sys.exit(f"the build ended with {ran.returncode}: {ran.stderr[-2000:]}{ran.stdout[-2000:]}")
    rows = [row for model in json.loads(ran.stdout)["models"] for row in model["rows"]]
    return took_s, sum(row["cached"] for row in rows), {row["digest"] for row in rows}


@contextmanager
def cluster(workers: int, folder: Path) -> Iterator[Any]:
    from distributed import LocalCluster

    os.environ["EDGEQ_CACHE_DIR"] = str(folder / "workers-cache")
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=":0",
        local_directory=str(folder / "workers"),
        memory_limit=0,
    ) as found:
        yield found


def halve(cache: Path) -> None:
    for number, place in enumerate(sorted((cache / "cells").iterdir())):
        if number % 2:
            shutil.rmtree(place)


def sleep_part(seconds: float) -> dict[str, Any]:
    from edgeq.pipeline.plan import Made

    time.sleep(seconds)
    return {"outcome": Made(outcome=None), "bundles": {}}


def schedule(address: str, counts: Sequence[int]) -> list[tuple[int, float, float, float]]:
    """Return for each number of units: seconds in all, milliseconds a unit beyond its sleep, and the client's RSS."""
    from distributed import Client

    from edgeq.core.config import Job
    from edgeq.core.targets import load_target
    from edgeq.pipeline.cluster import Fleet, _ClusterRun, _Item
    from edgeq.pipeline.plan import Plan
    from edgeq.pipeline.workers import Order
    from edgeq.report.progress import Quiet

    sleep_s = 0.01

    class Sleeping(Fleet):
        def send_to(self, worker: Any) -> None:
            worker.is_ready = True

        def submit(self, _: Any, worker: Any) -> Any:
            return self._client.submit(sleep_part, sleep_s, workers=[worker.address], pure=False)

    class Run(_ClusterRun):
        def _received(self, item: Any, *_: Any) -> Any:
            return item.plan

    job = Job(source="digits", targets=(load_target(TARGETS[0]),))
    plan = Plan(job=job, facts={}, units=(), finished={})
    found = []
    with Client(address) as client:
        for count in counts:
            fleet = Sleeping(client, Path("out"))
            workers = len(fleet._workers)
            items = [_Item(order=Order(name=str(n), plan=plan, work=Path()), plan=plan) for n in range(count)]
            start = time.perf_counter()
            Run(fleet, items, Quiet()).to_the_end()
            took_s = time.perf_counter() - start
            overhead_ms = (took_s * workers / count - sleep_s) * 1000
            rss_mb = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
            found.append((count, took_s, overhead_ms, rss_mb))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--targets", type=int, default=4, choices=range(1, 5))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--units", default="100,1000,10000")
    asked = parser.parse_args()
    counts = [int(text) for text in asked.units.split(",") if text]
    with tempfile.TemporaryDirectory(prefix="edgeq-bench-") as name:
        folder = Path(name)
        place = folder / "project"
        place.mkdir()
        os.chdir(place)
        project(place, asked.models, TARGETS[: asked.targets])
        units = asked.models * asked.targets
        print(f"{asked.models} models x {asked.targets} targets, {asked.workers} workers, {os.cpu_count()} cores")
        print(f"{'build':26}{'seconds':>9}{'s/unit':>9}{'cached':>8}   load per core before")
        digests = []

        def row(label: str, cache: Path, *args: str) -> float:
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            took_s, cached, found = build(place, cache, *args)
            digests.append(found)
            print(f"{label:26}{took_s:9.1f}{took_s / max(units, 1):9.3f}{cached:8}   {load:.1f}", flush=True)
            return took_s

        if units:
            row("here, empty cache", folder / "here")
            row("here, full cache", folder / "here")
        with cluster(asked.workers, folder) as found:
            if units:
                for label in ("empty", "half-filled", "full"):
                    if label == "half-filled":
                        halve(folder / "there")
                        shutil.rmtree(folder / "workers-cache", ignore_errors=True)
                    row(f"cluster, {label} cache", folder / "there", "--cluster", found.scheduler_address)
                same = all(one == digests[0] for one in digests)
                print(f"digests: {'equal in all builds' if same else 'DIFFERENT'}")
            print(f"\n{'units that sleep 10 ms':26}{'seconds':>9}{'overhead':>12}{'client RSS':>13}")
            for count, took_s, overhead_ms, rss_mb in schedule(found.scheduler_address, counts):
                print(f"{count:<26,}{took_s:9.1f}{overhead_ms:9.1f} ms{rss_mb:10.0f} MB", flush=True)


if __name__ == "__main__":
    main()
