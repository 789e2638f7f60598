"""Sources that are no PyTorch code: `.ptl` and `.pte` files that came as they are, and exported programs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from edgeq.bundle.reader import read_bundle

from .conftest import FIXTURES, QNNPACK, X86, XNNPACK, Project, Run, command

pytestmark = pytest.mark.slow

PREPROCESS = 'color = "gray"\nresize = [32, 32]\nscale = 0.00392156862745098\nmean = [0.31]\nstd = [0.38]\n'
PT2 = FIXTURES / "digits_torch2.9.1.pt2"


@pytest.fixture(scope="module")
def ptl(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lite archive as another tool would have left it: the int8 model of this project for QNNPACK."""
    from edgeq.cli.main import run

    folder = tmp_path_factory.mktemp("ptl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(template, folder / "project"))
        patch.setenv("EDGEQ_CACHE_DIR", str(folder / "cache"))
        assert run(["package", *command(target=QNNPACK), "--no-cache", "--quiet"]) == 0
    return folder / "project" / "out" / "quarters" / QNNPACK / "model.ptl"


def test_a_lite_archive_is_gated_verified_and_bundled(package: Run, project: Project, ptl: Path) -> None:
    shutil.copy(ptl, "quarters.ptl")
    args = ("quarters.ptl", "-t", QNNPACK, "-o", "out", "--eval-data", "evaluation.npz", "--json")
    result = package(*args, "--input", "1x1x8x8", "--limit", "size=1MB", base=False)
    assert result.code == 0, result.out
    outcomes = {gate["name"]: gate["outcome"] for gate in result.json["rows"][0]["gates"]}
    assert outcomes == dict.fromkeys(("outputs", "int8_macs", "runtime", "size"), "ok")  # no graph: no parity
    bundle = read_bundle(project.out / "quarters" / QNNPACK)
    assert bundle.artifact.read_bytes() == ptl.read_bytes()
    assert result.json["rows"][0]["verified"]["fidelity"]["score"] == 1.0
    assert any("parity was not checked" in text for text in result.json["rows"][0]["warnings"])
    drop = package(*args, "--input", "1x1x8x8", "--limit", "accuracy_drop=5pp", base=False)
    assert drop.code == 7  # there is no fp32 model to compare with
    assert drop.gate("accuracy_drop")["outcome"] == "unverified"


def test_a_lite_archive_does_not_say_what_it_takes(package: Run, project: Project, ptl: Path) -> None:
    shutil.copy(ptl, "quarters.ptl")
    package("quarters.ptl", "-t", QNNPACK, "-o", "out", base=False).fails(2, "quarters.ptl", "--input")
    assert not project.out.exists()


def test_an_artifact_of_another_runtime_is_refused(package: Run, project: Project, ptl: Path) -> None:
    shutil.copy(ptl, "quarters.ptl")
    args = ("quarters.ptl", "-t", XNNPACK, "-o", "out", "--input", "1x1x8x8")
    package(*args, base=False).fails(3, "quarters.ptl", "torchscript", "executorch")
    assert not project.out.exists()


def test_a_damaged_file_is_bad_input(package: Run, project: Project, ptl: Path) -> None:
    Path("broken.ptl").write_bytes(ptl.read_bytes()[:-500])
    args = ("broken.ptl", "-t", QNNPACK, "-o", "out", "--input", "1x1x8x8")
    package(*args, base=False).fails(2, "broken.ptl is not a valid TorchScript archive: ", "is complete")
    for data in (b"ET12" * 300, b"\xdc" * 300, b""):
        Path("broken.pte").write_bytes(data)
        for options in ((), ("--input", "1x1x8x8")):
            done = package("broken.pte", "-t", XNNPACK, "-o", "out", *options, base=False)
            done.fails(2, "broken.pte is not a valid ExecuTorch program: ")
    assert not project.out.exists()


def test_two_schemes_of_one_archive_are_judged_by_themselves(package: Run, ptl: Path) -> None:
    shutil.copy(ptl, "quarters.ptl")
    args = ("quarters.ptl", "-t", QNNPACK, "-o", "out", "--input", "1x1x8x8", "--json")
    result = package(*args, "--scheme", "fp32", "--scheme", "static-int8", base=False)
    assert [row["scheme"] for row in result.json["rows"]] == ["fp32", "static-int8"], result.err


def test_an_exported_program_is_quantized_by_fx_too(package: Run) -> None:
    data = (
        "--calibration-data",
        "edgeq.demo.digits:calibration_data",
        "--eval-data",
        "edgeq.demo.digits:evaluation_data",
    )
    Path("digits.toml").write_text(PREPROCESS)
    args = (str(PT2), "-t", X86, "-o", "out", "--name", "digits", "--preprocess", "digits.toml", *data)
    made = package(*args, "--limit", "agreement=98%", "--json", base=False)
    assert made.code == 0, made.out + made.err
    assert made.gate("int8_macs")["outcome"] == "ok"


@pytest.mark.parametrize("how", ["scripted", "frozen"])
def test_an_archive_is_quantized_on_each_runtime(package: Run, how: str) -> None:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten())
    net = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 36, 4)).eval()
    torch.jit.script(net).save("scripted.pt")
    torch.jit.freeze(torch.jit.trace(net, torch.zeros(1, 1, 8, 8))).save("frozen.pt")
    targets = ("-t", X86, "-t", "linux-x86_64-ort", "-t", XNNPACK)
    args = (f"{how}.pt", "--input", "1x1x8x8", *targets, "-o", "out", "--calibration-data", "calibration.npz")
    made = package(*args, "--scheme", "static-int8", "--json", base=False)
    assert made.code == 0, made.out + made.err
    assert [row["passed"] for row in made.json["rows"]] == [True] * 3
    for row in range(3):
        assert made.gate("int8_macs", row)["outcome"] == "ok"


def test_an_exported_program_is_lowered_to_executorch_and_its_artifact_is_taken_as_it_is(
    package: Run, project: Project
) -> None:
    args = (str(PT2), "-t", XNNPACK, "-o", "out", "--name", "digits", "--json")
    made = package(*args, "--scheme", "fp32", base=False)
    assert made.code == 0, made.out + made.err
    shutil.copy(project.out / "digits" / XNNPACK / "model.pte", "digits.pte")
    again = ("digits.pte", "-t", XNNPACK, "-o", "again", "--scheme", "fp32", "--json")
    # the file does not say which ExecuTorch wrote it
    first = package(*again, base=False)
    assert first.code == 7
    assert first.gate("runtime")["outcome"] == "unverified"
    allowed = package(*again, "--allow-unmeasured", "runtime", base=False)
    assert allowed.code == 0
    assert allowed.gate("runtime")["outcome"] == "allowed"
    bundle = read_bundle(project.root / "again" / "digits" / XNNPACK)
    assert bundle.artifact.read_bytes() == Path("digits.pte").read_bytes()
    # what its default scheme promises it does not hold: it is a float model
    claimed = package("digits.pte", "-t", XNNPACK, "-o", "again", "--allow-unmeasured", "runtime", "--json", base=False)
    assert claimed.code == 7
    assert claimed.gate("int8_macs")["outcome"] == "failed"
    wrong = package("digits.pte", "-t", X86, "-o", "wrong", "--scheme", "fp32", base=False)
    wrong.fails(3, "digits.pte", "executorch", "torchscript")
