"""What a float model is made of: convolutions, or matrix products."""

from __future__ import annotations

import warnings

from edgeq.artifacts import LoadedModel
from edgeq.quantize.capture import run_once

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "scaled_dot_product")


def linear_macs(model: LoadedModel) -> float:
    """Return the share of the multiply-accumulates in matrix products; 0 where the model has none at all.

    Linear, recurrent and attention layers come down to these. Counted by torch's FlopCounterMode in one run on random
    inputs; elementwise operators do not count.

    Raises:
        UsageError: the model does not take its inputs.
        UnsupportedError: an output that is no tensor.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    # the fused paths of attention and of oneDNN's recurrent layers are operators that the counter does not know
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TF32 on GPUs, where the flags are set
            with torch.backends.mkldnn.flags(enabled=False), counter:
                run_once(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = {str(op): count for op, count in counter.get_flop_counts().get("Global", {}).items()}
    products = sum(count for op, count in counts.items() if op.rpartition(".")[2].lstrip("_").startswith(_PRODUCTS))
    total = sum(counts.values())
    return products / total if total else 0.0
