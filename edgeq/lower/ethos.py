"""Ethos-U's part of an ExecuTorch lowering: Arm's partitioner, vela's report, and the TOSA programs that vela compiled.

The TOSA programs go into the bundle: nothing here runs what vela makes of them, but the reference model runs them, and
vela makes the same bytes of them again.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.results.model import NpuFacts, QuantizedModel
from edgeq.core.system import replaced
from edgeq.core.vela import REFERENCE_NAME, Compiled, cannot_compile, quiet, read_output
from edgeq.lower.spec import LowerSpec

_EPOCH = (1980, 1, 1, 0, 0, 0)


def partitioner(_quantized: QuantizedModel, _left_out: Collection[str], spec: LowerSpec) -> Any:
    """Return Arm's partitioner for the NPU of a target."""
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner

    if spec.npu is None:
        raise ValueError(f"the backend {spec.backend} needs an NPU to compile for")
    accelerator, system_config, memory_mode = spec.npu
    return EthosUPartitioner(EthosUCompileSpec(accelerator, system_config=system_config, memory_mode=memory_mode))


class Parts:
    """What vela compiles while a program is lowered: each part's TOSA program, with what came of it."""

    def __init__(self) -> None:
        self.programs: list[bytes] = []
        self.compiled: list[Compiled] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep what vela is given and gives in the block, and what it prints to itself."""
        from executorch.backends.arm.ethosu import backend

        plain = backend.vela_compile

        def vela_compile(tosa_flatbuffer: bytes, args: list[str], **options: Any) -> Any:
            with tempfile.TemporaryDirectory(prefix="edgeq-vela-") as folder:
                if " " in folder:  # ExecuTorch 1.5.1 joins vela's options by spaces
                    what = f"vela cannot work in {folder}, whose name has a space"
                    raise EnvironmentProblem(what, "set TMPDIR to a folder without spaces in its name")
                with quiet() as said:
                    try:
                        stream = plain(tosa_flatbuffer, args, **options | {"intermediate_path": folder})
                    except (Exception, SystemExit) as err:
                        raise cannot_compile(said.getvalue(), err) from err
                self.programs.append(bytes(tosa_flatbuffer))
                self.compiled.append(read_output(Path(folder)))
            return stream

        with replaced(backend, "vela_compile", vela_compile):
            yield

    def facts(self, npu: tuple[str, str, str], planned_bytes: int, operators: Sequence[str]) -> NpuFacts:
        """Return what the parts need together; one runs after the other, in the same scratch memory.

        Args:
            npu: accelerator, system configuration and memory mode.
            planned_bytes: what the runtime sets aside for tensors.
            operators: what the CPU computes.
        """
        accelerator, system_config, memory_mode = npu
        return NpuFacts(
            accelerator=accelerator,
            system_config=system_config,
            memory_mode=memory_mode,
            parts=len(self.compiled),
            cycles=sum(one.cycles for one in self.compiled),
            sram_bytes=max((one.used_bytes("sram") for one in self.compiled), default=0),
            dram_bytes=max((one.used_bytes("dram") for one in self.compiled), default=0),
            flash_bytes=sum(len(one.commands) + len(one.weights) for one in self.compiled),
            scratch_bytes=max((one.scratch_bytes for one in self.compiled), default=0),
            planned_bytes=planned_bytes,
            cpu_operators=tuple(operators),
        )

    def write(self, folder: Path) -> Path:
        """Write the TOSA programs into a ZIP of a folder, in the order of the program's delegates."""
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            for index, program in enumerate(self.programs):
                archive.writestr(zipfile.ZipInfo(f"{index}.tosa", _EPOCH), program)
        path = folder / REFERENCE_NAME
        path.write_bytes(sink.getvalue())
        return path
