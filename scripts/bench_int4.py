"""Weights in int4 beside the libraries' own: `scripts/bench int4 [MODEL…]`.

The same float model goes through edgeq's weight-only-int4 and, exported in float32, through NNCF's compress_weights
(OpenVINO) and ONNX Runtime's MatMulNBitsQuantizer, all with groups of 128. Both files run in their runtime on the same
samples; the SQNR is of their outputs against the fp32 model. NNCF is in the environment of `scripts/zoo`; without it
its rows are left out.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
import torchvision
from hard_digits import Quiet
from torch import nn

from edgeq.core.results.model import LoadedModel, TensorSpec
from edgeq.core.samples import Dataset
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.quantize import quantize
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import QuantizeSpec

BACKENDS = {"openvino": "openvino", "onnx": "ort"}
SCHEMES = {"openvino": ("weight-only-int8", "weight-only-int4"), "onnx": ("weight-only-int4",)}
SAMPLES, GROUP = 16, 128


class Encoder(nn.Module):
    """Four layers of attention over 32 positions of 256 channels, [1, 32, 256] to the same."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        for part in self.layers.parameters():  # else all layers are copies of one
            if part.ndim > 1:
                nn.init.xavier_uniform_(part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return each model with its samples, [SAMPLES, …]."""
    torch.manual_seed(0)
    photos = nn.functional.interpolate(torch.randn(SAMPLES, 3, 14, 14), size=96, mode="bilinear")
    mobilenet = torchvision.models.mobilenet_v2(weights=None)
    with torch.no_grad():
        mobilenet(photos)  # statistics of batch norm
    return {"encoder": (Encoder(), torch.randn(SAMPLES, 32, 256)), "mobilenet_v2": (mobilenet, photos)}


def lowered(model: LoadedModel, captured: Any, runtime: str, scheme: str, folder: Path) -> Path:
    """Quantize and lower, and return the artifact."""
    folder.mkdir()
    backend = BACKENDS[runtime]
    data = Dataset(origin="none", count=0, read=lambda _: None, labelled=False)
    made = quantize(
        runtime,
        scheme,
        QuantizeSpec(
            model=model,
            captured=captured,
            backend=backend,
            observer="histogram",
            keep_fp32=(),
            calibration=data,
            progress=Quiet(),
            label="",
        ),
    )
    spec = LowerSpec(inputs=model.inputs, backend=backend, folder=folder, progress=Quiet(), label="")
    return lower(runtime, made, spec).path


def by_nncf(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what NNCF makes of a float IR: with its defaults, which keep the last layer in int8, and of all layers."""
    try:
        import nncf
    except ImportError:
        return
    for name, is_all in (("NNCF, INT4_SYM", False), ("NNCF, INT4_SYM, all_layers", True)):
        model = openvino.Core().read_model(path)
        mode = nncf.CompressWeightsMode.INT4_SYM
        made = nncf.compress_weights(model, mode=mode, group_size=GROUP, all_layers=is_all)
        target = folder / f"nncf-{is_all}.xml"
        openvino.save_model(made, target, compress_to_fp16=False)
        yield name, target


def by_onnxruntime(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what ONNX Runtime's quantizer makes of a float file."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for name, is_symmetric in (("MatMulNBitsQuantizer, symmetric", True), ("MatMulNBitsQuantizer, asymmetric", False)):
        maker = MatMulNBitsQuantizer(onnx.load(path), block_size=GROUP, is_symmetric=is_symmetric, accuracy_level=1)
        maker.process()
        target = folder / f"ort-{is_symmetric}.onnx"
        target.write_bytes(maker.model.model.SerializeToString())
        yield name, target


def run(path: Path, samples: torch.Tensor) -> np.ndarray:
    """Return the outputs of a file for each sample."""
    rows = [sample[None].numpy() for sample in samples]
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: row})[0] for row in rows])
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return np.concatenate([compiled(row)[0] for row in rows])


def line(name: str, path: Path, samples: torch.Tensor, expected: np.ndarray) -> None:
    files = [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]
    data = [file.read_bytes() for file in files]
    noise = np.square(run(path, samples) - expected).sum()
    ratio = 10 * np.log10(np.square(expected).sum() / noise)
    sizes = (sum(map(len, data)) / 1e6, sum(len(zlib.compress(one)) for one in data) / 1e6)
    print(f"{name:36} {sizes[0]:7.2f} MB {sizes[1]:7.2f} MB deflated {ratio:6.1f} dB", flush=True)


def main() -> None:
    for name, (module, samples) in models().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        module.eval()
        spec = TensorSpec(name="x", dtype="float32", shape=(1, *samples.shape[1:]))
        model = LoadedModel(
            name=name,
            kind="module",
            model=module,
            inputs=(spec,),
            weights="own",
            fp32_bytes=0,
            source_sha256="0" * 64,
        )
        captured = capture(model)
        with torch.no_grad():
            expected = np.concatenate([module(sample[None]).numpy() for sample in samples])
        for runtime, theirs in (("openvino", by_nncf), ("onnx", by_onnxruntime)):
            print(f"{name}, {runtime}")
            with tempfile.TemporaryDirectory() as root:
                folder = Path(root)
                plain = lowered(model, captured, runtime, "fp32", folder / "fp32")
                line("fp32", plain, samples, expected)
                for scheme in SCHEMES[runtime]:
                    path = lowered(model, captured, runtime, scheme, folder / scheme)
                    line(f"edgeq, {scheme}", path, samples, expected)
                for title, path in theirs(plain, folder):
                    line(title, path, samples, expected)


if __name__ == "__main__":
    main()
