"""The verify step of an artifact that nothing here can run: its converted graph is judged, and nothing else is said."""

from __future__ import annotations

import dataclasses

from edgeq.artifacts import GoldenSet, GraphOnly, VerifyReport
from edgeq.errors import UsageError
from edgeq.samples import batch_size, batches
from edgeq.verify.any_batch import in_mixed_order
from edgeq.verify.golden import golden_set
from edgeq.verify.spec import VerifySpec
from edgeq.verify.tally import Tally, compare, fidelity_of, findings_of


def judge_graph(spec: VerifySpec, *, why: str) -> tuple[VerifyReport, GoldenSet]:
    """Run the converted graph on the samples, and compare it with fp32.

    Args:
        spec: as for `verify`; it has a graph.
        why: why the artifact itself is not run, in words.

    Returns:
        A report that says nothing of the artifact, and a few samples with the graph's outputs.

    Raises:
        UsageError: samples that do not fit, or a metric that fails.
    """
    graph = spec.graph
    if graph is None:
        raise ValueError("an artifact without a graph has nothing to be judged by")
    alone = dataclasses.replace(spec, graph=None)  # with itself it would always agree
    tally = Tally()
    samples = in_mixed_order(spec.samples) if batch_size(spec.samples, spec.inputs) > 1 else spec.samples
    with spec.progress.task(f"run the graph of {spec.label}", spec.samples.count) as task:
        for batch in batches(samples, spec.inputs):
            compare(alone, tally, batch, graph(batch))
            task.advance(batch.rows)
    if not tally.samples:
        raise UsageError(f"no samples in {spec.samples.origin}", "give data with at least one sample")
    report = VerifyReport(
        host="nothing",
        outputs=tally.shapes,
        findings=(),
        graph_only=GraphOnly(why=why, fidelity=fidelity_of(spec, tally), findings=findings_of(spec, tally)),
    )
    return report, golden_set(tally.golden, spec.output_steps, scheme=spec.scheme, made_by="graph")
