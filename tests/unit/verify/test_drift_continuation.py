"""Language models that continue a prompt from their own cache, in ExecuTorch's runtime: right, and without a memory."""

from __future__ import annotations

import dataclasses
import functools

import language_models
import numpy as np
import pytest
import torch
from small_models import Silent, folder, forward, quantized
from verify_cases import spec_of

from edgeq.check.artifact import continuation_gates
from edgeq.core.samples import Dataset
from edgeq.load.language import open_text
from edgeq.load.model import load_model
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.verify.drift import says_the_same
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import built_in_metric
from edgeq.verify.verify import judge, run_artifact

LENGTH = 48


@functools.cache
def model():
    return load_model(
        f"hf:{language_models.folder('Llama')}", weights=None, inputs=(), name=None, seed=0, context_length=LENGTH
    )


@functools.cache
def data() -> Dataset:
    path = folder() / "text.txt"
    path.write_text(language_models.TEXT)
    return open_text(path, model().language, model().inputs, limit=6, seed=0)


@functools.cache
def built(scheme):
    graph = quantized(model(), "executorch", scheme, backend="xnnpack")
    return graph, program(graph, scheme)


def program(graph, name):
    place = folder() / f"language-{name}"
    place.mkdir()
    spec = LowerSpec(
        inputs=model().inputs,
        backend="xnnpack",
        folder=place,
        progress=Silent(),
        label="small",
        language=model().language,
    )
    return lower("executorch", graph, spec)


def verified(made, low, **changes):
    metric, name = built_in_metric("perplexity", data(), 0)
    spec = spec_of(low, made, model().model, model().inputs, data(), backend="xnnpack", language=model().language)
    spec = dataclasses.replace(spec, metric=metric, metric_name=name, is_evaluation=True, **changes)
    with HostRuntime() as runtime:
        ran = run_artifact(spec, runtime)
    return (*judge(spec, ran), ran)


def gate(report, scheme="fp32"):
    (found,) = continuation_gates(scheme, report, model().language)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "8da4w"])
def test_the_artifact_says_what_its_graph_says(scheme):
    graph, low = built(scheme)
    report, golden, ran = verified(graph, low, graph=forward(graph.runs_as or graph.graph))
    told = report.continuation
    assert (told.prompt, told.tokens, told.as_graph) == (32, 16, 16)
    assert len({int(one.fp32[0][0, -1].argmax()) for one in ran.continuation if one.continues}) > 3
    assert gate(report, scheme).passed, gate(report, scheme)
    assert told.decode_tokens_per_s > 0
    assert told.prefill_tokens_per_s > told.decode_tokens_per_s
    # golden samples are the first tokens, each of which reads what the one before has written
    assert (golden.inputs[0].shape, golden.inputs[1].tolist()) == ((8, 1), list(range(8)))
    tokens = torch.from_numpy(golden.inputs[0].reshape(1, -1))
    with torch.no_grad():
        whole = model().model(tokens, torch.tensor([0]))[0].numpy()
    if scheme == "fp32":
        assert told.as_fp32 == 16
        assert np.abs(golden.outputs[0].reshape(8, -1) - whole).max() < 1e-3 * np.abs(whole).max()
        assert report.fidelity.perplexity.rise_pct.high < 0.01
        (agreement,) = report.fidelity.agreements
        assert agreement.agreeing == agreement.ranked == 6 * LENGTH
    else:
        rise = report.fidelity.perplexity
        assert rise.artifact / rise.fp32 - 1 == pytest.approx(rise.rise_pct.estimate / 100, rel=1e-6)
        assert report.fidelity.agreements[0].agreeing < 6 * LENGTH
        assert report.fidelity.top1_agreement == report.fidelity.agreements[0].agreeing / (6 * LENGTH)
    assert low.companions == (("tokenizer", model().language.tokenizer),)


class _Forgetful(torch.nn.Module):
    """Answers a text that begins at the first place, and has no memory of one."""

    def __init__(self, cached):
        super().__init__()
        self.inner = cached.model

    def forward(self, tokens, input_pos):
        return self.inner(input_ids=tokens, use_cache=False).logits + 0 * input_pos[0]


@pytest.mark.slow
def test_an_artifact_that_forgets_passes_parity_and_fails_here():
    graph, _ = built("fp32")
    forgetful = dataclasses.replace(model(), model=_Forgetful(model().model).eval())
    low = program(quantized(forgetful, "executorch", "fp32", backend="xnnpack"), "forgetful")
    report, _, _ = verified(graph, low)
    assert report.parity.sqnr_db > 60  # each window begins at the first place
    assert report.continuation.as_graph < 16
    found = gate(report)
    assert (found.outcome, found.exit_code) == ("failed", 7)
    assert "the keys and values of earlier calls" in found.detail


def test_near_ties_are_no_difference_and_others_are():
    logits = np.zeros((1, 2, 50), np.float32)
    logits[0, -1] = np.linspace(-3, 3, 50)
    tie, other = logits.copy(), logits.copy()
    tie[0, -1, 48] = 3.001
    logits[0, -1, 48] = 2.999
    other[0, -1, 10] = 4
    assert says_the_same((logits,), (logits,), "8da4w")
    assert says_the_same((logits,), (tie,), "8da4w")
    assert not says_the_same((logits,), (other,), "8da4w")
    assert not says_the_same((logits,), (np.roll(logits, 5, -1),), "fp32")


def test_without_a_graph_or_fp32_nothing_is_judged():
    from edgeq.core.results.measured import Continuation, VerifyReport

    report = VerifyReport(host="host", outputs=(), findings=())
    assert continuation_gates("fp32", report, None) == ()
    assert gate(report).outcome == "unverified"
    told = Continuation(prompt=3, tokens=16, as_graph=None, as_fp32=16, sqnr_db=None)
    assert gate(dataclasses.replace(report, continuation=told)).outcome == "unverified"
    told = dataclasses.replace(told, as_graph=16, sqnr_db=54.1)
    assert gate(dataclasses.replace(report, continuation=told)).passed
    assert not gate(dataclasses.replace(report, continuation=dataclasses.replace(told, sqnr_db=53.9))).passed
    assert not gate(dataclasses.replace(report, continuation=dataclasses.replace(told, as_graph=15))).passed
    assert gate(dataclasses.replace(report, continuation=dataclasses.replace(told, sqnr_db=24.1)), "8da4w").passed
