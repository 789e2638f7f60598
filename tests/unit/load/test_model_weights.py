from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.load.model import estimate_batch_norm, load_state_dict


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()


@pytest.fixture
def trained():
    return net(seed=1).state_dict()


def loaded(path):
    module = net()
    load_state_dict(module, path)
    return module.state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ],
)
def test_reads_what_training_scripts_save(tmp_path, trained, wrap):
    torch.save(wrap(trained), tmp_path / "net.pt")
    assert all(torch.equal(value, trained[key]) for key, value in loaded(tmp_path / "net.pt").items())


def test_reads_safetensors(tmp_path, trained):
    save_file(trained, tmp_path / "net.safetensors")
    assert all(torch.equal(value, trained[key]) for key, value in loaded(tmp_path / "net.safetensors").items())


def test_checkpoints_without_batch_counters_are_older_not_wrong(tmp_path, trained):
    torch.save({key: value for key, value in trained.items() if "num_batches" not in key}, tmp_path / "net.pt")
    assert torch.equal(loaded(tmp_path / "net.pt")["0.weight"], trained["0.weight"])


def test_wrong_keys_are_listed_first_few_only(tmp_path, trained):
    torch.save({f"backbone.{key}": value for key, value in trained.items()}, tmp_path / "net.pt")
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path / "net.pt")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "net.pt" in caught.value.what
    assert "missing keys (0.weight, 0.bias, 1.weight, …)" in caught.value.what
    assert "unknown keys (backbone.0.weight, backbone.0.bias, backbone.1.weight, …)" in caught.value.what
    assert "backbone.2.bias" not in caught.value.what


def test_a_wrong_shape_names_the_key_and_both_shapes(tmp_path, trained):
    torch.save({**trained, "2.weight": torch.zeros(2, 5, 1, 1)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"2.weight has shape \[2, 5, 1, 1\], the model expects \[2, 4, 1, 1\]"):
        loaded(tmp_path / "net.pt")


def test_integers_are_not_taken_for_float_weights(tmp_path, trained):
    torch.save({**trained, "2.weight": torch.ones(2, 4, 1, 1, dtype=torch.int8)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"2\.weight is int8, the model expects float32"):
        loaded(tmp_path / "net.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_in_another_precision_becomes_float32(tmp_path, trained, dtype, suffix):
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in trained.items()}
    path = tmp_path / f"net{suffix}"
    save_file(given, path) if suffix == ".safetensors" else torch.save(given, path)
    for key, value in loaded(path).items():
        assert value.dtype == trained[key].dtype
        assert torch.equal(value, given[key].to(value.dtype))


def test_a_refused_state_dict_leaves_the_model_as_it_was(tmp_path, trained):
    torch.save({**trained, "2.weight": torch.zeros(1)}, tmp_path / "net.pt")
    module = net()
    with pytest.raises(UsageError):
        load_state_dict(module, tmp_path / "net.pt")
    assert all(torch.equal(value, net().state_dict()[key]) for key, value in module.state_dict().items())


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    "write", [lambda path: torch.save(Payload(), path), lambda path: path.write_bytes(pickle.dumps(Payload()))]
)
def test_pickled_code_does_not_run(tmp_path, capsys, write):
    write(tmp_path / "net.pt")
    with pytest.raises(UsageError, match="not a plain state dict"):
        loaded(tmp_path / "net.pt")
    assert "never" not in capsys.readouterr().out


def test_a_whole_pickled_model_is_no_state_dict(tmp_path):
    torch.save(net(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="not a plain state dict") as caught:
        loaded(tmp_path / "net.pt")
    assert "model.state_dict()" in caught.value.fix


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(tmp_path, trained, suffix, share):
    path = tmp_path / f"net{suffix}"
    save_file(trained, path) if suffix == ".safetensors" else torch.save(trained, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UsageError, match=f"net{suffix}") as caught:
        loaded(path)
    assert len(caught.value.what.removeprefix(str(path))) < 150
    assert "Exception raised" not in caught.value.what
    assert "file is complete" in caught.value.fix or "state_dict()" in caught.value.fix


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {}, {0: torch.zeros(1)}, torch.zeros(3), {"a": {"b": torch.ones(1)}}]
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="expected a state dict of tensors"):
        loaded(tmp_path / "net.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint .*net\.pt"):
        loaded(tmp_path / "net.pt")


SPEC = (TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),)


def test_batch_norm_statistics_become_those_of_the_data(in_memory):
    arrays = [np.random.default_rng(i).normal(3, 2, (3, 8, 8)).astype(np.float32) for i in range(16)]
    before = net()
    module = estimate_batch_norm(before, in_memory(arrays), SPEC)
    features = torch.cat([module[0](torch.from_numpy(array[None])) for array in arrays])
    torch.testing.assert_close(module[1].running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module[1].running_var, features.var((0, 2, 3)), rtol=0.1, atol=0)
    assert not module.training
    assert module[1].momentum == 0.1
    assert torch.equal(before[1].running_mean, torch.zeros(4))


def test_a_norm_after_global_pooling_has_no_variance_to_learn(in_memory):
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)).eval()
    module = estimate_batch_norm(pooled, in_memory([np.ones((3, 8, 8), np.float32)] * 2), SPEC)
    assert torch.equal(module[2].running_var, torch.ones(4))
    assert not module[2]._forward_pre_hooks


def test_estimating_leaves_the_samples_alone(in_memory):
    array = np.full((1, 3, 8, 8), -1, np.float32)
    estimate_batch_norm(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(3)), in_memory([array]), SPEC)
    assert (array == -1).all()
