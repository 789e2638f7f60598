"""The device's kernels as a user meets them: package and verify on the real emulator, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.pipeline import cache
from edgeq.verify.emulate import cpus, emulate, install

from .conftest import QNNPACK, X86, XNNPACK, Project, Run

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0" / "digits"
DIGITS = ("digits.pte", "-t", XNNPACK, "-o", "out", "--allow-unmeasured", "runtime", "--json", "-q")
INT8_AUDIT = ("--allow-unmeasured", "int8_macs")


@pytest.fixture
def emulator(runtimes: Path, project: Project) -> Path:
    for tool in (cpus.QEMU, install.CROSS_COMPILER):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    shutil.copy(GOLDEN / XNNPACK / "model.pte", project.root / "digits.pte")
    return runtimes


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one process run all samples: libtorch takes 5 s to start, and the other cores are other tests'."""
    monkeypatch.setattr(emulate, "usable_cores", lambda: 1)


def test_a_program_is_emulated_by_default_and_answered_from_the_cache(
    emulator: Path, edgeq: Run, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = edgeq("package", *DIGITS, *INT8_AUDIT)
    assert result.code == 0, result.err
    gate = result.gate("device")
    assert (gate["outcome"], gate["measured"]) == ("ok", "equal")
    runs = result.json["rows"][0]["verified"]["emulation"]["runs"]
    assert [run["cpu"] for run in runs] == ["cortex-a53", "cortex-a76"]
    assert [("dot" in run["features"]) for run in runs] == [False, True]
    manifest = project.manifest(XNNPACK, "digits")
    assert manifest["golden"]["made_on"] == "cortex-a53"
    assert manifest["verified_on"].startswith("emulated cortex-a53, cortex-a76; host ")
    assert manifest["not_emulated"] is None
    assert manifest["provenance"]["tools"]["qemu"]
    assert "_ms" not in json.dumps(manifest["emulation"])
    assert edgeq("package", *DIGITS, *INT8_AUDIT).json["rows"][0]["cached"]
    monkeypatch.setattr(cache, "emulator_digest", lambda: "another QEMU")
    assert not edgeq("package", *DIGITS, *INT8_AUDIT).json["rows"][0]["cached"]


def test_on_host_is_told_and_written_down(edgeq: Run, project: Project, emulator: Path) -> None:
    result = edgeq("package", *DIGITS, *INT8_AUDIT, "--on", "host", "--no-cache")
    assert result.code == 0, result.err
    assert any("--on host" in warning for warning in result.json["rows"][0]["warnings"])
    manifest = project.manifest(XNNPACK, "digits")
    assert "--on host" in manifest["not_emulated"]
    assert (manifest["emulation"], manifest["golden"]["made_on"]) == (None, None)


def test_too_slow_is_unverified_rejected_and_not_kept(emulator: Path, edgeq: Run, project: Project) -> None:
    result = edgeq("package", *DIGITS, *INT8_AUDIT, "--timeout", "0.01")
    assert result.code == 7
    gate = result.gate("device")
    assert gate["outcome"] == "unverified"
    assert "of 32 samples were finished" in gate["detail"]
    assert (project.out / "rejected" / "digits" / XNNPACK).is_dir()
    assert not (project.cache / "cells").exists()
    allowed = edgeq("package", *DIGITS, *INT8_AUDIT, "--timeout", "0.01", "--allow-unmeasured", "device")
    assert allowed.code == 0


@pytest.mark.parametrize(
    ("options", "code", "texts"),
    [
        (("--cpu", "cortex-a77"), 2, ("unknown CPU 'cortex-a77'", "cortex-a53", "neoverse-n1")),
        (("--cpu", "max"), 3, ("emulates them wrongly", "cortex-a76")),
        (("--cpu", "cortex-a53", "--on", "host"), 2, ("--on host turns emulation off",)),
        (("--on", "emulatr"), 2, ("Did you mean 'emulator'",)),
        (("--timeout", "-1"), 2, ("--timeout: Input should be greater than 0",)),
        (("--device-samples", "0"), 2, ("--device-samples: Input should",)),
    ],
)
def test_bad_options_are_told_before_anything_slow(
    emulator: Path, edgeq: Run, options: tuple[str, ...], code: int, texts: tuple[str, ...]
) -> None:
    edgeq("package", "digits.pte", "-t", XNNPACK, *options).fails(code, *texts)


def test_without_qemu_or_compiler_the_line_to_type(
    edgeq: Run, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(GOLDEN / XNNPACK / "model.pte", "digits.pte")
    which = shutil.which
    monkeypatch.setattr(cpus.shutil, "which", lambda name: None if "qemu" in name else which(name))
    line = "apt-get install qemu-user g++-aarch64-linux-gnu"
    edgeq("package", "digits.pte", "-t", XNNPACK).fails(9, "qemu-aarch64 is missing", line, "--on host")
    edgeq("verify", GOLDEN / XNNPACK, "--on", "emulator", "-q").fails(9, line)
    edgeq("emulator", "install").fails(9, line)
    assert not project.out.exists()


def test_without_the_compiler_the_line_to_type(
    edgeq: Run, project: Project, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.cache / "emulator").unlink()
    which = shutil.which
    monkeypatch.setattr(install.shutil, "which", lambda name: None if "g++" in name else which(name))
    line = "apt-get install qemu-user g++-aarch64-linux-gnu"
    edgeq("package", "digits.pte", "-t", XNNPACK).fails(9, "aarch64-linux-gnu-g++ is missing", line)


@pytest.mark.parametrize("target", [XNNPACK, pytest.param(QNNPACK, marks=pytest.mark.slow)])
def test_a_bundle_of_an_earlier_release_gives_its_golden_outputs_on_the_device(
    emulator: Path, edgeq: Run, one_process: None, target: str
) -> None:
    cores = ("cortex-a53", "cortex-a76") if target == XNNPACK else ("cortex-a53",)
    result = edgeq("verify", GOLDEN / target, "--on", "emulator", "--cpu", ",".join(cores), "-q")
    assert result.code == 0, result.out
    for word in ("device", *(f"golden on {core}" for core in cores), "max abs", "top-1 flips", "verdict: ok"):
        assert word in result.out
    assert "not the phone's" not in result.out


def test_cpu_without_emulator_and_targets_without_arm64_are_refused(emulator: Path, edgeq: Run) -> None:
    edgeq("verify", GOLDEN / XNNPACK, "--cpu", "cortex-a53", "-q").fails(2, "--on emulator")
    edgeq("verify", GOLDEN / X86, "--on", "emulator", "-q").fails(3, "x86_64", "ARM64")


@pytest.mark.slow
def test_a_lite_model_is_quantized_emulated_and_verified_on_labelled_data(
    emulator: Path, edgeq: Run, project: Project, one_process: None
) -> None:
    args = ("quarters.py:model", "-t", QNNPACK, "-o", "out", "--calibration-data", "calibration.npz")
    args += ("--cpu", "cortex-a53")  # the other core verifies it below
    result = edgeq("package", *args, "--eval-data", "evaluation.npz", "--device-samples", "20", "--json", "-q")
    assert result.code == 0, result.err
    for run in result.json["rows"][0]["verified"]["emulation"]["runs"]:
        assert run["runtime"] == "torch 2.1.0"
        assert run["host"]["sqnr_db"] == "Infinity"  # bit for bit the host's QNNPACK engine
        assert (run["samples"], run["scored"], run["rescored"], run["host"]["top1_flips"]) == (20, 20, 0, 0)
        assert run["score"] == run["host_score"]
        assert run["fp32"]["samples"] == 20
    bundle = project.out / "quarters" / QNNPACK
    assert read_bundle(bundle).manifest.golden.made_on == "cortex-a53"
    again = edgeq(
        "verify", bundle, "--on", "emulator", "--cpu", "cortex-a76", "--eval-data", "evaluation.npz",
        "--device-samples", "8", "--json", "-q",
    )  # fmt: skip
    assert again.code == 0, again.out
    gates = {gate["name"]: gate for gate in again.json["gates"]}
    assert gates["device"]["measured"] == "equal"
    assert "8 samples" in gates["score on cortex-a76"]["measured"]


def test_list_names_the_models(emulator: Path, edgeq: Run) -> None:
    result = edgeq("emulator", "list")
    assert result.code == 0
    assert "cortex-a53" in result.out
    listed = json.loads(edgeq("emulator", "list", "--json").out)
    assert {cpu["name"] for cpu in listed["cpus"] if cpu["available"]} >= {"cortex-a53", "cortex-a76"}


@pytest.mark.slow
def test_an_npu_is_emulated_whatever_on_says(edgeq: Run, project: Project) -> None:
    name = "android-arm64-qnn-htp"
    result = edgeq("package", "digits", "-t", name, "-o", "out", "--on", "host", "--cpu", "sm8650", "--json", "-q")
    assert result.code == 2, result.out  # --cpu selects what is emulated
    result = edgeq("package", "digits", "-t", name, "-o", "out", "--on", "host", "--json", "-q")
    assert result.code == 0, result.err
    assert result.gate("device")["outcome"] == "ok"
    manifest = project.manifest(name, "digits")
    assert [run["cpu"] for run in manifest["emulation"]["runs"]] == ["sm8650", "sm8450"]
    assert (manifest["not_emulated"], manifest["golden"]["made_on"]) == (None, "sm8650")
