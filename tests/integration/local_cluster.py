"""A Dask cluster on loopback for the tests: its scheduler in this process, and two worker processes of their own."""

from __future__ import annotations

import sys
import time

from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=":0",
        local_directory=sys.argv[1],
        memory_limit=0,
    )
    sys.stdout.write(f"{cluster.scheduler_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)
