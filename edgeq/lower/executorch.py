"""ExecuTorch lowering: export, the backend's partitioner, `.pte`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import operator
import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from edgeq.core.config import Task
from edgeq.core.errors import EdgeqError, UnsupportedError, first_line, traced_line
from edgeq.core.results.model import Companion, LanguageModel, Layer, LoweredModel, QuantizedModel
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.samples import varying_sizes
from edgeq.core.schemes import FLOAT_SCHEMES
from edgeq.core.speedups import decomposed
from edgeq.core.system import quiet, replaced, unlogged
from edgeq.lower import coreml, ethos, vulkan
from edgeq.lower.coreml_package import read_contents, weights_sqnr_db
from edgeq.lower.devtools import write_etrecord
from edgeq.lower.edge_speedups import speedups, vulkan_speedups
from edgeq.lower.int4 import program_int4
from edgeq.lower.layers import MODULE_KEY, delegated_share, graph_layer, is_int4, is_of_input, zero_share
from edgeq.lower.lift import exported_again
from edgeq.lower.spec import LowerSpec

Stored = tuple[tuple[str, int], ...]  # dtypes, and how many elements there are of each


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Lower to a `.pte` for the backend's delegate.

    Raises:
        UnsupportedError: ExecuTorch cannot express the model.
    """
    with spec.progress.task(f"lower {spec.label}") as task:
        parts = ethos.Parts()
        with parts.recorded() if spec.npu else contextlib.nullcontext():
            edge = _to_edge(quantized, spec, task)
        layers, undelegated = _facts(edge.exported_program())
        facts = DELEGATES[spec.backend].facts(quantized, edge.exported_program())
        try:
            with quiet():  # it warns that buffers which forward writes begin with no values
                program = edge.to_executorch()
        except Exception as err:  # memory planning and emission raise many types
            what = f"ExecuTorch cannot emit this model: {first_line(err)}"
            raise UnsupportedError(
                what, f"replace the operator named in this error, or use {_OTHER_TARGET[spec.backend]}"
            ) from err
        path = spec.folder / "model.pte"
        with path.open("wb") as file:
            program.write_to_file(file)
        if spec.etrecord is not None:
            write_etrecord(program, spec.etrecord)
    plan = program.executorch_program.execution_plan[0]
    operators = tuple(sorted({f"{op.name}.{op.overload}" if op.overload else str(op.name) for op in plan.operators}))
    planned_bytes = sum(plan.non_const_buffer_sizes)
    return LoweredModel(
        path=path,
        runtime="executorch",
        runtime_version=importlib.metadata.version("executorch"),
        bytecode_version=None,
        passes=("to_edge_transform_and_lower", DELEGATES[spec.backend].title, "to_executorch"),
        operators=operators,
        undelegated=undelegated,
        layers=layers,
        delegated_macs=delegated_share(layers),
        planned_memory_bytes=planned_bytes if varying_sizes(spec.inputs) else None,
        stored=facts.stored,
        zeros=facts.zeros,
        kernels=facts.kernels,
        weights_sqnr_db=facts.weights_sqnr_db,
        int4_db=program_int4(path, quantized.grouped),
        companions=_companions(spec, parts),
        npu=parts.facts(spec.npu, planned_bytes, operators) if spec.npu else None,
    )


def _companions(spec: LowerSpec, parts: ethos.Parts) -> tuple[Companion, ...]:
    if spec.npu:
        return (("reference", parts.write(spec.folder)),)
    tokenizer = spec.language.tokenizer if spec.language else None
    return (("tokenizer", tokenizer),) if tokenizer else ()


def _to_edge(quantized: QuantizedModel, spec: LowerSpec, task: Task) -> Any:
    from executorch.exir import to_edge_transform_and_lower

    delegate = DELEGATES[spec.backend]
    left_out: list[str] = []
    program: Any = None
    while True:
        try:
            with unlogged():  # what is raised says more than fake tensors log of it
                program = quantized.exported
                if program is None:
                    program = exported_again(quantized.graph, spec)
                program = _sorted_by_topk(_expressible(program))
                if spec.backend == "xnnpack":
                    _check_kernels(program)
                    program = _own_constants(program, spec)
                with delegate.around(quantized, program):
                    partitioner = delegate.partitioner(quantized, left_out, spec)
                    return to_edge_transform_and_lower(
                        program,
                        partitioner=[partitioner],
                        constant_methods=_runner_methods(spec.language) if spec.language else None,
                        generate_etrecord=spec.etrecord is not None,
                    )
        except EdgeqError:
            raise
        except Exception as err:  # torch.export and the passes raise many types
            tripped = _tripped(err) if spec.backend == "xnnpack" else ""
            if tripped and tripped not in left_out:
                left_out.append(tripped)
                task.note(
                    f"{tripped} stays out of the delegate, since XNNPACK fails on it: {first_line(_innermost(err))}"
                )
                continue
            what = f"ExecuTorch cannot lower this model{_named(err, program)}: {first_line(err)}{_cause(err)}"
            fix = f"replace the operator named in this error, or use {_OTHER_TARGET[spec.backend]}"
            raise UnsupportedError(what, fix) from err


def _runner_methods(language: LanguageModel) -> dict[str, Any]:
    """Return the methods that ExecuTorch's runners of language models ask a program, with their answers.

    Their names are those of `extension/llm/runner/constants.h` and `llm_runner_helper.cpp` (ExecuTorch 1.5.1).
    """
    known = {} if language.bos_id is None else {"get_bos_id": language.bos_id}
    return known | {
        "get_eos_ids": list(language.eos_ids),
        "get_max_seq_len": language.most_tokens,
        "get_max_context_len": language.context_length,
        "get_vocab_size": language.vocabulary,
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
        "use_sdpa_with_kv_cache": False,
    }


# what takes operators that the delegate's lowering does not; iOS has no TorchScript target
_OTHER_TARGET: dict[str, str] = {
    "xnnpack": "a TorchScript target",
    "coreml": "--target ios-arm64-xnnpack",
    "vulkan": "--target android-arm64-xnnpack",
    **dict.fromkeys(ETHOS_U, "--target linux-arm64-xnnpack, on a CPU"),
}

# the delegate's passes write the left one as the right one, and the partitioner knows the left one
_BEFORE_PASSES = {"amax.default": "max.dim"}


def _tripped(err: BaseException) -> str:
    """Return the name, as XNNPACK's partitioner knows it, of the operator whose handling raised an error; else ""."""
    import torch
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS

    names = [
        str(getattr(node.target, "__name__", "")).partition(".")[2]
        for frame, _ in traceback.walk_tb(_innermost(err).__traceback__)
        if "backends/xnnpack" in frame.f_code.co_filename
        and isinstance(node := frame.f_locals.get("node"), torch.fx.Node)
    ]
    known = {getattr(config, "target_name", None) for config in ALL_PARTITIONER_CONFIGS}
    found = [name for name in (_BEFORE_PASSES.get(name, name) for name in reversed(names)) if name in known]
    return found[0] if found else ""


def _expressible(program: Any) -> Any:
    """Return a program without what ExecuTorch's passes trip over; most have nothing of it.

    XNNPACK's `ChannelsLastTaggedReshapePass` (ExecuTorch 1.5.1) wants every PReLU's input in NHWC, and fails on others:
    those of values other than [N, C, H, W] become relu(x) - weight * relu(-x). The edge dialect has no magnitude of
    complex numbers ("mismatched dtypes"), as of a spectrum, and no phase: they become the root of the sum of squares,
    and atan2.
    """
    import torch

    prelu, magnitude, phase = torch.ops.aten.prelu.default, torch.ops.aten.abs.default, torch.ops.aten.angle.default

    def concerns(node: Any) -> bool:
        if node.target is prelu:
            return bool(node.meta["val"].dim() != 4)
        return node.target is phase or (node.target is magnitude and bool(node.args[0].meta["val"].is_complex()))

    if not any(concerns(node) for node in program.graph.nodes):
        return program

    def split(x: Any, weight: Any) -> Any:
        if x.dim() == 4:
            return NotImplemented
        factor = weight.reshape(-1, *(1,) * (x.dim() - 2)) if x.dim() > 1 else weight
        return torch.relu(x) - factor * torch.relu(-x)

    def root(x: Any) -> Any:
        if not x.is_complex():
            return NotImplemented
        parts = torch.view_as_real(x)
        return (parts * parts).sum(-1).sqrt()

    def atan2(x: Any) -> Any:
        if not x.is_complex():
            return torch.where(x < 0, torch.pi, torch.zeros_like(x))
        parts = torch.view_as_real(x)
        return torch.atan2(parts[..., 1], parts[..., 0])

    return decomposed(program, {prelu: split, magnitude: root, phase: atan2})


def _sorted_by_topk(program: Any) -> Any:
    """Return a program whose sorts are a topk of all values, which the runtime has; itself where their places are read.

    Equal values may have other places in a topk.
    """
    import torch

    sort = torch.ops.aten.sort.default
    sorts = [node for node in program.graph.nodes if node.target is sort]
    if not sorts or any(reader.users for node in sorts for reader in node.users if reader.args[1]):
        return program

    def all_of_them(x: Any, dim: int = -1, descending: bool = False) -> Any:
        return torch.topk(x, x.shape[dim], dim, descending, True)

    return decomposed(program, {sort: all_of_them})


# what the runtime (ExecuTorch 1.5.1) has no kernel of, by the plain names of operators, and what may take its place
_WITHOUT_KERNEL: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("conv3d", "conv_transpose3d", "max_pool3d", "avg_pool3d"),
        ("has no convolutions and pools over three axes", ""),
    ),
    **dict.fromkeys(
        ("fft_fft", "fft_ifft", "fft_fft2", "fft_ifft2", "fft_fftn", "fft_ifftn", "_fft_c2c"),
        (
            "transforms no complex signals, and gives no second half of a spectrum",
            "call torch.fft.rfft for a real signal, whose second half mirrors the first",
        ),
    ),
    **dict.fromkeys(
        ("sort", "argsort", "msort"),
        ("cannot sort where the places are read", "call torch.topk(x, x.shape[-1]), which sorts all values"),
    ),
}

_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg", "reciprocal", "exp", "matmul", "square", "pow"})


def _check_kernels(program: Any) -> None:
    """Refuse what the runtime has no kernel of, before a pass or the runtime says so in its own words.

    Raises:
        UnsupportedError: the operator and its line, and what to use instead.
    """
    for node in program.graph.nodes:
        name = node.target.__name__.partition(".")[0] if node.op == "call_function" else ""
        found = _WITHOUT_KERNEL.get(name)
        if name == "_fft_r2c" and not node.args[3]:  # both halves
            found = _WITHOUT_KERNEL["_fft_c2c"]
        values = [one.meta.get("val") for one in node.all_input_nodes]
        if name in _ARITHMETIC and any(hasattr(value, "is_complex") and value.is_complex() for value in values):
            found = ("has no arithmetic of complex numbers", "")
        if found is not None:
            what, instead = found
            line = traced_line(node.meta.get("stack_trace"))
            others = "a TorchScript, ONNX Runtime or OpenVINO target"
            fix = f"{instead}, or use {others}" if instead else f"use {others}"
            raise UnsupportedError(f"ExecuTorch {what}: aten.{name}{line}", fix)


# views of a weight that are constants like it
_VIEWS = frozenset({"t", "transpose", "permute", "view", "reshape", "_unsafe_view"})


def _own_constants(program: Any, spec: LowerSpec) -> Any:
    """Return a program whose weights are read in one way each; itself where they are, as most have it.

    XNNPACK's lowering (ExecuTorch 1.5.1) stores a weight once, in the layout of one reader. Of a tied weight that a
    convolution and a transposed one read, the other gets wrong numbers; a linear layer beside its transpose crashes the
    runtime. A second kind of reader gets a copy, and what reads a view of the weight gets that view.
    """
    import torch

    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def kind(weight: Any, reader: Any) -> str:
        name = reader.target.__name__
        is_transposed = "conv_transpose" in name or (name.startswith("convolution") and bool(reader.args[6]))
        return f"{name.partition('.')[0]}-{list(reader.all_input_nodes).index(weight)}-{is_transposed}"

    def kinds(weight: Any) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for reader in weight.users:
            if reader.op == "call_function" and reader.target.__name__ != "embedding.default":
                found.setdefault(kind(weight, reader), []).append(reader)
        return found

    weights = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in held]
    if not any(len(kinds(weight)) > 1 and weight.meta["val"].dim() > 1 for weight in weights):
        return program
    module = program.module(check_guards=False)
    for weight in [node for node in module.graph.nodes if node.op == "get_attr"]:
        value = operator.attrgetter(weight.target)(module)
        groups = kinds(weight) if value.dim() > 1 else {}
        plain = [group for name, group in groups.items() if name.partition("-")[0] not in _VIEWS]
        for reader in [one for group in groups.values() if group is not next(iter(plain), None) for one in group]:
            name = f"{str(weight.target).replace('.', '_')}_of_{reader.name}"
            is_view = reader.target.__name__.partition(".")[0] in _VIEWS
            own = reader.target(value.detach(), *reader.args[1:], **reader.kwargs) if is_view else value.detach()
            module.register_buffer(name, own.clone(memory_format=torch.contiguous_format))
            with module.graph.inserting_before(reader):
                copy = module.graph.get_attr(name)
            if is_view:
                reader.replace_all_uses_with(copy)
            else:
                reader.replace_input_with(weight, copy)
    module.graph.eliminate_dead_code()
    module.recompile()
    return exported_again(module, spec)


_OPERATOR = re.compile(r"aten[.:]+(\w+\.\w+)")


def _named(err: BaseException, program: Any) -> str:
    """Return the operator that an error's text names, with the line of the user's code that calls it; "" if none.

    The passes' own message names one behind its first line, or a number of a graph's node.
    """
    found = _OPERATOR.search(f"{err}\n{_innermost(err)}")
    if found is None:
        return ""
    nodes = program.graph.nodes if program is not None else ()
    calls = [node for node in nodes if str(node.target).endswith(found[1])]
    lines = [line for node in calls if (line := traced_line(node.meta.get("stack_trace")))]
    return f", its operator aten.{found[1]}{lines[0] if lines else ''}"


def _cause(err: BaseException) -> str:
    """Return the innermost cause of an error in brackets, where it says more: the passes raise one from another."""
    inner = _innermost(err)
    return f" ({first_line(inner)})" if inner is not err and str(inner) and first_line(inner) != first_line(err) else ""


def _innermost(err: BaseException) -> BaseException:
    while (cause := err.__cause__ or err.__context__) is not None:
        err = cause
    return err


def _facts(program: Any) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return layers in the order of execution, and what was not delegated."""
    layers: list[Layer] = []
    undelegated: list[str] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target.__name__ == "executorch_call_delegate":
            inner = getattr(program.graph_module, node.args[0].target).original_module
            taken, given = inner.graph_signature.user_inputs, node.args[1:]
            constants = frozenset(_constant_names(program.graph_signature))
            # an operator that the delegate did not take may have made its input of a parameter: of an unknown order all
            fixed = (
                frozenset(name for name, arg in zip(taken, given, strict=True) if not is_of_input(arg, constants))
                if len(taken) == len(given)
                else frozenset(taken)
            )
            layers += _layers(inner, inner.graph.nodes, delegated=True, fixed=fixed)
        elif node.target.__name__ != "getitem":
            undelegated.append(str(node.target.__name__))
            layers += _layers(program, [node], delegated=False)
    return tuple(layers), tuple(undelegated)


def _stored(program: Any) -> Stored:
    """Return how many elements of each dtype the program and its delegates hold as constants."""
    tally: Counter[str] = Counter()
    delegates = [part.original_module for part in _delegates(program)]
    held = {}
    for part in (program, *delegates):
        names = _constant_names(part.graph_signature)
        for node in part.graph.nodes:
            if node.op == "placeholder" and node.name in names and node.users:
                held[names[node.name]] = node
    for node in held.values():
        dtype = "int4" if is_int4(node) else str(node.meta["val"].dtype).removeprefix("torch.")
        tally[dtype] += int(node.meta["val"].numel())
    return tuple(sorted(tally.items()))


def _weights(program: Any) -> Iterator[Any]:
    """Yield the constants that the program has and that its delegates were made of, as arrays, each once."""
    import torch

    seen: set[str] = set()
    for part in (program, *(delegate.original_module for delegate in _delegates(program))):
        for name, value in {**part.state_dict, **part.constants}.items():
            if name not in seen and isinstance(value, torch.Tensor):
                seen.add(name)
                values = value.detach()
                yield (values.float() if values.is_floating_point() else values).numpy()


def _layers(program: Any, nodes: Any, *, delegated: bool, fixed: frozenset[str] = frozenset()) -> Iterator[Layer]:
    constants = frozenset(_constant_names(program.graph_signature))
    for node in nodes:
        is_call = node.op == "call_function"
        layer = graph_layer(node, constants, delegated=delegated, fixed_names=fixed) if is_call else None
        if layer is not None:
            yield layer
        elif delegated and _is_run_as_convolution(node, program):
            name = node.meta.get("custom", {}).get(MODULE_KEY) or node.name
            # an affine: it multiplies no matrices, and so decides nothing in which type these are multiplied
            yield Layer(name=name, op="batch_norm", macs=0, weight_bytes=0, delegated=True)


def _is_run_as_convolution(node: Any, program: Any) -> bool:
    """Whether XNNPACK makes a depthwise convolution of a batch norm, which its profile then shows (DecomposeBatchNorm).

    It folds the others into the layer before them (FuseBatchNormPass, which runs first).
    """
    from executorch.backends.xnnpack._passes.decompose_batch_norm import DecomposeBatchNorm
    from executorch.backends.xnnpack._passes.fuse_batch_norm import FuseBatchNormPass

    if node.op != "call_function" or node.target not in DecomposeBatchNorm.BATCH_NORM_OPS:
        return False
    before = node.args[0]
    return len(before.users) != 1 or not FuseBatchNormPass.can_fuse(before, node, program)


def _constant_names(signature: Any) -> dict[str, str]:
    """Return what each placeholder of a constant holds, by the placeholder's name."""
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


# --- The delegates of ExecuTorch programs, by the backend's name in target profiles.


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegateFacts:
    """What the programs of a delegate hold; see `LoweredModel`."""

    stored: Stored
    zeros: float | None
    kernels: tuple[str, ...] = ()
    weights_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegate:
    """How a backend takes part in a lowering.

    Attributes:
        title: of its partitioner, for the manifest.
        partitioner: makes it for a model's scheme, compile options included, without operators of these names.
        around: context manager that is active while a model's program is lowered.
        check: raises before a long run if something is missing here.
        facts: what the delegate's own programs hold, of a model and its lowered program.
        libraries: those besides ExecuTorch that affect the artifact or its verification.
    """

    title: str
    partitioner: Callable[[QuantizedModel, Collection[str], LowerSpec], Any]
    around: Callable[[QuantizedModel, Any], AbstractContextManager[None]]
    check: Callable[[], None]
    facts: Callable[[QuantizedModel, Any], DelegateFacts]
    libraries: tuple[str, ...] = ()


def _xnnpack(_quantized: QuantizedModel, left_out: Collection[str], _spec: LowerSpec) -> Any:
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import ConstantPadConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant

    class Pad(ConstantPadConfig):  # type: ignore[misc]  # ExecuTorch is not followed by mypy
        """Leaves a pad in float behind an int8 value to ExecuTorch: XNNPACK would create it with an int8 input."""

        def check_constraints(self, node: Any, ep: Any) -> bool:
            is_mixed = is_dequant(node.args[0]) and not all(map(is_quant, node.users))
            return not is_mixed and bool(super().check_constraints(node, ep))

    configs = [Pad if one is ConstantPadConfig else one for one in ALL_PARTITIONER_CONFIGS]
    return XnnpackPartitioner([one for one in configs if one.target_name not in left_out])


@contextlib.contextmanager
def _xnnpack_passes(_quantized: QuantizedModel, program: Any) -> Iterator[None]:
    """Lower without repeated work, and without what XNNPACK's partitioner and passes trip over.

    The partitioner (ExecuTorch 1.5.1) asks whether a merged partition would wait for itself through single nodes. Where
    it would through another partition (A before B before A), as in Qwen 3, lowering ends with "Invalid partition, found
    dependency cycles"; here it merges only what does not.

    XNNPACK's `ChannelsLastTaggedReshapePass` (ExecuTorch 1.5.1) exchanges a dequantize node for its copy in the other
    layout, for all readers. Others than the one that needs it have been tagged with the layout before: their values
    would be permuted once more (int8 Mish, hardshrink), and where the partition's output is one of them, the pass ends
    with KeyError: 'val'. Here that reader alone gets a node of its own to exchange. Of a partition's input it looks at
    the first row, which a single value has not ("invalid index of a 0-dim tensor"); a single value has no layout.
    """
    import torch
    from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
    from executorch.exir.backend.canonical_partitioners.group_partitioner import GroupBasedPartitioner

    mergeable = GroupBasedPartitioner._can_merge_partitions

    def can_merge_partitions(self: Any, p1: int, p2: int, partitions_by_id: dict[int, Any]) -> bool:
        if not mergeable(self, p1, p2, partitions_by_id):
            return False
        partition_of = {node: partition for partition in partitions_by_id.values() for node in partition.nodes}
        merged = {*partitions_by_id[p1].nodes, *partitions_by_id[p2].nodes}
        waiting = [user for node in merged for user in node.users if user not in merged]
        seen: set[Any] = set()
        while waiting:
            node = waiting.pop()
            if node in merged:
                return False
            if node not in seen:
                together = partition_of[node].nodes if node in partition_of else (node,)
                seen.update(together)
                waiting += [user for one in together for user in one.users]
        return True

    plain = ChannelsLastTaggedReshapePass.insert_copy_q_dq

    def insert_copy_q_dq(
        self: Any, graph_module: Any, before: Any, after: Any, copy: Any, q_params: tuple[Any, ...]
    ) -> None:
        if any(user not in (after, copy) for user in before.users):
            with graph_module.graph.inserting_after(before):
                own = graph_module.graph.node_copy(before)
            for reader in (after, copy):
                reader.replace_input_with(before, own)
            before = own
        plain(self, graph_module, before, after, copy, q_params)

    def unless_single(plain: Callable[[Any], bool], of_single: bool) -> Any:
        def check(node: Any) -> bool:
            source = node
            for _ in range(2):  # behind the pair that quantizes it
                source = source.args[0] if source.args and isinstance(source.args[0], torch.fx.Node) else source
            is_single = source.op == "placeholder" and source is not node and not source.meta["val"].dim()
            return of_single if is_single else plain(node)

        return staticmethod(check)

    is_nhwc, is_nchw = ChannelsLastTaggedReshapePass.is_nhwc_node, ChannelsLastTaggedReshapePass.is_nchw_node

    with (
        replaced(GroupBasedPartitioner, "_can_merge_partitions", can_merge_partitions),
        replaced(ChannelsLastTaggedReshapePass, "insert_copy_q_dq", insert_copy_q_dq),
        replaced(ChannelsLastTaggedReshapePass, "is_nhwc_node", unless_single(is_nhwc, of_single=False)),
        replaced(ChannelsLastTaggedReshapePass, "is_nchw_node", unless_single(is_nchw, of_single=True)),
        speedups(program),
    ):
        yield


def _no_check() -> None:
    """XNNPACK and Vulkan's compiler come with ExecuTorch, or `check_extras` looks for what a delegate needs."""


@contextlib.contextmanager
def _as_it_is(_quantized: QuantizedModel, _program: Any) -> Iterator[None]:
    yield


def _vulkan_passes(_quantized: QuantizedModel, _program: Any) -> AbstractContextManager[None]:
    return vulkan_speedups()


def _as_in_the_program(_quantized: QuantizedModel, program: Any) -> DelegateFacts:
    return DelegateFacts(stored=_stored(program), zeros=zero_share(_weights(program)))


def _coreml(quantized: QuantizedModel, program: Any) -> DelegateFacts:
    if quantized.scheme in ("fp16", "fp32"):
        return DelegateFacts(stored=coreml.stored(quantized, _stored(program)), zeros=zero_share(_weights(program)))
    found = read_contents([part.processed_bytes for part in _delegates(program)])
    return DelegateFacts(
        stored=found.stored,
        zeros=zero_share(found.weights),
        # weights alone are no claim of how they are multiplied
        kernels=() if quantized.scheme in FLOAT_SCHEMES else found.kernels,
        weights_sqnr_db=weights_sqnr_db(found.weights, quantized),
    )


def _vulkan(quantized: QuantizedModel, program: Any) -> DelegateFacts:
    is_int8 = quantized.scheme not in FLOAT_SCHEMES
    return DelegateFacts(
        stored=coreml.stored(quantized, _stored(program)) if quantized.scheme == "fp16" else _stored(program),
        zeros=zero_share(_weights(program)),
        kernels=vulkan.kernels([part.processed_bytes for part in _delegates(program)]) if is_int8 else (),
    )


def _delegates(program: Any) -> list[Any]:
    """Return the delegates of a lowered program, in the order of execution."""
    return [
        getattr(program.graph_module, node.args[0].target)
        for node in program.graph.nodes
        if node.op == "call_function" and node.target.__name__ == "executorch_call_delegate"
    ]


DELEGATES: dict[str, Delegate] = {
    "xnnpack": Delegate(
        title="XnnpackPartitioner",
        partitioner=_xnnpack,
        around=_xnnpack_passes,
        check=_no_check,
        facts=_as_in_the_program,
    ),
    "coreml": Delegate(
        title="CoreMLPartitioner",
        partitioner=coreml.partitioner,
        around=coreml.repeatable,
        check=coreml.check_coreml,
        facts=_coreml,
        libraries=("coremltools",),
    ),
    **dict.fromkeys(
        ETHOS_U,
        Delegate(
            title="EthosUPartitioner",
            partitioner=ethos.partitioner,
            around=_as_it_is,
            check=_no_check,
            facts=_as_in_the_program,
            libraries=("ethos-u-vela", "tosa-tools"),
        ),
    ),
    "vulkan": Delegate(
        title="VulkanPartitioner",
        partitioner=vulkan.partitioner,
        around=_vulkan_passes,
        check=_no_check,
        facts=_vulkan,
    ),
}


def delegate_tools(backend: str) -> dict[str, str]:
    """Return name and version of the libraries behind a backend's delegate; empty for most backends."""
    libraries = DELEGATES[backend].libraries if backend in DELEGATES else ()
    return {name: importlib.metadata.version(name) for name in libraries}


def check_delegates(backends: tuple[str, ...]) -> None:
    """Check before a long run that edgeq can lower for all these backends here.

    Raises:
        EnvironmentProblem: a library is missing.
    """
    for backend in backends:
        if backend in DELEGATES:
            DELEGATES[backend].check()
