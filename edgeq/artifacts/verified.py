"""All that running an artifact showed."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.artifacts.measured import Fidelity, GraphOnly, KernelShare, Parity, Timing
from edgeq.artifacts.model import TensorSpec
from edgeq.artifacts.on_device import Cost, DeviceMeasures, Emulation
from edgeq.flips import Flips


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What running the artifact showed. None means that it could not be measured.

    Attributes:
        host: what it ran on, in words.
        findings: what is wrong whatever the limits: NaN, a constant output, a wrong shape.
        emulation: on the device's kernels; None where that was not asked for.
        not_emulated: why a target with a device was not run on its kernels; "" otherwise.
        cost: instructions, counted; None where no gate needs them.
        flips: the predictions that changed against fp32; None where no output ranks classes.
        graph_only: where the artifact was not run at all: then `outputs` are the converted graph's. None where it was.
        device: times of a real device; None where none was reached.
        stand_in: what ran the artifact in the place of its own kind of device, in words: then nothing was timed. ""
            where it ran on its own.
    """

    host: str
    outputs: tuple[TensorSpec, ...]
    findings: tuple[str, ...]
    parity: Parity | None = None
    fidelity: Fidelity | None = None
    timing: Timing | None = None
    kernels: KernelShare | None = None
    peak_memory_bytes: int | None = None
    load_ms: float | None = None
    emulation: Emulation | None = None
    not_emulated: str = ""
    cost: Cost | None = None
    flips: Flips | None = None
    graph_only: GraphOnly | None = None
    device: DeviceMeasures | None = None
    stand_in: str = ""
