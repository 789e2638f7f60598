"""What the search for a mixed precision is judged on: samples of its own, and the scores of a graph on them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeq._io import canonical_json, sha256_bytes
from edgeq.artifacts import Scores
from edgeq.errors import UsageError
from edgeq.load.digest import exclude
from edgeq.load.selection import choose
from edgeq.samples import Batch, Dataset, batches
from edgeq.scheme import SEARCH_LIMITS

if TYPE_CHECKING:
    from edgeq.job import Job
    from edgeq.pipeline.prepare import Prepared
    from edgeq.quantize.spec import SearchSpec

_LEAST = 16  # with fewer, one prediction is worth more than any limit in use
_SHARE = 4  # one of so many calibration samples is for the search, where there are no others

Forward = Callable[[Batch], tuple[Any, ...]]


class TooFewSamples(UsageError):
    """Too few samples to search on and to calibrate on (exit code 2)."""


def split_search(calibration: Dataset, search: Dataset, job: Job) -> dict[str, Dataset]:
    """Return calibration and search samples that share none, by role.

    Args:
        calibration: the samples that ranges are set from.
        search: the samples of --search-data, or of the calibration data as a whole.
        job: how many of the latter are taken at most, and the seed that splits the former.

    Raises:
        TooFewSamples: too few are left.
    """
    rest = exclude(search, frozenset(sample.digest for sample in calibration))
    if rest.count >= _LEAST:
        taken = dataclasses.replace(rest, count=min(rest.count, job.data.num_search_samples))
        return {"calibration": calibration, "search": taken}
    if job.data.search is not None:
        what = f"--search-data has {rest.count} samples that are not calibrated on, at least {_LEAST} are needed"
        raise TooFewSamples(what, "give more, or leave --search-data out")
    if calibration.count < _SHARE * _LEAST:
        what = f"mixed-int8 judges on samples that it does not calibrate on, and {calibration.origin} has only"
        raise TooFewSamples(f"{what} {calibration.count}", f"give {_SHARE * _LEAST} or more, or --search-data")
    held = choose(calibration.count, limit=calibration.count // _SHARE, seed=job.seed, classes=_classes(calibration))
    kept = sorted({*range(calibration.count)} - {*held})
    return {"calibration": _view(calibration, kept), "search": _view(calibration, held)}


def _classes(dataset: Dataset) -> list[str] | None:
    return [str(sample.label) for sample in dataset] if dataset.labelled else None


def _view(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    return dataclasses.replace(dataset, count=len(rows), read=lambda i: dataset.read(rows[i]))


def search_spec(job: Job, prepared: Prepared, fp32: Forward, forward: Callable[[Any], Forward]) -> SearchSpec:
    """Return what the search is given.

    Args:
        job: its limits.
        prepared: the model and its data.
        fp32: the float model.
        forward: makes a function from batches to outputs of a converted graph.

    Raises:
        UsageError: a limit that these samples cannot judge.
    """
    from edgeq.pipeline.cache import edgeq_digest, tool_versions
    from edgeq.places import cache_folder
    from edgeq.quantize.spec import SearchSpec

    limits = tuple((name, value) for name, value in job.gates.limits if name in SEARCH_LIMITS)
    size = dict(job.gates.limits).get("size")
    return SearchSpec(
        samples=prepared.searching,
        score=lambda graph: scores(prepared.searching, prepared, fp32, forward(graph)),
        limits=limits,
        size_limit=size,
        state_folder=cache_folder() / "search" if job.cache else None,
        identity=(
            prepared.data.search_sha256 or "",
            prepared.data.calibration_sha256 or "",
            edgeq_digest(),
            tool_versions()["torch"],
            _judge(job, prepared.searching),
        ),
    )


def _judge(job: Job, samples: Dataset) -> str:
    """Hash what the samples are judged by: a search that was killed may go on with other labels or another metric."""
    from edgeq.pipeline.record import current_state, user_modules

    # of whatever kind the user's metric takes
    labels = [sha256_bytes(pickle.dumps(sample.label)) for sample in samples] if samples.labelled else []
    code = sorted(user_modules()) if job.data.metric is not None else []
    states = {name: current_state(f"file:{name}") for name in code}
    return sha256_bytes(canonical_json({"labels": labels, "metric": job.data.metric, "code": states}))


def scores(samples: Dataset, prepared: Prepared, fp32: Forward, measured: Forward) -> Scores:
    """Score a graph on samples, against fp32.

    Without labels, the share of top-1 predictions that changed bounds the drop of accuracy.

    Raises:
        UsageError: the metric fails.
    """
    from edgeq.artifacts import Fidelity
    from edgeq.check.fidelity import worst_part
    from edgeq.verify.metrics import Comparison, paired_drop_pp
    from edgeq.verify.rows import cut, real_rows
    from edgeq.verify.scoring import batch_scores, chosen_metric

    sums, labelled = Comparison(by_channel=True), samples.labelled
    digests: set[str] = set()
    before: list[float] = []
    after: list[float] = []
    for batch in batches(samples, prepared.model.inputs):
        expected, came = fp32(batch), measured(batch)
        digests.update(sample.digest for sample in batch.samples)
        sums.add(cut(batch, expected), cut(batch, came), rows=real_rows(batch))
        metric = chosen_metric(prepared.metric, expected, labelled=labelled)
        if metric is not None:
            before += batch_scores(metric, batch, expected)
            after += batch_scores(metric, batch, came)
    agreement = sums.top1_agreement
    if before:
        drop: float | None = paired_drop_pp(before, after).estimate
    else:
        drop = None if agreement is None else 100 * (1 - agreement)
    # the gate's own number, or the search would find what the gate refuses
    fidelity = Fidelity(
        samples=samples.count,
        inputs="evaluation",
        sqnr_db=sums.sqnr_db,
        cosine=None,
        max_abs=None,
        top1_agreement=agreement,
        distinct=len(digests),
        groups=sums.groups(classes=labelled and prepared.metric is None),
    )
    return Scores(sqnr_db=worst_part(fidelity)[1], agreement=agreement, drop_pp=drop)
