"""Quantization-aware training of a calibrated graph, the same for both routes: distil, or run the user's own loop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.core.config import Task
from edgeq.core.errors import AccuracyError, UnsupportedError, UsageError, first_line
from edgeq.core.files import canonical_json, sha256_bytes, write_atomic
from edgeq.core.lazy import np
from edgeq.core.results.model import TunedWeights, Tuning
from edgeq.core.samples import Dataset
from edgeq.quantize.spec import QatSpec, QuantizeSpec

if TYPE_CHECKING:
    from edgeq.quantize.distill import Distillation, Score, State


_HELD_OUT = 0.1  # share of the samples that only choose between candidates

_MOST_HELD_OUT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What differs between the libraries that prepare and convert a graph.

    Attributes:
        is_observer: tells its observers from other modules.
        fixed: its observer class of fixed parameters.
    """

    is_observer: Callable[[Any], bool]
    fixed: Any


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far a run has come.

    Attributes:
        epochs: how many are done.
        start: the weights before the first.
        diverged_in: the epoch, counted from 1, whose loss was not finite.
    """

    epochs: int
    start: State
    diverged_in: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What the prepared graph holds after training.

    Attributes:
        weights: which were chosen.
        score: of these, on the held-out samples.
        trained_loss: of the best weights that the training came to, chosen or not.
        epochs, diverged_in: as in _Progress; 0 and None for the user's loop, which does not tell.
        state: the file that an interrupted run would go on from.
    """

    weights: TunedWeights
    score: Score
    trained_loss: float
    epochs: int = 0
    diverged_in: int | None = None
    state: Path | None = None


def tune(prepared: Any, teacher: Any, spec: QuantizeSpec, library: Library) -> Tuning:
    """Train a prepared and calibrated graph, in place; afterwards it can be converted as one that was not trained.

    Batch norm is folded and dropout out of the graph already; the float model is not touched.

    Args:
        prepared: the graph with its observers.
        teacher: the float module.
        spec: what the method was given; `spec.qat` is there.
        library: whose observers they are.

    Raises:
        UsageError: too few samples, or the user's loop returned something else than the trained module.
        AccuracyError: the user's loop returned weights that are not finite.
        UnsupportedError: a kind of observer that cannot be trained through.
    """
    from edgeq.quantize.fake_quant import attach, detach

    qat = spec.qat
    if qat is None:
        raise TypeError("qat-int8 needs QatSpec")
    if qat.samples.count < 2:
        what = (
            f"qat-int8 needs samples to train on and others to judge by, but {qat.samples.origin} has "
            f"{qat.samples.count}"
        )
        raise UsageError(what, "give more samples with --qat-data")
    try:
        attached = attach(prepared, is_observer=library.is_observer, fixed=library.fixed)
    except TypeError as err:
        raise UnsupportedError(f"qat-int8: {first_line(err)}", "use --scheme static-int8") from err
    training, held_out = _split(qat.samples, qat.seed)
    from edgeq.quantize.distill import Distillation

    run = Distillation(
        prepared,
        teacher,
        specs=spec.inputs,
        samples=training,
        held_out=held_out,
        logits=qat.logits,
        options=qat.options,
        seed=qat.seed,
    )
    with spec.progress.task(f"train {spec.label}", 1 if qat.train else qat.options.epochs * training.count) as task:
        before = run.score()
        if qat.train is None:
            # train, and load the best weights
            done, state = _distil(run, qat, task, before)
            chosen, scores = _choose(run, done)
            after = _Trained(
                weights=chosen,
                score=scores[chosen],
                trained_loss=min(scores["last"].loss, scores["average"].loss),
                epochs=done.epochs,
                diverged_in=done.diverged_in,
                state=state,
            )
        else:
            _user_loop(prepared, teacher, spec, qat, training)
            score = run.score()
            after = _Trained(weights="user", score=score, trained_loss=score.loss)
        task.note(f"{after.weights} weights, {_words(after.score, logits=qat.logits)}")
    tuning = Tuning(
        loss="kl" if qat.logits else "mse",
        weights=after.weights,
        epochs=after.epochs,
        learning_rate=qat.options.lr,
        batch=qat.options.batch,
        samples=training.count,
        held_out=held_out.count,
        start_loss=before.loss,
        end_loss=after.score.loss,
        trained_loss=after.trained_loss,
        end_agreement=after.score.agreement,
        diverged_in=after.diverged_in,
        state=after.state,
    )
    detach(prepared, attached)
    return tuning


def _split(samples: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Return what is trained on, and what only chooses between candidates."""
    held = min(_MOST_HELD_OUT, max(1, round(_HELD_OUT * samples.count)))
    order = [int(i) for i in np.random.default_rng(seed).permutation(samples.count)]
    parts = (sorted(order[held:]), sorted(order[:held]))
    training, held_out = (
        dataclasses.replace(samples, count=len(rows), read=lambda i, rows=rows: samples.read(rows[i]))  # type: ignore[misc]  # a default binds the loop's value
        for rows in parts
    )
    return training, held_out


def _distil(run: Distillation, qat: QatSpec, task: Task, before: Score) -> tuple[_Progress, Path | None]:
    """Train all epochs, from where a killed run stopped; a loss that is not finite ends it with the last good epoch."""
    from edgeq.quantize.distill import DivergedError

    done = _Progress(epochs=0, start=run.weights())
    options = dataclasses.asdict(qat.options)
    facts = {"options": options, "seed": qat.seed, "logits": qat.logits, "made_of": list(qat.identity)}
    key = state_key(run.student_state(), facts)
    path = state_path(qat.state_folder, key) if qat.state_folder is not None else None
    saved = load_state(path, key) if path is not None else None
    if saved is not None:
        run.resume(saved)
        done.epochs = saved["epochs"]
        task.advance(done.epochs * run.sample_count)
        task.note(f"resumed after epoch {done.epochs} of {qat.options.epochs}")
    else:
        task.note(f"before training, {_words(before, logits=qat.logits)}")
    good = run.state()
    for epoch in range(done.epochs, qat.options.epochs):
        try:
            loss = run.epoch(epoch, task)
            score = run.score()
            if not math.isfinite(score.loss):
                raise DivergedError
        except DivergedError:
            run.resume(good)
            done.diverged_in = epoch + 1
            task.note(f"epoch {epoch + 1}/{qat.options.epochs}: the loss is not finite; restoring the last good epoch")
            break
        good, done.epochs = run.state(), epoch + 1
        task.note(f"epoch {epoch + 1}/{qat.options.epochs}, loss {loss:.4g}, {_words(score, logits=qat.logits)}")
        if path is not None:
            state = {**good, "epochs": done.epochs}
            try:
                save_state(path, key, state)
            except OSError as err:  # the training itself goes on
                task.note(f"the state of this epoch was not saved: {err.strerror or first_line(err)}")
    return done, path


def _choose(run: Distillation, done: _Progress) -> tuple[TunedWeights, dict[TunedWeights, Score]]:
    """Load the best of the last weights, their average and the start, by the loss on held-out samples."""
    candidates: dict[TunedWeights, State] = {"last": run.weights(), "average": run.average(), "start": done.start}
    scores: dict[TunedWeights, Score] = {}
    for name, weights in candidates.items():
        run.load(weights)
        scores[name] = run.score()
    best = min(scores, key=lambda name: scores[name].loss)
    run.load(candidates[best])
    return best, scores


def _words(score: Score, *, logits: bool) -> str:
    agreement = f"agreement {score.agreement:.2%}" if logits else f"SQNR {score.agreement:.1f} dB"
    return f"held-out loss {score.loss:.4g}, {agreement}"


class TrainingData:
    """The samples as the user's loop gets them: a sequence that `torch.utils.data.DataLoader` takes.

    Item i is a dict: a tensor for each input, without the batch axis unless the sample has it, and the label as `y`
    where the data has labels.
    """

    def __init__(self, samples: Dataset, names: tuple[str, ...]) -> None:
        self._samples, self._names = samples, names

    def __len__(self) -> int:
        return self._samples.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        import torch

        if not 0 <= i < len(self):
            raise IndexError(i)
        sample = self._samples.read(i)
        arrays = zip(self._names, sample.inputs, strict=True)
        item: dict[str, Any] = {name: torch.from_numpy(array.copy()) for name, array in arrays}
        return item | {"y": sample.label} if self._samples.labelled else item


def _user_loop(prepared: Any, teacher: Any, spec: QuantizeSpec, qat: QatSpec, training: Dataset) -> None:
    """Run the user's loop, and take over the weights of the module that it returns."""
    import torch

    if qat.train is None:
        raise TypeError("no loop to run")
    name = f"--qat-train {qat.options.train}"
    returned = qat.train(prepared, teacher, TrainingData(training, tuple(item.name for item in spec.inputs)))
    fix = "return the prepared module after training it, or a copy with the same parameters"
    if not isinstance(returned, torch.nn.Module):
        came = "nothing" if returned is None else f"{type(returned).__name__}"
        raise UsageError(f"{name} returned {came}, expected the trained module", fix)
    if isinstance(returned, torch.nn.parallel.DistributedDataParallel):
        returned = returned.module
    # buffers are the observers', which have another shape until they have seen values
    parameters, state = dict(prepared.named_parameters()), dict(returned.named_parameters())
    if {key: part.shape for key, part in state.items()} != {key: part.shape for key, part in parameters.items()}:
        raise UsageError(
            f"{name} returned a {type(returned).__name__} whose parameters differ from those of the prepared module",
            fix,
        )
    if broken := [key for key, part in state.items() if not bool(part.isfinite().all())]:
        what = f"{name} returned weights that hold NaN or Inf: {', '.join(broken[:3])}"
        raise AccuracyError(what, "lower its learning rate, or clip its gradients")
    with torch.no_grad():
        for key, part in parameters.items():
            part.copy_(state[key])


# --- The state of a training run on disk, so that a killed one goes on from its last epoch.


_HEAD_BYTES = 64  # the SHA-256 of the rest, in hexadecimal


def state_key(student: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the hash of what a run starts from and of how it trains.

    Args:
        student: the tensors by name: the float weights with batch norm folded, and the static ranges.
        facts: all else that decides the result, as JSON can say it.
    """
    digest = hashlib.sha256(canonical_json(facts))
    for name, tensor in sorted(student.items()):
        digest.update(f"{name}{list(tensor.shape)};".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def state_path(folder: Path, key: str) -> Path:
    """Return where the state of a run is kept."""
    return folder / f"{key}.state"


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all.

    Raises:
        OSError: the disk is full, or may not be written to.
    """
    import torch

    buffer = io.BytesIO()
    torch.save({"key": key, **state}, buffer)
    data = buffer.getvalue()
    write_atomic(path, sha256_bytes(data).encode() + data)


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """Return the state that was saved under this key; None if there is none. A torn or foreign one is removed."""
    import torch

    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, data = content[:_HEAD_BYTES], content[_HEAD_BYTES:]
    if head == sha256_bytes(data).encode():
        with contextlib.suppress(Exception):  # it raises many types for what others wrote
            state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
            if state.pop("key", None) == key:
                return state
    path.unlink(missing_ok=True)
    return None
