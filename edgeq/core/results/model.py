"""The model after each step: loaded, quantized, lowered."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# --- How far each layer of a quantized graph is from the float graph's, on the same samples.


# a layer stands out where it is at least so much noisier by itself than the median layer: four times the noise power
STANDS_OUT_DB = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSqnr:
    """A layer's output in the quantized graph against the float graph's.

    SQNR = 10 log10(sum float² / sum (float - quantized)²) in dB, over all elements of the layer's output (after a
    relu that is fused with it, and rounded as the next layer gets it) and all samples. Infinite where nothing differs,
    -Infinity where the float output is zero or a value is not finite.

    Attributes:
        layer: the module's name, as the table of layers has it.
        sqnr_db: with the whole graph quantized: what all layers up to this one add up to.
        own_db: with the outputs of all earlier layers put back to the float graph's: what this layer, and what lies
            between it and the layers before it, adds by itself.
        is_int8: whether it computes in int8. The error of one in float is that of the range which its output is rounded
            to, such as the one that all parts of a `cat` share: to keep the layer in float takes none of it away.
    """

    layer: str
    sqnr_db: float
    own_db: float
    is_int8: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSqnrs:
    """All layers in the order of execution.

    Attributes:
        samples: how many calibration samples the sums are over.
    """

    samples: int
    layers: tuple[LayerSqnr, ...]

    @property
    def noisiest(self) -> LayerSqnr:
        """The layer in int8 that adds most noise by itself, the first of several equal ones; of all if none is."""
        return min(self._in_int8, key=lambda one: one.own_db)

    @property
    def _in_int8(self) -> tuple[LayerSqnr, ...]:
        return tuple(one for one in self.layers if one.is_int8) or self.layers

    @property
    def start(self) -> LayerSqnr | None:
        """The layer where the error starts: the noisiest, where it stands out; None where the error builds up."""
        noisiest = self.noisiest
        others = [one.own_db for one in self._in_int8 if one is not noisiest]
        if not others:
            return noisiest
        gap_db = statistics.median(others) - noisiest.own_db
        return noisiest if gap_db >= STANDS_OUT_DB and not math.isnan(gap_db) else None

    def before(self, layer: LayerSqnr) -> float:
        """Return the SQNR in dB of the layer that ran just before; infinite for the first, which reads the input."""
        place = self.layers.index(layer)
        return self.layers[place - 1].sqnr_db if place else math.inf


# --- What the search for a mixed precision found: how sensitive each layer is, and which were left in float.


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """A layer, and what quantizing it alone does to the outputs.

    Attributes:
        layer: the module's name, as `--keep-fp32` takes it.
        alone_db: the outputs' SQNR against fp32 with this layer alone in int8, weights and activations.
        but_one_db: the same with every other layer in int8; None where that was not estimated.
        weight_bytes: of its weights in int8; in float they take four times as many.
        alone_score, but_one_score: of the same two graphs on the evaluation data; None without them.
    """

    layer: str
    alone_db: float
    but_one_db: float | None
    weight_bytes: int
    alone_score: float | None = None
    but_one_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedLayers:
    """The layers of a model by what int8 does to each.

    Attributes:
        layers: the most sensitive one first.
        order: their names, in the order of execution.
        all_db: the outputs' SQNR against fp32 with every layer in int8.
        all_score, fp32_score: of that graph and of the float one on the evaluation data; None without them.
        samples: how many were measured on.
    """

    layers: tuple[Sensitivity, ...]
    order: tuple[str, ...]
    all_db: float
    samples: int
    all_score: float | None = None
    fp32_score: float | None = None

    @property
    def best_kept(self) -> Sensitivity | None:
        """The layer whose stay in float gains most, by score if there is one; None where none gains anything."""
        known = [one for one in self.layers if one.but_one_db is not None]
        best = max(known, key=lambda one: (one.but_one_score or 0.0, one.but_one_db or 0.0), default=None)
        if best is None or best.but_one_db is None:
            return None
        return best if best.but_one_db > self.all_db or (best.but_one_score or 0.0) > (self.all_score or 0.0) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A quantized graph against fp32 on search samples.

    Attributes:
        sqnr_db: of the worst output.
        agreement: share of samples with the same top-1 class; None where no output ranks classes.
        drop_pp: fp32 minus the graph's score in percentage points; without labels the share of top-1 predictions that
            changed, which is the most that it can be. None where there is neither.
    """

    sqnr_db: float
    agreement: float | None
    drop_pp: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An assignment that was converted and run.

    Attributes:
        kept: the layers in float.
        remedies: names of the changes for all layers; none for int8 without changes.
        size_bytes: an estimate of the artifact's size.
        meets: whether accuracy and size keep their limits.
    """

    kept: tuple[str, ...]
    size_bytes: int
    scores: Scores
    meets: bool
    remedies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search.

    Attributes:
        limits: the limits of the scores, by name.
        samples: how many search samples there were.
        ranking: all layers, the most sensitive one first.
        attempts: in the order in which they were made; `chosen` is index of the one that became the artifact.
    """

    limits: tuple[tuple[str, float], ...]
    samples: int
    ranking: tuple[Sensitivity, ...]
    attempts: tuple[Attempt, ...]
    chosen: int

    @property
    def found(self) -> Attempt:
        """The attempt that became the artifact."""
        return self.attempts[self.chosen]


SourceKind = Literal["module", "exported", "pte", "ptl", "onnx"]

# what is no PyTorch model any more
FILE_KINDS: frozenset[SourceKind] = frozenset({"pte", "ptl", "onnx"})

Weights = Literal["file", "pretrained", "own", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VaryingSize:
    """A size of an input or output that varies from call to call, such as a sequence's length.

    Attributes:
        axis: whose size it is.
        name: sizes of one name are equal in each call.
        least, most: its bounds, both included; None for none above.
        step: it is a multiple of this.
    """

    axis: int
    name: str
    least: int
    most: int | None
    step: int = 1

    def takes(self, size: int) -> bool:
        """Whether it may be `size`."""
        return self.least <= size and (self.most is None or size <= self.most) and size % self.step == 0

    @property
    def text(self) -> str:
        """Return "8..128", with "/8" where it is a multiple of 8."""
        return f"{self.least}..{'' if self.most is None else self.most}{f'/{self.step}' if self.step > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A model input or output.

    Attributes:
        name: the argument's name, or `output0` and so on.
        dtype: NumPy's name of the element type.
        shape: the exported shape, the batch first; the largest one where sizes vary within bounds.
        low, high: the range that random inputs are drawn from (high is excluded for floats).
        highs: of whole numbers whose places differ, as the columns of a table's ids do: the highest value of each place
            of shape[1:], in C order; () where `high` is that of all.
        varying: the sizes that vary.
        fed_from: of an input that is a state, the index of the output of the step before that it is; None for others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    highs: tuple[float, ...] = ()
    varying: tuple[VaryingSize, ...] = ()
    fed_from: int | None = None

    @property
    def only(self) -> int | None:
        """The one value that an input of a single whole number takes; None where it may take others.

        A range that comes from an example begins at 0 or below, unless the model refused what is lower.
        """
        is_single = math.prod(self.shape) == 1 and not self.varying and not self.dtype.startswith(("float", "bool"))
        return int(self.low) if is_single and self.low == self.high > 0 else None

    def takes(self, shape: tuple[int, ...], *, without: int | None = None) -> bool:
        """Whether an array of this shape fits, or fits but for the axis `without`, which it does not have."""
        axes = [axis for axis in range(len(self.shape)) if axis != without]
        ranges = {one.axis: one for one in self.varying}
        return len(shape) == len(axes) and all(
            ranges[axis].takes(size) if axis in ranges else size == self.shape[axis]
            for axis, size in zip(axes, shape, strict=True)
        )

    def shape_text(self, *, without: int | None = None) -> str:
        """Return "[1, 8..128]", without the axis `without`."""
        return shape_text(self.shape, self.varying, without=without)


def shape_text(shape: Sequence[int], varying: Iterable[Any], *, without: int | None = None) -> str:
    """Return "[1, 8..128]".

    Args:
        shape: the largest sizes.
        varying: the `VaryingSize`s, or what a manifest has for them.
        without: an axis to leave out.
    """
    ranges = {one.axis: one.text for one in varying}
    return f"[{', '.join(ranges.get(i, str(size)) for i, size in enumerate(shape) if i != without)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """What a float model computes in one inference, in multiply-accumulates.

    Attributes:
        convolution_macs: those of convolutions.
        linear_macs: products of activations with weights: linear layers.
        lstm_macs, gru_macs, rnn_macs: the same in recurrent layers of a kind.
        attention_macs: products of two activations.
        attention_products: how many of these products there are.
        table_share: the share of all weights that lies in tables of embeddings, 0 to 1; lookups multiply nothing.
    """

    convolution_macs: int = 0
    linear_macs: int = 0
    lstm_macs: int = 0
    gru_macs: int = 0
    rnn_macs: int = 0
    attention_macs: int = 0
    attention_products: int = 0
    table_share: float = 0.0

    @property
    def recurrent_macs(self) -> int:
        """Those of all recurrent layers."""
        return self.lstm_macs + self.gru_macs + self.rnn_macs

    @property
    def macs(self) -> int:
        """All of them."""
        return self.convolution_macs + self.linear_macs + self.recurrent_macs + self.attention_macs

    @property
    def matrix_share(self) -> float:
        """The share of all matrix products (linear, recurrent, attention); 0 where the model multiplies nothing."""
        return 1 - self.convolution_macs / self.macs if self.macs else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A model that takes tokens and the place of the first one, and keeps the keys and values of attention in buffers.

    Attributes:
        context_length: tokens that the buffers keep.
        most_tokens: of one call.
        vocabulary: tokens that the logits, the first output, tell apart.
        bos_id: the token that a text begins with; None where it begins with none.
        eos_ids: those that end a text.
        tokenizer: file of the tokenizer; None without one.
    """

    context_length: int
    most_tokens: int
    vocabulary: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    tokenizer: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A loaded model, in eval mode and contiguous.

    Attributes:
        name: the model's name in bundles.
        kind: what `model` is.
        model: a torch.nn.Module, a torch.export.ExportedProgram, or the Path of an existing artifact.
        inputs: what it takes.
        weights: where the parameters came from; `own` means the factory or program brought them.
        fp32_bytes: bytes of parameters and buffers at four bytes an element; 0 where unknown.
        source_sha256: hash of what the user named (the file, or the state dict as loaded).
        remarks: what people must know of how it was loaded, and fails nothing.
        notes: what was found out about it, as it should be.
        preprocess: of its images, an `edgeq.core.preprocess.Preprocess`, where the source says it.
        output_names: of its outputs, where forward names them; () for `output0` and so on.
        language: of a model that keeps a key-value cache; None for others.
    """

    name: str
    kind: SourceKind
    model: Any
    inputs: tuple[TensorSpec, ...]
    weights: Weights
    fp32_bytes: int
    source_sha256: str
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    preprocess: Any = None
    output_names: tuple[str, ...] = ()
    language: LanguageModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What loading a model and running it once has shown, for `--dry-run`.

    Attributes:
        outputs: () for an artifact, which is not run.
        work: None where it was not seen.
        notes: those of the loaded model.
        evaluation_samples: how many there are; None where that is not known yet.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    work: ModelWork | None
    notes: tuple[str, ...]
    evaluation_samples: int | None = None


# a file beside the artifact, with its role
Companion = tuple[Literal["weights", "compiled", "example", "reference", "tokenizer"], Path]

TunedWeights = Literal["start", "last", "average", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Results of quantization-aware training.

    Attributes:
        loss: what was minimised: the KL divergence of the logits, or the squared error of the outputs.
        weights: which were kept: those of the last epoch, their moving average, those from before the training
            (none was better on the held-out samples), or the user's loop's.
        epochs: how many were finished, of `learning_rate` and `batch`.
        samples, held_out: how many samples were trained on, and how many only judged.
        start_loss, end_loss: on the held-out samples, before the training and of the weights that were kept.
        trained_loss: the same for the best weights of the training, whether they were kept or not.
        end_agreement: share of held-out samples with the teacher's argmax; in dB without logits.
        diverged_in: the epoch whose loss was not finite; the weights are of an earlier one.
        state: the file from which an interrupted run would continue.
    """

    loss: Literal["kl", "mse"]
    weights: TunedWeights
    epochs: int
    learning_rate: float
    batch: int
    samples: int
    held_out: int
    start_loss: float
    end_loss: float
    trained_loss: float
    end_agreement: float
    diverged_in: int | None = None
    state: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QParams:
    """Scale and zero point of an int8 tensor.

    Attributes:
        name: the weight's, or that of the operator whose result it is.
        shape: of a weight; () for an activation.
        scales, zero_points: one for the tensor, or one for each channel.
    """

    name: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A convolution or linear layer as an artifact stores it.

    Attributes:
        weight: int8 [out, in / groups, …].
        scales: one for the tensor, or one for each output channel.
        bias: float32 [out]; None where it has none, or one that is not stored.
    """

    weight: Any
    scales: tuple[float, ...]
    bias: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedWeight:
    """A matrix in int4: neighbouring inputs share a scale, in groups.

    Attributes:
        layers: names of the layers that multiply by it.
        codes: int8 [out, groups, size of a group], from -8 to 7.
        scales: float32 [out, groups], of values that float16 holds, or bfloat16 for XNNPACK.
    """

    layers: tuple[str, ...]
    codes: Any
    scales: Any

    @property
    def values(self) -> Any:
        """The float32 matrix that it stands for, [out, in]."""
        return (self.codes * self.scales[..., None]).reshape(len(self.codes), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseTolerances:
    """Tolerances for keeping parts of a shipped model in a new one.

    Attributes:
        clipped: by which share of its width a shipped range of activations may fall short of the new one.
        biases: how far a bias may have moved, as a share of what rounding the weights moves the output.
        values: how far an int8 value may be from the exact one, in steps, exclusive; 0.5 is plain rounding.
    """

    clipped: float
    biases: float
    values: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptValues:
    """The parts of a shipped model that were kept, beyond scales and zero points that fit.

    Attributes:
        tolerances: the loosest that cost little.
        layers: how many layers are the shipped model's, by shape and scales.
        values, biases: how many int8 values and biases would be others without.
        ranges: how many more tensors have the shipped range.
        samples: how many calibration samples judged.
        sqnr_db, sqnr_strict_db: against fp32 on these, so and with what fits alone.
    """

    tolerances: ReuseTolerances
    layers: int
    values: int
    biases: int
    ranges: int
    samples: int
    sqnr_db: float
    sqnr_strict_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """A model after fusion and quantization, still in PyTorch.

    Attributes:
        scheme: which scheme made it.
        graph: a callable torch.nn.Module that computes what the artifact is to compute.
        exported: the same as an ExportedProgram where there already is one, else None; in float32 where the delegate
            narrows it.
        runs_as: what the runtime makes of the graph, where that is different from what it says; else None.
        quantized: names of the layers that compute in int8.
        kept_fp32: names of the quantizable layers that stay in float.
        output_steps: the quantization step of each output that is itself quantized, else None.
        tuning: results of training, for schemes that train.
        qparams: of every tensor in static int8; none for other schemes.
        fresh: of these, the tensors that could not have the shipped model's in every channel, where it was asked for.
        kept: what was kept of the shipped model beyond these; None where it was not asked for.
        search: result of the search for the layers to keep in float; an interrupted one would continue from
            `search_state`.
        remarks: remarks for the user, such as layers that half precision cannot hold.
        layer_sqnrs: how far each layer is from the float graph's; None for schemes that calibrate no graph.
        in_float: names, in the artifact's table of layers, of those that stay in float without being asked to, by the
            reason: `BEFORE_LOGARITHM`, `RECURRENT`, `NO_KERNEL`, `TRANSPOSED`, `BATCHED`, `EXACT` or `COMPUTED`; of the
            schemes with int4 those that are not in int4. With `ASKED` modules that --keep-fp32 names.
        grouped: the weights that the artifact is to store in int4.
    """

    scheme: str
    graph: Any
    exported: Any = None
    runs_as: Any = None
    quantized: tuple[str, ...]
    kept_fp32: tuple[str, ...]
    output_steps: tuple[float | None, ...]
    tuning: Tuning | None = None
    qparams: tuple[QParams, ...] = ()
    fresh: tuple[str, ...] = ()
    kept: KeptValues | None = None
    search: Search | None = None
    search_state: Path | None = None
    remarks: tuple[str, ...] = ()
    layer_sqnrs: LayerSqnrs | None = None
    in_float: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: tuple[GroupedWeight, ...] = ()


# why layers of a static int8 model stay in float, as the audit says it
BEFORE_LOGARITHM = "logarithms that follow"
RECURRENT = "recurrent layers, which have no kernel of static int8"
NO_KERNEL = "recurrent layers of a kind that has no int8 kernel"
TRANSPOSED = "transposed convolutions, which have no kernel of static int8"
BATCHED = "products with a batch of constants, which have no kernel of static int8"
ASKED = "--keep-fp32"  # of modules that the user knows by other names than the artifact has
EXACT = "products that give positions or angles, or that take a wide softmax"
COMPUTED = "layers whose weights forward computes"

# the same of layers that are not in int4
NO_INT4_KERNEL = "convolutions, tables and recurrent layers, which have no 4-bit kernel"
NO_INT4_GROUP = "rows that no group of the runtime's kernels divides, or scales beyond float16"


_LINEAR = re.compile(r"^(?:addmm|mm|linear\w*|quantized_lstm|quantized_gru|mkldnn_rnn_layer)$")  # operators of layers
# of ONNX and LiteRT; attention's products have no weights
_LINEAR_WITH_WEIGHTS = frozenset(
    {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm", "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
    | {"FULLY_CONNECTED", "BATCH_MATMUL"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An operator of the lowered model that multiplies and accumulates, or holds weights.

    Attributes:
        name: the module's name in the user's model, or the operator's where it has none.
        op: the operator.
        macs: multiply-accumulates of one inference.
        weight_bytes: bytes of its constants in the artifact.
        delegated: whether the delegate took it.
        of_activations: whether both factors are computed from the model's inputs, so that no weight is in it. False
            where that is not known.
    """

    name: str
    op: str
    macs: int
    weight_bytes: int
    delegated: bool
    of_activations: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether it is linear or recurrent: of ONNX's and LiteRT's matrix products those with weights."""
        return bool(_LINEAR.match(self.op)) or (self.op in _LINEAR_WITH_WEIGHTS and self.weight_bytes > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator of an artifact's graph.

    Attributes:
        name: unique; that of its layer where it is one.
        inputs: names of the operators whose results it takes.
    """

    name: str
    op: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaFacts:
    """An artifact's requirements on a GPU machine.

    Attributes:
        torch: the version that wrote it; older ones may not load it.
        cuda: the version that its compiled package was built with; None without such a package.
        compiled_for: compute capability of the GPU that the package was compiled for, and that alone runs it; None
            without such a package.
        least_capability: compute capability from which a GPU has the scheme's arithmetic; None for any.
    """

    torch: str
    cuda: str | None
    compiled_for: str | None
    least_capability: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuFacts:
    """What an artifact for an Ethos-U was compiled for, and what it needs there, of one inference.

    Figures of several compiled parts are sums, but for the memories that one part leaves to the next: these are the
    most of any part. A firmware sets aside a scratch pool of `scratch_bytes`, and a method pool of `planned_bytes`
    beside what the runtime takes for its own structures (docs/howto/ethos-u.md).

    Attributes:
        accelerator, system_config, memory_mode: what vela compiled for.
        parts: how many parts of the program the NPU computes.
        cycles: vela's estimate for the NPU, without what the CPU does before, between and after its parts.
        sram_bytes, dram_bytes: vela's figures, of the NPU's tensors and caches.
        flash_bytes: commands and weights, as vela encodes them.
        scratch_bytes: what the NPU needs of the temporary allocator.
        planned_bytes: what the runtime sets aside for inputs, outputs and what the CPU computes.
        cpu_operators: what the CPU computes, by the names of the kernels that a firmware must have.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    parts: int
    cycles: int
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    scratch_bytes: int
    planned_bytes: int
    cpu_operators: tuple[str, ...]

    @property
    def needed_sram_bytes(self) -> int:
        """The SRAM of an inference: vela's share, and the memory that the runtime plans."""
        return self.sram_bytes + self.planned_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredModel:
    """An artifact on disk, with its facts that are known without running it.

    Attributes:
        path: the artifact, named as it will be in the bundle.
        runtime: `executorch`, `torchscript`, `onnx`, `openvino`, `litert` or `cuda`.
        runtime_version: the version that wrote it; older runtimes are refused.
        bytecode_version: of a TorchScript archive, the opset of an ONNX file, else None.
        passes: the optimization passes that ran, in order.
        operators: operators that the runtime itself must have.
        undelegated: what was left to portable kernels, an entry for each call.
        layers: operators in the order of execution; none for a ready-made artifact.
        delegated_macs: share of the multiply-accumulates that the delegate took; None where there is no delegate,
            or where it is not known.
        dynamic_batch: whether it takes any number of samples at once.
        planned_memory_bytes: what the runtime sets aside for activations before the first call, by the largest sizes
            that inputs may have; None where it plans nothing ahead, or no size varies.
        stored: elements of the constants that the artifact holds, by dtype; none where that is not known.
        kernels: the operators of the delegate's own program that multiply matrices, where nothing here runs it.
        weights_sqnr_db: how near the weights that the delegate stores compressed are to the graph's, the worst of them;
            None where none is, or where they were not read.
        int4_db: of each layer that is to be in int4, how near the weight in the file is to the graph's, in dB; minus
            infinity where the file does not hold it in 4 bits.
        zeros: share of zeros among the weights, 0 to 1; None where they were not read.
        companions: files that go into the bundle beside the artifact, with their roles.
        cuda: what a GPU box must have; None for other runtimes.
        npu: what an Ethos-U must have; None for other backends.
    """

    path: Path
    runtime: str
    runtime_version: str
    bytecode_version: int | None
    passes: tuple[str, ...]
    operators: tuple[str, ...]
    undelegated: tuple[str, ...]
    layers: tuple[Layer, ...]
    delegated_macs: float | None
    dynamic_batch: bool = False
    planned_memory_bytes: int | None = None
    stored: tuple[tuple[str, int], ...] = ()
    kernels: tuple[str, ...] = ()
    weights_sqnr_db: float | None = None
    int4_db: tuple[tuple[str, float], ...] = ()
    zeros: float | None = None
    companions: tuple[Companion, ...] = ()
    cuda: CudaFacts | None = None
    npu: NpuFacts | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The artifact, and the file that has its weights where they are not in it, by name."""
        return tuple(sorted((self.path, *(path for role, path in self.companions if role == "weights"))))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(layer.macs for layer in self.layers)
