"""The golden samples of a bundle, as samples and as runs on this host."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgeq.artifacts import GoldenSet
from edgeq.manifest import Manifest
from edgeq.pipeline.evaluation import input_specs
from edgeq.samples import Batch, Dataset, Sample, batches

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.verify.host import HostRuntime
    from edgeq.verify.metrics import Outputs


def golden_dataset(bundle: Bundle, golden: GoldenSet) -> Dataset:
    """Return the golden inputs of a bundle as samples."""
    from edgeq.bundle.golden import model_inputs
    from edgeq.load.digest import sample_digest

    samples = tuple(
        Sample(inputs=inputs, raw=inputs, label=None, name=f"golden sample {i}", digest=sample_digest(inputs))
        for i, inputs in enumerate(model_inputs(golden, bundle.manifest))
    )
    return Dataset(origin=str(bundle.golden), count=len(samples), read=samples.__getitem__)


def run_golden(manifest: Manifest, samples: Dataset, runtime: HostRuntime) -> tuple[tuple[Batch, Outputs], ...]:
    """Run each sample in a batch of its own; the verify step keeps the outputs of a few only."""
    return tuple((batch, runtime.run(batch.inputs)) for batch in golden_batches(manifest, samples))


def golden_batches(manifest: Manifest, samples: Dataset) -> tuple[Batch, ...]:
    """Return each sample in a batch of its own."""
    alone = (dataclasses.replace(samples, count=1, read=(samples.read(i),).__getitem__) for i in range(samples.count))
    return tuple(batch for one in alone for batch in batches(one, input_specs(manifest)))
