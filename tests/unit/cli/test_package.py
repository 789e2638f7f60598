"""`edgeq package` around a pipeline that is faked: the plan, the table, the exit code, what is installed where."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_items import changed

from edgeq.bundle.writer import write_bundle
from edgeq.cli.install import growth_text, install_rows
from edgeq.cli.main import run
from edgeq.core.errors import ExitCode, VerificationError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import DataFacts, RunReport
from edgeq.deliver.android import Growth
from edgeq.deliver.install import InstallResult, Within
from tests.unit.pipeline.finished import made

TARGET = ("--target", "android-arm64-xnnpack", "--on", "host")
PACKAGE = ("package", "digits", *TARGET)


@pytest.fixture
def installs(monkeypatch):
    """Record what would be installed instead of doing it."""
    calls: list[tuple[Path, Path]] = []

    def install(
        bundle_folder: Path,
        app: Path,
        *,
        aar: Path | None = None,
        digest: str | None = None,
        replace: bool = False,
        within: Within | None = None,
    ) -> InstallResult:
        calls.append((bundle_folder, app))
        return InstallResult(place=app / "models", files=("a", "b"), size_bytes=1234, digest="cd" * 32)

    monkeypatch.setattr("edgeq.deliver.install.install", install)
    return calls


def test_the_table_goes_to_stdout_and_progress_to_stderr(pipeline, project, capfd):
    assert run(PACKAGE) == 0
    out, err = capfd.readouterr()
    assert "android-arm64-xnnpack static-int8" in out
    assert "bundle: out/mobilenet_v2/android-arm64-xnnpack" in out
    lines = err.splitlines()
    assert lines[0].startswith("[  ")
    assert lines[-1].endswith("s] lowering android-arm64-xnnpack")


def test_quiet_says_nothing_but_the_result(pipeline, project, capfd):
    assert run([*PACKAGE, "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "android-arm64-xnnpack" in out


def test_the_exit_code_is_the_reports(pipeline, project, mixed, capfd):
    pipeline.report = mixed
    assert run(PACKAGE) == 4
    assert "failed: android-arm64-qnnpack" in capfd.readouterr().out


def test_json_is_one_document(pipeline, project, mixed, capfd):
    pipeline.report = mixed
    assert run([*PACKAGE, "--json"]) == 4
    document = json.loads(capfd.readouterr().out)
    assert document["exit_code"] == 4
    assert document["installed"] == []


def test_options_reach_the_job(pipeline, project):
    Path("edgeq.toml").write_text('seed = 3\ncache = false\n[limit]\nsize = "9MB"\nload = "1s"\n')
    options = (
        "--limit",
        "size=5MB",
        "--use-cache",
        "--keep-fp32",
        "a",
        "--keep-fp32",
        "b",
        "--num-calibration-samples",
        "9",
    )
    assert run([*PACKAGE, "-q", *options, "--input", "1x1x32x32", "-o", "dist"]) == 0
    (job,) = pipeline.jobs
    assert (job.source, job.seed, job.cache, job.out) == ("digits", 3, True, Path("dist"))
    assert job.gates.limits == (("size", 5e6), ("load", 1000.0))
    assert job.keep_fp32 == ("a", "b")
    assert (job.data.num_calibration_samples, job.inputs) == (9, ("1x1x32x32",))


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("package", "nope.pt2", *TARGET), "MODEL: no such file or folder: nope.pt2"),
        (("package", "nope.py:make", *TARGET), "MODEL: no such file or folder: nope.py"),
        (("package", "digit", *TARGET), "unknown model 'digit'. Did you mean 'digits'?"),
        (("package", "nope.py", *TARGET), "nope.py does not name a factory function"),
        (("package", "w.pth", *TARGET), "w.pth holds only weights, without a model"),
        ((*PACKAGE, "--weights", "w.pth"), "--weights: no such file or folder: w.pth"),
        ((*PACKAGE, "--calibration-data", "cal"), "--calibration-data: no such file or folder: cal"),
        ((*PACKAGE, "--eval-data", "e.py:data"), "--eval-data: no such file or folder: e.py"),
        ((*PACKAGE, "--metric", "m.py:score"), "--metric: no such file or folder: m.py"),
        ((*PACKAGE, "--scheme", "qat-int8", "--qat-train", "l.py:train"), "--qat-train: no such file or folder: l.py"),
        ((*PACKAGE, "--scheme", "qat-int8", "--qat-epochs", "0"), "--qat-epochs: Input should be greater"),
        (
            ("package", "torchvision:resnet18", *TARGET, "--metric", "m.py:score"),
            "--metric was given without --eval-data",
        ),
        ((*PACKAGE, "--scheme", "fp32", "--observer", "minmax"), "--observer is for schemes that calibrate"),
        ((*PACKAGE, "--qat-epochs", "2"), "--qat-epochs is for schemes that train"),
        ((*PACKAGE, "--labels", "l.txt"), "--labels: no such file or folder: l.txt"),
        ((*PACKAGE, "--preprocess", "imagent"), "unknown preprocessing 'imagent'. Did you mean 'imagenet'?"),
        ((*PACKAGE, "--input", "1y3"), "--input"),
        ((*PACKAGE, "--allow-unmeasured", "latncy"), "latncy: unknown gate. Did you mean 'latency'?"),
        ((*PACKAGE, "--store-limit", "play-base-modul"), "Did you mean 'play-base-module'?"),
        ((*PACKAGE, "--store-limit", "play-base-module"), "counts the app and the model together"),
        ((*PACKAGE, "--limit", "sise=5MB"), "unknown limit 'sise'. Did you mean 'size'?"),
        ((*PACKAGE, "--num-calibration-samples", "0"), "--num-calibration-samples: Input should be"),
        ((*PACKAGE, "--config", "x.toml"), "no file x.toml"),
        (("package", "torchvision:resnet18", *TARGET), "int8 ranges need real samples"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_bad_input_is_told_before_the_build(pipeline, project, capfd, argv, what, dry):
    assert run([*argv, *dry]) == 2
    assert pipeline.jobs == []
    assert what in capfd.readouterr().err
    assert list(project.iterdir()) == []


def test_a_dry_run_says_every_step_and_writes_nothing(pipeline, project, android_app, capfd):
    before = set(project.rglob("*"))
    options = ("--limit", "size=5MB", "--install-into", str(android_app), "--name", "net")
    assert run([*PACKAGE, "--target", "linux-x86_64-x86", "--dry-run", *options]) == 0
    out = capfd.readouterr().out
    for word in ("load", "quantize", "calibrate", "lower", "size <= 5.00 MB", "verify", "out/net/linux-x86_64-x86"):
        assert word in out
    assert out.count(f"install    {android_app}") == 1
    assert "calibration edgeq.demo.digits:calibration_data" in out
    assert pipeline.jobs == []
    assert set(project.rglob("*")) == before


def test_a_dry_run_as_json(pipeline, project, capfd):
    assert run([*PACKAGE, "--scheme", "fp32", "--dry-run", "--json"]) == 0
    (target,) = json.loads(capfd.readouterr().out)["plan"]["targets"]
    assert (target["target"], target["scheme"]) == ("android-arm64-xnnpack", "fp32")
    assert [step["step"] for step in target["steps"]] == ["lower", "check", "verify", "bundle"]


def test_a_dry_run_finds_a_wrong_name_without_torch(edgeq):
    done = edgeq(
        "package", "torchvision:resnet1", *TARGET, "--scheme", "fp32", "--dry-run", PYTHONPROFILEIMPORTTIME="1"
    )
    assert done.returncode == 2
    assert "error: torchvision has no model 'resnet1'. Did you mean 'resnet18'?" in done.stderr
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in modules
    assert "torch" not in modules


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_dry_run_writes_no_report_of_gates(project, capfd, option):
    assert run([*PACKAGE, "--dry-run", option, "report.out"]) == 2
    assert f"{option} shows what was built, but --dry-run builds nothing" in capfd.readouterr().err
    assert not Path("report.out").exists()


def test_rows_go_into_the_apps_of_their_platform(pipeline, project, android_app, installs, passing, capfd):
    first = passing.rows[0]
    host = replace(first, target="linux-x86_64-x86", path=Path("out/host"))
    pipeline.report = replace(passing, rows=(first, host))
    argv = [*PACKAGE, "--target", "linux-x86_64-x86", "--install-into", str(android_app), "-q"]
    assert run(argv) == 0
    assert installs == [(first.path, android_app)]
    assert f"installed: {android_app}/models (2 files, 1.23 kB, digest cdcdcdcdcdcd)" in capfd.readouterr().out


def test_nothing_is_installed_when_a_gate_failed(pipeline, project, android_app, installs, mixed):
    pipeline.report = mixed
    assert run([*PACKAGE, "--install-into", str(android_app), "-q"]) == 4
    assert installs == []


@pytest.mark.parametrize("as_json", [False, True])
def test_a_refused_install_keeps_the_report(pipeline, project, android_app, monkeypatch, capfd, as_json):
    def refuse(
        bundle_folder: Path,
        app: Path,
        *,
        aar: Path | None = None,
        digest: str | None = None,
        replace: bool = False,
        within: Within | None = None,
    ) -> InstallResult:
        raise VerificationError("random weights", "give --weights")

    monkeypatch.setattr("edgeq.deliver.install.install", refuse)
    assert run([*PACKAGE, "--install-into", str(android_app), "-q", *(["--json"] if as_json else [])]) == 7
    out, err = capfd.readouterr()
    assert err == "error: random weights\n  fix: give --weights\n"
    if as_json:
        document = json.loads(out)
        assert document["error"]["exit_code"] == 7
        assert len(document["rows"]) == 1
    else:
        assert "bundle: out/" in out


def test_apps_that_do_not_fit_are_told_before_the_build(pipeline, project, android_app, capfd):
    plain = project / "plain"
    plain.mkdir()
    cases = (
        ([*TARGET, "--install-into", str(plain)], "no app's project"),
        ([*TARGET, "--install-into", "gone"], "no such folder"),
        (["-t", "linux-x86_64-x86", "--install-into", str(android_app)], "no target of this run is for android"),
        ([*TARGET, "--scheme", "fp32", "--scheme", "static-int8", "--install-into", str(android_app)], "2 schemes"),
    )
    for options, what in cases:
        assert run(["package", "digits", *options]) == 2
        assert what in capfd.readouterr().err
    assert pipeline.jobs == []


def test_install_prints_where_it_went(project, installs, capfd):
    assert run(["install", "bundle", "--app", "app"]) == 0
    assert capfd.readouterr().out.startswith("installed: app/models (2 files")
    assert run(["install", "bundle", "--app", "app", "--json"]) == 0
    (entry,) = json.loads(capfd.readouterr().out)["installed"]
    assert (entry["place"], entry["files"], entry["size_bytes"]) == ("app/models", ["a", "b"], 1234)


@pytest.mark.parametrize("option", ["--name", "--model-version"])
@pytest.mark.parametrize("text", ["../evil", "a b", "мод", "", "x" * 65, "1.", "a\n"])
def test_a_name_that_no_bundle_can_have_is_refused_before_anything_runs(pipeline, project, capfd, option, text):
    assert run([*PACKAGE, option, text]) == 2
    assert f"{option} {text!r}: expected 1 to 64 of" in capfd.readouterr().err
    assert pipeline.jobs == []


@pytest.mark.parametrize("scheme", ["dynamic-int8", "weight-only-int8", "fp16"])
def test_a_dry_run_of_a_scheme_that_observes_nothing_does_not_calibrate(pipeline, project, capfd, scheme):
    assert run([*PACKAGE, "--scheme", scheme, "--dry-run", "--json"]) == 0
    (target,) = json.loads(capfd.readouterr().out)["plan"]["targets"]
    assert [step["step"] for step in target["steps"]] == ["quantize", "lower", "check", "verify", "bundle"]


def test_what_an_app_grows_by_is_one_line():
    known = Growth(
        abi="arm64-v8a", bundle_bytes=64_334, library="et.aar", library_bytes=5 * 10**6, compressed_bytes=10**6
    )
    assert growth_text(known) == "arm64-v8a: bundle 64.3 kB + et.aar 5.00 MB (1.00 MB compressed) = 5.06 MB"
    unknown = dataclasses.replace(known, library=None, library_bytes=None, compressed_bytes=None)
    assert growth_text(unknown).startswith("arm64-v8a: bundle 64.3 kB, runtime library not known")


def test_a_dry_run_of_training_tells_how_it_starts(capsys) -> None:
    assert run([*PACKAGE, "--target", "linux-x86_64-ort", "--scheme", "qat-int8", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "PT2E, written as QuantizeLinear" in said
    assert "distil fp32" in said


def test_only_the_bundle_that_was_judged_is_installed(item: BundleInput, tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "app").mkdir(parents=True)
    (app / "settings.gradle").write_text("include ':app'")
    (app / "app/build.gradle").write_text('plugins { id("com.android.application") }')
    row = made(item, tmp_path / "bundle", "1")
    row = dataclasses.replace(row, target=item.target.name)
    write_bundle(changed(item, model_version="2"), row.path)  # another run, into the same folder
    done, problem = install_rows(RunReport(rows=(row,), data=DataFacts()), {app: (row.target,)})
    assert done == ()
    assert problem is not None
    assert (problem.exit_code, row.digest in problem.what) == (ExitCode.INTEGRITY, True)
    assert not (app / "app/src/main/assets").exists()


def test_a_view_that_cannot_be_written_leaves_one_document(pipeline, project, capfd):
    (project / "file").touch()
    assert run([*PACKAGE, "--json", "--junit", "file/junit.xml"]) == 2
    document = json.loads(capfd.readouterr().out)
    assert (document["error"]["exit_code"], "rows" in document) == (2, False)
    assert run([*PACKAGE, "--junit", "file/junit.xml"]) == 2
    assert "android-arm64-xnnpack static-int8" in capfd.readouterr().out  # people see both
