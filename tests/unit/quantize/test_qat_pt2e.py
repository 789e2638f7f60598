"""What PT2E adds to the training: captures for any batch, torchao's observers, a captured program that is shared."""

from __future__ import annotations

import pytest
import torch
from small_models import IMAGE, SmallNet, artifact, captured_net, dataset, loaded, outputs_of, quantized, small_net
from torch import nn

from edgeq.core.config import QatConfig
from edgeq.quantize.capture import capture_batched
from edgeq.quantize.spec import QatSpec

pytestmark = pytest.mark.slow


def training(train=None, count=12) -> QatSpec:
    return QatSpec(
        samples=dataset((IMAGE,), count, whole=False),
        options=QatConfig(epochs=1, batch=4),
        logits=True,
        seed=0,
        train=train,
        state_folder=None,
        identity=(),
    )


def test_training_starts_from_the_static_ranges_and_leaves_model_and_capture_alone():
    model, captured = small_net(), captured_net()
    before = {name: tensor.clone() for name, tensor in captured.state_dict.items()}
    seen = {}

    def loop(prepared, teacher, data):
        batch = torch.stack([item["x"] for item in data])
        seen.update(student=prepared.train()(batch), teacher=teacher(batch), folded=dict(prepared.named_parameters()))
        return prepared

    result = quantized(model, "executorch", "qat-int8", captured=captured, qat=training(loop))
    static, _ = artifact("executorch", "static-int8", "xnnpack")
    for ours, theirs in zip(
        outputs_of(result.graph, model.inputs, 4), outputs_of(static.graph, model.inputs, 4), strict=True
    ):
        assert abs(ours[0] - theirs[0]).max() < 1e-6
    assert sorted(result.quantized) == sorted(static.quantized)
    assert result.output_steps == pytest.approx(static.output_steps)
    assert seen["student"].shape == seen["teacher"].shape == (11, 5)
    norm = model.model.norm
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.allclose(seen["folded"]["conv.weight"], model.model.conv.weight * gain.view(-1, 1, 1, 1), rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in captured.state_dict.items())
    assert all(torch.equal(part, before[name]) and part.grad is None for name, part in model.model.named_parameters())


class FixedBatch(nn.Module):
    """Counts on a batch of one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16)

    def forward(self, x):
        return self.conv(x).reshape(1, 4)


def test_a_model_that_takes_one_sample_at_a_time_is_trained_all_the_same():
    model = loaded(FixedBatch())
    assert capture_batched(model) is None
    tuning = quantized(model, "executorch", "qat-int8", qat=training()).tuning
    assert tuning.epochs == 1
    assert tuning.end_loss <= tuning.start_loss


def test_a_model_of_any_batch_is_captured_so():
    program = capture_batched(loaded(SmallNet))
    assert program.module()(torch.rand(5, 3, 16, 16)).shape == (5, 5)
