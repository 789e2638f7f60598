"""Core ML's packages in int8 and with palettes: what the artifact's own bytes hold, and a changed weight in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import loaded, lowered, outputs_of, quantized
from torch import nn

from edgeq.check.artifact import weights_gates
from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.core.schemes import PALETTE_SCHEME
from edgeq.lower import coreml
from edgeq.verify.kernels import kernel_share

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16))


class _Net(nn.Module):
    """A small convolution, one with a batch norm and a scale that coremltools would fold, a transposed one, a head."""

    def __init__(self):
        super().__init__()
        self.small, self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 48, 3), nn.BatchNorm2d(48)
        self.up, self.head = nn.ConvTranspose2d(48, 32, 2, 2), nn.Linear(32, 128)

    def forward(self, image):
        x = torch.relu(self.norm(self.conv(self.small(image)))) * 0.37
        return self.head(self.up(x).mean((2, 3)))


def _seeded():
    torch.manual_seed(0)  # NumPy 2.4.6 finds over 16 values in the convolution's, on processors where it sorts wrongly
    return _Net()


NET = loaded(_seeded(), IMAGE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "dtype", "least_db"), [("weight-only-int8", "int8", 35), (PALETTE_SCHEME, "palette4", 12)]
)
def test_the_weights_in_the_artifact_are_the_graphs(scheme, dtype, least_db, tmp_path, monkeypatch, capfd):
    model = quantized(NET, "executorch", scheme, backend="coreml")
    assert {"conv", "up", "head"} <= {*model.quantized}
    assert "small" in model.kept_fp32
    (expected,), (found,) = outputs_of(NET.model, (IMAGE,))[0], outputs_of(model.graph, (IMAGE,))[0]
    assert 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()) > least_db

    first, again = (lowered(model, (IMAGE,), tmp_path / name, "executorch", backend="coreml") for name in ("a", "b"))
    assert first.path.read_bytes() == again.path.read_bytes()
    assert dict(first.stored)[dtype] == 16 * 48 * 9 + 48 * 32 * 4 + 32 * 128
    assert first.delegated_macs == 1.0
    assert [gate.outcome for gate in weights_gates(first)] == ["ok"]
    assert "Running" not in capfd.readouterr().err

    # a converter that changes the weights of one layer
    right = coreml._compressed

    def wrong(package, scheme):
        made = right(package, scheme)
        spec = made.get_spec()
        block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
        expanded = [op for op in block.operations if op.type.startswith("constexpr_")]
        name = "quantized_data" if dtype == "int8" else "lut"
        values = expanded[-1].attributes[name]
        offset = values.blobFileValue.offset
        weights = f"{made.weights_dir}/weight.bin"
        with open(weights, "r+b") as file:  # noqa: PTH123
            file.seek(offset + 64)  # behind the blob's own header
            data = bytearray(file.read(16))
            file.seek(offset + 64)
            file.write(bytes(byte ^ 0x24 for byte in data))
        return made

    monkeypatch.setattr(coreml, "_compressed", wrong)
    broken = lowered(model, (IMAGE,), tmp_path / "broken", "executorch", backend="coreml")
    assert [gate.outcome for gate in weights_gates(broken)] == ["failed"]


@pytest.mark.slow
def test_static_int8_multiplies_in_int8_by_the_packages_own_program(tmp_path):
    made = lowered(
        quantized(NET, "executorch", "static-int8", backend="coreml"),
        (IMAGE,),
        tmp_path,
        "executorch",
        backend="coreml",
    )
    assert len(made.kernels) == len(made.layers), made.layers
    found = kernel_share("coreml", made.kernels, made.layers)
    assert found.precisions[:2] == ("int8", "int8")
    assert found.int8_macs > 0.3
    assert kernel_share("coreml", ("conv float", *made.kernels[1:]), made.layers).int8_macs < found.int8_macs
    assert [gate.outcome for gate in weights_gates(made)] == ["ok"]
    assert weights_gates(dataclasses.replace(made, weights_sqnr_db=39.9))[0].outcome == "failed"
    assert weights_gates(dataclasses.replace(made, weights_sqnr_db=float("nan")))[0].outcome == "failed"
    assert weights_gates(dataclasses.replace(made, weights_sqnr_db=None)) == ()


def test_palettes_are_for_core_ml():
    with pytest.raises(UnsupportedError, match="is for Core ML"):
        quantized(NET, "executorch", PALETTE_SCHEME, backend="xnnpack")
