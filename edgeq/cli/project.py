"""`edgeq.toml`: the options of a project, as a file. The command line fills the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.cli.flags import PROJECT_FILE
from edgeq.errors import UsageError
from edgeq.preprocess import PRESETS
from edgeq.target import explain, read_toml

RuntimeName = Literal["executorch", "torchscript", "onnx", "cuda"]
_MODEL_SUFFIXES = frozenset({".py", ".pt2", ".onnx", ".pte", ".ptl"})
_WEIGHTS_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt"})


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataTable(_Table):
    """`[data]`: where samples come from, and how they are read."""

    calibration: str | None = None
    evaluation: str | None = None
    metric: str | None = None
    preprocess: str | None = None
    labels: str | None = None
    search: str | None = None
    num_calibration_samples: int | None = Field(default=None, ge=1)
    num_search_samples: int | None = Field(default=None, ge=16)
    lint: str | None = None
    skip_bad_images: bool | None = None


class QatTable(_Table):
    """`[qat]`: how qat-int8 trains."""

    data: str | None = None
    train: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0, le=10)  # of the size of the weights: above 1 nothing is left of them
    batch: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=2)


class LimitTable(_Table):
    """`[limit]`: the most that each may be, with its unit."""

    size: str | None = None
    download: str | None = None
    accuracy_drop: str | None = None
    sqnr: str | None = None
    agreement: str | None = None
    latency: str | None = None
    peak_memory: str | None = None
    load: str | None = None
    delta: str | None = None
    flips: str | None = None
    class_drop: str | None = None


class AppLimitTable(_Table):
    """`[app] limit`: for all models that one ABI gets, with the runtimes' libraries; judged by `edgeq build`."""

    size: str | None = None
    download: str | None = None


class AppTable(_Table):
    """`[app]`: the app as a whole. `runtime_size.android-arm64.executorch` is a library's size."""

    runtimes: dict[RuntimeName, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict, description="versions that the app builds in the field carry, oldest first"
    )
    limit: AppLimitTable = AppLimitTable()
    runtime_size: dict[str, dict[RuntimeName, str]] = Field(default_factory=dict)


class DeviceTable(_Table):
    """`[device]`: whether and how the artifact is run on the device's own kernels."""

    on: str | None = None
    cpu: list[str] | None = None
    samples: int | None = Field(default=None, ge=1)
    timeout_s: float | int | None = Field(default=None, gt=0, allow_inf_nan=False)


class Options(_Table):
    """What an `edgeq.toml` may hold; None stands for what was not given."""

    model: str | None = None
    name: str | None = None
    model_version: str | None = None
    weights: str | None = None
    inputs: list[str] | None = None
    input_dtype: str | None = None
    dynamic_batch: bool | None = None
    targets: list[str] | None = None
    schemes: list[str] | None = None
    out: str | None = None
    install_into: list[str] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    observer: str | None = None
    keep_fp32: list[str] | None = None
    reuse_qparams_from: str | None = None
    compare: bool | None = None
    cache: bool | None = None
    limit_on: str | None = None
    shipped: str | None = None
    predict_for: str | None = None
    allow_unmeasured: list[str] | None = None
    store_limits: list[str] | None = None
    app_size: str | None = None
    data: DataTable = DataTable()
    qat: QatTable = QatTable()
    limit: LimitTable = LimitTable()
    device: DeviceTable = DeviceTable()
    app: AppTable = AppTable()


def read_project(config: Path | None) -> Options:
    """Return the options of `config`, or of the `edgeq.toml` in the current folder, or none at all.

    Paths in the file are relative to the file.

    Raises:
        UsageError: the file is missing though it was named, is no TOML, or has an unknown key or value.
    """
    if config is None:
        if not Path(PROJECT_FILE).is_file():
            return Options()
        config = Path(PROJECT_FILE)
    elif not config.is_file():
        raise UsageError(f"no file {config}", "check the path given to --config")
    raw = read_toml(config)
    if isinstance(raw.get("model"), list):
        raise UsageError(f"{config} has [[model]] entries", "build them with `edgeq build`, or name another --config")
    return relative_to(validated(raw, str(config)), config.parent)


def validated(values: dict[str, Any], origin: str) -> Options:
    """Return `values` as options; errors name `origin`, the key and the nearest known key.

    Raises:
        UsageError: an unknown key, or a value of the wrong type.
    """
    try:
        return Options.model_validate(values)
    except ValidationError as err:
        raise explain(err, origin, Options) from err


def relative_to(options: Options, folder: Path) -> Options:
    """Return the options with their paths, which are relative to the file, relative to the current folder."""
    data = options.data.model_copy(
        update={
            **{
                key: _join_source(folder, getattr(options.data, key))
                for key in ("calibration", "evaluation", "metric", "search")
            },
            "labels": _join(folder, options.data.labels),
            "preprocess": _join(folder, options.data.preprocess, unless=options.data.preprocess in PRESETS),
        }
    )
    return options.model_copy(
        update={
            "model": _join(folder, options.model, unless=not _is_model_file(options.model)),
            "weights": _join(folder, options.weights, unless=not _is_weights_file(options.weights, folder)),
            "out": _join(folder, options.out),
            "targets": _join_all(folder, options.targets, only_toml=True),
            "shipped": _join(folder, options.shipped),
            "reuse_qparams_from": _join(folder, options.reuse_qparams_from),
            "predict_for": _join(folder, options.predict_for, unless=not (options.predict_for or "").endswith(".toml")),
            "install_into": _join_all(folder, options.install_into),
            "data": data,
            "qat": options.qat.model_copy(
                update={key: _join_source(folder, getattr(options.qat, key)) for key in ("data", "train")}
            ),
        }
    )


def _join(folder: Path, text: str | None, *, unless: bool = False) -> str | None:
    # a text such as "metric.py:score" is joined as a whole: only its front is a path
    return text if text is None or unless else str(folder / text)


def _join_source(folder: Path, text: str | None) -> str | None:
    """Join a file, a folder or `file.py:function`; of `pkg.mod:function` the module is looked for by Python."""
    head, colon, _ = (text or "").rpartition(":")
    return _join(folder, text, unless=bool(colon) and not head.endswith(".py") and "/" not in head)


def _join_all(folder: Path, texts: list[str] | None, *, only_toml: bool = False) -> list[str] | None:
    if texts is None:
        return None
    return [text if only_toml and not text.endswith(".toml") else str(folder / text) for text in texts]


def _is_model_file(source: str | None) -> bool:
    return source is not None and Path(source.partition(":")[0]).suffix in _MODEL_SUFFIXES


def _is_weights_file(weights: str | None, folder: Path) -> bool:
    """Tell a file from one of torchvision's weights names."""
    if weights is None:
        return False
    return "/" in weights or Path(weights).suffix in _WEIGHTS_SUFFIXES or (folder / weights).is_file()
