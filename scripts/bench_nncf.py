"""NNCF's quantize_pt2e with edgeq's XNNPACK quantizer, beside edgeq's static-int8: `scripts/bench_nncf.py [MODEL…]`.

Both get the same calibration samples; the SQNR is of the converted graph's outputs against fp32, on other samples. Runs
in the environment of `scripts/zoo`, which has NNCF.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from hard_digits import Quiet, dataset_of, tensors
from torch import nn

from edgeq.core.results.model import LoadedModel, TensorSpec
from edgeq.core.samples import Dataset
from edgeq.demo import digits
from edgeq.quantize import quantize
from edgeq.quantize.capture import capture
from edgeq.quantize.pt2e import _quantizer, float_graph
from edgeq.quantize.spec import QuantizeSpec

CALIBRATION, JUDGED = 32, 64
# what NNCF does beyond ranges
METHODS: dict[str, dict[str, Any]] = {
    "nncf, ranges only": {"fast_bias_correction": None},
    "nncf, fast bias correction": {"fast_bias_correction": True},
    "nncf, bias correction": {"fast_bias_correction": False},
    "nncf, SmoothQuant": {"fast_bias_correction": None, "smooth_quant": True},
    "nncf, SmoothQuant and fast bias correction": {"fast_bias_correction": True, "smooth_quant": True},
}


class Encoder(nn.Module):
    """Two layers of attention over 32 positions of 64 channels, [N, 32, 64]; four channels are 20 times as large."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return each model with its samples, [CALIBRATION + JUDGED, …]."""
    import torchvision

    torch.manual_seed(0)
    images = tensors(digits.calibration_data())[0][: CALIBRATION + JUDGED]
    photos = nn.functional.interpolate(torch.randn(CALIBRATION + JUDGED, 3, 14, 14), size=96, mode="bilinear")
    mobilenet = torchvision.models.mobilenet_v2(weights=None)
    with torch.no_grad():
        mobilenet(photos[:CALIBRATION])  # statistics of batch norm
    outliers = torch.ones(64)
    outliers[::16] = 20
    encoder = Encoder()
    return {
        "digits": (digits.model().eval(), images),
        "mobilenet_v2": (mobilenet.eval(), photos),
        "encoder": (encoder.eval(), torch.randn(CALIBRATION + JUDGED, 32, 64) * outliers),
    }


def main() -> None:
    """Measure and print a table."""
    import nncf
    from nncf.experimental.torch.fx import quantize_pt2e

    warnings.simplefilter("ignore")
    nncf.set_log_level(40)
    torch.set_num_threads(1)
    print("| model | method | SQNR, dB | top-1 agreement | s |\n| --- | --- | --- | --- | --- |")
    for name, (model, samples) in models().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        spec = TensorSpec(name="x", dtype="float32", shape=(1, *samples.shape[1:]))
        loaded = LoadedModel(
            name=name, kind="module", model=model, inputs=(spec,), weights="own", fp32_bytes=0, source_sha256="0" * 64
        )
        judged = [sample[None] for sample in samples[CALIBRATION:]]
        with torch.no_grad():
            expected = torch.cat([model(one) for one in judged])

        def said(
            method: str, graph: Any, start: float, judged: Any = judged, expected: Any = expected, name: str = name
        ) -> None:
            seconds = time.perf_counter() - start
            with torch.no_grad():
                outputs = torch.cat([graph(one) for one in judged])
            ratio = 10 * float(torch.log10(expected.square().sum() / (outputs - expected).square().sum()))
            same = float((outputs.argmax(1) == expected.argmax(1)).float().mean())
            print(f"| {name} | {method} | {ratio:.1f} | {same:.0%} | {seconds:.0f} |", flush=True)

        quantize_spec = QuantizeSpec(
            model=loaded,
            captured=capture(loaded),
            backend="xnnpack",
            observer="histogram",
            keep_fp32=(),
            calibration=_rows(samples),
            progress=Quiet(),
            label=name,
        )
        start = time.perf_counter()
        said("edgeq static-int8", quantize("executorch", "static-int8", quantize_spec).graph, start)
        for method, options in METHODS.items():
            start = time.perf_counter()
            data = nncf.Dataset([sample[None] for sample in samples[:CALIBRATION]])
            graph = float_graph(quantize_spec.captured)
            try:
                made = quantize_pt2e(graph, _quantizer(quantize_spec, None), data, subset_size=CALIBRATION, **options)
            except Exception as err:
                print(f"| {name} | {method} | {type(err).__name__}: {str(err)[:80]} | | |", flush=True)
                continue
            said(method, made, start)


def _rows(samples: torch.Tensor) -> Dataset:
    return dataset_of(samples, range(CALIBRATION))


if __name__ == "__main__":
    np.random.seed(0)
    main()
