"""The options of a run, each defined once, and the protocol by which progress is reported.

A field of a configuration table carries everything that is known of an option: its type and default, bounds, flag,
help panel, documentation, whether it is a path, and whether it is part of the cache key (`edgeq.core.marks`). From it
come the command line (`cli/options.py`), the keys of edgeq.toml and their validation (`config/options.py`), the cache
key (`pipeline/cache.py`) and docs/options.md (`scripts/docs_tables.py`). A field's name is its key in edgeq.toml.

To add an option, write its field here and use it where it takes effect; tests/unit/core/test_config.py checks the
rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from edgeq.core.marks import (
    AppFolder,
    BundleFolder,
    DataPath,
    Doc,
    Flag,
    Ge,
    Gt,
    InProvenance,
    InputFile,
    KeyFolder,
    Le,
    Lt,
    MetricPath,
    MinLen,
    ModelFile,
    NotInKey,
    OutputFolder,
    Panel,
    PresetFile,
    ProfileFile,
    WeightsFile,
    options_of,
)
from edgeq.core.runtimes import RuntimeName
from edgeq.core.schemes import (
    AUTO,
    DEFAULT,
    INT4_GROUPS,
    NEEDS_CALIBRATION,
    NEEDS_SEARCH,
    NEEDS_TRAINING,
    AskedScheme,
    LimitName,
    ObserverName,
    PlannedScheme,
    SchemeName,
    auto_schemes,
    default_schemes,
    used_observer,
)

REJECTED_NAME = "rejected"

_CALIBRATED, _TRAINED, _SEARCHED, _GROUPED = (
    InProvenance(frozenset(schemes)) for schemes in (NEEDS_CALIBRATION, NEEDS_TRAINING, NEEDS_SEARCH, INT4_GROUPS)
)


if TYPE_CHECKING:
    from edgeq.core.targets import TargetGroup, TargetProfile
else:
    TargetProfile = TargetGroup = Any  # the hints are read at run time, and edgeq.target loads pydantic

PROJECT_FILE = "edgeq.toml"

InputDtype = Literal["uint8"]

MODEL, MORE_MODEL = Panel("Model"), Panel("Model", advanced=True)

DATA, MORE_DATA = Panel("Data"), Panel("Data", advanced=True)

SCHEMES, MORE_SCHEMES = Panel("Targets and schemes"), Panel("Targets and schemes", advanced=True)

LIMITS, MORE_LIMITS = Panel("Limits"), Panel("Limits", advanced=True)

DEVICE, MORE_DEVICE = Panel("Device"), Panel("Device", advanced=True)

OUTPUT, MORE_OUTPUT = Panel("Output"), Panel("Output", advanced=True)

PANELS = (
    *(MODEL, DATA, SCHEMES, LIMITS, DEVICE, OUTPUT),
    *(MORE_MODEL, MORE_DATA, MORE_SCHEMES, MORE_LIMITS, MORE_DEVICE, MORE_OUTPUT),
)

# ---- the options

_AT_RELEASE = "judged when a bundle is released, not when it is built"

_JUDGED_AGAIN = (
    "kept measurements are judged again; schemes that are chosen or searched by limits have them in their keys"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """`[data]`: sources of samples, and how they are read."""

    calibration: Annotated[
        str | None,
        Flag("--calibration-data", "DATA"),
        DATA,
        DataPath(),
        Doc("Calibration data: an image folder, .npz/.npy or file.py:function."),
    ] = None
    evaluation: Annotated[
        str | None,
        Flag("--eval-data", "DATA"),
        DATA,
        DataPath(),
        Doc(
            "Evaluation data for the accuracy gates: an image folder, .npz/.npy or file.py:function. Must not overlap "
            "the calibration data."
        ),
    ] = None
    metric: Annotated[
        str | None,
        Flag("--metric", "NAME|FUNCTION"),
        MORE_DATA,
        MetricPath(),
        Doc(
            "Metric of the evaluation data: mae, rmse, f1, auc, miou, map, perplexity, accuracy@THRESHOLD for one "
            "output of a two-class model, file.py:function that scores one sample from 0 to 1, higher is better, or "
            "file.py:Class whose row() and score() make one score of the set.",
            default="top-1 accuracy; accuracy@0.5 of a probability and accuracy@0 of a logit where labels are 0 and 1",
        ),
    ] = None
    preprocess: Annotated[
        str | None,
        Flag("--preprocess", "NAME|FILE"),
        DATA,
        PresetFile(),
        Doc("Preprocessing of images: imagenet, unit, or a .toml file."),
    ] = None
    labels: Annotated[
        Path | None,
        Flag("--labels", "FILE"),
        MORE_DATA,
        InputFile(),
        Doc("File that maps class folders to output indices.", default="folders in alphabetical order"),
    ] = None
    search: Annotated[
        str | None,
        Flag("--search-data", "DATA"),
        MORE_SCHEMES,
        DataPath(),
        Doc("Samples on which mixed-int8 compares candidates.", default="calibration data not used to calibrate"),
    ] = None
    num_calibration_samples: Annotated[
        int,
        Ge(1),
        Flag("--num-calibration-samples", "N"),
        _CALIBRATED,
        MORE_DATA,
        Doc("Samples to calibrate on."),
    ] = 128
    num_search_samples: Annotated[
        int,
        Ge(16),
        Flag("--num-search-samples", "N"),
        _SEARCHED,
        MORE_SCHEMES,
        Doc("Maximum number of search samples."),
    ] = 512
    lint: Annotated[
        Literal["error", "warn", "strict"],
        Flag("--data-lint", "LEVEL"),
        MORE_DATA,
        Doc(
            "Which data-lint findings end the run: `error`, those that are certain (NaN, labels or indices out of "
            "range, samples in both sets), with a warning for the others; `strict`, all; `warn`, none."
        ),
    ] = "error"
    skip_bad_images: Annotated[
        bool,
        Flag("--skip-bad-images/--no-skip-bad-images"),
        InProvenance(),
        MORE_DATA,
        Doc("Skip images that cannot be decoded."),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QatConfig:
    """`[qat]`: how qat-int8 trains."""

    data: Annotated[
        str | None,
        Flag("--qat-data", "DATA"),
        MORE_SCHEMES,
        DataPath(),
        Doc("Training samples for qat-int8; labels are not used.", default="the calibration data"),
    ] = None
    train: Annotated[
        str | None,
        Flag("--qat-train", "FUNCTION"),
        MORE_SCHEMES,
        DataPath(),
        Doc(
            "Your own training loop, file.py:function, called with (prepared, teacher, data); returns the module.",
            default="distillation from the fp32 model",
        ),
    ] = None
    epochs: Annotated[
        int, Ge(1), Flag("--qat-epochs", "N"), _TRAINED, MORE_SCHEMES, Doc("Training epochs of qat-int8.")
    ] = 8
    lr: Annotated[
        float,
        Gt(0),
        Le(10),  # above 1 nothing is left of the weights
        Flag("--qat-lr", "X"),
        _TRAINED,
        MORE_SCHEMES,
        Doc("Learning rate of qat-int8, relative to the size of each tensor's values."),
    ] = 2e-3
    batch: Annotated[
        int, Ge(1), Flag("--qat-batch", "N"), _TRAINED, MORE_SCHEMES, Doc("Training batch size of qat-int8.")
    ] = 32
    samples: Annotated[
        int,
        Ge(2),
        Flag("--qat-samples", "N"),
        _TRAINED,
        MORE_SCHEMES,
        Doc("Maximum number of training samples of qat-int8."),
    ] = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`[limit]`: the maximum of each measurement (sqnr and agreement: the minimum), with its unit."""

    size: Annotated[str | None, Doc("Size of the artifact, such as 5MB or 4MiB.")] = None
    download: Annotated[
        str | None, Doc("Size of the bundle as a deflated ZIP, as published by a release, such as 4MB.")
    ] = None
    accuracy_drop: Annotated[
        str | None, Doc("Drop of the metric against fp32 on the evaluation data, in percentage points: 0.5pp.")
    ] = None
    sqnr: Annotated[
        str | None, Doc("Signal-to-quantization-noise ratio of the outputs against fp32, at least: 30dB.")
    ] = None
    agreement: Annotated[
        str | None,
        Doc("Share of samples with the top-1 class of fp32, of a language model's next tokens, at least: 99%."),
    ] = None
    perplexity: Annotated[
        str | None,
        Doc("Rise of a language model's perplexity over fp32's on a text of the evaluation data, in percent: 2%."),
    ] = None
    drift: Annotated[
        str | None,
        Doc(
            "Growth of the error against fp32 over 1,000 steps of a model with --state, from the second quarter to the "
            "last: 3dB."
        ),
    ] = None
    latency: Annotated[
        str | None,
        Doc(
            "Latency, 90th percentile, such as 40ms. A time from this host only counts for targets with its "
            "architecture."
        ),
    ] = None
    peak_memory: Annotated[str | None, Doc("Peak memory while the model runs, such as 120MB.")] = None
    load: Annotated[str | None, Doc("Time to load the model, such as 300ms.")] = None
    sram: Annotated[
        str | None,
        Doc("Ethos-U: SRAM for the NPU's scratch memory, by vela, and for the tensors between its parts, such as 1MB."),
    ] = None
    cycles: Annotated[
        str | None, Doc("Ethos-U: cycles of the NPU for one inference, as vela estimates them, such as 3Mcycles.")
    ] = None
    delta: Annotated[
        str | None,
        NotInKey(_AT_RELEASE),
        Doc("Size of each patch of a release, such as 1MB. Judged by `edgeq ota release`."),
    ] = None
    flips: Annotated[
        str | None,
        NotInKey(_AT_RELEASE),
        Doc("Share of predictions that differ from the shipped model's: 2%. Judged by `edgeq ota release`."),
    ] = None
    class_drop: Annotated[
        str | None,
        NotInKey(_AT_RELEASE),
        Doc("Drop of any one class's accuracy against the shipped model: 1pp. Judged by `edgeq ota release`."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """`[device]`: where the artifact runs besides this host, and for how long."""

    on: Annotated[
        str,
        Flag("--on", "WHERE"),
        DEVICE,
        Doc(
            "Where the artifact runs: `emulator` (the target's ARM64 kernels under QEMU), `host` (only this "
            "host), `cuda` (this machine's GPU), or for `edgeq verify` a real device by ssh or adb."
        ),
    ] = "emulator"
    cpu: Annotated[
        tuple[str, ...],
        Flag("--cpu", "NAME"),
        MORE_DEVICE,
        Doc("CPU model to emulate, such as cortex-a53; repeatable, or several with commas.", default="the target's"),
    ] = ()
    samples: Annotated[
        int | None,
        Ge(1),
        Flag("--device-samples", "N"),
        MORE_DEVICE,
        Doc("Maximum number of samples to emulate.", default="by the model's size"),
    ] = None
    timeout_s: Annotated[
        float,
        Gt(0),
        Lt(math.inf),
        Flag("--timeout", "SECONDS"),
        MORE_DEVICE,
        Doc("Time limit for emulating one artifact, or for serving it with --on cuda."),
    ] = 1800.0


LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """`[build]`: the machines that build, and where results of earlier runs are looked up and kept."""

    cache: Annotated[
        tuple[str, ...],
        Flag("--cache", "URL"),
        MORE_OUTPUT,
        Doc(
            "Shared cache beside the local one: s3://BUCKET/PREFIX, gs://…, az://… or file:///FOLDER; repeatable, in "
            "the order in which they are asked.",
            default="local only",
        ),
    ] = (LOCAL,)
    cache_read_only: Annotated[
        bool,
        Flag("--cache-read-only/--cache-read-write"),
        MORE_OUTPUT,
        Doc("Write nothing to shared caches, as in a pull request's run."),
    ] = False
    cache_trust: Annotated[
        tuple[str, ...],
        Flag("--cache-trust", "KEY|FOLDER"),
        MORE_OUTPUT,
        KeyFolder(),
        Doc(
            "Use an entry of a shared cache only if this key signed it: an Ed25519 public key in hexadecimal, or a "
            "folder of `edgeq keys`, whose keys for targets count with their threshold; repeatable.",
            default="any entry whose hashes are right",
        ),
    ] = ()
    cache_key: Annotated[
        Path | None,
        Flag("--cache-key", "FOLDER"),
        MORE_OUTPUT,
        KeyFolder(),
        Doc("Folder of `edgeq keys` whose keys for targets sign what is written to shared caches."),
    ] = None
    cluster: Annotated[
        str | None,
        Flag("--cluster", "ADDRESS"),
        MORE_OUTPUT,
        Doc("Scheduler of a Dask cluster whose workers build the models: tcp://HOST:8786.", default="this machine"),
    ] = None
    latency_cpu: Annotated[
        str | None,
        Flag("--latency-cpu", "NAME"),
        MORE_OUTPUT,
        Doc(
            "Kind of machine whose times are judged, by its processor's name or a part of it; limits on latency, load "
            "time and memory are unverified elsewhere.",
            default="this machine; none with --cluster or --shard",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLimits:
    """`[app] limit`: maximum sizes of all models for one ABI together with the runtimes' libraries."""

    size: Annotated[str | None, Doc("Size of all artifacts and runtime libraries of one ABI, such as 20MB.")] = None
    download: Annotated[str | None, Doc("Size of all bundles as ZIPs and compressed runtime libraries of one ABI.")] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """`[app]`: the app as a whole."""

    runtimes: Annotated[
        Mapping[RuntimeName, Annotated[tuple[str, ...], MinLen(1)]],
        NotInKey("they are part of the target's profile, which is in the key"),
        Doc(
            'Runtime versions that the app builds in the field carry, oldest first: `runtimes.executorch = ["1.5"]`.',
            default="the target's",
        ),
    ] = field(default_factory=dict)
    limit: Annotated[AppLimits, NotInKey("judged after the models are built")] = AppLimits()
    runtime_size: Annotated[
        Mapping[str, Mapping[RuntimeName, str]],
        NotInKey("judged after the models are built"),
        Doc(
            'Size of a runtime\'s library, by ABI: `runtime_size.android-arm64.executorch = "7MB"`.',
            default="the size of the library found on this machine",
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Options that a `PackageConfig` and its `Job` share, since they need no look-up."""

    name: Annotated[
        str | None,
        Flag("--name", "NAME"),
        MORE_MODEL,
        Doc("Name of the model in bundles.", default="from the source"),
    ] = None
    model_version: Annotated[
        str, Flag("--model-version", "TEXT"), MORE_MODEL, Doc("Version of the model in the manifest.")
    ] = "1"
    weights: Annotated[
        str | None,
        Flag("--weights", "FILE[#KEY]|NAME"),
        MODEL,
        WeightsFile(),
        Doc(
            "Trained weights: a checkpoint (.safetensors, .pt, .pth, .ckpt, .bin, or the .index.json of its shards) or "
            "a torchvision weights name. FILE#KEY names one of several sets of weights in it, such as #ema."
        ),
    ] = None
    ignore_extra_weights: Annotated[
        bool,
        Flag("--ignore-extra-weights/--no-ignore-extra-weights"),
        InProvenance(),
        MORE_MODEL,
        Doc("Leave out weights of --weights that the model does not have, and list them."),
    ] = False
    inputs: Annotated[
        tuple[str, ...],
        Flag("--input", "SPEC"),
        InProvenance(),
        MODEL,
        Doc(
            "Shape of one input, 1x3x224x224, tokens=int64:1x128:0..30521, or 1x{seq=8..128} for a size that varies; "
            "repeatable, in order.",
            default="the factory's example_inputs()",
        ),
    ] = ()
    context_length: Annotated[
        int | None,
        Ge(2),
        Flag("--context-length", "N"),
        MORE_MODEL,
        Doc(
            "Tokens that a language model's key-value cache keeps (hf:FOLDER, ExecuTorch with XNNPACK). Its forward "
            "then takes some tokens and the place of the first one, as ExecuTorch's runners call it.",
            default="no cache",
        ),
    ] = None
    state: Annotated[
        tuple[str, ...],
        Flag("--state", "INPUT=OUTPUT"),
        MORE_MODEL,
        Doc(
            "Input of a streaming model that is fed from an output of the step before, by name or index: h=h_out; "
            "repeatable. It starts at zero, or as the data give it.",
            default="none",
        ),
    ] = ()
    input_dtype: Annotated[
        InputDtype | None,
        Flag("--input-dtype", "uint8"),
        InProvenance(),
        MORE_MODEL,
        Doc("The artifact takes uint8 pixels and applies the normalization of --preprocess itself."),
    ] = None
    dynamic_batch: Annotated[
        bool,
        Flag("--dynamic-batch/--fixed-batch"),
        InProvenance(),
        MORE_MODEL,
        Doc("The artifact accepts any batch size; ONNX targets only."),
    ] = False
    trust_source: Annotated[
        bool,
        Flag("--trust-source/--no-trust-source"),
        MORE_MODEL,
        Doc("Let code in the files of the model and of its weights run: pickled objects, machine code."),
    ] = False
    seed: Annotated[int, Ge(0), Lt(2**63), Flag("--seed", "N"), MORE_MODEL, Doc("Seed of all random numbers.")] = 0
    keep_fp32: Annotated[
        tuple[str, ...],
        Flag("--keep-fp32", "NAME"),
        InProvenance(),
        MORE_SCHEMES,
        Doc("Name or type of a module to keep in float; repeatable."),
    ] = ()
    int4_group: Annotated[
        int,
        Ge(16),
        Le(128),
        Flag("--int4-group", "N"),
        _GROUPED,
        MORE_SCHEMES,
        Doc(
            "How many weights of a row share a scale in int4, at most: 128, 64, 32 or 16. Smaller groups lose less "
            "accuracy and take more bytes."
        ),
    ] = 128
    reuse_qparams_from: Annotated[
        Path | None,
        Flag("--reuse-qparams-from", "BUNDLE"),
        MORE_SCHEMES,
        BundleFolder(),
        Doc("Bundle now in production. Its scales and zero points are kept where they fit, for a small update."),
    ] = None
    compare: Annotated[
        bool,
        Flag("--compare/--no-compare"),
        MORE_SCHEMES,
        NotInKey("results with a comparison have separate keys"),
        Doc("Also build fp32 and fp16, report how the scheme compares with them, and discard them."),
    ] = False
    time_budget: Annotated[
        str | None,
        Flag("--time-budget", "TIME"),
        MORE_SCHEMES,
        NotInKey("a choice that time cut short is not kept"),
        Doc(
            "With --scheme auto: start no further scheme after this time, such as 10m, and end the one that is being "
            "tried; the best so far is taken.",
            default="no end",
        ),
    ] = None
    data: DataConfig = DataConfig()
    qat: QatConfig = QatConfig()
    device: DeviceConfig = DeviceConfig()
    out: Annotated[
        Path,
        Flag("--out", "FOLDER", short="-o"),
        OUTPUT,
        OutputFolder(),
        NotInKey("a bundle does not depend on its path"),
        Doc("Output folder for the bundles."),
    ] = Path("out")
    install_into: Annotated[
        tuple[Path, ...],
        Flag("--install-into", "FOLDER"),
        OUTPUT,
        AppFolder(),
        NotInKey("installing copies a finished bundle"),
        Doc("App project to install the bundles into if all gates pass; repeatable."),
    ] = ()
    devtools: Annotated[
        bool,
        Flag("--devtools/--no-devtools"),
        MORE_OUTPUT,
        Doc(
            "Also write what ExecuTorch's developer tools read: model.etrecord, model.etdump of one run on this host, "
            "and model.bpte, the program with the golden samples. ExecuTorch targets only; the digest stays the same."
        ),
    ] = False
    cache: Annotated[
        bool,
        Flag("--use-cache/--no-cache"),
        MORE_OUTPUT,
        NotInKey("it decides whether the key is looked up"),
        Doc("Reuse results of earlier runs if nothing changed."),
    ] = True
    build: Annotated[BuildConfig, NotInKey("a result does not depend on where it is made or kept")] = BuildConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageConfig(RunConfig):
    """All options of `edgeq package`, as written on the command line, in edgeq.toml or in Python.

    Names are plain text here; `config/resolve.py` looks them up and returns a `Job`.
    """

    model: Annotated[
        str,
        Flag("MODEL"),
        MODEL,
        ModelFile(),
        Doc(
            "torchvision:NAME, timm:NAME, hf:FOLDER (transformers), pkg.mod:factory, file.py:factory, a model file "
            "(.pt2, .onnx, .pte, .ptl, or .pt of torch.jit.save), or digits, the built-in model."
        ),
    ]
    targets: Annotated[
        tuple[str, ...],
        Flag("--target", "NAME", short="-t"),
        SCHEMES,
        ProfileFile("target"),
        NotInKey("each target's profile is in the keys of its own results"),
        Doc(
            "Target, a name of `edgeq targets list` or a .toml file; repeatable. linux-x86_64-fastest builds for "
            "several runtimes, and keeps the fastest on this host that passes every gate."
        ),
    ]
    schemes: Annotated[
        tuple[AskedScheme, ...],
        Flag("--scheme", "NAME"),
        SCHEMES,
        NotInKey("each scheme is in the keys of its own results"),
        Doc(
            "Quantization scheme, repeatable; or auto, the cheapest that passes every gate.",
            default="by the model, most often the first of each target",
        ),
    ] = ()
    observer: Annotated[
        ObserverName | None,
        Flag("--observer", "NAME"),
        MORE_SCHEMES,
        Doc(
            "How ranges are observed on the calibration data: histogram, minmax, percentile or entropy.",
            default="histogram, for an .onnx model minmax",
        ),
    ] = None
    limit: Annotated[
        Limits,
        Flag("--limit", "NAME=VALUE"),
        LIMITS,
        NotInKey(_JUDGED_AGAIN),
        Doc(
            "Limit that a gate enforces: size=5MB, download=4MB, accuracy_drop=0.5pp, sqnr=30dB, agreement=99%, "
            "perplexity=2%, drift=3dB, latency=40ms, peak_memory=120MB, load=300ms, sram=1MB, cycles=3Mcycles; "
            "repeatable."
        ),
    ] = Limits()
    limit_on: Annotated[
        str,
        Flag("--limit-on", "HOW"),
        MORE_LIMITS,
        NotInKey(_JUDGED_AGAIN),
        Doc(
            "How limits are judged. Accuracy: interval (upper end of the 95% interval) or point. Add predicted to "
            "judge latency by the prediction for --device. Comma-separated."
        ),
    ] = "interval"
    predict_for: Annotated[
        str | None,
        Flag("--device", "NAME|FILE"),
        MORE_LIMITS,
        ProfileFile("device"),
        Doc("Device for --limit-on predicted: a name of `edgeq devices list` or a .toml file."),
    ] = None
    allow_unmeasured: Annotated[
        tuple[str, ...],
        Flag("--allow-unmeasured", "GATE"),
        MORE_LIMITS,
        NotInKey(_JUDGED_AGAIN),
        Doc("Gate that may stay unmeasured; repeatable."),
    ] = ()
    shipped: Annotated[
        Path | None,
        Flag("--shipped", "BUNDLE"),
        MORE_LIMITS,
        BundleFolder(),
        Doc("Bundle now in production. The new model may execute at most 1.1x as many instructions."),
    ] = None
    store_limits: Annotated[
        tuple[str, ...],
        Flag("--store-limit", "NAME"),
        MORE_LIMITS,
        NotInKey(_JUDGED_AGAIN),
        Doc("Limit of an app store, such as play-base-module; repeatable. Needs --app-size."),
    ] = ()
    app_size: Annotated[
        str | None,
        Flag("--app-size", "SIZE"),
        MORE_LIMITS,
        NotInKey(_JUDGED_AGAIN),
        Doc("Size of the app without the model, for --store-limit."),
    ] = None
    app: AppConfig = AppConfig()


# ---- the options after names are looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """The limits of `edgeq package`, `verify` or `ota release` in base units, and how they are judged.

    Attributes:
        limits: in base units (bytes, ms, percentage points).
        limit_on: whether accuracy_drop is judged by the upper end of its interval or by the estimate.
        allow_unmeasured: gates that may stay unverified.
        store_limits: names of store presets.
        app_size_bytes: the app's size without the model, in the preset's own basis.
        shipped: the shipped model's bundle, whose instruction counts are compared.
        latency_on: whether a limit on latency may be judged by a prediction, by the upper end of its interval.
        device: the device of that prediction, a name or a .toml file.
        times_on: the kind of machine whose own times count, by a part of its processor's name; "" for none, where
            several machines build and none is named. None for the machine that runs.
    """

    limits: Annotated[tuple[tuple[LimitName, float], ...], NotInKey(_JUDGED_AGAIN)] = ()
    limit_on: Annotated[Literal["interval", "point"], NotInKey(_JUDGED_AGAIN)] = "interval"
    allow_unmeasured: Annotated[tuple[str, ...], NotInKey(_JUDGED_AGAIN)] = ()
    store_limits: Annotated[tuple[str, ...], NotInKey(_JUDGED_AGAIN)] = ()
    app_size_bytes: Annotated[int | None, NotInKey(_JUDGED_AGAIN)] = None
    shipped: Annotated[Path | None, BundleFolder()] = None
    latency_on: Literal["measured", "predicted"] = "measured"
    device: Annotated[str | None, ProfileFile("device")] = None
    times_on: Annotated[str | None, NotInKey(_JUDGED_AGAIN)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(RunConfig):
    """A `PackageConfig` whose names were looked up: targets are profiles, limits are numbers in base units.

    The pipeline takes a job, so that names are looked up once and unknown ones are found before it starts.

    Attributes:
        source: the model.
        targets: those that were named, and get a bundle each.
        groups: targets that stand for several; the fastest of these gets a bundle.
        schemes: none for each target's default; `auto` is never combined with others.
    """

    source: Annotated[str, ModelFile()]
    targets: Annotated[tuple[TargetProfile, ...], NotInKey("a target's profile is in the keys of its own results")] = ()
    groups: Annotated[tuple[TargetGroup, ...], NotInKey("the keys of a group's results have its candidates'")] = ()
    schemes: Annotated[tuple[AskedScheme, ...], NotInKey("a scheme is in the keys of its own results")] = ()
    observer: Annotated[ObserverName, _CALIBRATED] = "histogram"
    gates: GateOptions = GateOptions()

    @property
    def all_targets(self) -> tuple[TargetProfile, ...]:
        """Every target that may be built: those that were named, and the candidates of groups; each once, by name."""
        candidates = (target for group in self.groups for target in group.candidates)
        return tuple({target.name: target for target in (*self.targets, *candidates)}.values())

    def schemes_of(self, target: TargetProfile) -> tuple[PlannedScheme, ...]:
        """Return the schemes for a target: the requested ones, or its default.

        That is `default` where the model is yet to say which scheme it is. An artifact that came lowered, and ranges
        of a shipped model, leave no choice.
        """
        if self.schemes:
            return self.schemes
        if self.context_length is not None and "dynamic-int8" in target.schemes:
            return ("dynamic-int8",)  # a language model's work is attention and linear layers
        is_open = self.reuse_qparams_from is None and not self.source.endswith((".pte", ".ptl"))
        return (DEFAULT,) if is_open and len(default_schemes(target.schemes)) > 1 else target.schemes[:1]

    def possible_schemes(self, target: TargetProfile) -> frozenset[SchemeName]:
        """Return the schemes that a run may use for a target; `auto` and `default` count as all that they may be."""
        found: set[SchemeName] = set()
        for scheme in self.schemes_of(target):
            if scheme == AUTO:
                found |= {*auto_schemes(target.schemes)}
            elif scheme == DEFAULT:
                found |= {*default_schemes(target.schemes)}
            else:
                found.add(scheme)
        return frozenset(found)


def provenance_options(job: Job, scheme: str) -> dict[str, str]:
    """Return the options that can change a scheme's artifact, by key, as text; those at their default too.

    Data, weights and the source are not among them: the provenance has their hashes. The limits of a search are.
    """
    found = {}
    for option in options_of(Job):
        mark = option.in_provenance
        if mark is not None and (mark.schemes is None or scheme in mark.schemes):
            value = option.value_in(job)
            if option.key == "observer":
                value = used_observer(scheme, job.observer)
            found[option.key] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if scheme in NEEDS_SEARCH:
        found |= {f"limit.{name}": f"{value:g}" for name, value in job.gates.limits}
    return found


# ---- progress


SAMPLES = "samples"  # what most steps count


class Task(Protocol):
    """A long step in progress."""

    def advance(self, steps: int = 1) -> None:
        """Report that `steps` more are done."""

    def note(self, text: str) -> None:
        """Show a short text next to the step."""


class Progress(Protocol):
    """The pipeline's progress reporting; the CLI draws bars, prints lines, or stays silent."""

    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> AbstractContextManager[Task]:
        """Open a step; `total` is the number of `unit` that `advance` will report, None if it is not known."""

    def alone(self) -> AbstractContextManager[None]:
        """Open a span for timing, in which nothing else of this run computes."""
