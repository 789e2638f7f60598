"""What an app counts on: the tensors that it feeds and reads, how images become inputs, and what the outputs mean."""

from __future__ import annotations

from edgeq.manifest.document import Manifest
from edgeq.manifest.facts import Tensor


def contract_change(old: Manifest, new: Manifest) -> str:
    """Return the first difference that an app written for `old` would meet with `new`, in words; "" for none."""
    for what, left, right in (
        ("inputs", _tensors(old.inputs), _tensors(new.inputs)),
        ("outputs", _tensors(old.outputs), _tensors(new.outputs)),
        ("preprocessing", _preprocessing(old), _preprocessing(new)),
        ("labels", ", ".join(old.labels), ", ".join(new.labels)),
    ):
        if left != right:
            return f"other {what}: {right or 'none'}; the app takes {left or 'none'}"
    return ""


def _tensors(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in tensors)


def _preprocessing(manifest: Manifest) -> str:
    return "; ".join(one.preprocessing.model_dump_json() if one.preprocessing else "none" for one in manifest.inputs)
