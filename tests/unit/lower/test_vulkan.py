"""Lowering to Vulkan: what its delegate takes, in which precision, and that equal inputs give equal bytes."""

from __future__ import annotations

import pytest
from small_models import lowered, quantized, small_net

from edgeq.core.speedups import PLAIN
from edgeq.core.targets import load_target, verified_by, why_not_run
from edgeq.verify.kernels import kernel_share


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["static-int8", "fp16"])
def test_the_delegates_own_graph_says_in_what_it_multiplies(scheme, tmp_path, monkeypatch):
    model = quantized(small_net(), "executorch", scheme, backend="vulkan")
    first = lowered(model, small_net().inputs, tmp_path / "a", "executorch", backend="vulkan")
    data = first.path.read_bytes()
    if scheme == "static-int8":
        monkeypatch.setenv(PLAIN, "1")
    again = lowered(model, small_net().inputs, tmp_path / "b", "executorch", backend="vulkan")
    assert data == again.path.read_bytes()
    assert b"VulkanBackend" in data
    assert first.delegated_macs == 1.0
    assert "VulkanPartitioner" in first.passes
    if scheme == "fp16":
        assert [dtype for dtype, _ in first.stored] == ["float16"]
        return
    found = kernel_share("vulkan", first.kernels, first.layers)
    assert (found.int8_macs, found.why_unmatched) == (1.0, "")
    in_float = (first.kernels[0].replace(" int8", " float"), *first.kernels[1:])
    assert kernel_share("vulkan", in_float, first.layers).int8_macs < 1


def test_nothing_here_runs_it():
    target = load_target("android-arm64-vulkan")
    assert verified_by(target) == "none"
    assert "no Vulkan runtime" in why_not_run(target.backend)
    assert "executorch-android-vulkan" in target.app.adds
