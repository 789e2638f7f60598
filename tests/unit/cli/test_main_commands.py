"""The small commands: targets, cache, doctor; and progress on and off a terminal."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from edgeq.cli import doctor as doctor_command
from edgeq.cli.console import open_progress
from edgeq.cli.main import run
from edgeq.core import profiles
from edgeq.core.profiles import group_files, profile_files
from edgeq.core.system import install_command
from edgeq.core.targets import load_target
from edgeq.report.progress import Bars, Lines, Quiet

ROOT = Path(__file__).parents[3]


def test_no_arguments_print_the_help(capfd):
    assert run([]) == 0
    assert "package" in capfd.readouterr().out


def test_version(capfd):
    assert run(["--version"]) == 0
    assert capfd.readouterr().out == "edgeq 0.1.0\n"


def test_targets_list_has_every_profile(capfd):
    assert run(["targets", "list"]) == 0
    names = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert names == [*profile_files(), *group_files()]
    assert run(["targets", "list", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    (group,), listed = document["groups"], document["targets"]
    assert group["name"] == "linux-x86_64-fastest"
    assert set(group["candidates"]) < {entry["name"] for entry in listed}
    assert [entry["name"] for entry in listed] == list(profile_files())
    board = next(entry for entry in listed if entry["name"] == "linux-arm64-ort")
    assert (board["accelerator"], board["verified_by"]) == ("CPU", "emulator")
    assert (board["emulated_cpus"], board["oldest_runtime"]) == (["cortex-a72", "cortex-a76"], "1.20")
    assert all(entry["app_adds"] for entry in listed)


@pytest.mark.parametrize("name", list(profile_files()))
def test_targets_show_prints_a_profile_that_means_the_same(project, capfd, name):
    assert run(["targets", "show", name]) == 0
    text = capfd.readouterr().out
    Path("shown.toml").write_text(text)
    assert load_target("shown.toml") == load_target(name).model_copy(update={"extends": None})
    assert run(["targets", "show", name, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["target"]
    if found["runtime"] != "onnx":  # keys of --json stay, but people need not read what only ONNX Runtime has
        assert found.pop("file_format") == "onnx"
        assert found["app"].pop("build") == "full"
    assert found == tomllib.loads(text)


def test_targets_validate(project, capfd):
    Path("mine.toml").write_text('name = "mine"\nextends = "ios-arm64-xnnpack"\n')
    assert run(["targets", "validate", "mine.toml"]) == 0
    assert capfd.readouterr().out == "mine.toml: ok, target mine\n"
    Path("mine.toml").write_text('name = "mine"\nextends = "ios-arm64-xnnpack"\nbackendd = "x86"\n')
    assert run(["targets", "validate", "mine.toml"]) == 2
    assert "unknown key 'backendd'. Did you mean 'backend'?" in capfd.readouterr().err
    assert run(["targets", "validate", "gone"]) == 2


def test_targets_schema_is_json_schema(capfd):
    assert run(["targets", "schema"]) == 0
    schema = json.loads(capfd.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert "runtime" in schema["properties"]


@pytest.fixture
def cache(monkeypatch):
    info = namedtuple("CacheInfo", "place entries size_bytes runtimes_bytes")
    levels = {"local": info("/cache", 1, 5_000_000, 343_000_000), "s3://team/edgeq": info("s3://team/edgeq", 2, 7, 0)}
    monkeypatch.setattr("edgeq.pipeline.cache.cache_info", levels.__getitem__)
    monkeypatch.setattr("edgeq.pipeline.cache.clear_cache", lambda level: {"local": 3, "s3://team/edgeq": 4}[level])
    monkeypatch.setattr("edgeq.pipeline.cache.prune_cache", lambda _, **rules: (len(rules), rules["older_than_s"]))


def test_cache(cache, capfd):
    assert run(["cache", "info"]) == 0
    assert capfd.readouterr().out == (
        "/cache: 1 entry, 5.00 MB\ndevices' runtimes: 343.0 MB, which `edgeq emulator` manages\n"
    )
    assert run(["cache", "info", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["cache"] == {
        "folder": "/cache",
        "entries": 1,
        "size_bytes": 5_000_000,
        "runtimes_bytes": 343_000_000,
    }
    assert run(["cache", "info", "--cache", "local", "--cache", "s3://team/edgeq", "--json"]) == 0
    levels = json.loads(capfd.readouterr().out)["levels"]
    assert [(level["folder"], level["entries"]) for level in levels] == [("/cache", 1), ("s3://team/edgeq", 2)]
    assert run(["cache", "clear"]) == 0
    assert capfd.readouterr().out == "removed 3 entries\n"
    assert run(["cache", "clear", "--cache", "local", "--cache", "s3://team/edgeq"]) == 0
    assert capfd.readouterr().out == "removed 7 entries\n"
    assert run(["cache", "prune", "--older-than", "2h", "--max-size", "20GB", "--cache", "s3://team/edgeq"]) == 0
    assert capfd.readouterr().out == "s3://team/edgeq: removed 2 entries, 7.20 kB\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "removes nothing without a rule"),
        (("--older-than", "30"), "--older-than: expected a number with m, h, d or w, got '30'"),
        (("--max-size", "big"), "big"),
    ],
)
def test_cache_prune_without_a_rule_that_it_can_read(cache, capfd, args, said):
    assert run(["cache", "prune", *args]) == 2
    assert said in capfd.readouterr().err


def test_doctor_is_content_here(capfd):
    assert run(["doctor"]) == 0
    out = capfd.readouterr().out
    for word in ("python", "torch", "executorch", "android-arm64-qnnpack", "qemu-aarch64", "GB free", "ready"):
        assert word in out


def without(missing: str, monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let a distribution be missing, and others have another version."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch, capfd):
    without("executorch", monkeypatch, torch="9.9.9+cpu")
    monkeypatch.setattr(doctor_command.shutil, "which", lambda _name: None)
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    found = {finding["name"]: finding for finding in document["findings"]}
    assert document["ready"] is True  # for targets of other runtimes
    assert found["executorch"]["fix"] == found["android-arm64-xnnpack"]["fix"] == install_command("executorch")
    assert found["torch"]["ok"]
    assert "tested with" in found["torch"]["remark"]
    assert found["android-arm64-xnnpack"]["remark"] == "needs executorch"
    assert found["linux-x86_64-xnnpack"]["ok"] is False
    assert found["android-arm64-qnnpack"]["ok"]
    assert found["aarch64-linux-gnu-g++"]["fix"] == "apt-get install g++-aarch64-linux-gnu"
    assert [found[tool]["fix"] for tool in ("gcc", "aapt2")] == ["apt-get install gcc", "apt-get install aapt"]


def test_doctor_knows_what_a_backend_needs_beside_its_runtime(monkeypatch, capfd):
    without("coremltools", monkeypatch)
    assert run(["doctor", "--json"]) == 0
    found = {finding["name"]: finding for finding in json.loads(capfd.readouterr().out)["findings"]}
    assert found["ios-arm64-coreml"]["remark"].startswith("needs coremltools")
    assert "coreml]" in found["ios-arm64-coreml"]["fix"]
    assert found["ios-arm64-xnnpack"]["ok"]
    assert found["android-arm64-qnn-htp"]["ok"]


def test_doctor_names_the_command_for_the_npus_emulator(monkeypatch, capfd):
    without("onnxruntime-qnn", monkeypatch)
    assert run(["doctor", "--json"]) == 0
    found = {finding["name"]: finding for finding in json.loads(capfd.readouterr().out)["findings"]}
    npu = found["android-arm64-qnn-htp"]
    assert (npu["ok"], npu["fix"]) == (False, install_command("qnn"))
    assert found["android-arm64-ort"]["ok"]


def test_doctor_is_not_ready_without_what_every_command_needs(monkeypatch, capfd):
    without("tuf", monkeypatch)
    assert run(["doctor"]) == 9
    out = capfd.readouterr().out
    assert f"missing  (pip install tuf=={doctor_command.TESTED['tuf']})" in out
    assert "not ready" in out


def test_doctor_knows_the_runtime_of_a_profile_that_extends_another(tmp_path, monkeypatch):
    base = profile_files()["android-arm64-xnnpack"]
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "base"\nname = "mine"\narch = "x86_64"\n')
    for module in (profiles, doctor_command):
        monkeypatch.setattr(module, "profile_files", lambda: {"base": base, "mine": mine})
    found = {one.name: one.remark for one in doctor_command.examine() if one.kind == "target"}
    assert found == {"base": "", "mine": ""}


def test_doctor_needs_space(monkeypatch, capfd):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor_command.shutil, "disk_usage", lambda _folder: usage(10, 9, 1))
    assert run(["doctor"]) == 9
    assert "not ready" in capfd.readouterr().out


def test_doctor_knows_the_versions_that_the_lock_pins():
    lock = (ROOT / "requirements.lock").read_text()
    of_extras = {name: version for name, (version, _, _) in doctor_command.EXTRA_LIBRARIES.items()}
    for name, version in {**doctor_command.TESTED, **of_extras}.items():
        assert f"\n{name.replace('.', '-')}=={version} " in f"\n{lock}", name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w.-]+", need)[0] for need in project["dependencies"]} == set(doctor_command.TESTED)
    for name, (_, _, extra) in doctor_command.EXTRA_LIBRARIES.items():
        assert name in {re.match(r"[\w.-]+", need)[0] for need in project["optional-dependencies"][extra]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_suits_the_place(monkeypatch):
    with open_progress(quiet=True) as progress:
        assert isinstance(progress._progress, Quiet)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with open_progress(quiet=False) as progress:
        assert isinstance(progress._progress, Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with open_progress(quiet=False) as progress:
        assert isinstance(progress._progress, Lines)


@pytest.mark.parametrize("columns", ["30", "80", "160"])
def test_bars_show_description_and_count(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    with open_progress(quiet=False) as progress:
        assert isinstance(progress._progress, Bars)
        with progress.task("calibrating [x]", total=4) as task:
            task.advance(3)
            progress._progress._bars.refresh()
    drawn = terminal.getvalue()
    assert "calibrating [x]" in drawn
    assert ("3/4" in drawn) == (columns != "30")
    assert "\x1b[31m" not in drawn


@pytest.mark.parametrize(
    "args", [("report",), ("build", "--config"), ("init", "digits", "-o"), ("targets", "validate"), ("diff", "a")]
)
def test_a_path_that_no_system_takes_is_bad_input(edgeq, args: tuple[str, ...]) -> None:
    done = edgeq(*args, "a" * 300)
    assert done.returncode == 2, done.stderr
    assert "internal error" not in done.stderr
