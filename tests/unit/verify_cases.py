"""The verify step's input for small models."""

from __future__ import annotations

import dataclasses

from small_models import (
    Silent,
    folder,
    forward,
    loaded,
    lowered,
    quantized,
)

from edgeq.verify.spec import VerifySpec
from edgeq.verify.verify import verify


def spec_of(low, graph, fp32, specs, samples, **changes) -> VerifySpec:
    backend = changes.get("backend", "qnnpack")
    engine = backend if low.runtime == "torchscript" else None
    base = VerifySpec(
        lowered=low,
        inputs=tuple(specs),
        graph=forward(graph.graph, engine) if graph else None,
        fp32=forward(fp32) if fp32 else None,
        output_steps=graph.output_steps if graph else (),
        samples=samples,
        is_evaluation=False,
        metric=None,
        metric_name="top1",
        scheme=graph.scheme if graph else "fp32",
        backend="qnnpack",
        threads=1,
        progress=Silent(),
        label="small",
        warmup=0,
        runs=3,
    )
    return dataclasses.replace(base, **changes)


def float_case(runtime, module, specs, samples, *, fp32=None, **changes):
    """Lower `module` as it is, and verify it against itself or against `fp32`."""
    model = loaded(module, *specs)
    graph = quantized(model, scheme="fp32")
    place = folder() / f"case-{len(list(folder().iterdir()))}"
    low = lowered(graph, specs, place)
    reference = loaded(fp32, *specs).model if fp32 else model.model
    return verify(dataclasses.replace(spec_of(low, graph, reference, specs, samples), **changes), runtime)
