"""What an archive stores, by its own tables."""

from __future__ import annotations

import io
import pickle
import zipfile

import torch
from torch import nn

from edgeq.lower.layers import archive_elements
from edgeq.lower.torchscript_archive import strip_archive


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.ones(3, 5, dtype=torch.float16))
        self.register_buffer("scale", torch.ones(7))
        self.register_buffer("levels", torch.ones(11, dtype=torch.int8))

    def forward(self, x):
        return x * self.weight.type_as(x).sum() * self.scale.sum() + self.levels.type_as(x).sum()


def test_elements_are_counted_by_dtype_in_both_forms(tmp_path):
    traced = torch.jit.trace(Half(), (torch.ones(1),))
    full, lite = tmp_path / "model.pt", tmp_path / "model.ptl"
    full.write_bytes(traced.save_to_buffer())
    lite.write_bytes(traced._save_to_buffer_for_lite_interpreter())
    for path in (full, lite):
        strip_archive(path)
        counts = dict(archive_elements(path))
        assert (counts["float16"], counts["int8"], counts["float32"]) == (15, 11, 7), path


class Boom:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_the_archive_is_run(tmp_path, capsys):
    path = tmp_path / "model.pt"
    file = io.BytesIO()
    pickle.dump(Boom(), file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", file.getvalue())
    assert archive_elements(path) == ()
    assert capsys.readouterr().out == ""
