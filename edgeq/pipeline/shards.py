"""`edgeq build --shard I/N` and `edgeq report merge`: one project on several machines that share nothing.

Every machine reads the same edgeq.toml, and takes each N-th part of it; targets that share artifacts stay together.
The result of a shard is in OUT/shard.json. Merging refuses shards of another project and missing ones, and judges the
app as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.config.resolve import among_several
from edgeq.core.config import REJECTED_NAME, Job
from edgeq.core.errors import ExitCode, IntegrityError, UsageError
from edgeq.core.files import (
    canonical_json,
    copy_files,
    disk_errors,
    lock_dir,
    remove_dir,
    sha256_bytes,
    sha256_file,
    staged_dir,
    write_atomic,
)
from edgeq.core.results.report import (
    AppOptions,
    DataFacts,
    ModelError,
    ModelResult,
    PackageResult,
    Project,
    ProjectReport,
    Refusal,
    RunReport,
    Shard,
)
from edgeq.core.system import edgeq_digest
from edgeq.pipeline.cache import job_options, named_files
from edgeq.pipeline.project import judged
from edgeq.pipeline.reports import read_source, write_index

SHARD_NAME = "shard.json"

_MOST_SHARDS = 10_000


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Row(_Document):
    path: str = Field(pattern=r"^[^/.][^/]*(/[^/.][^/]*){1,2}$", description="below OUT")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Error(_Document):
    what: str
    fix: str
    exit_code: int = Field(ge=1, le=255)
    key: str = ""
    several: list[_Error] = []


class _Refused(_Document):
    model: str
    target: str
    scheme: str
    error: _Error


class _Model(_Document):
    name: str
    rows: list[_Row] = []
    refused: list[_Refused] = []
    error: _Error | None = None


class _ShardFile(_Document):
    """shard.json."""

    schema_version: Literal[1] = 1
    index: int = Field(ge=1)
    count: int = Field(ge=1)
    project: str
    content: str
    models: list[_Model]


def parse_shard(text: str) -> Shard:
    """Return the shard that `I/N` names.

    Raises:
        UsageError: it has another form, or I is not within 1..N.
    """
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if found is None:
        raise UsageError(f"--shard: expected I/N, got {text!r}", "for example --shard 2/5, the second of five")
    index, count = int(found[1]), int(found[2])
    if not 1 <= index <= count <= _MOST_SHARDS:
        what = f"--shard {text}: the shards of {count} are 1/{count} to {count}/{count}"
        raise UsageError(what, "give a shard in that range, and no more than 10,000 shards")
    return Shard(index=index, count=count)


def of_shard(jobs: Sequence[Job], shard: Shard) -> tuple[Job, ...]:
    """Return a shard's part of a project: each job with its targets there, without the jobs that have none.

    The parts are (model, runtime, backend) in the project's order: equal files give equal parts on every machine.

    Raises:
        UsageError: a target stands for several, and times of one machine choose one.
    """
    for group in (group for job in jobs for group in job.groups):
        what = f"--shard: {group.name} is chosen by times of one machine, but the machines of shards may differ"
        named = ", ".join(one.name for one in group.candidates)
        raise UsageError(what, f"build the project on one machine, or name one of its candidates: {named}")
    parts = [
        (number, kind)
        for number, job in enumerate(jobs)
        for kind in dict.fromkeys((target.runtime, target.backend) for target in job.targets)
    ]
    mine = set(parts[shard.index - 1 :: shard.count])
    found = []
    for number, job in enumerate(jobs):
        targets = tuple(target for target in job.targets if (number, (target.runtime, target.backend)) in mine)
        if targets:
            found.append(among_several(dataclasses.replace(job, targets=targets, install_into=())))
    return tuple(found)


def fingerprint(jobs: Sequence[Job]) -> str:
    """Hash what a project builds, with which options and limits, to tell shards of one from those of another."""
    units = [
        [job.name or job.source, target.model_dump(mode="json"), scheme, job_options(job)]
        for job in jobs
        for target in job.targets
        for scheme in job.schemes_of(target)
    ]
    return sha256_bytes(canonical_json(units))


def content_of(jobs: Sequence[Job]) -> str:
    """Hash edgeq itself and the files that a project's options name: of one project all shards are made of the same."""
    sources = [Path(job.source.partition(":")[0]) for job in jobs]
    files = [{path.name: sha256_file(path)} for path in sources if path.is_file()]
    return sha256_bytes(canonical_json([edgeq_digest(), files, [named_files(job) for job in jobs]]))


def write_shard(report: ProjectReport, out: Path, shard: Shard, whole: Sequence[Job]) -> None:
    """Write shard.json beside the bundles; `whole` is the project with all its models and targets."""
    models = [
        _Model(
            name=model.name,
            rows=[_Row(path=row.path.relative_to(out).as_posix(), digest=row.digest) for row in model.rows],
            refused=[
                _Refused(model=one.model, target=one.target, scheme=one.scheme, error=_error(one.error))
                for one in model.refused
            ],
            error=None if model.error is None else _error(model.error),
        )
        for model in report.models
    ]
    document = _ShardFile(
        index=shard.index, count=shard.count, project=fingerprint(whole), content=content_of(whole), models=models
    )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / SHARD_NAME, canonical_json(document.model_dump(mode="json")))


def _error(error: ModelError) -> _Error:
    several = [_error(one) for one in error.several]
    return _Error(what=error.what, fix=error.fix, exit_code=int(error.exit_code), key=error.key, several=several)


def merge_shards(folders: Sequence[Path], jobs: Sequence[Job], app: AppOptions, out: Path | None) -> ProjectReport:
    """Return the report of a project from its shards, judged as a whole.

    Args:
        folders: the output folders of the shards, each with its shard.json.
        jobs: the project's, from its edgeq.toml.
        app: the limits of the app as a whole.
        out: takes all bundles and the page; None to leave the bundles where they are.

    Raises:
        UsageError: a folder has no shard.json, a shard is missing or there twice, or is of another project.
        IntegrityError: a shard.json does not have edgeq's format, or a bundle is not the one that its shard built.
        EnvironmentProblem: `out` cannot be written to.
    """
    shards = [(folder, _read(folder)) for folder in folders]
    _check(shards, fingerprint(jobs))
    known = {job.name or job.source: job for job in jobs}
    parts: dict[str, list[tuple[Path, _Model]]] = {name: [] for name in known}
    for folder, shard in sorted(shards, key=lambda one: one[1].index):
        for model in shard.models:
            if model.name not in parts:
                raise IntegrityError(
                    f"{folder / SHARD_NAME} names the model {model.name!r}, which is not in the project",
                    "build that shard again",
                )
            parts[model.name].append((folder, model))
    results = []
    for name, several in parts.items():
        rows = [_row(folder, row) for folder, model in several for row in model.rows]
        errors = [_model_error(model.error) for _, model in several if model.error is not None]
        refused = tuple(
            Refusal(model=one.model, target=one.target, scheme=one.scheme, error=_model_error(one.error), stays=None)
            for _, model in several
            for one in model.refused
        )
        order = [target.name for target in known[name].targets]
        for row in rows:
            if row.target not in order:
                what = f"{row.path} is for {row.target}, but {name} has no such target in the project"
                raise IntegrityError(what, "build that shard again")
        rows.sort(key=lambda row: order.index(row.target))
        built = RunReport(rows=tuple(rows), data=DataFacts(), refused=refused) if rows else None
        error = min(errors, key=lambda one: one.exit_code, default=None)
        found = tuple(dict.fromkeys(finding for one in errors for finding in one.findings))
        if error is not None and len(found) > 1:
            error = dataclasses.replace(error, several=found)
        results.append(ModelResult(name=name, report=built, error=error))
    if out is not None:
        results = _collected(results, out)
    report = judged(Project(jobs=tuple(jobs), out=out or Path(), app=app), results)
    if out is not None:
        broken = [model for model in report.models if model.error is not None]
        write_index(out, report.rows, DataFacts(), app=report.app, broken=broken, refused=report.refused)
    return report


def _read(folder: Path) -> _ShardFile:
    path = folder / SHARD_NAME
    try:
        data = path.read_bytes()
    except OSError as err:
        what = f"no shard in {folder}: {path.name}: {err.strerror}"
        raise UsageError(what, "give the output folders of `edgeq build --shard I/N`") from err
    try:
        return _ShardFile.model_validate(json.loads(data))
    except (ValidationError, ValueError) as err:
        raise IntegrityError(f"{path} does not have edgeq's format", "build that shard again") from err


def _check(shards: Sequence[tuple[Path, _ShardFile]], project: str) -> None:
    """Refuse shards that are not all of one project, each once."""
    first_folder, first = shards[0]
    places: dict[int, Path] = {}
    for folder, shard in shards:
        if shard.project != project:
            what = f"{folder} is a shard of another project, or of another state of its edgeq.toml"
            raise UsageError(what, "build all shards from one edgeq.toml, and merge them with it (--config)")
        if shard.content != first.content:
            what = f"{folder} and {first_folder} were built of other files, or by another edgeq"
            raise UsageError(what, "build all shards from one checkout, with one edgeq")
        if shard.count != first.count:
            what = f"{folder} is one of {shard.count} shards, {first_folder} one of {first.count}"
            raise UsageError(what, "give the shards of one run")
        if shard.index in places:
            what = f"{places[shard.index]} and {folder} are both shard {shard.index}/{shard.count}"
            raise UsageError(what, "give each shard once")
        places[shard.index] = folder
    missing = [f"{index}/{first.count}" for index in range(1, first.count + 1) if index not in places]
    if missing:
        what = f"of {first.count} shards, {len(missing)} are missing: {', '.join(missing[:10])}"
        raise UsageError(what, "give all output folders; a shard that did not end has no shard.json: build it again")


def _row(folder: Path, row: _Row) -> PackageResult:
    found = read_source(folder / row.path).row
    if found.digest != row.digest:
        what = f"{folder / row.path} is not the bundle that the shard built: it has another digest"
        raise IntegrityError(what, "build that shard again")
    return found


def _model_error(error: _Error) -> ModelError:
    several = tuple(_model_error(one) for one in error.several)
    return ModelError(
        what=error.what, fix=error.fix, exit_code=ExitCode(error.exit_code), key=error.key, several=several
    )


def _collected(results: Sequence[ModelResult], out: Path) -> list[ModelResult]:
    """Copy all bundles below one folder."""
    found = []
    with disk_errors(out), lock_dir(out, wait_s=0):
        for model in results:
            rows = []
            for row in model.rows:
                depth = 3 if row.path.parents[1].name == REJECTED_NAME else 2
                place = out.joinpath(*row.path.parts[-depth:])
                with staged_dir(place, below=out) as staging:
                    copy_files(row.path, staging)
                # an earlier merge may have left the other verdict's bundle
                names = row.path.parts[-2:]
                remove_dir(out.joinpath(*names) if depth == 3 else out.joinpath(REJECTED_NAME, *names), below=out)
                rows.append(dataclasses.replace(row, path=place))
            report = None if model.report is None else dataclasses.replace(model.report, rows=tuple(rows))
            found.append(dataclasses.replace(model, report=report))
    return found
