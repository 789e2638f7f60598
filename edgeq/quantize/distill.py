"""Distillation: the fake-quantized student learns the float teacher's outputs on samples without labels."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from edgeq.core.config import QatConfig, Task
from edgeq.core.lazy import np
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch, Dataset, batch_size, batches
from edgeq.quantize.fake_quant import RANGE_SUFFIX
from edgeq.quantize.spec import is_pruned

_MEMO_BYTES = 64 * 10**6  # the teacher's outputs beyond this are computed again

_WARM_UP = 0.1  # share of all steps in which the learning rate rises

_RANGE_RATE = 10.0  # ranges that an outlier stretched must shrink many times within a few hundred steps

_LEAST_SIZE = 1e-3  # of a tensor's values, so that a bias of zeros is trained too

State = dict[str, Any]


class DivergedError(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The student against the teacher on held-out samples.

    Attributes:
        loss: mean over the samples; NaN or infinite where the student is.
        agreement: share of samples with the teacher's argmax for logits; else the signal-to-difference ratio in dB.
    """

    loss: float
    agreement: float


class Distillation:
    """One training run.

    Args:
        student: the module to train, in place.
        teacher: the float module.
        specs: the model's inputs.
        samples: what is trained on, and `held_out`, what is only scored on.
        logits: whether outputs are [N, classes] logits, whose distributions are to be equal; else their values are.
        options: epochs, batch and learning rate.
        seed: of the order of the samples.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        specs: Sequence[TensorSpec],
        samples: Dataset,
        held_out: Dataset,
        logits: bool,
        options: QatConfig,
        seed: int,
    ) -> None:
        self._student, self._samples, self._held_out = student, samples, held_out
        self._logits, self._options, self._seed = logits, options, seed
        self._teacher = _Teacher(teacher)
        self._is_whole = batch_size(samples, specs) == 0
        self._specs = self._batched(specs, min(options.batch, samples.count))
        self._parameters = {name: part for name, part in student.named_parameters() if part.requires_grad}
        # of a pruned model: what was zero stays zero
        self._pruned = {name: part == 0 for name, part in self._parameters.items() if is_pruned(part)}
        self._optimizer = _optimizer(self._parameters)
        self._average = self.weights()
        self._steps = -(-samples.count // options.batch)

    @property
    def sample_count(self) -> int:
        """How many samples an epoch has."""
        return self._samples.count

    def weights(self) -> State:
        """Return a copy of what is trained."""
        return {name: part.detach().clone() for name, part in self._parameters.items()}

    def student_state(self) -> State:
        """Return all tensors of the student, those that are not trained too."""
        return dict(self._student.state_dict())

    def average(self) -> State:
        """Return the exponential moving average of the weights over the steps."""
        return {name: part.clone() for name, part in self._average.items()}

    def load(self, weights: State) -> None:
        """Set what is trained."""
        with torch.no_grad():
            for name, part in self._parameters.items():
                part.copy_(weights[name])

    def state(self) -> State:
        """Return all that the next epoch depends on."""
        return {"weights": self.weights(), "average": self.average(), "optimizer": self._optimizer.state_dict()}

    def resume(self, state: State) -> None:
        """Continue from a value of `state`."""
        self.load(state["weights"])
        self._average = {name: part.clone() for name, part in state["average"].items()}
        self._optimizer.load_state_dict(state["optimizer"])

    def epoch(self, number: int, task: Task) -> float:
        """Train on every sample once, and return the mean loss.

        Args:
            number: counted from 0; it decides the order of the samples and the learning rate.
            task: advanced by each sample.

        Raises:
            DivergedError: the loss is not finite.
        """
        order = np.random.default_rng([self._seed, number]).permutation(self._samples.count)
        total = 0.0
        for step, rows in enumerate(_groups(order, self._options.batch)):
            self._set_rate(number * self._steps + step)
            self._optimizer.zero_grad()
            loss = self._backward(_view(self._samples, rows))
            if not math.isfinite(loss):
                raise DivergedError
            self._optimizer.step()
            with torch.no_grad():
                for name, zeros in self._pruned.items():
                    self._parameters[name].masked_fill_(zeros, 0)
            # average over about half an epoch
            share = 1 / max(5.0, self._steps / 2)
            with torch.no_grad():
                for name, part in self._parameters.items():
                    self._average[name].lerp_(part, share)
            total += loss * len(rows)
            task.advance(len(rows))
        return total / self._samples.count

    def _backward(self, group: Dataset) -> float:
        """Add up the gradients of a group, in as many passes as the graph's batch needs, and return the mean loss."""
        total = 0.0
        for batch in batches(group, self._specs):
            loss = self._loss(batch) * (batch.rows / group.count)
            loss.backward()
            total += float(loss.detach())
        return total

    def _loss(self, batch: Batch) -> Any:
        pairs = zip(self._outputs(self._student, batch), self._taught(batch), strict=True)
        return sum(_kl(ours, theirs) if self._logits else _relative_error(ours, theirs) for ours, theirs in pairs)

    def score(self) -> Score:
        """Score the student on the held-out samples."""
        loss, same, signal, noise = 0.0, 0.0, 0.0, 0.0
        with torch.no_grad():
            for batch in batches(self._held_out, self._specs):
                loss += float(self._loss(batch)) * batch.rows
                ours, theirs = self._outputs(self._student, batch)[0], self._taught(batch)[0]
                same += float((ours.argmax(-1) == theirs.argmax(-1)).sum()) if self._logits else 0.0
                signal += float(theirs.double().square().sum())
                noise += float((ours - theirs).double().square().sum())
        sqnr_db = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf
        count = self._held_out.count
        return Score(loss=loss / count, agreement=same / count if self._logits else sqnr_db)

    def _outputs(self, module: Any, batch: Batch) -> tuple[Any, ...]:
        tensors = tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
        leaves = torch.utils._pytree.tree_leaves(module(*tensors))
        rows = len(tensors[0]) if self._is_whole else batch.rows
        return tuple(leaf[:rows].float() for leaf in leaves)

    def _taught(self, batch: Batch) -> tuple[Any, ...]:
        return self._teacher.outputs(batch, lambda module: self._outputs(module, batch))

    def _batched(self, specs: Sequence[TensorSpec], rows: int) -> tuple[TensorSpec, ...]:
        """Return the inputs with a batch of `rows`, where student and teacher both take that; else as they were."""
        wider = tuple(dataclasses.replace(spec, shape=(rows, *spec.shape[1:])) for spec in specs)
        if self._is_whole or not all(spec.shape for spec in specs):
            return tuple(specs)
        try:
            # FX's modules print the error that they raise
            with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
                for module in (self._student, self._teacher.module):
                    together = next(batches(self._samples, wider))
                    alone = next(batches(_view(self._samples, [0]), specs))
                    for many, one in zip(self._outputs(module, together), self._outputs(module, alone), strict=True):
                        if len(many) != together.rows or not _near(many[:1], one[:1]):
                            return tuple(specs)
        except (RuntimeError, AssertionError, ValueError):  # a graph of fixed shapes refuses in many ways
            return tuple(specs)
        return wider

    def _set_rate(self, step: int) -> None:
        """Warm up linearly, then fall like a cosine to zero at the last step."""
        steps = self._steps * self._options.epochs
        done = (step + 1) / max(1, steps)
        cosine = 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
        rate = done / _WARM_UP if done < _WARM_UP else cosine
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.lr * rate * group["size"]


class _Teacher:
    """The float module, whose outputs are kept by sample."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._kept: dict[str, tuple[Any, ...]] = {}
        self._left = _MEMO_BYTES

    def outputs(self, batch: Batch, run: Any) -> tuple[Any, ...]:
        """Return the outputs for a batch, a row for each sample."""
        digests = [sample.digest for sample in batch.samples]
        if all(digest in self._kept for digest in digests):
            rows = [self._kept[digest] for digest in digests]
            return tuple(torch.cat(column) for column in zip(*rows, strict=True))
        with torch.no_grad():
            outputs: tuple[Any, ...] = run(self.module)
        size = sum(leaf.nbytes for leaf in outputs)
        if size <= self._left:
            self._left -= size
            per_sample = len(outputs[0]) // len(digests)
            for i, digest in enumerate(digests):
                cut = slice(i * per_sample, (i + 1) * per_sample)
                self._kept[digest] = tuple(leaf[cut].clone() for leaf in outputs)
        return outputs


def _optimizer(parameters: dict[str, Any]) -> Any:
    """Return Adam with a group for each tensor, whose steps are relative to the size of its values.

    Weights into which batch norm was folded differ in size by orders of magnitude from layer to layer. The logarithm
    of a range is relative already.
    """
    groups = []
    for name, part in parameters.items():
        size = float(part.detach().square().mean().sqrt())
        is_range = name.endswith(RANGE_SUFFIX)
        groups.append({"params": [part], "size": _RANGE_RATE if is_range else max(size, _LEAST_SIZE)})
    # gradients of ranges are tiny, and the usual 1e-8 would hold them still
    return torch.optim.Adam(groups, lr=0.0, eps=1e-12, foreach=False)


def _kl(ours: Any, theirs: Any) -> Any:
    """Return the mean KL divergence of the teacher's distribution from the student's, in nats."""
    log_ours, log_theirs = (functional.log_softmax(logits, dim=-1) for logits in (ours, theirs))
    return functional.kl_div(log_ours, log_theirs, reduction="batchmean", log_target=True)


def _relative_error(ours: Any, theirs: Any) -> Any:
    """Return the mean squared error over the teacher's mean square, so that outputs of any unit weigh alike."""
    return functional.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(1e-12)


def _near(ours: Any, theirs: Any) -> bool:
    size = float(theirs.abs().max()) if theirs.numel() else 0.0
    return ours.shape == theirs.shape and bool(torch.allclose(ours, theirs, rtol=0.0, atol=0.05 * size + 1e-6))


def _groups(order: Any, size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield [int(i) for i in order[start : start + size]]


def _view(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    return dataclasses.replace(dataset, count=len(rows), read=lambda i: dataset.read(rows[i]))
