"""Package a torchvision classifier for x86 servers in int8, with a limit on its size.

The weights are random so that nothing is downloaded; use `weights="DEFAULT"` for the trained ones. The images are
random too: take real ones, of the kind that the model will see, or int8 ranges mean nothing.
"""

import numpy as np

import edgeq

rng = np.random.default_rng(0)
images = rng.integers(0, 256, size=(16, 80, 80, 3), dtype=np.uint8)  # [N, H, W, C], as an image file has them

report = edgeq.package(
    "torchvision:shufflenet_v2_x0_5",
    targets="linux-x86_64-x86",
    schemes=["static-int8", "fp32"],
    calibration=images,
    preprocess="imagenet",  # resizes, crops to 224 x 224 and normalizes
    limits=edgeq.Limits(size="6MB"),
    options={"data": {"lint": "warn"}},  # it finds that 16 samples are few
    on="host",
)
for result in report:
    print(
        f"{result.label}: {result.size_bytes / 1e6:.2f} MB, {'ok' if result.ok else 'failed'}: {result.artifact_path}"
    )
report.raise_if_failed()
