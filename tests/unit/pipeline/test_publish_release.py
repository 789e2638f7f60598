"""The download size stands in the very file that it is the size of."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from bundle_items import changed

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.core.config import GateOptions, Job
from edgeq.core.errors import ExitCode
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import CheckReport, PackageResult
from edgeq.pipeline import publish
from edgeq.pipeline.plan import BuildUnit


def bundled(item: BundleInput, folder: Path, limit: int | None = None, version: str = "1") -> PackageResult:
    limits = () if limit is None else (("download", float(limit)),)
    job = Job(
        source="m.py:make",
        targets=(item.target,),
        out=folder,
        model_version=version,
        gates=GateOptions(limits=limits),  # type: ignore[arg-type]
    )
    unit = BuildUnit(target=item.target, scheme=item.scheme, key="")
    return publish.write_result(unit, item.artifact, item.inputs, job, folder)


def test_equal_to_the_limit_passes_and_a_byte_more_fails(item: BundleInput, tmp_path: Path) -> None:
    """The limit stands in the manifest, which is part of the size: search for one that meets itself."""
    size = bundled(item, tmp_path / "free").download_bytes
    exact, over = 0, 0
    # whether a limit meets itself is chance: the digits of another version deflate otherwise
    for version, limit in itertools.product(("1", "2", "33"), range(size - 20, size + 40)):
        row = bundled(item, tmp_path / f"{version}-{limit}", limit, version)
        published = len(bundle_zip(row.path))
        gate = next(gate for gate in row.checked.gates if gate.name == "download")
        assert row.download_bytes == published
        assert read_bundle(row.path).digest == row.digest
        assert read_bundle(row.path).manifest.accepted == (row.checked.exit_code == ExitCode.OK)
        if gate.outcome == "ok":
            assert published <= limit
            exact += published == limit
        else:
            assert published >= limit  # as large as the limit only where the accepted form is larger
            over += published <= limit + 2  # a refusal's own text deflates to a byte or two more
    assert exact, "no limit in reach meets itself"
    assert over, "no limit in reach is missed by a byte"


def test_a_size_that_its_own_verdict_changes_counts_as_the_larger() -> None:
    """Accepted it is 101 bytes, rejected 99, and the limit is 100: it must not be accepted."""
    told = []

    def write(judged: int) -> tuple[CheckReport, str, int]:
        told.append(judged)
        passed = judged <= 100
        return CheckReport(gates=(), warnings=("ok" if passed else "too big",)), "digest", 101 if passed else 99

    checked, _, size = publish._settled(write)
    assert checked.warnings == ("too big",)
    assert size == 99
    assert told[-1] == 101


def test_the_first_round_settles_where_no_limit_is_set(item: BundleInput, tmp_path: Path) -> None:
    row = bundled(item, tmp_path / "bundle")
    assert row.download_bytes == len(bundle_zip(row.path))
    assert row.size_bytes == item.artifact.lowered.path.stat().st_size


def test_random_weights_are_warned_of(item: BundleInput, tmp_path: Path) -> None:
    random = changed(item, model=dataclasses.replace(item.inputs.model, weights="random"))
    row = bundled(random, tmp_path / "bundle")
    assert row.weights == "random"
    assert "random" in row.checked.warnings[0]


def test_a_bad_version_is_a_usage_error(item: BundleInput, tmp_path: Path) -> None:
    from edgeq.core.errors import UsageError

    with pytest.raises(UsageError, match="version") as caught:
        bundled(item, tmp_path / "bundle", version="../1")
    assert caught.value.exit_code == ExitCode.USAGE
