"""Parts of a project: every unit in one of them, and no part is missed when they are joined."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgeq.core.config import Job
from edgeq.core.errors import EdgeqError, ExitCode, IntegrityError, UsageError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import (
    AppOptions,
    DataFacts,
    ModelError,
    ModelResult,
    ProjectReport,
    RunReport,
    Shard,
)
from edgeq.core.targets import load_target
from edgeq.pipeline.publish import write_reports
from edgeq.pipeline.shards import SHARD_NAME, merge_shards, of_shard, parse_shard, write_shard
from pipeline.finished import made

TARGETS = tuple(
    map(load_target, ("android-arm64-xnnpack", "linux-arm64-xnnpack", "linux-x86_64-x86", "linux-x86_64-ort"))
)
JOBS = tuple(Job(source="digits", targets=TARGETS, name=name, install_into=(Path("app"),)) for name in "abc")


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/0", "1", "a/b", "-1/5", "1/20000", "1/2/3", ""])
def test_a_shard_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9, 20])
def test_every_unit_is_in_one_shard_and_those_that_share_artifacts_together(count: int) -> None:
    parts = [of_shard(JOBS, parse_shard(f"{index}/{count}")) for index in range(1, count + 1)]
    units = [(job.name, target.name) for part in parts for job in part for target in job.targets]
    assert sorted(units) == sorted((job.name, target.name) for job in JOBS for target in job.targets)
    for part in parts:
        for job in part:
            names = {target.name for target in job.targets}
            assert ("android-arm64-xnnpack" in names) == ("linux-arm64-xnnpack" in names)
            assert job.install_into == ()
    assert max(map(len, parts)) <= -(-9 // count), "evenly"


FINDINGS = (
    ModelError(what="no memory", fix="get some", exit_code=ExitCode.ENVIRONMENT),
    ModelError(what="no labels", fix="give some", exit_code=ExitCode.USAGE, key="data.evaluation"),
)


def shards(tmp_path: Path, item: BundleInput, jobs: tuple[Job, ...]) -> list[Path]:
    """Write two shards: one with a bundle of model a, one with an error of a and a bundle of b."""
    folders = []
    for index, names in ((1, ["a"]), (2, ["b"])):
        out = tmp_path / f"shard{index}"
        models = []
        for name in names:
            (out / name).mkdir(parents=True)
            row = dataclasses.replace(
                made(item, out / name / item.target.name, "1"), model=name, target=item.target.name
            )
            row = write_reports(row, DataFacts())
            models.append(ModelResult(name=name, report=RunReport(rows=(row,), data=DataFacts())))
        if index == 2:
            broken = ModelError(what="2 errors", fix="both", exit_code=ExitCode.ENVIRONMENT, several=FINDINGS)
            models.append(ModelResult(name="a", report=None, error=broken))
        write_shard(ProjectReport(models=tuple(models)), out, Shard(index=index, count=2), jobs)
        folders.append(out)
    return folders


@pytest.fixture
def folders(tmp_path: Path, item: BundleInput, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    # the bundle names its model in its manifest, which the report must not contradict
    monkeypatch.setattr("edgeq.pipeline.shards.read_source", _unchecked)
    return shards(tmp_path, item, JOBS[:2])


def _unchecked(folder: Path):
    from edgeq.bundle.reader import read_bundle
    from edgeq.bundle.run_report import read_report
    from edgeq.core.results.report import Source

    return Source(row=read_report(folder), manifest=read_bundle(folder).manifest)


def test_joined_shards_have_all_rows_and_errors_and_the_lowest_code(folders: list[Path], tmp_path: Path) -> None:
    report = merge_shards(folders[::-1], JOBS[:2], AppOptions(), tmp_path / "all")
    assert [(model.name, len(model.rows)) for model in report.models] == [("a", 1), ("b", 1)]
    assert report.models[0].error is not None
    assert report.models[0].error.findings == FINDINGS
    assert report.exit_code == ExitCode.ENVIRONMENT
    assert (tmp_path / "all" / "report.html").exists()
    assert all((row.path / "manifest.json").exists() and tmp_path / "all" in row.path.parents for row in report.rows)


@pytest.mark.parametrize(
    ("give", "error", "said"),
    [
        (lambda one, _: [one], UsageError, "of 2 shards, 1 are missing: 2/2"),
        (lambda one, _: [one, one], UsageError, "are both shard 1/2"),
        (lambda one, two: [one, two.parent], UsageError, "no shard in"),
        (lambda one, two: [one, rewritten(two, project="0" * 64)], UsageError, "another project"),
        (lambda one, two: [one, rewritten(two, count=3)], UsageError, "is one of 3 shards"),
        (lambda one, two: [one, rewritten(two, models="x")], IntegrityError, "edgeq's format"),
        (lambda one, two: [one, rewritten(two, path="../../etc")], IntegrityError, "edgeq's format"),
        (lambda one, two: [one, rewritten(two, digest="0" * 64)], IntegrityError, "another digest"),
        (lambda one, two: [one, rewritten(two, name="zz")], IntegrityError, "not in the project"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    folders: list[Path], give, error: type[EdgeqError], said: str
) -> None:
    with pytest.raises(error, match=said):
        merge_shards(give(*folders), JOBS[:2], AppOptions(), None)


def rewritten(folder: Path, **changes: object) -> Path:
    path = folder / SHARD_NAME
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if key in document:
            document[key] = value
        elif key == "name":
            document["models"][0]["name"] = value
        else:
            document["models"][0]["rows"][0][key] = value
    path.write_text(json.dumps(document))
    return folder


def test_a_shard_of_other_limits_or_other_files_is_refused(folders: list[Path], monkeypatch) -> None:
    strict = tuple(
        dataclasses.replace(job, gates=dataclasses.replace(job.gates, limits=(("size", 1.0),))) for job in JOBS[:2]
    )
    with pytest.raises(UsageError, match="another project, or of another state"):
        merge_shards(folders, strict, AppOptions(), None)
    document = json.loads((folders[1] / SHARD_NAME).read_text())
    (folders[1] / SHARD_NAME).write_text(json.dumps({**document, "content": "0" * 64}))
    with pytest.raises(UsageError, match="built of other files, or by another edgeq"):
        merge_shards(folders, JOBS[:2], AppOptions(), None)
