"""Write the vectors that the Android store's tests compare with, as edgeq itself computes them.

`preprocess.json` and `preprocess.npz`: specifications, images and edgeq's own results. `digits.npz`: a hundred digits
of the test third, before preprocessing, their labels, and what edgeq's Python path answers for each golden bundle.
`manifest.json`: a manifest with every key that edgeq writes today. `golden.json` and `golden.npz`: golden outputs, what
a device might give for them, and how `edgeq verify` judges that. Run it by hand after a change of preprocessing, of the
manifest or of that gate.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import ZIP_EPOCH, _npy, zip_entry
from edgeq.check.bundle import golden_gate
from edgeq.core.manifest import (
    MANIFEST_NAME,
    Bundle,
    CudaBox,
    LanguageFacts,
    NpuNeeds,
    SizeRange,
    Tensor,
    manifest_bytes,
    measure,
    parse_manifest,
)
from edgeq.core.preprocess import PRESETS, Preprocess, apply
from edgeq.core.results.report import GoldenSet
from edgeq.verify.golden import compare_golden

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
    height = SizeRange(axis=2, name="height", least=16, most=32, step=16)
    state = Tensor.model_validate(old.outputs[0].model_dump() | {"name": "h", "fed_from": 0})
    inputs = (old.inputs[0].model_copy(update={"varying": (height,)}), state)
    changes = {"golden": golden, "runtime": runtime, "cuda": box, "dynamic_batch": True}
    npu = NpuNeeds(
        accelerator="ethos-u55-128",
        system_config="Ethos_U55_High_End_Embedded",
        memory_mode="Shared_Sram",
        parts=1,
        cycles=106_806,
        sram_bytes=43_920,
        dram_bytes=0,
        flash_bytes=40_000,
        scratch_bytes=38_800,
        planned_bytes=5_120,
        cpu_operators=("cortex_m::quantize_per_tensor.out",),
    )
    language = LanguageFacts(context_length=2048, most_tokens=128, vocabulary=32_000, bos_id=1, eos_ids=(2,))
    changes |= {"inputs": inputs, "planned_memory_bytes": 4096, "npu": npu, "language": language}
    return manifest_bytes(old.model_copy(update=changes))


# shapes of one sample's outputs
SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((),),
    ((1,),),
    ((5,),),
    ((10,),),
    ((40,),),
    ((4, 6, 6),),
    ((6, 6, 4),),
    ((7, 5),),
    ((5, 7),),
    ((40, 3),),
    ((6,), (3, 4)),
    ((1, 1, 9, 5), (8,)),
)


def _channel_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a factor for each channel, along the first or the last axis: coordinates beside scores."""
    scales = 10.0 ** rng.integers(-3, 4, shape[:1] if rng.random() < 0.5 else shape[-1:])
    return scales.reshape(-1, *[1] * (len(shape) - 1)) if scales.shape == shape[:1] else scales


def _expected(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    samples = int(rng.choice([1, 2, 4, 4, 4]))
    values = rng.standard_normal((samples, *shape))
    if shape and rng.random() < 0.8:
        values = values * _channel_scales(rng, shape)
    if shape and rng.random() < 0.3:
        values = values + 100 * rng.standard_normal(shape)  # a mean that all samples share
    if shape and rng.random() < 0.2:
        scores = np.exp(values - values.max(axis=-1, keepdims=True))
        values = scores / scores.sum(axis=-1, keepdims=True)
    if rng.random() < 0.5:  # as an int8 output has it
        step = np.abs(values).max() / 127
        values = np.round(values / step) * step
    return values.astype(dtype)


def _measured(rng: np.random.Generator, expected: NDArray[Any]) -> NDArray[Any]:
    """Return what a device might give: equal values, noise, one scale for unlike channels, or lost channels."""
    values = expected.astype(np.float64)
    kind = str(rng.choice(["equal", "noise", "steps", "one scale", "lost", "lost", "lost", "mean", "not finite"]))
    largest = float(np.abs(values).max()) or 1.0
    if kind == "noise":
        values = values + rng.standard_normal(values.shape) * largest * 10.0 ** rng.integers(-5, 0)
    elif kind == "steps":
        values = values + rng.choice([-1, 0, 1], values.shape) * largest / 127
    elif kind == "one scale":
        values = np.round(values / largest * 127) / 127 * largest
    elif kind == "lost" and values.ndim > 1:
        axis = int(rng.choice([1, values.ndim - 1]))
        channel = int(rng.integers(values.shape[axis]))
        np.moveaxis(values, axis, 0)[channel] *= float(rng.choice([0.0, -1.0, 0.5]))
    elif kind == "mean":
        values = np.broadcast_to(values.mean(axis=0), values.shape)
    elif kind == "not finite" and expected.dtype.kind == "f":
        values = values.copy()
        values.flat[0] = rng.choice([np.nan, np.inf])
    return values.astype(expected.dtype)


def golden_vectors() -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Return verdicts of `edgeq verify`, and the arrays `expected_<case>_<output>` and `measured_<case>_<output>`."""
    rng = np.random.default_rng(15)
    cases: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for index in range(240):
        shapes = SHAPES[index % len(SHAPES)]
        dtype = str(rng.choice(["float32", "float32", "float64", "float16", "int8"]))
        expected = tuple(_expected(rng, shape, dtype) for shape in shapes)
        samples = min(map(len, expected))
        expected = tuple(array[:samples] for array in expected)
        measured = tuple(_measured(rng, array) for array in expected)
        floor_db = float(rng.choice([3.0, 20.0]))
        golden = GoldenSet(inputs=expected, outputs=expected, preprocessed=True, sqnr_floor_db=floor_db)
        with np.errstate(all="ignore"):
            compared = compare_golden(golden, dataclasses.replace(golden, outputs=measured))
        gate = golden_gate(compared)
        cases.append(
            {
                "floor_db": floor_db,
                "outputs": len(expected),
                "passed": gate.passed,
                "sqnr_db": measure(compared.sqnr_db),
                "lost": gate.detail.partition("lost: ")[2],
            }
        )
        for name, outputs in (("expected", expected), ("measured", measured)):
            arrays.update({f"{name}_{index}_{i}": array for i, array in enumerate(outputs)})
    return cases, arrays


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
        raise ValueError(f"{bundle.folder}: its input is not an image")
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
    cases, arrays = golden_vectors()
    (FOLDER / "golden.json").write_text(json.dumps(cases, indent=1) + "\n")
    write_npz(FOLDER / "golden.npz", arrays)
    images, labels = digits()
    answers = {name: predictions(read_bundle(GOLDEN / name), images) for name in TARGETS}
    write_npz(FOLDER / "digits.npz", {"image": images, "label": labels, **answers})


if __name__ == "__main__":
    main()
