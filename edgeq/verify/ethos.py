"""Ethos-U programs inside the child process: nothing here runs an NPU, so its part is the reference model's to compute.

A `.pte` for Ethos-U has commands of the NPU, which only its boards execute, and operators that the CPU computes before,
between and after. The bundle has the TOSA programs that vela made these commands of. Loading compiles them once more:
commands and weights of the `.pte` must come out byte for byte, or the artifact is another than what the reference model
runs. Then the program's own instructions are followed, on its own memory plan: operators of the CPU by the kernels of
ExecuTorch or torch, the parts of the NPU by TOSA's reference model.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.lazy import NDArray
from edgeq.core.vela import REFERENCE_NAME, compile_tosa, stream_blocks
from edgeq.verify.runtimes import Runner

STAND_IN = (
    "made here, not run on an Ethos-U: TOSA's reference model computed what vela compiled, and this host what is left "
    "to the CPU"
)

_MOST_PROGRAMS = 256  # parts of one program; each is compiled and run

# what ExecuTorch gives vela; a file from elsewhere may ask for other files to be read or written
_FLAG = re.compile(
    r"--(?:accelerator-config=[\w-]+|(?:system-config|memory-mode)=\w+|config=Arm/vela\.ini|output-format=raw)"
)

_PRODUCTS = frozenset({"CONV2D", "CONV3D", "DEPTHWISE_CONV2D", "TRANSPOSE_CONV2D", "MATMUL"})


class EthosU(Runner):
    """A `.pte` for Ethos-U, with the TOSA programs beside it."""

    def _open(self) -> dict[str, Any]:
        from executorch.exir._serialize._program import deserialize_pte_binary

        found = deserialize_pte_binary(self.path.read_bytes())
        self.program = found.program
        self.plan = self.program.execution_plan[0]
        self.parts = self._parts()
        self.kernels = [_kernel(op.name, op.overload) for op in self.plan.operators]
        self.memory = _Memory(self.program, self.plan)
        inputs, outputs = (
            [self.memory.described(index) for index in indices] for indices in (self.plan.inputs, self.plan.outputs)
        )
        version = importlib.metadata.version("tosa-tools")
        return {
            "inputs": inputs,
            "outputs": outputs,
            "threads": self.threads,
            "stand_in": STAND_IN,
            "reference": f"TOSA reference model of tosa-tools {version}",
        }

    def _parts(self) -> list[bytes]:
        """Return the TOSA program of each of the NPU's parts.

        Raises:
            ValueError: a part is not what vela makes of any of the TOSA programs.
        """
        programs = _read_programs(self.path.with_name(REFERENCE_NAME))
        known: dict[tuple[tuple[str, ...], bytes, bytes, int], bytes] = {}
        found = []
        for number, delegate in enumerate(self.plan.delegates):
            if delegate.id != "EthosUBackend":
                raise ValueError(f"part {number} of the program is for {delegate.id}, not for an Ethos-U")
            specs = {one.key: one.value for one in delegate.compile_specs}
            flags = tuple(bytes(specs["compile_flags"]).decode().split(" "))
            odd = [flag for flag in flags if not _FLAG.fullmatch(flag)]
            if odd:
                raise ValueError(
                    f"part {number} of the program names an option of vela that edgeq does not use: {odd[0]}"
                )
            blocks = stream_blocks(self.program.backend_delegate_data[delegate.processed.index].data)
            scratch_bytes = int.from_bytes(blocks["scratch_size"][:4], "little")
            if not any(key[0] == flags for key in known):
                for program in programs:
                    with tempfile.TemporaryDirectory(prefix="edgeq-vela-") as folder:
                        made = compile_tosa(program, flags, Path(folder))
                    known[flags, made.commands, made.weights, made.scratch_bytes] = program
            key = (flags, blocks["cmd_data"], blocks["weight_data"], scratch_bytes)
            if key not in known:
                what = f"part {number} of the program is not what vela makes of any TOSA program in {REFERENCE_NAME}"
                raise ValueError(f"{what}: commands or weights differ")
            found.append(known[key])
        return found

    def call(self, inputs: tuple[Any, ...]) -> Any:
        """Follow the program's instructions once."""
        memory = self.memory
        memory.reset()
        for index, tensor in zip(self.plan.inputs, inputs, strict=True):
            memory.value(index).copy_(tensor)
        for instruction in self.plan.chains[0].instructions:
            step = instruction.instr_args
            name = type(step).__name__
            if name == "KernelCall":
                self.kernels[step.op_index](memory, step.args)
            elif name == "DelegateCall":
                self._run_part(self.parts[step.delegate_index], [memory.value(index) for index in step.args])
            elif name == "MoveCall":
                memory.values[step.move_to] = memory.values[step.move_from]
            elif name != "FreeCall":
                raise NotImplementedError(f"the reference run has no instruction {name}")
        return tuple(memory.value(index).clone() for index in self.plan.outputs)

    def _run_part(self, program: bytes, tensors: Sequence[Any]) -> None:
        """Compute one part; of its tensors the last ones are the outputs."""
        import torch
        from tosa_reference_model import GraphStatus, run

        graph = _blocks(program)[0]
        count = graph.InputsLength()
        given = [_laid_out(tensor) for tensor in tensors[:count]]
        with _native_silence():
            outputs, status = run(program, given)
        if status != GraphStatus.TOSA_VALID:
            raise RuntimeError(f"TOSA's reference model refuses the program: {status}")
        for tensor, array in zip(tensors[count:], outputs, strict=True):
            tensor.copy_(torch.from_numpy(array).reshape(tensor.shape))

    def peak_bytes(self) -> int | None:
        """No memory of this host says anything of a board's."""
        return None

    def profile(self, arrays: tuple[NDArray[Any], ...], folder: Path) -> list[str]:  # noqa: ARG002
        """Return each product of the NPU's parts, with the types of its factors."""
        return [text for program in self.parts for text in _products(program)]

    def facts(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        """Return the operators that the CPU computes, and how many parts the NPU does."""
        names = sorted({f"{op.name}.{op.overload}".rstrip(".") for op in self.plan.operators})
        return {"operators": names, "delegates": len(self.plan.delegates), "bytecode_version": None}


def _read_programs(path: Path) -> list[bytes]:
    """Return the TOSA programs of a bundle."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing beside the artifact: nothing else can say what the NPU computes")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) > _MOST_PROGRAMS or any(info.compress_type for info in archive.infolist()):
            raise ValueError(f"{path.name} does not have edgeq's format")
        return [archive.read(name) for name in names]


# --- A program's values, in the memory that its plan gives them.


class _Memory:
    """The values of a program; tensors lie where the memory plan puts them, so that one overwrites another as there."""

    def __init__(self, program: Any, plan: Any) -> None:
        import torch

        self._program = program
        self._plan = plan
        self._arenas = [torch.zeros(size, dtype=torch.uint8) for size in plan.non_const_buffer_sizes]
        self.values: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Make the values again; of state, which stays from call to call, there is none in these programs."""
        self.values = [self._made(one.val) for one in self._plan.values]

    def value(self, index: int) -> Any:
        """Return a value, the lists of values resolved."""
        found = self.values[index]
        return found(self) if callable(found) else found

    def described(self, index: int) -> list[Any]:
        """Return [dtype, shape] of a tensor."""
        tensor = self.value(index)
        return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]

    def _made(self, val: Any) -> Any:
        kind = type(val).__name__
        if kind == "Tensor":
            return self._tensor(val)
        if kind in ("Int", "Bool", "Double", "String"):
            return getattr(val, f"{kind.lower()}_val")
        if kind == "Null":
            return None
        if kind in ("IntList", "TensorList", "OptionalTensorList"):  # of indices, which may name what comes later
            return lambda memory: [None if index < 0 else memory.value(index) for index in val.items]
        return list(val.items)

    def _tensor(self, val: Any) -> Any:
        import torch

        dtype = _dtype(val.scalar_type)
        size_bytes = math.prod(val.sizes) * dtype.itemsize
        if val.allocation_info is not None:
            where = val.allocation_info
            start = where.memory_offset_low | where.memory_offset_high << 32
            data = self._arenas[where.memory_id][start : start + size_bytes]
        elif val.data_buffer_idx:
            raw = self._program.constant_buffer[val.data_buffer_idx].storage
            data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)[:size_bytes]
        else:
            data = torch.zeros(size_bytes, dtype=torch.uint8)
        order = val.dim_order or tuple(range(len(val.sizes)))
        strides, stride = [0] * len(val.sizes), 1
        for axis in reversed(order):
            strides[axis], stride = stride, stride * max(val.sizes[axis], 1)
        return data.view(dtype).as_strided(tuple(val.sizes), strides)


def _dtype(code: Any) -> Any:
    """Return torch's dtype of ExecuTorch's ScalarType."""
    import torch

    names = {"BYTE": "uint8", "CHAR": "int8", "SHORT": "int16", "INT": "int32", "LONG": "int64", "BOOL": "bool"}
    names |= {"HALF": "float16", "FLOAT": "float32", "DOUBLE": "float64"}
    return getattr(torch, names[code.name])


def _laid_out(tensor: Any) -> NDArray[Any]:
    """Return a tensor as the NPU is given it: in the order of its memory."""
    order = tensor.dim_order()
    return tensor.permute(order).contiguous().numpy()  # type: ignore[no-any-return]


# --- What the CPU computes: ExecuTorch's own quantizing kernels, and torch's in place of its portable ones.


def _kernel(name: str, overload: str) -> Callable[[_Memory, Sequence[int]], None]:
    """Return what computes an operator of the CPU into its output, which is its last argument.

    Raises:
        NotImplementedError: neither ExecuTorch's Python package nor torch has it.
    """
    import executorch.kernels.quantized  # noqa: F401  # registers its operators
    import torch

    space, _, plain = name.partition("::")
    if space == "dim_order_ops":

        def copied(memory: _Memory, args: Sequence[int]) -> None:
            memory.value(args[-1]).copy_(memory.value(args[0]))

        return copied
    if name == "executorch_prim::et_view":

        def viewed(memory: _Memory, args: Sequence[int]) -> None:
            memory.values[args[2]] = memory.value(args[0]).view(memory.value(args[1]))

        return viewed
    # `overloads()` would not list what was registered after torch listed them
    op = getattr(getattr(getattr(torch.ops, space), plain, None), overload or "default", None)
    if op is None:
        raise NotImplementedError(f"this host cannot compute {name}.{overload}, which the program leaves to the CPU")
    schema = op._schema.arguments

    def called(memory: _Memory, args: Sequence[int]) -> None:
        given = [_fitting(argument, memory.value(index)) for argument, index in zip(schema, args, strict=False)]
        positional = [value for argument, value in zip(schema, given, strict=True) if not argument.kwarg_only]
        named = {argument.name: value for argument, value in zip(schema, given, strict=True) if argument.kwarg_only}
        op(*positional, **named)

    return called


def _fitting(argument: Any, value: Any) -> Any:
    """Return a value as torch takes it: programs have dtypes as numbers."""
    import torch

    if value is None or "ScalarType" not in str(argument.real_type):
        return value
    from executorch.exir.scalar_type import ScalarType

    return _dtype(ScalarType(value)) if isinstance(value, int) else torch.float32


# --- TOSA programs, by the reader of tosa-tools.


def _blocks(program: bytes) -> list[Any]:
    """Return the basic blocks of a TOSA program, the main one first."""
    from tosa.TosaGraph import TosaGraph

    graph = TosaGraph.GetRootAs(program, 0)
    regions = [graph.Regions(index) for index in range(graph.RegionsLength())]
    return [region.Blocks(index) for region in regions for index in range(region.BlocksLength())]


def _products(program: bytes) -> Iterator[str]:
    """Yield each operator that multiplies and accumulates, with the types of its factors: "CONV2D INT8 INT8"."""
    from tosa.DType import DType
    from tosa.Op import Op

    operators, types = ({value: name for name, value in vars(kind).items()} for kind in (Op, DType))
    for block in _blocks(program):
        tensors = {block.Tensors(index).Name(): block.Tensors(index) for index in range(block.TensorsLength())}
        for index in range(block.OperatorsLength()):
            found = block.Operators(index)
            name = operators[found.Op()]
            if name in _PRODUCTS:
                factors = [types[tensors[found.Inputs(place)].Type()] for place in (0, 1)]
                yield f"{name} {' '.join(factors)}"


@contextlib.contextmanager
def _native_silence() -> Iterator[None]:
    """Drop what native code writes to standard error: the model warns on each run of TOSA 1.0, which it reads."""
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
