"""Training of a calibrated graph, on FX, which needs no capture; what PT2E adds is in test_qat_pt2e."""

from __future__ import annotations

import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from small_models import IMAGE, SmallNet, dataset, loaded, outputs_of, quantized
from torch import nn

from edgeq.core.errors import AccuracyError, ExitCode, UsageError
from edgeq.quantize.qat import load_state, save_state

from .qat_cases import Told, on_scenes, same, trained, training, uneven

ENGINES = ("qnnpack", "x86", "fbgemm")


@pytest.mark.parametrize("backend", ENGINES)
def test_training_starts_from_the_static_ranges_exactly(backend):
    model = loaded(SmallNet)

    def loop(prepared, teacher, data):
        return prepared

    static = quantized(model, backend=backend)
    result = trained(model, backend=backend, qat=training(train=loop))
    assert same(result.graph, static.graph, model, backend)
    assert (result.quantized, result.kept_fp32, result.output_steps) == (
        static.quantized,
        static.kept_fp32,
        static.output_steps,
    )
    assert result.tuning.weights == "user"


@pytest.mark.parametrize("observer", ["histogram", "minmax", "percentile"])
def test_training_wins_back_what_uneven_channels_lose(observer):
    result = trained(loaded(uneven()), observer=observer, **on_scenes(epochs=6, lr=5e-3))
    tuning = result.tuning
    assert tuning.weights in ("last", "average")
    assert tuning.end_loss < 0.5 * tuning.start_loss
    assert len(result.quantized) == 3


def test_the_float_model_is_left_alone():
    model = loaded(SmallNet)
    state = copy.deepcopy(model.model.state_dict())
    attributes = {name: sorted(vars(part)) for name, part in model.model.named_modules()}
    flags = [part.requires_grad for part in model.model.parameters()]
    trained(model)
    assert all(torch.equal(value, state[key]) for key, value in model.model.state_dict().items())
    assert {name: sorted(vars(part)) for name, part in model.model.named_modules()} == attributes
    assert [part.requires_grad for part in model.model.parameters()] == flags
    assert all(part.grad is None for part in model.model.parameters())


def test_batch_norm_keeps_its_eps_and_dropout_stays_out():
    net = SmallNet()
    net.norm.eps = 0.5
    model = loaded(net)
    seen = []

    def loop(prepared, teacher, data):
        x = data[0]["x"][None]
        seen.extend([prepared(x), prepared(x), dict(prepared.named_parameters())["conv.weight"].detach().clone()])
        return prepared

    trained(model, qat=training(train=loop))
    folded = net.conv.weight * (net.norm.weight / (net.norm.running_var + 0.5).sqrt()).view(-1, 1, 1, 1)
    assert torch.allclose(seen[2], folded, rtol=1e-5)
    assert torch.equal(seen[0], seen[1])


def test_equal_runs_are_equal_and_seeds_differ():
    model = loaded(uneven())
    first, second, other = (trained(model, qat=training(lr=0.01, seed=seed)) for seed in (0, 0, 1))
    assert first.tuning == second.tuning
    assert same(first.graph, second.graph, model)
    assert other.tuning.end_loss != first.tuning.end_loss


def test_ranges_of_seven_bits_are_not_learned():
    seen = {}

    def loop(prepared, teacher, data):
        seen[backend] = [part.requires_grad for name, part in prepared.named_parameters() if "log_factor" in name]
        return prepared

    for backend in ("qnnpack", "x86"):
        trained(backend=backend, qat=training(train=loop))
    assert any(seen["qnnpack"])
    assert not any(seen["x86"])


class FixedBatch(nn.Module):
    """Counts on a batch of one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16)

    def forward(self, x):
        return self.conv(x).reshape(1, 4)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return {"map": self.conv(x), "mean": self.conv(x).mean((2, 3))}


def test_a_model_that_takes_one_sample_at_a_time_is_trained_all_the_same(capfd):
    assert trained(loaded(FixedBatch())).tuning.epochs == 2
    assert capfd.readouterr().err == ""


def test_samples_with_the_whole_input_shape():
    model = loaded(SmallNet, dataclasses.replace(IMAGE, shape=(3, 3, 16, 16)))
    qat = training(model.inputs)
    qat = dataclasses.replace(qat, samples=dataset(model.inputs, 8))
    assert math.isfinite(trained(model, qat=qat).tuning.end_loss)


def test_outputs_that_are_no_logits_are_matched_by_value():
    model = loaded(Heads())
    tuning = trained(model, qat=training(logits=False, lr=0.01)).tuning
    assert tuning.loss == "mse"
    assert 0 < tuning.end_loss <= tuning.start_loss
    assert tuning.end_agreement > 20  # in dB


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path):
    model, qat = loaded(uneven()), training(epochs=3, lr=0.01, state=tmp_path)
    whole = trained(model, qat=dataclasses.replace(qat, state_folder=None))
    with pytest.raises(KeyboardInterrupt):
        trained(model, qat=qat, progress=Told(stop="epoch 3/3"))
    told = Told()
    again = trained(model, qat=qat, progress=told)
    assert told.notes[0].startswith("resumed after epoch 2 of 3")
    assert told.steps == 3 * again.tuning.samples
    assert same(again.graph, whole.graph, model)
    assert dataclasses.replace(again.tuning, state=None) == whole.tuning
    assert again.tuning.state.parent == tmp_path


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"epochs": 4}, {"seed": 1}])
def test_a_run_that_trains_otherwise_starts_anew(tmp_path, change):
    model, qat = loaded(uneven()), training(epochs=3, lr=0.01, state=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(model, qat=qat, progress=Told(stop="epoch 2/3"))
    told = Told()
    trained(model, qat=training(**{"epochs": 3, "lr": 0.01, "state": tmp_path, **change}), progress=told)
    assert told.notes[0].startswith("before training")


def test_other_weights_start_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(loaded(uneven()), qat=training(epochs=3, state=tmp_path), progress=Told(stop="epoch 2/3"))
    told, other = Told(), uneven()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    trained(loaded(other), qat=training(epochs=3, state=tmp_path), progress=told)
    assert told.notes[0].startswith("before training")


def test_a_torn_or_foreign_state_is_removed_and_not_used(tmp_path):
    path = tmp_path / "a.state"
    save_state(path, "a", {"epochs": 1, "weights": {"w": torch.ones(2)}})
    assert load_state(path, "a")["epochs"] == 1
    content = path.read_bytes()
    for torn in (content[:-7], content[:70], b"", content[:100] + b"\0" + content[101:]):
        path.write_bytes(torn)
        assert load_state(path, "a") is None
        assert not path.exists()
    save_state(path, "b", {"epochs": 1})
    assert load_state(path, "a") is None
    assert not path.exists()
    assert load_state(path, "a") is None


def test_a_disk_that_is_full_costs_the_state_not_the_training(small_disk):
    (small_disk / "ballast").write_bytes(bytes(60_000))
    told = Told()
    assert trained(qat=training(state=small_disk), progress=told).tuning.epochs == 2
    assert any("was not saved" in note for note in told.notes)


def test_a_diverging_training_stops_and_keeps_the_last_good_epoch():
    model = loaded(SmallNet)
    static = quantized(model)
    told = Told()
    result = trained(model, qat=training(lr=1e30, epochs=5), progress=told)
    assert result.tuning.diverged_in is not None
    assert result.tuning.epochs == result.tuning.diverged_in - 1
    assert any("not finite" in note for note in told.notes)
    assert result.tuning.end_loss <= result.tuning.start_loss
    assert all(np.isfinite(array[0]).all() for array in outputs_of(result.graph, model.inputs, 2, "qnnpack"))
    if result.tuning.weights == "start":
        assert same(result.graph, static.graph, model)


def test_one_sample_is_too_few():
    with pytest.raises(UsageError, match="has 1"):
        trained(qat=training(count=1))


def test_the_users_loop_gets_module_teacher_and_data_and_its_weights_are_taken():
    model = loaded(uneven())
    asked = {}

    def loop(prepared, teacher, data):
        asked.update(items=len(data), item=data[0])
        optimizer = torch.optim.Adam([part for part in prepared.parameters() if part.requires_grad], lr=1e-3)
        prepared.train()
        for _ in range(8):
            for batch in torch.utils.data.DataLoader(data, batch_size=8):
                truth = torch.softmax(teacher(batch["x"]).detach(), 1)
                loss = torch.nn.functional.cross_entropy(prepared(batch["x"]), truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        buffer = io.BytesIO()  # as a loop would that trains in processes of its own
        torch.save(prepared, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)

    result = trained(model, **on_scenes(train=loop))
    assert result.tuning.end_loss < result.tuning.start_loss
    assert asked["items"] == result.tuning.samples == 86
    assert asked["item"]["x"].shape == (3, 16, 16)
    assert asked["item"]["y"] in range(5)
    assert not same(result.graph, quantized(model).graph, model)


def _nothing(prepared, teacher, data):
    return None


def _teacher(prepared, teacher, data):
    return teacher


def _number(prepared, teacher, data):
    return 0.93


@pytest.mark.parametrize(
    ("loop", "words"),
    [(_nothing, "returned nothing"), (_teacher, "whose parameters differ"), (_number, "returned float")],
)
def test_a_loop_that_returns_something_else(loop, words):
    with pytest.raises(UsageError, match=words) as caught:
        trained(qat=training(train=loop))
    assert "return the prepared module" in caught.value.fix


def test_a_loop_that_returns_nan_ends_with_the_accuracy_code():
    def loop(prepared, teacher, data):
        with torch.no_grad():
            next(part for name, part in prepared.named_parameters() if "weight" in name).fill_(math.nan)
        return prepared

    with pytest.raises(AccuracyError, match=r"NaN or Inf: .*weight") as caught:
        trained(qat=training(train=loop))
    assert caught.value.exit_code == ExitCode.ACCURACY
