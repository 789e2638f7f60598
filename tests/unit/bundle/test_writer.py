from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
from bundle_items import changed

from edgeq.bundle.archive import bundle_zip
from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import golden_npz, write_bundle
from edgeq.core.errors import EnvironmentProblem, UsageError
from edgeq.core.results.artifact import BundleInput


def test_writes_artifact_golden_and_manifest(item: BundleInput, tmp_path: Path) -> None:
    digest = write_bundle(item, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.npz", "manifest.json", "model.pte"]
    assert (tmp_path / "model.pte").read_bytes() == item.artifact.lowered.path.read_bytes()
    assert read_bundle(tmp_path).digest == digest


def test_golden_holds_the_arrays_by_name(item: BundleInput, bundle: Path) -> None:
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        assert sorted(golden) == ["input_x", "output_0"]
        np.testing.assert_array_equal(golden["input_x"], item.artifact.golden.inputs[0])
        np.testing.assert_array_equal(golden["output_0"], item.artifact.golden.outputs[0])
        assert golden["input_x"].dtype == np.uint8


def test_golden_is_equal_for_equal_values(item: BundleInput) -> None:
    other = dataclasses.replace(
        item.artifact.golden,
        inputs=(np.asfortranarray(item.artifact.golden.inputs[0]),),
        outputs=(item.artifact.golden.outputs[0].astype(">f4"),),
    )
    assert golden_npz(other, ["x"]) == golden_npz(item.artifact.golden, ["x"])
    changed = dataclasses.replace(item.artifact.golden, outputs=(item.artifact.golden.outputs[0] + 1,))
    assert golden_npz(changed, ["x"]) != golden_npz(item.artifact.golden, ["x"])


def test_the_same_bytes_under_another_umask_and_time_zone(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = set()
    old = os.umask(0o022)
    try:
        for umask, zone in ((0o022, "UTC"), (0o077, "Pacific/Kiritimati"), (0o000, "America/New_York")):
            os.umask(umask)
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            folder = tmp_path / zone.replace("/", "-")
            folder.mkdir()
            results.add((write_bundle(item, folder), bundle_zip(folder)))
    finally:
        os.umask(old)
        monkeypatch.undo()
        time.tzset()
    assert len(results) == 1


def test_writing_again_replaces_what_was_written(item: BundleInput, bundle: Path) -> None:
    other = changed(item, seed=1)
    digest = write_bundle(other, bundle)
    assert digest == read_bundle(bundle).digest
    assert digest != write_bundle(item, bundle)


def test_a_bad_name_is_a_usage_error(item: BundleInput, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"version.*1/2"):
        write_bundle(changed(item, model_version="1/2"), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(item: BundleInput, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match="no space left"):
        write_bundle(item, tmp_path)
