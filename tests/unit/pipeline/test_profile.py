"""Which cores stand for the devices of a bundle's target."""

from __future__ import annotations

import pytest

from edgeq.bundle.writer import manifest_from
from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.manifest import FileEntry, Manifest
from edgeq.core.results.artifact import BundleInput
from edgeq.core.targets import load_target
from edgeq.pipeline.profile import cores_of

FILES = (
    FileEntry(path="model.pte", sha256="1" * 64, size_bytes=10, role="artifact"),
    FileEntry(path="golden.npz", sha256="2" * 64, size_bytes=20, role="golden"),
)


def of_target(item: BundleInput, name: str) -> Manifest:
    manifest = manifest_from(item, FILES)
    return manifest.model_copy(update={"target": manifest.target.model_copy(update={"name": name})})


def test_a_shipped_target_tells_its_cores(item: BundleInput) -> None:
    expected = load_target("android-arm64-xnnpack").device.cpu
    assert expected
    assert cores_of(of_target(item, "android-arm64-xnnpack")) == expected


@pytest.mark.parametrize("name", ["mine", "linux-x86_64-x86"])
def test_of_another_target_none_are_known(item: BundleInput, name: str) -> None:
    with pytest.raises(UsageError, match=f"no CPU model is known for target {name}") as caught:
        cores_of(of_target(item, name))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "--cpu" in caught.value.fix
