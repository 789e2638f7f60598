"""Write the vectors that the Android store's tests compare with, as edgeq itself computes them.

`preprocess.json` and `preprocess.npz`: specifications, images and edgeq's own results. `digits.npz`: a hundred digits
of the test third, before preprocessing, their labels, and what edgeq's Python path answers for each golden bundle.
`manifest.json`: a manifest with every key that edgeq writes today. Run it by hand after a change of preprocessing or of
the manifest.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import ZIP_EPOCH, _npy, zip_entry
from edgeq.core.manifest import MANIFEST_NAME, Bundle, CudaBox, manifest_bytes, parse_manifest
from edgeq.core.preprocess import PRESETS, Preprocess, apply

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "android_demo/store/src/test/resources/vectors"
GOLDEN = ROOT / "tests/golden/0.1.0/digits"
TARGETS = ("android-arm64-xnnpack", "android-arm64-qnnpack")
DIGITS = 100

_IMAGENET = PRESETS["imagenet"]
# height, width and channels of the image, and what is done with it
CASES: tuple[tuple[tuple[int, int, int], Preprocess], ...] = (
    ((8, 8, 1), Preprocess(color="gray", resize=(32, 32), mean=(0.31,), std=(0.38,))),
    ((8, 8, 3), Preprocess(color="gray", resize=(32, 32), mean=(0.31,), std=(0.38,))),
    ((5, 7, 1), Preprocess(color="rgb")),
    ((5, 7, 3), Preprocess(color="rgb", layout="NHWC")),
    ((23, 17, 3), _IMAGENET.model_copy(update={"resize": 16, "crop": (14, 14)})),
    ((17, 23, 3), _IMAGENET.model_copy(update={"resize": 16, "crop": (13, 16), "layout": "NHWC"})),
    ((40, 31, 3), Preprocess(resize=(9, 11), scale=1.0, mean=(127.5,), std=(127.5,))),
    ((3, 2, 1), Preprocess(color="gray", resize=(19, 29), scale=1 / 127.5, mean=(1.0,))),
    ((1, 1, 3), Preprocess(color="gray", resize=5)),
    ((12, 12, 3), Preprocess(crop=(7, 5))),
    ((9, 14, 3), Preprocess(resize=(6, 5)).as_bytes),
    ((5, 7, 3), Preprocess(color="gray", layout="NHWC").as_bytes),
)


def preprocess_vectors() -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Return the specifications as a manifest has them, and the arrays `image_<i>` and `expected_<i>`."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for index, (shape, spec) in enumerate(CASES):
        arrays[f"image_{index}"] = rng.integers(0, 256, shape, np.uint8)
        arrays[f"expected_{index}"] = apply(spec, arrays[f"image_{index}"])
    return [spec.model_dump(mode="json") for _, spec in CASES], arrays


def manifest() -> bytes:
    """Return the first release's manifest as edgeq writes it now, with the keys that are left out by default."""
    old = parse_manifest((GOLDEN / TARGETS[0] / MANIFEST_NAME).read_bytes())
    golden = old.golden.model_copy(update={"made_on": "cortex-a53"})
    runtime = old.runtime.model_copy(update={"build": "mobile"})
    box = CudaBox(torch="2.15", cuda=None, compiled_for=None, least_capability=None)
    changes = {"golden": golden, "runtime": runtime, "cuda": box, "dynamic_batch": True}
    return manifest_bytes(old.model_copy(update=changes))


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the first hundred digits of the test third: uint8 [100, 8, 8, 1], and their labels."""
    from edgeq.demo.digits import evaluation_data

    data = evaluation_data()
    return data["image"][:DIGITS], data["y"][:DIGITS]


def predictions(bundle: Bundle, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return what edgeq's Python path answers: its preprocessing, and the artifact in this host's runtime."""
    from edgeq.verify.host import HostRuntime

    manifest = bundle.manifest
    (spec,) = manifest.inputs
    if spec.preprocessing is None:
        raise ValueError(f"{bundle.folder}: its input is no image")
    with HostRuntime() as host:
        host.load(
            bundle.artifact, runtime=manifest.runtime.name, backend=manifest.target.backend, threads=manifest.threads
        )
        outputs = [host.run((apply(spec.preprocessing, image)[np.newaxis],))[0] for image in images]
    return np.concatenate(outputs).argmax(axis=1)


def write_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays as golden.npz has them: stored, without times."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(zip_entry(f"{name}.npy", ZIP_EPOCH), _npy(array))


def main() -> None:
    """Write all vectors."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    specs, arrays = preprocess_vectors()
    (FOLDER / "preprocess.json").write_text(json.dumps(specs, indent=1) + "\n")
    write_npz(FOLDER / "preprocess.npz", arrays)
    (FOLDER / MANIFEST_NAME).write_bytes(manifest())
    images, labels = digits()
    answers = {name: predictions(read_bundle(GOLDEN / name), images) for name in TARGETS}
    write_npz(FOLDER / "digits.npz", {"image": images, "label": labels, **answers})


if __name__ == "__main__":
    main()
