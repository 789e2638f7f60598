"""Whose bundles lie in the output folder under a model's name: one source must not replace another's by accident."""

from __future__ import annotations

import contextlib

from edgeq.errors import EdgeqError, UsageError
from edgeq.job import Job
from edgeq.sources import origin


def check_owner(job: Job, name: str) -> None:
    """Refuse to replace bundles of another source where the name was not given but came from the source.

    Bundles that do not say what they were made from, as edgeq once wrote them, may be replaced.

    Raises:
        UsageError: another source's bundles have the name.
    """
    if job.name is not None:
        return
    from edgeq.bundle.report import REPORT_NAME, read_report

    own = origin(job.source)
    for report in sorted((job.out / name).glob(f"*/{REPORT_NAME}")):
        found = ""
        with contextlib.suppress(EdgeqError):  # what cannot be read says nothing
            found = read_report(report.parent).source
        if found not in ("", own):
            what = f"{report.parent} was made from {found}, and {own} would replace it under the same name"
            raise UsageError(what, f"give another --name, or --name {name} to replace it")
