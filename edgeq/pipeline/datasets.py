"""The run's data by role: opened, split, linted, and counted for the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import DataFacts, LoadedModel
from edgeq.errors import UsageError
from edgeq.job import Job
from edgeq.samples import Dataset, remembered
from edgeq.scheme import NEEDS_SEARCH, NEEDS_TRAINING

if TYPE_CHECKING:
    from edgeq.preprocess import Preprocess

_Wanted = tuple[Any, str | None, int | None]
_MEMO_BYTES = 128 * 10**6  # a set: 128 images of 224 x 224, preprocessed and raw
NO_SAMPLES = Dataset(origin="none", count=0, read=lambda i: _nothing(i))


def _nothing(i: int) -> Any:
    raise IndexError(i)


def open_data(
    job: Job,
    model: LoadedModel,
    preprocess: Preprocess | None,
    n_classes: int | None,
    schemes: Collection[str],
) -> tuple[dict[str, Dataset], DataFacts]:
    """Return the sets by role, `calibration` always among them, and what the manifest says of them.

    Args:
        job: which data, and how strict.
        model: takes the samples.
        preprocess: how images become inputs; None where arrays are fed as they are.
        n_classes: how many classes the first output tells apart; None where it is no logits [N, classes].
        schemes: some need a set of their own.

    Raises:
        UsageError: data that cannot be read or does not fit, or a finding of the lint.
    """
    wanted: list[_Wanted] = [
        ("calibration", job.data.calibration, job.data.num_calibration_samples),
        ("evaluation", job.data.evaluation, None),
        *_also(job, schemes),
    ]
    opened, skipped = _opened(job, model, preprocess, n_classes, wanted)
    if "search" in opened:
        from edgeq.pipeline.searching import split_search

        opened |= split_search(opened["calibration"], opened["search"], job)
    opened, facts = _linted(job, model, preprocess, opened, n_classes)
    return opened, _counted(facts, opened, skipped)


def _opened(
    job: Job, model: LoadedModel, preprocess: Preprocess | None, n_classes: int | None, wanted: Sequence[_Wanted]
) -> tuple[dict[str, Dataset], list[str]]:
    """Return the sets that were named, by role, and the names of images that were skipped as bad."""
    from edgeq.load.data import open_dataset
    from edgeq.load.labels import check_classes

    opened: dict[str, Dataset] = {"calibration": NO_SAMPLES}
    skipped: list[str] = []
    for role, origin, limit in wanted:
        if origin is None:
            continue
        data, left_out = open_dataset(
            origin, role=role, specs=model.inputs, preprocess=preprocess, options=job.data, limit=limit, seed=job.seed
        )
        opened[role] = remembered(data, _MEMO_BYTES)
        skipped += left_out
        if n_classes is not None:
            check_classes(data.class_names, n_classes, from_file=job.data.labels is not None)
    return opened, skipped


def _counted(facts: DataFacts, opened: Mapping[str, Dataset], skipped: Sequence[str]) -> DataFacts:
    """Return the facts with what each set is and how many samples it has."""
    from edgeq.load.digest import dataset_sha256

    hashes = {role: dataset_sha256(data) for role, data in opened.items() if data.count}
    counts = {role: data.count for role, data in opened.items()}
    return dataclasses.replace(
        facts,
        calibration_sha256=hashes.get("calibration"),
        calibration_samples=counts["calibration"],
        evaluation_sha256=hashes.get("evaluation"),
        evaluation_samples=counts.get("evaluation", 0),
        qat_sha256=hashes.get("qat"),
        search_sha256=hashes.get("search"),
        search_samples=counts.get("search", 0),
        skipped=tuple(dict.fromkeys(skipped)),
    )


def _also(job: Job, schemes: Collection[str]) -> list[_Wanted]:
    """Return the sets that only some schemes need."""
    data = job.data
    wanted: list[_Wanted] = []
    if not NEEDS_TRAINING.isdisjoint(schemes):
        wanted.append(("qat", job.qat.data or data.calibration, job.qat.samples))
    if not NEEDS_SEARCH.isdisjoint(schemes):
        # of the calibration data so many are asked for that enough are left
        most = data.num_search_samples + data.num_calibration_samples
        wanted.append(("search", data.search or data.calibration, most))
    return wanted


def _linted(
    job: Job,
    model: LoadedModel,
    preprocess: Preprocess | None,
    opened: dict[str, Dataset],
    n_classes: int | None,
) -> tuple[dict[str, Dataset], DataFacts]:
    """Refuse bad data, or with `--data-lint warn` tell of it and leave shared samples out of the evaluation."""
    from edgeq.load.digest import exclude
    from edgeq.load.lint import LintSpec, lint

    evaluation, training, search = (opened.get(role) for role in ("evaluation", "qat", "search"))
    findings = lint(
        opened["calibration"] if opened["calibration"].count else None,
        evaluation,
        training,
        search,
        spec=LintSpec(
            wanted=job.data.num_calibration_samples,
            preprocess=preprocess,
            specs=model.inputs,
            n_classes=n_classes,
            declared=bool(job.inputs),
        ),
    )
    if findings and job.data.lint == "error":
        told = "; ".join(f"{finding.name}: {finding.message}" for finding in findings)
        raise UsageError(f"the data lint found {told}", "mend the data, or give --data-lint warn to go on all the same")
    excluded = 0
    if evaluation is not None and any(finding.name == "shared-with-evaluation" for finding in findings):
        before = evaluation.count
        seen = (opened["calibration"], *(data for data in (training, search) if data is not None))
        evaluation = exclude(evaluation, frozenset(sample.digest for data in seen for sample in data))
        excluded = before - evaluation.count
    kept = {role: data for role, data in opened.items() if role != "evaluation"}
    if evaluation is not None and evaluation.count:
        kept["evaluation"] = evaluation
    return kept, DataFacts(findings=findings, excluded_shared=excluded)
