"""PT2E quantization for Arm's Ethos-U, by ExecuTorch's own quantizer: all of the graph in int8, or int16 activations.

The NPU has no float arithmetic: what the quantizer leaves in float, the CPU computes. Its passes take layer norms,
softmax and the like apart before calibration, so that each of their steps has a range of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from edgeq.core.schemes import used_observer
from edgeq.quantize.calibrate import activation_observer
from edgeq.quantize.spec import QuantizeSpec

# what a backend's operators are known by; every size of an NPU takes the same ones
_ANY_SIZE = {"ethos-u55": "ethos-u55-128", "ethos-u85": "ethos-u85-256"}

_SMALLEST_SCALE = {"static-int8": 2**-16, "static-a16w8": 2**-12}  # of Arm's own configurations


def quantizer(spec: QuantizeSpec, scheme: str, in_float: Collection[str]) -> Any:
    """Return Arm's quantizer for a scheme.

    Args:
        spec: backend and observer.
        scheme: `static-int8`, or `static-a16w8` with int16 activations.
        in_float: names of modules that stay in float, and so on the CPU.
    """
    from executorch.backends.arm.ethosu import EthosUCompileSpec
    from executorch.backends.arm.quantizer import (
        EthosUQuantizer,
        get_symmetric_a16w8_quantization_config,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

    configs = {
        "static-int8": get_symmetric_quantization_config,
        "static-a16w8": get_symmetric_a16w8_quantization_config,
    }
    config = configs[scheme](is_per_channel=True)
    chosen = activation_observer(used_observer(scheme, spec.observer), HistogramObserver, MinMaxObserver)
    observer = chosen.with_args(eps=_SMALLEST_SCALE[scheme])
    activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=observer)
    found = EthosUQuantizer(EthosUCompileSpec(_ANY_SIZE[spec.backend]))
    found.set_global(dataclasses.replace(config, input_activation=activation, output_activation=activation))
    for name in in_float:
        found.set_module_name(name, None)
    return found
