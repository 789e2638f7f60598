"""`run_example.py`: how a program without edgeq runs a bundle's artifact, in ten lines."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.artifacts import TensorSpec

_EXPORTED = """\
program = torch.export.load(here / "{artifact}")
model = torch.export.passes.move_to_device_pass(program, device).module(){widened}
"""
_TORCHSCRIPT = """\
model = torch.jit.load(here / "{artifact}", map_location=device){widened}
"""
_SCRIPT = '''\
"""Runs {artifact} with torch alone, on the GPU where there is one: python run_example.py"""
import pathlib
import torch{imports}

here, device = pathlib.Path(__file__).parent, "cuda" if torch.cuda.is_available() else "cpu"
{loading}inputs = ({inputs},)
with torch.no_grad():
    result = model(*(value.to(device) for value in inputs))
for output in torch.utils._pytree.tree_leaves(result):
    print(device, output.dtype, list(output.shape), output.flatten()[:5].tolist())
'''


def example_script(artifact: str, scheme: str, inputs: Sequence[TensorSpec]) -> str:
    """Return the script.

    Args:
        artifact: the file's name.
        scheme: `storage-fp16` is widened to float32 once where there is no GPU, instead of at each use.
        inputs: what the model takes.
    """
    widened = '\nmodel = model if device == "cuda" else model.float()' if scheme == "storage-fp16" else ""
    is_exported = artifact.endswith(".pt2")
    loading = (_EXPORTED if is_exported else _TORCHSCRIPT).format(artifact=artifact, widened=widened)
    return _SCRIPT.format(
        artifact=artifact,
        imports="\nimport torch.export.passes" if is_exported else "",
        loading=loading,
        inputs=", ".join(_value(spec) for spec in inputs),
    )


def _value(spec: TensorSpec) -> str:
    shape = ", ".join(str(size) for size in spec.shape)
    if spec.dtype.startswith("float"):
        return (
            f"torch.rand({shape}, dtype=torch.{spec.dtype})"
            if shape
            else f"torch.tensor(0.5, dtype=torch.{spec.dtype})"
        )
    return f"torch.zeros({shape}, dtype=torch.{spec.dtype})" if shape else f"torch.tensor(0, dtype=torch.{spec.dtype})"
