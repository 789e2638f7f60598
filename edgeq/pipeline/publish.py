"""From finished bundles to the output folder: all are copied before the first is switched."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from edgeq._io import copy_files, remove_dir, staged_dir
from edgeq.artifacts import BuildReport, Row
from edgeq.pipeline.cells import Plan, with_warning
from edgeq.pipeline.owner import check_owner
from edgeq.pipeline.prepare import REJECTED_NAME


def publish(planned: Plan) -> BuildReport:
    """Switch every bundle into its place: accepted ones under the model's name, others under `rejected/`."""

    job, cells, finished = planned.job, planned.cells, planned.finished
    for name in {row.model for row, _ in finished.values()}:
        check_owner(job, name)
    rows: list[Row] = []
    replaced: list[Path] = []
    # all are copied before the first is switched: a disk that fills up leaves what was there
    with contextlib.ExitStack() as switches:
        for cell in cells:
            row, _ = finished[cell.key]
            name, former = cell.target.name, f"{cell.target.name}@{row.scheme}"
            if len(job.schemes) > 1:
                name, former = former, name
            accepted, rejected = (root / row.model / name for root in (job.out, job.out / REJECTED_NAME))
            place, other = (rejected, accepted) if row.checked.exit_code else (accepted, rejected)
            copy_files(row.path, switches.enter_context(staged_dir(place)))
            if other == accepted and accepted.exists():
                row = with_warning(row, f"the earlier bundle is removed, since this one was rejected: {accepted}")
            rows.append(dataclasses.replace(row, path=place))
            replaced += [other, *(side.with_name(former) for side in (accepted, rejected))]
    for other in replaced:
        # a bundle of an earlier run must not pass for this one's
        remove_dir(other, below=job.out)
    return BuildReport(rows=tuple(rows), data=finished[cells[0].key][1])
