"""Inputs, artifacts and bundle inputs for tests of what judges, writes and reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from edgeq.core.results.artifact import Artifact, BundleInput, Inputs
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import LoadedModel, LoweredModel, QuantizedModel, TensorSpec
from edgeq.core.results.report import DataFacts, GoldenSet
from edgeq.core.samples import NO_SAMPLES

MODEL = LoadedModel(
    name="digits",
    kind="module",
    model=None,
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224)),),
    weights="file",
    fp32_bytes=40_000,
    source_sha256="a" * 64,
)

GOLDEN = GoldenSet(
    inputs=(np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),),
    outputs=(np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2),),
    preprocessed=False,
    sqnr_floor_db=30.0,
)


def inputs(model: LoadedModel = MODEL, **said: Any) -> Inputs:
    """Return a model without data."""
    facts: dict[str, Any] = {
        "preprocess": None,
        "calibration": NO_SAMPLES,
        "samples": NO_SAMPLES,
        "is_evaluation": False,
        "metric": None,
        "labels": (),
        "data": DataFacts(),
    }
    return Inputs(model=model, **(facts | said))


def artifact(lowered: LoweredModel, verified: VerifyReport, scheme: str = "static-int8", **said: Any) -> Artifact:
    """Return an artifact; what `QuantizedModel` has a field for goes there."""
    own = {field.name for field in dataclasses.fields(QuantizedModel)}
    quantized = {"quantized": (), "kept_fp32": (), "output_steps": ()} | {k: v for k, v in said.items() if k in own}
    rest = {"golden": GOLDEN} | {k: v for k, v in said.items() if k not in own}
    return Artifact(
        quantized=QuantizedModel(scheme=scheme, graph=None, **quantized), lowered=lowered, verified=verified, **rest
    )


def changed(item: BundleInput, **changes: Any) -> BundleInput:
    """Return the item with other values of its own fields, of its inputs', its artifact's or its quantization's."""
    for name, value in changes.items():
        if name in {field.name for field in dataclasses.fields(BundleInput)}:
            item = dataclasses.replace(item, **{name: value})
        elif name in {field.name for field in dataclasses.fields(Inputs)}:
            item = dataclasses.replace(item, inputs=dataclasses.replace(item.inputs, **{name: value}))
        else:
            item = dataclasses.replace(item, artifact=dataclasses.replace(item.artifact, **{name: value}))
    return item
