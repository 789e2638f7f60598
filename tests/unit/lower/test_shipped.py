"""The int8 layers of an artifact, read back from its bytes."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from small_models import artifact, small_net

from edgeq.core.errors import ExitCode, UnsupportedError
from edgeq.lower.shipped import shipped_layers

NAMES = ("conv", "depth", "hidden.0", "head")


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_layers_of_an_archive_are_those_of_its_graph(backend):
    quantized, lowered = artifact("torchscript", "static-int8", backend)
    layers = shipped_layers(lowered.path, "torchscript")
    graph = [quantized.graph.get_submodule(name) for name in NAMES]
    assert len(layers) == len(graph)
    for part in graph:
        weight = part.weight()
        (stored,) = [one for one in layers if np.array_equal(one.weight, weight.int_repr().numpy())]
        per_channel = weight.qscheme() != torch.per_tensor_affine
        scales = weight.q_per_channel_scales().tolist() if per_channel else [weight.q_scale()]
        assert stored.scales == tuple(scales)
        assert np.array_equal(stored.bias, part.bias().detach().numpy())


@pytest.mark.slow
def test_layers_of_a_program_are_those_of_its_graph():
    quantized, lowered = artifact("executorch", "static-int8", "xnnpack")
    layers = shipped_layers(lowered.path, "executorch")
    assert [one.weight.dtype for one in layers] == [np.dtype(np.int8)] * len(NAMES)
    constants = [tensor.numpy() for tensor in quantized.graph.state_dict().values() if tensor.dtype == torch.int8]
    qparams = {one.shape: one.scales for one in quantized.qparams if one.shape}
    for weight in constants:
        (stored,) = [one for one in layers if one.weight.shape == weight.shape]
        assert np.array_equal(stored.weight, weight)
        assert stored.scales == qparams[weight.shape]
        assert stored.bias.shape == weight.shape[:1]
    (head,) = [one for one in layers if one.weight.ndim == 2 and one.weight.shape[0] == 5]
    exact = small_net().model.head.bias.detach().numpy()
    assert np.allclose(head.bias, exact, atol=2e-4)  # stored in whole steps of input times weight
    assert not np.array_equal(head.bias, np.zeros_like(exact))


class Boom:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_an_archive_is_run(tmp_path, capsys):
    path, file = tmp_path / "model.pt", io.BytesIO()
    pickle.dump((Boom(), [Boom()], {"a": Boom()}), file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", file.getvalue())
    assert shipped_layers(path, "torchscript") == ()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("runtime", "data"), [("torchscript", b"PK no archive"), ("executorch", bytes(64))])
def test_what_is_no_artifact_is_told(tmp_path, runtime, data):
    path = tmp_path / "model"
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="cannot read the int8 values of") as told:
        shipped_layers(path, runtime)
    assert told.value.exit_code == ExitCode.UNSUPPORTED
    assert "--reuse-qparams-from" in told.value.fix


def test_a_runtime_without_a_reader_has_none(tmp_path):
    assert shipped_layers(tmp_path / "model.onnx", "onnx") == ()
