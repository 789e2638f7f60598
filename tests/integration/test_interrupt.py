"""Ctrl-C, SIGTERM and kill -9 in the middle of a run: nothing stays, no child lives on, the next run recovers."""

from __future__ import annotations

import os
import signal
import time

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import FBGEMM, X86, Project, Run, arguments
from .processes import descendants, finish, start, wait_for, wait_until_dead

pytestmark = pytest.mark.slow

FP32 = ("--scheme", "fp32")


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("import torch", signal.SIGINT),
        ("load quarters", signal.SIGTERM),
        ("calibrate", signal.SIGINT),
        ("lower", signal.SIGTERM),
        ("verify", signal.SIGINT),
        ("time", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_leaves_nothing(project: Project, moment: str, number: signal.Signals) -> None:
    process = start(*arguments(), *(() if moment == "calibrate" else FP32))
    wait_for(process, moment)
    children = descendants(process.pid)
    os.kill(process.pid, number)
    result = finish(process)
    result.fails(130, "interrupted")
    assert wait_until_dead(children) == set()
    assert not project.out.exists()
    assert project.left_behind() == []


def test_a_second_ctrl_c_does_not_cut_the_cleanup_short(project: Project) -> None:
    process = start(*arguments(), *FP32)
    wait_for(process, "verify")
    for _ in range(20):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    finish(process).fails(130, "interrupted")
    assert not project.out.exists()
    assert project.left_behind() == []


def test_what_was_finished_before_an_interruption_is_in_the_cache(project: Project) -> None:
    targets = (*arguments()[:-1], "--target", FBGEMM, *FP32)
    process = start(*targets)
    wait_for(process, f"lower {FBGEMM}")
    os.kill(process.pid, signal.SIGINT)
    finish(process).fails(130, "interrupted")
    again = finish(start(*targets, "--json"))
    assert again.code == 0, again.err
    assert {row["target"]: row["cached"] for row in again.json["rows"]} == {X86: True, FBGEMM: False}


@pytest.mark.parametrize("moment", ["verify", "compare"])
def test_the_next_run_recovers_from_a_killed_one(project: Project, package: Run, moment: str) -> None:
    assert package(*FP32).code == 0
    digest = read_bundle(project.out / "quarters" / X86).digest
    process = start(*arguments(), *FP32, "--model-version", "2")
    wait_for(process, moment)
    children = descendants(process.pid)
    assert children or moment != "verify"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_until_dead(children) == set()
    # the earlier bundle is as it was, and the next run is not kept out by what the killed one held
    assert read_bundle(project.out / "quarters" / X86).digest == digest
    assert package(*FP32, "--model-version", "3").code == 0
    assert read_bundle(project.out / "quarters" / X86).manifest.model.version == "3"
    assert sorted(path.name for path in project.out.iterdir()) == ["quarters"]
    assert project.left_behind() == []


def test_a_second_run_into_the_same_folder_is_refused_at_once(project: Project) -> None:
    first = start(*arguments(), *FP32)
    wait_for(first, "import torch")
    finish(start(*arguments(), *FP32, "--quiet")).fails(9, "another edgeq", "out", "choose another folder")
    assert first.poll() is None
    assert finish(first).code == 0
    assert read_bundle(project.out / "quarters" / X86).manifest.accepted
