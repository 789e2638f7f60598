"""`edgeq doctor MODEL`: which target × scheme pairs work for a model, on a few samples."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import Job, Progress
from edgeq.core.lazy import np
from edgeq.core.preprocess import load_preprocess
from edgeq.core.results.report import gate_text
from edgeq.core.samples import fixed_at, tried_sizes
from edgeq.core.schemes import NEEDS_SEARCH, NEEDS_TRAINING, SchemeName
from edgeq.core.targets import TargetProfile
from edgeq.load.inputs import parse_states, random_inputs
from edgeq.pipeline.cache import job_facts, unit_of
from edgeq.pipeline.package import build_units
from edgeq.pipeline.plan import BuildUnit, Results, Run
from edgeq.pipeline.preflight import preflight
from edgeq.pipeline.prepare import load_job_model
from edgeq.verify.children import calm_openmp, use_torch

# they train or search for minutes, and start from what static-int8 makes
NOT_TRIED: frozenset[SchemeName] = NEEDS_TRAINING | NEEDS_SEARCH

_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What became of one target with one scheme.

    Attributes:
        outcome: refused: it could not be built; failed: a gate that needs no labels failed.
        why: the refusal, or the names of the gates; empty if it works.
        fix: what to do about a refusal; empty otherwise.
        size_bytes: of the artifact; None if there is none.
    """

    target: str
    scheme: str
    outcome: Literal["ok", "failed", "refused"]
    why: str
    fix: str
    exit_code: int
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What was tried for a model; `data` says on which samples."""

    model: str
    data: str
    pairs: tuple[Pair, ...]

    @property
    def exit_code(self) -> int:
        """0 if any pair works, else the lowest of all."""
        return min((pair.exit_code for pair in self.pairs), default=0)


def schemes_to_try(target: TargetProfile) -> tuple[SchemeName, ...]:
    """Return the schemes of a target that take no minutes."""
    return tuple(scheme for scheme in target.schemes if scheme not in NOT_TRIED and scheme != "pretrained")


def try_pairs(job: Job, progress: Progress) -> Pairs:
    """Build and run a job's model for all its targets with all their schemes, and publish nothing.

    Accuracy is not judged. Without calibration data, int8 ranges are those of random inputs, so that only what does
    not depend on them is worth something: that a pair exports, lowers, loads and runs.

    Raises:
        EdgeqError: what concerns all pairs alike: the model, its inputs, the data, this machine.
    """
    calm_openmp()
    use_torch()
    job = with_demo_data(job)
    with tempfile.TemporaryDirectory(prefix="edgeq-doctor-") as name:
        work = Path(name)
        told = f"{_SAMPLES} samples of {job.data.calibration}"
        if job.data.calibration is None:
            with progress.task("load the model"):
                job = _with_random_data(job, work / "random.npz")
            told = f"{_SAMPLES} random inputs, since no --calibration-data was given"
        data = dataclasses.replace(job.data, evaluation=None, metric=None, num_calibration_samples=_SAMPLES)
        job = dataclasses.replace(job, data=data, out=work / "out", cache=False)
        preflight(dataclasses.replace(job, schemes=("fp32",)))
        facts = job_facts(job)
        units = [unit_of(job, facts, target, scheme) for target in job.all_targets for scheme in schemes_to_try(target)]
        results = build_units(Run(job=job, facts=facts, work=work, progress=progress), units)
        pairs = tuple(_pair(unit, results) for unit in units)
    return Pairs(model=job.name or job.source, data=told, pairs=pairs)


def _pair(unit: BuildUnit, results: Results) -> Pair:
    target, scheme = unit.target.name, unit.scheme
    if (err := results.refused.get(unit.key)) is not None:
        code = int(err.exit_code)
        return Pair(
            target=target, scheme=scheme, outcome="refused", why=err.what, fix=err.fix, exit_code=code, size_bytes=None
        )
    row, _ = results.finished[unit.key]
    failed = [gate for gate in row.checked.gates if gate.outcome == "failed"]
    return Pair(
        target=target,
        scheme=scheme,
        outcome="failed" if failed else "ok",
        why="; ".join(f"{gate.name}: {gate_text(gate)}" for gate in failed),
        fix="",
        exit_code=min((int(gate.exit_code) for gate in failed), default=0),
        size_bytes=row.size_bytes,
    )


def _with_random_data(job: Job, path: Path) -> Job:
    """Write random inputs of the model, and name them as the calibration data of the job."""
    model = load_job_model(job)
    spec = load_preprocess(job.data.preprocess) if job.data.preprocess is not None else model.preprocess
    (largest, *_) = tried_sizes(model.inputs) or ({},)  # an .npz has samples of one size
    inputs = fixed_at(model.inputs, largest)
    states = parse_states(job.state)
    drawn = random_inputs(inputs, _SAMPLES, job.seed, None if spec is None else spec.value_range)
    columns = zip(*(sample.inputs for sample in drawn), strict=True)
    arrays: dict[str, Any] = {
        # of a model with state, one sequence whose steps are the samples
        one.name: np.stack(column)[None] if states else np.concatenate(column)
        for one, column in zip(inputs, columns, strict=True)
        if one.name not in states
    }
    np.savez(path, **arrays)
    return dataclasses.replace(job, data=dataclasses.replace(job.data, calibration=str(path), lint="warn"))
