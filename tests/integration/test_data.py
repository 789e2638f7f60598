"""The data lint, samples that two sets share, labels, and images that are skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .conftest import X86, Project, Run, bright_quarters, write_set
from .test_bad_input import image_options, make_images

FP32 = ("--scheme", "fp32", "--json")


def test_too_few_samples_are_a_finding_by_default_and_an_error_with_strict(package: Run, project: Project) -> None:
    write_set(Path("few.npz"), 8, seed=3)
    strict = package("--calibration-data", "few.npz", "--data-lint", "strict")
    strict.fails(2, "too-few-samples", "8 distinct", "--data-lint warn")
    assert not project.out.exists()
    result = package("--calibration-data", "few.npz", *FP32)
    assert result.code == 0
    assert [finding["name"] for finding in result.json["data"]["findings"]] == ["too-few-samples"]
    assert project.manifest()["provenance"]["data_findings"] == ["too-few-samples"]


def test_each_finding_of_the_lint_is_named(package: Run) -> None:
    images, labels = bright_quarters(64, 1)
    images[0] = 0.5
    images[8:24] = images[8]
    images[30, 0, 0, 0] = np.nan
    labels[31] = 9
    np.savez("odd.npz", image=images, y=labels)
    names = ("constant-samples", "repeated-samples", "not-finite", "labels-out-of-range")
    package("--calibration-data", "odd.npz", "--data-lint", "strict").fails(2, *names)
    package("--calibration-data", "odd.npz").fails(2, "not-finite", "labels-out-of-range")


def test_shared_samples_are_an_error_and_are_left_out_with_warn(package: Run, project: Project) -> None:
    images, labels = bright_quarters(64, 1)  # the calibration set
    others, other_labels = bright_quarters(64, 9)
    np.savez("mixed.npz", image=np.concatenate([images[:20], others]), y=np.concatenate([labels[:20], other_labels]))
    package("--eval-data", "mixed.npz").fails(2, "shared-with-evaluation", "20 of 64")
    result = package("--eval-data", "mixed.npz", "--data-lint", "warn", *FP32)
    assert result.code == 0
    assert result.json["data"]["excluded_shared"] == 20
    assert result.json["rows"][0]["verified"]["fidelity"]["samples"] == 64
    provenance = project.manifest()["provenance"]
    assert provenance["evaluation_samples"] == 64


def test_an_evaluation_set_that_is_all_shared_proves_nothing(package: Run) -> None:
    args = ("--eval-data", "calibration.npz", "--data-lint", "warn", "--limit", "accuracy_drop=50pp")
    result = package(*args, *FP32)
    assert result.code == 7
    assert result.gate("accuracy_drop")["outcome"] == "unverified"


def test_labels_of_the_evaluation_alone_are_looked_at_too(package: Run) -> None:
    images, labels = bright_quarters(64, 4)
    np.savez("wrong.npz", image=images, y=labels + 1)
    args = ("quarters.py:model", "-t", X86, "-o", "out", "--eval-data", "wrong.npz", "--scheme", "fp32")
    package(*args, base=False).fails(2, "labels-out-of-range", "16 of 64 evaluation", "wrong.npz")


def test_bad_images_are_skipped_only_when_asked_and_then_listed(package: Run, project: Project) -> None:
    make_images(Path("images"))
    Path("images/2/006.png").write_bytes(b"no image")
    result = package(*image_options("images"), "--skip-bad-images", *FP32, base=False)
    assert result.code == 0, result.err
    assert result.json["data"]["skipped"] == ["2/006.png"]
    assert result.json["data"]["calibration_samples"] == 31
    assert project.manifest()["labels"] == ["0", "1", "2", "3"]


def test_labels_map_folders_to_outputs_and_a_mismatch_is_refused(package: Run, project: Project) -> None:
    make_images(Path("images"))
    for old, new in zip("0123", ("west", "east", "south", "north"), strict=True):
        (Path("images") / old).rename(Path("images") / new)
    Path("labels.txt").write_text("west\neast\nsouth\n")
    options = (*image_options("images"), "--scheme", "fp32", "--labels", "labels.txt")
    package(*options, base=False).fails(2, "north", "--labels")
    Path("labels.txt").write_text("west\neast\nsouth\nnorth\nup\n")
    package(*options, base=False).fails(2, "up", "4 outputs")
    Path("labels.txt").write_text("west\neast\nsouth\nnorth\n")
    make_images(Path("others"), seed=5)
    for old, new in zip("0123", ("west", "east", "south", "north"), strict=True):
        (Path("others") / old).rename(Path("others") / new)
    result = package(*options, "--eval-data", "others", "--json", base=False)
    assert result.code == 0, result.err
    assert result.json["rows"][0]["verified"]["fidelity"]["score"] == 1.0
    assert project.manifest()["labels"] == ["west", "east", "south", "north"]
