"""The models of the published XNNPACK tables, lowered as edgeq lowers them: `scripts/bench latency` counts on them.

python scripts/mobilenets.py OUT [NAME-SCHEME ...]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeq.core.results.model import LoadedModel
    from edgeq.core.samples import Dataset

# what google/XNNPACK's tables have: model, scheme
MODELS = (
    ("mobilenet_v1", "fp32"),
    ("mobilenet_v2", "fp32"),
    ("mobilenet_v3_large", "fp32"),
    ("mobilenet_v3_small", "fp32"),
    ("mobilenet_v1", "static-int8"),
    ("mobilenet_v2", "static-int8"),
)
# MobileNet v1: output channels and stride of each depthwise-separable block (Howard et al. 2017, table 1)
_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet_v1() -> Any:
    """Return MobileNet v1 1.0 for 224x224 images and 1,001 classes, with random weights."""
    from torch import nn

    def unit(inputs: int, outputs: int, stride: int, groups: int = 1, kernel: int = 3) -> list[Any]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]

    layers, channels = unit(3, 32, 2), 32
    for outputs, stride in _V1_BLOCKS:
        layers += unit(channels, channels, stride, groups=channels) + unit(channels, outputs, 1, kernel=1)
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1001))


def torchvision_model(name: str) -> Any:
    """Return torchvision's model with random weights, its hard sigmoids written as XNNPACK's own models have them.

    ExecuTorch splits the delegate at each `nn.Hardsigmoid`; the published rows are of one undivided graph.
    """
    import torch
    import torchvision
    from torch import nn

    class HardSigmoid(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)

    model = torchvision.models.get_model(name, weights=None)
    for part in list(model.modules()):
        for child, layer in part.named_children():
            if isinstance(layer, nn.Hardsigmoid):
                setattr(part, child, HardSigmoid())
    return model


def loaded(name: str) -> LoadedModel:
    """Return one of MODELS with seeded random weights, as edgeq's load step gives it."""
    import torch

    from edgeq.core.results.model import LoadedModel, TensorSpec

    torch.manual_seed(0)
    module = mobilenet_v1() if name == "mobilenet_v1" else torchvision_model(name)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224))
    return LoadedModel(
        name=name, kind="module", model=module.eval(), inputs=(spec,), weights="random", fp32_bytes=0, source_sha256=""
    )


def seeded_images(count: int) -> Dataset:
    """Return `count` samples of normal noise."""
    import numpy as np

    from edgeq.core.samples import Dataset, Sample

    rng = np.random.default_rng(0)
    images = [rng.standard_normal((3, 224, 224)).astype("float32") for _ in range(count)]
    samples = [Sample(inputs=(im,), raw=(im,), label=None, name=str(i), digest=str(i)) for i, im in enumerate(images)]
    return Dataset(origin="seeded", count=count, read=samples.__getitem__)


def build(name: str, scheme: str, out: Path) -> Path:
    """Lower one model to `out/NAME-SCHEME.pte`, and return that path."""
    from edgeq.lower import lower
    from edgeq.lower.spec import LowerSpec
    from edgeq.quantize import quantize
    from edgeq.quantize.capture import capture
    from edgeq.quantize.spec import QuantizeSpec
    from edgeq.report.progress import Quiet

    model = loaded(name)
    quantized = quantize(
        "executorch",
        scheme,
        QuantizeSpec(
            model=model,
            captured=capture(model),
            backend="xnnpack",
            observer="minmax",
            keep_fp32=(),
            calibration=seeded_images(4),
            progress=Quiet(),
            label=name,
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        lowering = LowerSpec(inputs=model.inputs, backend="xnnpack", folder=Path(folder), progress=Quiet(), label=name)
        lowered = lower("executorch", quantized, lowering)
        path = out / f"{name}-{scheme}.pte"
        shutil.move(lowered.path, path)
    print(path, lowered.macs, lowered.undelegated, flush=True)
    return path


def main() -> None:
    """Build what is named, or all."""
    warnings.simplefilter("ignore")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, scheme in MODELS:
        if (not sys.argv[2:] or f"{name}-{scheme}" in sys.argv[2:]) and not (out / f"{name}-{scheme}.pte").exists():
            build(name, scheme, out)


if __name__ == "__main__":
    main()
