from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeq.core.errors import ExitCode, UsageError
from edgeq.load.weights import load_weights


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()


@pytest.fixture
def trained():
    return net(seed=1).state_dict()


def loaded(path, **options):
    module = net()
    load_weights(module, str(path), **options)
    return module.state_dict()


def is_like(state, other):
    return all(torch.equal(value, other[key].to(value.dtype)) for key, value in state.items())


def averaged(state):
    return {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}


def swa(trained):
    module = net()
    module.load_state_dict(trained)
    return torch.optim.swa_utils.AveragedModel(module).state_dict()


class Config:
    """A class that a trainer pickles beside its weights."""

    def __init__(self):
        self.lr = 0.1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "global_step": 7},
        lambda state: {"state_dict": {f"net.backbone.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {key.replace(".", "._orig_mod.", 1): value for key, value in state.items()},
        lambda state: {"ema": state},
        lambda state: {"net": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda state: {"checkpoint": {"model": state}},
        lambda state: {"model": state, "state_dict": dict(state)},
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9)},
        lambda state: {"state_dict": state, "out": pathlib.Path("a/b"), "when": datetime.datetime(2026, 1, 1)},
        lambda state: {"state_dict": state, "seen": collections.defaultdict(int, {"a": 1}), "ids": {1, 2}},
        lambda state: {"state_dict": state, "mean": np.ones(3), "config": Config()},
        swa,
    ],
)
def test_reads_what_training_scripts_save(tmp_path, trained, wrap):
    torch.save(wrap(trained), tmp_path / "net.pt")
    assert is_like(loaded(tmp_path / "net.pt"), trained)


def test_the_format_before_torch_1_6_may_hold_metadata_too(tmp_path, trained):
    content = {"state_dict": trained, "args": argparse.Namespace(lr=0.1), "out": pathlib.Path("a"), "config": Config()}
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert is_like(loaded(tmp_path / "net.pt"), trained)
    torch.save({"model": net()}, tmp_path / "whole.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match="holds a whole pickled module"):
        loaded(tmp_path / "whole.pt")


def test_the_averaged_weights_are_taken_where_they_are_named(tmp_path, trained):
    torch.save({"model": trained, "model_ema": averaged(trained)}, tmp_path / "net.pt")
    module = net()
    (remark,) = load_weights(module, str(tmp_path / "net.pt"))
    assert is_like(module.state_dict(), trained)
    assert "net.pt#model_ema" in remark
    assert is_like(loaded(f"{tmp_path / 'net.pt'}#model_ema"), averaged(trained))


def test_one_of_two_networks_must_be_named(tmp_path, trained):
    torch.save({"student": trained, "teacher": averaged(trained)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="2 sets of weights that fit") as caught:
        loaded(tmp_path / "net.pt")
    assert "net.pt#teacher" in caught.value.fix
    assert is_like(loaded(f"{tmp_path / 'net.pt'}#teacher"), averaged(trained))
    with pytest.raises(UsageError, match="no weights under 'coach'"):
        loaded(f"{tmp_path / 'net.pt'}#coach")


def test_one_of_two_prefixes_must_be_named(tmp_path, trained):
    both = {f"{name}.{key}": value for name in ("online", "target") for key, value in trained.items()}
    both["target.0.weight"] = both["target.0.weight"] + 1
    torch.save(both, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="2 sets of weights that fit"):
        loaded(tmp_path / "net.pt")
    assert torch.equal(loaded(f"{tmp_path / 'net.pt'}#target")["0.weight"], trained["0.weight"] + 1)


def test_extra_keys_are_listed_and_left_out_where_that_was_asked_for(tmp_path, trained):
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in trained.items()} | {"loss.weight": torch.ones(3)}},
        tmp_path / "net.pt",
    )
    with pytest.raises(UsageError, match=r"1 unknown keys \(loss\.weight\)") as caught:
        loaded(tmp_path / "net.pt")
    assert "--ignore-extra-weights" in caught.value.fix
    module = net()
    (remark,) = load_weights(module, str(tmp_path / "net.pt"), ignore_extra=True)
    assert "loss.weight" in remark
    assert is_like(module.state_dict(), trained)


def test_a_module_whose_only_part_is_called_module_keeps_its_names(tmp_path):
    class Outer(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.module = net(seed)

    wanted = Outer(1).state_dict()
    for name, state in (
        ("plain", wanted),
        ("ddp", {f"module.{key}": value for key, value in wanted.items()}),
        ("inner", {key.removeprefix("module."): value for key, value in wanted.items()}),
    ):
        torch.save(state, tmp_path / f"{name}.pt")
        outer = Outer(0)
        load_weights(outer, str(tmp_path / f"{name}.pt"))
        assert is_like(outer.state_dict(), wanted), name


class Tied(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_tensor_may_be_stored_once(tmp_path):
    wanted = Tied(1).state_dict()
    save_file({"embed.weight": wanted["embed.weight"]}, tmp_path / "net.safetensors")
    module = Tied(0)
    load_weights(module, str(tmp_path / "net.safetensors"))
    assert torch.equal(module.head.weight, wanted["embed.weight"])
    assert module.head.weight is module.embed.weight


def test_two_values_for_a_tied_tensor_are_refused(tmp_path):
    state = dict(Tied(1).state_dict())
    state["head.weight"] = state["head.weight"] + 1
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"embed\.weight and head\.weight differ"):
        load_weights(Tied(0), str(tmp_path / "net.pt"))


def test_names_that_torch_itself_translates_are_taken(tmp_path):
    with pytest.warns(FutureWarning):
        older = torch.nn.utils.weight_norm(nn.Conv1d(2, 3, 3))
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in older.state_dict().items()}}, tmp_path / "net.pt"
    )
    module = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3))
    load_weights(module, str(tmp_path / "net.pt"))
    assert torch.allclose(module.weight, older.weight)


def sharded(folder, state):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = len(state) // 2
    parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, folder / names[1]


def test_shards_are_read_by_their_index(tmp_path, trained):
    index, second = sharded(tmp_path, trained)
    assert is_like(loaded(index), trained)
    with pytest.raises(UsageError, match="missing keys") as caught:
        loaded(second)
    assert "model.safetensors.index.json" in caught.value.fix
    second.unlink()
    with pytest.raises(UsageError, match=r"00002-of-00002.safetensors, which does not exist"):
        loaded(index)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": 3}', "no json", '{"weight_map": {"a": "/etc/passwd"}}']
)
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UsageError, match=r"not an index of weights|which does not exist"):
        loaded(tmp_path / "model.safetensors.index.json")


def test_a_scripted_archive_gives_its_weights(tmp_path, trained):
    module = net()
    module.load_state_dict(trained)
    torch.jit.script(module).save(tmp_path / "net.pt")
    assert is_like(loaded(tmp_path / "net.pt"), trained)


def test_a_payload_beside_weights_is_refused_and_does_not_run(tmp_path, trained, capsys):
    torch.save({"state_dict": trained, "extra": Payload()}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"not safe to load: it would call builtins\.print") as caught:
        loaded(tmp_path / "net.pt")
    assert "never" not in capsys.readouterr().out
    assert "--trust-source" in caught.value.fix
    assert is_like(loaded(tmp_path / "net.pt", trusted=True), trained)


def test_reads_safetensors(tmp_path, trained):
    save_file(trained, tmp_path / "net.safetensors")
    assert all(torch.equal(value, trained[key]) for key, value in loaded(tmp_path / "net.safetensors").items())


def test_checkpoints_without_batch_counters_are_older_not_wrong(tmp_path, trained):
    torch.save({key: value for key, value in trained.items() if "num_batches" not in key}, tmp_path / "net.pt")
    assert torch.equal(loaded(tmp_path / "net.pt")["0.weight"], trained["0.weight"])


def test_wrong_keys_are_listed_first_few_only(tmp_path, trained):
    torch.save({f"backbone.{key.replace('.', '_')}": value for key, value in trained.items()}, tmp_path / "net.pt")
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path / "net.pt")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "net.pt" in caught.value.what
    assert "missing keys (0.weight, 0.bias, 1.weight, …)" in caught.value.what
    assert "unknown keys (backbone.0_weight, backbone.0_bias, backbone.1_weight, …)" in caught.value.what
    assert "backbone.2_bias" not in caught.value.what


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
        load_weights(module, str(tmp_path / "net.pt"))
    assert all(torch.equal(value, net().state_dict()[key]) for key, value in module.state_dict().items())


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    "write", [lambda path: torch.save(Payload(), path), lambda path: path.write_bytes(pickle.dumps(Payload()))]
)
def test_pickled_code_does_not_run(tmp_path, capsys, write):
    write(tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"not a plain state dict|not safe to load"):
        loaded(tmp_path / "net.pt")
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize(("wrap", "place"), [(lambda module: module, ""), (lambda module: {"ema": module}, "['ema']")])
def test_a_whole_pickled_model_is_refused_with_the_lines_that_mend_it(tmp_path, trained, monkeypatch, wrap, place):
    module = net()
    module.load_state_dict(trained)
    torch.save(wrap(module), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="not a plain state dict: it holds a whole pickled module") as caught:
        loaded(tmp_path / "net.pt")
    assert f"torch.load('net.pt', weights_only=False){place}`" in caught.value.fix
    monkeypatch.chdir(tmp_path)
    for line in caught.value.fix.split("`")[1::2]:
        exec(line, globals())  # noqa: S102  # the message's own words must work
    assert is_like(loaded(tmp_path / "net_weights.pt"), trained)
    assert is_like(loaded(tmp_path / "net.pt", trusted=True), trained)


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
    "content", [[1, 2], {"epoch": 3}, {}, {0: torch.zeros(1)}, torch.zeros(3), {"a": {"b": {"c": 1}}}]
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="expected a state dict of tensors"):
        loaded(tmp_path / "net.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint .*net\.pt"):
        loaded(tmp_path / "net.pt")
