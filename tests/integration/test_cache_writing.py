"""What a run keeps in the cache, and a cache that cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeq.bundle.reader import read_bundle

from .conftest import X86, Project, Run


def test_a_rejected_result_is_kept_too_and_stays_rejected(project: Project, package: Run) -> None:
    args = ("--scheme", "fp32", "--limit", "size=1kB", "--json")
    first, again = package(*args, cache=True), package(*args, cache=True)
    assert first.code == again.code == 4
    assert again.json["rows"][0]["cached"]
    assert sorted(path.name for path in project.out.iterdir()) == ["rejected"]


def test_a_file_that_changes_during_the_run_is_not_kept(project: Project, package: Run) -> None:
    Path("own.py").write_text(
        "from pathlib import Path\nfrom quarters import example_inputs, model as plain\n\n\n"
        "def model():\n    gain = float(Path('gain.txt').read_text())\n    Path('gain.tmp').write_text('2')\n"
        "    Path('gain.tmp').rename('gain.txt')\n    return plain()\n"
    )
    Path("gain.txt").write_text("1")
    args = ("own.py:model", "-t", X86, "-o", "out", "--scheme", "fp32")
    assert package(*args, base=False, cache=True).code == 0
    assert not project.cache.exists()


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    project: Project, package: Run, small_disk: Callable[[Path, str], Path]
) -> None:
    small_disk(project.cache, "16k")
    (project.cache / "ballast").write_bytes(bytes(12_000))
    result = package("--scheme", "fp32", "--json", cache=True)
    assert result.code == 0, result.err
    assert any("not kept in the cache" in text for text in result.json["rows"][0]["warnings"])
    assert read_bundle(project.out / "quarters" / X86).manifest.accepted


def test_a_cache_folder_that_is_a_file_costs_a_warning_only(project: Project, package: Run) -> None:
    project.cache.write_text("in the way")
    result = package("--scheme", "fp32", "--json", cache=True)
    assert result.code == 0, result.err
    assert any("not kept in the cache" in text for text in result.json["rows"][0]["warnings"])
