"""Target files of one's own, `edgeq.toml`, several schemes, `--dry-run` and `--json`."""

from __future__ import annotations

from pathlib import Path

from edgeq.bundle.reader import read_bundle

from .conftest import X86, Project, Run, command


def test_a_target_file_extends_another_and_names_the_folder(package: Run, project: Project) -> None:
    Path("kiosk.toml").write_text(f'extends = "{X86}"\nname = "kiosk"\n[device]\nthreads = 1\n')
    args = command(target="kiosk.toml")
    assert package(*args, "--scheme", "fp32", base=False).code == 0
    manifest = read_bundle(project.out / "quarters" / "kiosk").manifest
    assert (manifest.target.name, manifest.target.backend, manifest.threads) == ("kiosk", "x86", 1)


def test_the_command_line_wins_over_the_project_file(package: Run, project: Project) -> None:
    Path("edgeq.toml").write_text(
        f'model = "quarters.py:model"\ntargets = ["{X86}"]\nschemes = ["fp32"]\nout = "bundles"\n'
        'name = "from-file"\nmodel_version = "7"\n'
        '[data]\ncalibration = "calibration.npz"\nevaluation = "evaluation.npz"\n'
        '[limit]\nsize = "1 kB"\nload = "60 s"\n'
    )
    result = package("--name", "from-line", "--limit", "size=1MB", "--json", base=False)
    assert result.code == 0, result.out
    assert {gate["name"] for gate in result.json["rows"][0]["gates"]} >= {"size", "load"}
    manifest = read_bundle(project.root / "bundles" / "from-line" / X86).manifest
    assert (manifest.model.name, manifest.model.version) == ("from-line", "7")
    assert not project.out.exists()


def test_several_schemes_lie_beside_each_other(package: Run, project: Project) -> None:
    result = package("--scheme", "fp32", "--scheme", "static-int8", "--json")
    assert result.code == 0, result.out
    assert [(row["scheme"], row["path"]) for row in result.json["rows"]] == [
        (scheme, f"out/quarters/{X86}@{scheme}") for scheme in ("fp32", "static-int8")
    ]
    schemes = [read_bundle(path).manifest.scheme for path in sorted((project.out / "quarters").iterdir())]
    assert schemes == ["fp32", "static-int8"]
    row = result.json["rows"][1]
    assert row["verified"]["parity"]["samples"] > 0
    assert set(row) == {
        *("model", "target", "scheme", "path", "digest", "passed", "exit_code", "weights", "cached", "size_bytes"),
        *("download_bytes", "fp32_bytes", "delegated_macs", "verified", "gates", "warnings", "seconds"),
        *("reuse", "search", "auto", "default", "fastest", "compared", "layer_sqnrs", "zeros"),
    }
    assert (result.json["exit_code"], result.json["installed"]) == (0, [])
    assert result.json["data"]["evaluation_samples"] == 100


def test_a_dry_run_writes_nothing(package: Run, project: Project) -> None:
    before = project.names(project.root)
    result = package("--dry-run", "--limit", "size=1MB", cache=True)
    assert result.code == 0
    assert "nothing is written" in result.out
    assert project.names(project.root) == before
    assert not project.cache.exists()
