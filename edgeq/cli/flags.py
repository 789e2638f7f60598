"""The options of `edgeq package`, each with its help. What a default is, `config.py` and `edgeq.job` say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli import complete

PROJECT_FILE = "edgeq.toml"

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.onnx, model.pte, model.ptl, "
        "or digits, the built-in model.",
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        help="A target's name or a .toml file; repeatable.",
        autocompletion=complete.targets,
    ),
]
Scheme = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        metavar="NAME",
        help="A quantization scheme; repeatable. Without it, each target's default.",
        autocompletion=complete.schemes,
    ),
]
Out = Annotated[
    str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The folder for the bundles; out if not given.")
]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model's name in bundles; by default from the source.")
]
Digest = Annotated[
    str | None, typer.Option(metavar="HEX", help="What the bundle's digest must be, as `edgeq package --json` gave it.")
]
ModelVersion = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The model's version in the manifest; 1 if not given.")
]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE|NAME", help="A state dict (.safetensors, .pt, .pth) or torchvision's name.")
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SPEC", help="1x3x224x224, or tokens=int64:1x128:0..30521; repeatable, in order."),
]
InputDtype = Annotated[
    str | None,
    typer.Option(
        metavar="uint8",
        help="The artifact takes pixels as bytes and normalises them itself, as --preprocess says.",
    ),
]
CalibrationData = Annotated[
    str | None, typer.Option(metavar="DATA", help="An image folder, .npz/.npy or file.py:function.")
]
EvalData = Annotated[str | None, typer.Option(metavar="DATA", help="The same, for accuracy; no sample may be in both.")]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="FUNCTION", help="file.py:function, a score of 0 to 1 per sample, higher is better, in place of top-1."
    ),
]
Preprocess = Annotated[str | None, typer.Option(metavar="NAME|FILE", help="imagenet, unit, or a .toml file.")]
Labels = Annotated[str | None, typer.Option(metavar="FILE", help="A file that maps class folders to output indices.")]
NumCalibrationSamples = Annotated[
    int | None, typer.Option(metavar="N", help="Samples to calibrate on; 128 if not given.")
]
SearchData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA", help="Samples that mixed-int8 judges on; the rest of the calibration data if not given."
    ),
]
NumSearchSamples = Annotated[int | None, typer.Option(metavar="N", help="At most so many; 512 if not given.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="The seed of all that is random; 0 if not given.")]
Observer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="histogram, minmax or percentile; histogram if not given.",
        autocompletion=complete.observers,
    ),
]
KeepFp32 = Annotated[
    list[str] | None,
    typer.Option("--keep-fp32", metavar="NAME", help="A module's name or type to leave in float; repeatable."),
]
QatData = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Samples for qat-int8, without labels; the calibration data's if not given."),
]
QatSamples = Annotated[int | None, typer.Option(metavar="N", help="Samples to train on; 2048 if not given.")]
QatEpochs = Annotated[int | None, typer.Option(metavar="N", help="Epochs of qat-int8; 8 if not given.")]
QatLr = Annotated[
    float | None,
    typer.Option(metavar="X", help="Its learning rate, relative to the size of the weights; 0.002 if not given."),
]
QatBatch = Annotated[int | None, typer.Option(metavar="N", help="Its samples a step; 32 if not given.")]
QatTrain = Annotated[
    str | None,
    typer.Option(metavar="FUNCTION", help="file.py:function, your own loop: (prepared, teacher, data) -> module."),
]
DataLint = Annotated[
    str | None, typer.Option(metavar="error|warn", help="What a finding in the data is; error if not given.")
]
SkipBadImages = Annotated[
    bool | None, typer.Option("--skip-bad-images/--no-skip-bad-images", help="Leave out images that do not decode.")
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="size=5MB, download=4MB, accuracy_drop=0.5pp, sqnr=30dB, agreement=99%, latency=40ms, "
        " peak_memory=120MB, load=300ms; repeatable.",
        autocompletion=complete.limits,
    ),
]
LimitOn = Annotated[
    str | None,
    typer.Option(
        metavar="interval|point|predicted",
        help="What of the accuracy drop must keep the limit, interval if not given; predicted: a latency that is "
        "predicted for --device counts, by its upper end. With a comma, both.",
    ),
]
Shipped = Annotated[
    str | None,
    typer.Option(metavar="BUNDLE", help="The shipped model's bundle: at most 1.1 times its instructions."),
]
ReuseQParams = Annotated[
    str | None,
    typer.Option(
        "--reuse-qparams-from",
        metavar="BUNDLE",
        help="The shipped model's bundle: keep its scales and zero points where they fit, for a small update.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="For --limit-on predicted: a device of `edgeq devices list`, or a .toml file."
    ),
]
AllowUnmeasured = Annotated[
    list[str] | None,
    typer.Option("--allow-unmeasured", metavar="GATE", help="A gate that may stay unmeasured; repeatable."),
]
StoreLimit = Annotated[
    list[str] | None,
    typer.Option("--store-limit", metavar="NAME", help="A store's limit, such as play-base-module; repeatable."),
]
AppSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The app's size without the model, for --store-limit.")
]
InstallInto = Annotated[
    list[str] | None,
    typer.Option(
        "--install-into", metavar="FOLDER", help="An app's project to install into when all gates pass; repeatable."
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="emulator|host|ssh:HOST|adb[:SERIAL]",
        help="What runs the artifact: the device's ARM64 kernels under QEMU as well, this host's only, or (verify) a "
        "real device as well.",
    ),
]
Cpu = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A CPU model to emulate, such as cortex-a53, or several with commas; by default those of the target.",
    ),
]
DeviceSamples = Annotated[
    int | None, typer.Option(metavar="N", help="Samples to emulate; without it a number by the model's size.")
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="For emulating one artifact; 1800 if not given.")
]
Cache = Annotated[bool | None, typer.Option("--cache/--no-cache", help="Use what earlier runs made; on if not given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the options and print the plan; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress; the result and errors stay.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="A line for every step, on a terminal too.")]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The project's options; edgeq.toml of the current folder if not given."),
]
