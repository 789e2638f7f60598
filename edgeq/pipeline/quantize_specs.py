"""Specifications for the mixed-precision search and for reuse: samples of their own, and a graph's scores on them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import read_report
from edgeq.check.fidelity import worst_part
from edgeq.core.config import Job
from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.files import cache_folder, canonical_json, sha256_bytes
from edgeq.core.lazy import np
from edgeq.core.manifest import Bundle
from edgeq.core.results.artifact import Inputs
from edgeq.core.results.measured import Fidelity
from edgeq.core.results.model import QParams, Scores
from edgeq.core.samples import Dataset, batches
from edgeq.core.schemes import NEEDS_CALIBRATION, NEEDS_SEARCH, SEARCH_LIMITS
from edgeq.core.system import edgeq_digest, tool_versions
from edgeq.lower.shipped import shipped_layers
from edgeq.pipeline.tracking import current_state, user_modules
from edgeq.quantize.graph_runner import Forward
from edgeq.quantize.spec import ReuseSpec, SearchSpec
from edgeq.verify.accumulate import batch_scores, chosen_metric
from edgeq.verify.metrics import Comparison, cut, mean_score, real_rows, scored, top1


def search_spec(job: Job, inputs: Inputs, fp32: Forward, forward: Callable[[Any], Forward]) -> SearchSpec:
    """Return what the search is given.

    Args:
        job: its limits.
        inputs: the model and its data.
        fp32: the float model.
        forward: makes a function from batches to outputs of a converted graph.

    Raises:
        UsageError: a limit that these samples cannot judge.
    """
    limits = tuple((name, value) for name, value in job.gates.limits if name in SEARCH_LIMITS)
    size = dict(job.gates.limits).get("size")
    return SearchSpec(
        samples=inputs.searching,
        score=lambda graph: scores(inputs.searching, inputs, fp32, forward(graph)),
        limits=limits,
        size_limit=size,
        state_folder=cache_folder() / "search" if job.cache else None,
        identity=(
            inputs.data.search_sha256 or "",
            inputs.data.calibration_sha256 or "",
            edgeq_digest(),
            tool_versions()["torch"],
            _judge(job, inputs.searching),
        ),
    )


def _judge(job: Job, samples: Dataset) -> str:
    """Hash what the samples are judged by: a search that was killed may go on with other labels or another metric."""
    # of whatever kind the user's metric takes
    labels = [sha256_bytes(pickle.dumps(sample.label)) for sample in samples] if samples.labelled else []
    code = sorted(user_modules()) if job.data.metric is not None else []
    states = {name: current_state(f"file:{name}") for name in code}
    return sha256_bytes(canonical_json({"labels": labels, "metric": job.data.metric, "code": states}))


def scores(samples: Dataset, inputs: Inputs, fp32: Forward, measured: Forward) -> Scores:
    """Score a graph on samples, against fp32.

    Without labels, the share of top-1 predictions that changed bounds the drop of accuracy.

    Raises:
        UsageError: the metric fails.
    """
    sums, labelled = Comparison(by_channel=True, nominal=True), samples.labelled
    digests: set[str] = set()
    classes: set[int] = set()
    score: Any = None
    before: list[Any] = []
    after: list[Any] = []
    for batch in batches(samples, inputs.model.inputs):
        expected, came = fp32(batch), measured(batch)
        digests.update(sample.digest for sample in batch.samples)
        sums.add(cut(batch, expected), cut(batch, came), rows=real_rows(batch))
        metric = chosen_metric(inputs.metric, expected, labelled=labelled)
        if metric is not None:
            score = metric
            before += batch_scores(metric, batch, expected)
            after += batch_scores(metric, batch, came)
        if metric is top1:
            classes.update(int(np.asarray(label).item()) for _, label in scored(batch, expected, by_row=True))
    agreement = sums.top1_agreement
    if before:
        drop: float | None = 100 * (mean_score(score, before) - mean_score(score, after))
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
        groups=sums.groups(classes=classes),
    )
    return Scores(sqnr_db=worst_part(fidelity)[1], agreement=agreement, drop_pp=drop)


# --- Taking over the shipped model's scales, zero points and int8 values: what its bundle gives, and what came of
# it.


_OPTION = "--reuse-qparams-from"

_JUDGED = 128  # calibration samples at most that judge which int8 values may stay

_SCHEMES = NEEDS_CALIBRATION - NEEDS_SEARCH  # a search chooses other layers each time, and so other tensors


def check_reuse(job: Job) -> None:
    """Check before a long run that the shipped bundle is one for every target and scheme of the job.

    Raises:
        UsageError: it is not a bundle, has no report of its own, or is of another runtime, backend or scheme.
        UnsupportedError: its scheme has no ranges to reuse.
        IntegrityError: its files are not those that it lists.
    """
    if job.reuse_qparams_from is None:
        return
    bundle, _ = read_shipped(job.reuse_qparams_from)
    manifest, target = bundle.manifest, bundle.manifest.target
    has = (target.runtime, target.backend, manifest.scheme)
    for profile in job.all_targets:
        for scheme in job.schemes_of(profile):
            if scheme not in _SCHEMES:
                what = f"{_OPTION} supports {', '.join(sorted(_SCHEMES))}, but this run has {scheme}"
                raise UnsupportedError(what, "omit it, or give --scheme")
            if (profile.runtime, profile.backend, scheme) != has:
                what = f"{_OPTION}: {job.reuse_qparams_from} is {' '.join(has)}"
                what += f", but this run has {profile.runtime} {profile.backend} {scheme}"
                raise UsageError(what, "package each target in a separate run with its own shipped bundle")


def reuse_spec(folder: Path, inputs: Inputs, fp32: Forward, forward: Callable[[Any], Forward]) -> ReuseSpec:
    """Return what keeping a bundle's int8 values is given.

    Args:
        folder: the shipped model's bundle.
        inputs: the model and its data; calibration samples judge, since evaluation data decides nothing here.
        fp32: the float model.
        forward: makes a function from batches to outputs of a converted graph.

    Raises:
        UsageError, IntegrityError: as `check_reuse`.
        UnsupportedError: the artifact's layout differs from this edgeq's.
    """
    bundle, _ = read_shipped(folder)
    samples = dataclasses.replace(inputs.calibration, count=min(inputs.calibration.count, _JUDGED))
    return ReuseSpec(
        layers=shipped_layers(bundle.artifact, bundle.manifest.target.runtime),
        score=lambda graph: scores(samples, inputs, fp32, forward(graph)),
        samples=samples.count,
    )


def read_shipped(folder: Path) -> tuple[Bundle, tuple[QParams, ...]]:
    """Return a shipped bundle, and its scales and zero points; raises the errors of `check_reuse`."""
    bundle, row = read_bundle(folder), read_report(folder)
    fix = "give the folder that `edgeq package` wrote for the shipped model, with its report.json"
    if row.digest != bundle.digest:
        raise UsageError(f"{folder / 'report.json'} does not match the bundle beside it (different digest)", fix)
    if not row.qparams:
        what = f"{folder} holds no scales and zero points: an older edgeq wrote it, or its scheme has none"
        raise UsageError(what, fix)
    return bundle, row.qparams
