"""The data lint: problems of calibration and evaluation data, each a named finding.

Some findings are certain (NaN, labels that the model does not have, samples in both sets). The others may be normal for
the data: audio features and synthetic images look like noise, and a small set may be all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import DataFinding
from edgeq.core.samples import Dataset, Sample, data_specs
from edgeq.load.images import few
from edgeq.load.inputs import takes_preprocessed

# Of n samples that a range is set from, the next one exceeds the largest with probability 1/(n+1): 6% at 16.
# With fewer, an int8 range is that of single images.
MIN_SAMPLES = 16

MAX_REPEATED = 0.05

MAX_NOISY = 0.5

_TOLERANCE = 1e-3  # of the range's width, so that rounding does not count

Range = tuple[float, float]


@dataclass(slots=True, kw_only=True)
class _Outside:
    """What left the range of one input.

    Attributes:
        is_whole: whether these are whole numbers, of which one beyond its range ends many models.
    """

    span: Range
    is_whole: bool
    samples: list[str] = field(default_factory=list)
    low: float = float("inf")
    high: float = float("-inf")


@dataclass(slots=True, kw_only=True)
class _Survey:
    """What one pass over a set has seen."""

    title: str
    class_names: tuple[str, ...]
    count: int = 0
    names: dict[str, str] = field(default_factory=dict)  # by digest
    sources: dict[str, str] = field(default_factory=dict)  # by digest, what the sample is a part of
    classes: set[int] = field(default_factory=set)
    repeats: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    noisy: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    wrong_labels: list[str] = field(default_factory=list)
    outside: dict[str, _Outside] = field(default_factory=dict)  # by input

    def finding(self, name: str, samples: Sequence[str], text: str, *, is_certain: bool = False) -> DataFinding:
        """Return a finding that counts samples and names a few."""
        message = f"{len(samples)} of {self.count} {self.title} samples {text}: {few(samples)}"
        return DataFinding(name=name, message=message, is_certain=is_certain)


@dataclass(frozen=True, slots=True, kw_only=True)
class LintSpec:
    """The expectations that the data is checked against.

    Attributes:
        wanted: how many calibration samples were asked for.
        preprocess: says the range of image inputs; None where arrays are fed as they are.
        specs: the model's inputs.
        n_classes: how many classes the model's output has; None where labels are not class indices.
        declared: whether the user wrote the inputs' ranges (--input); those of an example bind no other sample.
    """

    wanted: int
    preprocess: Preprocess | None
    specs: Sequence[TensorSpec]
    n_classes: int | None
    declared: bool

    def ranges(self) -> dict[str, Range]:
        """Return the values that an input may hold, by its name; none where no range is known."""
        specs = data_specs(self.specs)  # a state has the range that the model gives it
        return {spec.name: span for spec in specs if (span := self._range(spec))}

    def _range(self, spec: TensorSpec) -> Range | None:
        if spec.dtype.startswith("float"):
            preprocess = self.preprocess
            return preprocess.value_range if preprocess and takes_preprocessed(spec, self.specs) else None
        return (spec.low, spec.high) if self.declared or spec.only is not None else None


def lint(
    calibration: Dataset | None,
    evaluation: Dataset | None,
    training: Dataset | None = None,
    search: Dataset | None = None,
    *,
    spec: LintSpec,
) -> tuple[DataFinding, ...]:
    """Return the findings in the data. Every sample is read once; none is kept.

    Args:
        calibration: the samples that ranges are set from, or None.
        evaluation: the samples that accuracy is measured on, or None.
        training: the samples that qat-int8 trains on, or None.
        search: the samples that mixed-int8 chooses by, or None.
        spec: the expectations.

    Raises:
        UsageError: a sample cannot be read.
    """
    theirs = _survey(evaluation, "evaluation", spec) if evaluation is not None else None
    findings = []
    seen = []
    if calibration is not None:
        ours = _survey(calibration, "calibration", spec)
        findings += [*_calibration_findings(ours, spec.wanted), *_value_findings(ours)]
        findings += _class_findings(ours, theirs, spec.n_classes)
        seen.append(ours)
    for title, data in (("QAT", training), ("search", search)):
        if data is not None:
            seen.append(_survey(data, title, spec))
            findings += _value_findings(seen[-1])
    if theirs is not None:
        findings += _value_findings(theirs)
        findings += [finding for one in seen if (finding := _shared_finding(one, theirs)) is not None]
    return tuple(findings)


def _shared_finding(ours: _Survey, theirs: _Survey) -> DataFinding | None:
    known = {*theirs.sources.values()}
    shared = [name for digest, name in ours.names.items() if ours.sources[digest] in known]
    if not shared:
        return None
    return ours.finding("shared-with-evaluation", shared, "are also in the evaluation data", is_certain=True)


def _survey(dataset: Dataset, title: str, spec: LintSpec) -> _Survey:
    ranges = spec.ranges()
    seen = _Survey(title=title, class_names=dataset.class_names)
    for sample in dataset:
        seen.count += 1
        seen.sources[sample.digest] = sample.source
        if seen.names.setdefault(sample.digest, sample.name) != sample.name:
            seen.repeats.append(sample.name)
        if title == "calibration":  # a blank or noisy image does an average no harm, but a range
            if all(array.size > 1 and bool((array == array.flat[0]).all()) for array in sample.raw):
                seen.constant.append(sample.name)
            elif spec.preprocess is not None and is_noise(sample, spec.specs):  # else nothing says that they are images
                seen.noisy.append(sample.name)
        _survey_values(seen, sample, spec.specs, ranges)
        if dataset.labelled:
            _survey_label(seen, sample, spec.n_classes)
    return seen


def _survey_values(seen: _Survey, sample: Sample, specs: Sequence[TensorSpec], ranges: dict[str, Range]) -> None:
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in sample.inputs):
        seen.not_finite.append(sample.name)
        return
    for array, spec in zip(sample.inputs, specs, strict=True):
        if spec.name in ranges and array.size:
            span = ranges[spec.name]
            low, high = float(array.min()), float(array.max())
            slack = _TOLERANCE * (span[1] - span[0]) if array.dtype.kind == "f" else 0.0
            if low < span[0] - slack or high > span[1] + slack:
                outside = seen.outside.setdefault(spec.name, _Outside(span=span, is_whole=array.dtype.kind != "f"))
                outside.samples.append(sample.name)
                outside.low, outside.high = min(outside.low, low), max(outside.high, high)


def _survey_label(seen: _Survey, sample: Sample, n_classes: int | None) -> None:
    label = sample.label
    if not isinstance(label, int) or isinstance(label, bool):
        return
    seen.classes.add(label)
    if n_classes is not None and not 0 <= label < n_classes:
        seen.wrong_labels.append(f"{sample.name} ({label})")


def _calibration_findings(seen: _Survey, wanted: int) -> list[DataFinding]:
    findings = []
    if len(seen.names) < MIN_SAMPLES:
        message = f"{len(seen.names)} distinct calibration samples ({wanted} wanted) are fewer than {MIN_SAMPLES}"
        findings.append(DataFinding(name="too-few-samples", message=message))
    if seen.constant:
        findings.append(seen.finding("constant-samples", seen.constant, "hold one constant value"))
    if len(seen.repeats) > MAX_REPEATED * seen.count:
        findings.append(seen.finding("repeated-samples", seen.repeats, "repeat another"))
    if len(seen.noisy) > MAX_NOISY * seen.count:
        findings.append(seen.finding("noise", seen.noisy, "look like noise (neighboring pixels are uncorrelated)"))
    return findings


def _value_findings(seen: _Survey) -> list[DataFinding]:
    findings = []
    if seen.not_finite:
        findings.append(seen.finding("not-finite", seen.not_finite, "hold NaN or Inf", is_certain=True))
    for name, outside in seen.outside.items():
        low, high = outside.span  # low may be -0.0
        text = f"exceed the range {low + 0.0:.4g}..{high:.4g} of input {name!r}: {outside.low:.4g}..{outside.high:.4g}"
        if high < 128 <= outside.high <= 255 and outside.low >= 0:
            text += ", as pixels that were not scaled would"
        findings.append(seen.finding("out-of-range", outside.samples, text, is_certain=outside.is_whole))
    if seen.wrong_labels:
        text = "have labels outside of the model's outputs"
        findings.append(seen.finding("labels-out-of-range", seen.wrong_labels, text, is_certain=True))
    return findings


def _class_findings(ours: _Survey, theirs: _Survey | None, n_classes: int | None) -> list[DataFinding]:
    if not ours.classes:
        return []
    labelled = [seen for seen in (ours, theirs) if seen is not None and seen.classes]
    # two folders may count their classes differently, so names are compared where both sets have them
    named = all(seen.class_names for seen in labelled)
    expected = {i for i, name in enumerate(ours.class_names) if name}
    classes = _names(ours, expected, named).union(*(_names(seen, seen.classes, named) for seen in labelled[1:]))
    present = _names(ours, ours.classes, named)
    missing = sorted((classes or _names(ours, set(range(n_classes or 0)), named)) - present)
    # a set that is smaller than the number of classes cannot hold all of them
    if not missing or len(present) >= ours.count:
        return []
    message = f"{len(missing)} of {len(missing) + len(present)} classes are not in the calibration data: {few(missing)}"
    return [DataFinding(name="missing-classes", message=message)]


def _names(seen: _Survey, classes: set[int], named: bool) -> set[str]:
    names = seen.class_names if named else ()
    return {names[i] if 0 <= i < len(names) else str(i) for i in classes}


# --- Telling an image from noise: neighbouring pixels of an image are alike.


# Photographs and drawings have 0.7 and more; of independent pixels it is 0, within 0.1 for all but the smallest.
MIN_AUTOCORRELATION = 0.1

MIN_SIDE = 8  # with fewer pixels the estimate says nothing

_CROP = 256  # pixels a side are enough for it, and need no copy of a large photograph


def is_noise(sample: Sample, specs: Sequence[TensorSpec]) -> bool:
    """Return whether a sample holds images, and all of them are noise."""
    images = [image for raw, spec in zip(sample.raw, specs, strict=True) if (image := _as_image(raw, spec)) is not None]
    return bool(images) and all(autocorrelation(image) < MIN_AUTOCORRELATION for image in images)


def autocorrelation(image: NDArray[Any]) -> float:
    """Return the mean correlation of neighbouring pixels, over rows and columns, in the centre of an image.

    It is sum(x[i] x[i+1]) / sum(x[i]^2) over the pixels less their channel's mean, scaled to equal counts.

    Args:
        image: [H, W, C] of any numeric dtype.

    Returns:
        -1 to 1; 1 where all pixels of a channel are equal, NaN where one is not finite.
    """
    top, left = (max(0, (size - _CROP) // 2) for size in image.shape[:2])
    x = image[top : top + _CROP, left : left + _CROP].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are a finding of their own
        x -= x.mean(axis=(0, 1))
        power = float(np.mean(x * x))
        along = float(np.mean(x[1:] * x[:-1]) + np.mean(x[:, 1:] * x[:, :-1])) / 2
    return along / power if power else 1.0


def _as_image(raw: NDArray[Any], spec: TensorSpec) -> NDArray[Any] | None:
    """Return [H, W, C], or None for what is no image: tokens, features and what is smaller than 8 x 8."""
    pixels = raw.dtype == np.uint8 and raw.ndim == 3
    features = raw.dtype.kind == "f" and raw.ndim >= 3 and len(spec.shape) >= 4
    if not pixels and not features:
        return None
    image = raw.reshape(-1, *raw.shape[-3:])[0]
    if image.shape[2] not in (1, 3, 4):
        image = np.moveaxis(image, 0, 2)
    return image if min(image.shape[:2]) >= MIN_SIDE else None
