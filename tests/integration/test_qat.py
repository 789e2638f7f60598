"""qat-int8 from the command line: both routes, its bad input, and a kill in the middle of the training."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from .conftest import X86, XNNPACK, Project, Run, bright_quarters, command
from .processes import finish, start, wait_for

pytestmark = pytest.mark.slow

QAT = ("--scheme", "qat-int8", "--qat-epochs", "2", "--qat-batch", "8")


def note(name: str, body: str) -> str:
    Path("loops.py").write_text(f"def {name}(prepared, teacher, data):\n    {body}\n")
    return f"loops.py:{name}"


def test_both_routes_train_and_pass_every_gate(project: Project, package: Run) -> None:
    result = package(*QAT, "--target", XNNPACK, "--json")
    assert result.code == 0, result.err
    for row, target in enumerate((X86, XNNPACK)):
        assert result.gate("training", row)["outcome"] == "ok"
        assert result.gate("int8_macs", row)["outcome"] == "ok"
        manifest = project.manifest(target)
        assert manifest["scheme"] == "qat-int8"
        facts = manifest["provenance"]["qat"]
        assert (facts["samples"], facts["held_out"], facts["epochs"], facts["batch"]) == (58, 6, 2, 8)
        assert facts["loss"] == "kl"
        assert facts["weights"] in ("last", "average", "start")
        assert len(facts["data_sha256"]) == 64
    assert not list(project.cache.rglob("*.state"))


def test_training_data_of_its_own_without_labels(project: Project, package: Run) -> None:
    images, _ = bright_quarters(40, seed=3)
    np.save("more.npy", images)
    assert package(*QAT, "--qat-data", "more.npy").code == 0
    facts = project.manifest()["provenance"]
    assert facts["qat"]["samples"] + facts["qat"]["held_out"] == 40
    assert facts["calibration_samples"] == 64


def test_training_on_evaluation_samples_is_an_error(package: Run) -> None:
    package(*QAT, "--qat-data", "evaluation.npz").fails(2, "shared-with-evaluation", "100 of 100 QAT samples")


def test_training_labels_out_of_range_are_an_error(package: Run) -> None:
    images, labels = bright_quarters(40, seed=3)
    np.savez("wrong.npz", image=images, y=labels + 2)
    package(*QAT, "--qat-data", "wrong.npz").fails(2, "labels-out-of-range", "20 of 40 QAT samples")


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ("pass", ("loops.py:loop returned nothing", "return the prepared module")),
        ("return teacher", ("whose parameters differ",)),
        ("return 1 / 0", ("ZeroDivisionError at loops.py:2",)),
    ],
)
def test_a_loop_that_does_not_return_the_trained_module(package: Run, body: str, texts: tuple[str, ...]) -> None:
    package("--scheme", "qat-int8", "--qat-train", note("loop", body)).fails(2, *texts)


def test_a_loop_that_takes_no_data_is_refused_before_anything_slow(package: Run) -> None:
    Path("loops.py").write_text("def loop(prepared):\n    return prepared\n")
    package("--scheme", "qat-int8", "--qat-train", "loops.py:loop").fails(2, "loop(prepared, teacher, data)")


def test_the_users_own_loop(project: Project, package: Run) -> None:
    loop = note("loop", "return prepared")
    assert package("--scheme", "qat-int8", "--qat-train", loop).code == 0
    facts = project.manifest()["provenance"]["qat"]
    assert (facts["weights"], facts["loss"], facts["learning_rate"]) == ("user", None, None)


def test_options_of_a_training_that_no_scheme_does_are_refused(package: Run) -> None:
    package("--qat-epochs", "3").fails(2, "--qat-epochs is for schemes that train", "--scheme qat-int8")
    package(*QAT, "--qat-lr", "-1").fails(2, "--qat-lr")


def test_a_kill_in_the_training_goes_on_from_the_last_epoch(project: Project, package: Run) -> None:
    options = (*command(), *QAT[:2], "--qat-epochs", "12", "--qat-batch", "4")
    process = start("package", *options)
    wait_for(process, "epoch 2/12")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(list(project.cache.rglob("*.state"))) == 1
    again = finish(start("package", *options))
    assert again.code == 0, again.err
    assert "resumed after epoch" in again.err
    assert "epoch 1/12" not in again.err
    digest = (project.out / "quarters" / X86 / "manifest.json").read_bytes()
    assert not list(project.cache.rglob("*.state"))
    assert package(*options, base=False).code == 0
    assert (project.out / "quarters" / X86 / "manifest.json").read_bytes() == digest
