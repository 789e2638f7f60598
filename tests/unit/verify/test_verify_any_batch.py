"""Artifacts for any batch size: several samples at once must be answered as each alone."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import IMAGE, Silent, dataset, folder, loaded, lowered, quantized, small_net
from torch import nn

from edgeq.core.errors import UnsupportedError, VerificationError
from edgeq.core.operators import with_open_batch
from edgeq.core.samples import batches
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.quantize.capture import dynamic_capture
from edgeq.verify.runtimes import RUNNERS
from edgeq.verify.verify import batch_findings


class Mixing(nn.Module):
    """Takes the mean of its whole batch off, so that a sample's answer depends on the others."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 5)

    def forward(self, x):
        return self.head((x - x.mean(0, keepdim=True)).flatten(1)) + self.head(x.flatten(1))


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(1, 768)


class Runtime:
    """A runner in this process, as the child process would be."""

    def __init__(self, low):
        self.runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
        self.stated = self.runner.load()

    def run(self, arrays):
        return self.runner.run(tuple(arrays))


def open_batch(model, scheme, place):
    graph = quantized(model, "onnx", scheme, backend="ort", captured=dynamic_capture(model), reduce_range=True)
    target = folder() / place
    target.mkdir()
    inputs = with_open_batch((IMAGE,))
    spec = LowerSpec(inputs=inputs, backend="ort", folder=target, progress=Silent(), label="small")
    return graph, lower("onnx", graph, spec)


def found(graph, low, scheme):
    seen = list(batches(dataset((IMAGE,), 3), (IMAGE,)))
    return batch_findings(seen, graph.output_steps, scheme, Runtime(low))


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
def test_samples_together_are_answered_as_alone(scheme):
    graph, low = open_batch(small_net(), scheme, f"any-{scheme}")
    assert low.dynamic_batch
    assert Runtime(low).stated["inputs"] == [["float32", [0, 3, 16, 16]]]
    assert next(layer.macs for layer in low.layers) == 16 * 16 * 8 * 3 * 9  # of one sample
    assert found(graph, low, scheme) == ()
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    five = np.concatenate(batch.inputs * 5)
    assert Runtime(low).run((five,))[0].shape == (5, 5)


def test_a_model_whose_samples_depend_on_each_other_is_found_out():
    (finding,) = found(*open_batch(loaded(Mixing, IMAGE), "fp32", "mixing"), "fp32")
    assert finding.startswith("3 batches at once give other outputs than alone: ")
    assert finding.endswith(" dB, expected at least 60.0 dB")


def test_outputs_without_the_batch_are_found_out():
    class Sum(nn.Module):
        def forward(self, x):
            return x.mean((0, 2, 3))

    (finding,) = found(*open_batch(loaded(Sum, IMAGE), "fp32", "sum"), "fp32")
    assert finding == "3 batches at once give outputs with the shapes [(3,)], expected [(9,)]"


def test_a_file_that_only_says_that_it_takes_any_batch_is_found_out():
    class Refusing:
        def run(self, arrays):
            if len(arrays[0]) > 1:
                raise VerificationError("Reshape fails", "none")
            return (arrays[0][:, 0, 0],)

    (finding,) = batch_findings(list(batches(dataset((IMAGE,), 1), (IMAGE,))), (None,), "fp32", Refusing())
    assert finding == "the artifact states that it accepts any batch size but fails on 3 at once: Reshape fails"


def test_a_model_of_one_batch_size_is_refused():
    with pytest.raises(UnsupportedError, match="accepts one batch size only"):
        dynamic_capture(loaded(Fixed, IMAGE))


def test_a_fixed_artifact_says_that_it_is():
    low = lowered(quantized(small_net(), "onnx", "fp32", backend="ort"), (IMAGE,), folder() / "one", "onnx")
    assert not low.dynamic_batch
