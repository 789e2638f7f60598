"""Run by the converter's own environment, without edgeq: turns an exported program into a `.tflite` file.

    python litert_convert.py SOURCE.pt2 TARGET.tflite [static]

`static` makes integer operators of the rounding in the program, by the operators of quantized_decomposed.
"""

from __future__ import annotations

import sys

import litert_torch
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from litert_torch.quantize import pt2e_quantizer, quant_config


def main(source: str, target: str, mode: str = "") -> None:
    """Convert one program."""
    config = None
    if mode == "static":
        # of the quantizer only its kind matters here: the program is quantized already
        quantizer = pt2e_quantizer.PT2EQuantizer()
        quantizer.set_global(pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
        config = quant_config.QuantConfig(pt2e_quantizer=quantizer)
    program = torch.export.load(source)
    inputs, named = program.example_inputs
    # without enable_x64 the inputs of integers would be others than the model's
    made = litert_torch.convert(program.module(), inputs, named or None, quant_config=config, enable_x64=True)
    made.export(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
