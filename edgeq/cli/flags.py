"""The options of the commands, each with its help. What a default is, `config.py` and `edgeq.job` say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli import complete

PROJECT_FILE = "edgeq.toml"


@dataclass(frozen=True, slots=True)
class Key:
    """Where an option stands in an edgeq.toml.

    Attributes:
        path: the key, after its table and a full stop where it has one.
    """

    path: str


Model = Annotated[
    str | None,
    Key("model"),
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.onnx, model.pte, model.ptl, "
        "or digits, the built-in model.",
    ),
]
Target = Annotated[
    list[str] | None,
    Key("targets"),
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
    Key("schemes"),
    typer.Option(
        "--scheme",
        metavar="NAME",
        help="A quantization scheme, repeatable, or auto: the cheapest that passes every gate. Without it, each "
        "target's default.",
        autocompletion=complete.schemes,
    ),
]
Out = Annotated[
    str | None,
    Key("out"),
    typer.Option("--out", "-o", metavar="FOLDER", help="The folder for the bundles; out if not given."),
]
Name = Annotated[
    str | None,
    Key("name"),
    typer.Option(metavar="NAME", help="The model's name in bundles; by default from the source."),
]
Digest = Annotated[
    str | None, typer.Option(metavar="HEX", help="What the bundle's digest must be, as `edgeq package --json` gave it.")
]
Verdict = Annotated[
    Path | None,
    typer.Option(
        "--verdict",
        metavar="FILE",
        help="What `edgeq verify --write-verdict` measured of this very bundle elsewhere: latency, load time, peak "
        "memory and golden outputs, judged here.",
    ),
]
ModelVersion = Annotated[
    str | None,
    Key("model_version"),
    typer.Option(metavar="TEXT", help="The model's version in the manifest; 1 if not given."),
]
Weights = Annotated[
    str | None,
    Key("weights"),
    typer.Option(metavar="FILE|NAME", help="A state dict (.safetensors, .pt, .pth) or torchvision's name."),
]
Input = Annotated[
    list[str] | None,
    Key("inputs"),
    typer.Option("--input", metavar="SPEC", help="1x3x224x224, or tokens=int64:1x128:0..30521; repeatable, in order."),
]
InputDtype = Annotated[
    str | None,
    Key("input_dtype"),
    typer.Option(
        metavar="uint8",
        help="The artifact takes pixels as bytes and normalises them itself, as --preprocess says.",
    ),
]
DynamicBatch = Annotated[
    bool | None,
    Key("dynamic_batch"),
    typer.Option("--dynamic-batch/--fixed-batch", help="The artifact takes any number of samples at once; ONNX only."),
]
Seed = Annotated[
    int | None, Key("seed"), typer.Option(metavar="N", help="The seed of all that is random; 0 if not given.")
]
TrustSource = Annotated[
    bool,
    typer.Option("--trust-source", help="Let code in the model's own file run: pickled objects, machine code."),
]
Observer = Annotated[
    str | None,
    Key("observer"),
    typer.Option(
        metavar="NAME",
        help="histogram, minmax, percentile or entropy; histogram if not given, of an ONNX file minmax.",
        autocompletion=complete.observers,
    ),
]
KeepFp32 = Annotated[
    list[str] | None,
    Key("keep_fp32"),
    typer.Option("--keep-fp32", metavar="NAME", help="A module's name or type to leave in float; repeatable."),
]
Limit = Annotated[
    list[str] | None,
    Key("limit"),
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
    Key("limit_on"),
    typer.Option(
        metavar="interval|point|predicted",
        help="What of the accuracy drop must keep the limit, interval if not given; predicted: a latency that is "
        "predicted for --device counts, by its upper end. With a comma, both.",
    ),
]
Shipped = Annotated[
    str | None,
    Key("shipped"),
    typer.Option(metavar="BUNDLE", help="The shipped model's bundle: at most 1.1 times its instructions."),
]
ReuseQParams = Annotated[
    str | None,
    Key("reuse_qparams_from"),
    typer.Option(
        "--reuse-qparams-from",
        metavar="BUNDLE",
        help="The shipped model's bundle: keep its scales and zero points where they fit, for a small update.",
    ),
]
Device = Annotated[
    str | None,
    Key("predict_for"),
    typer.Option(
        metavar="NAME|FILE", help="For --limit-on predicted: a device of `edgeq devices list`, or a .toml file."
    ),
]
AllowUnmeasured = Annotated[
    list[str] | None,
    Key("allow_unmeasured"),
    typer.Option("--allow-unmeasured", metavar="GATE", help="A gate that may stay unmeasured; repeatable."),
]
StoreLimit = Annotated[
    list[str] | None,
    Key("store_limits"),
    typer.Option("--store-limit", metavar="NAME", help="A store's limit, such as play-base-module; repeatable."),
]
AppSize = Annotated[
    str | None,
    Key("app_size"),
    typer.Option(metavar="SIZE", help="The app's size without the model, for --store-limit."),
]
InstallInto = Annotated[
    list[str] | None,
    Key("install_into"),
    typer.Option(
        "--install-into", metavar="FOLDER", help="An app's project to install into when all gates pass; repeatable."
    ),
]
On = Annotated[
    str | None,
    Key("device.on"),
    typer.Option(
        metavar="emulator|host|cuda|ssh:HOST|adb[:SERIAL]",
        help="What runs the artifact: the device's ARM64 kernels under QEMU as well, this host's only, or (verify) a "
        "real device as well; cuda: this box's GPU, in a process with torch alone.",
    ),
]
Cpu = Annotated[
    list[str] | None,
    Key("device.cpu"),
    typer.Option(
        metavar="NAME",
        help="A CPU model to emulate, such as cortex-a53, or several with commas; by default those of the target.",
    ),
]
DeviceSamples = Annotated[
    int | None,
    Key("device.samples"),
    typer.Option(metavar="N", help="Samples to emulate; without it a number by the model's size."),
]
Timeout = Annotated[
    float | None,
    Key("device.timeout_s"),
    typer.Option(metavar="SECONDS", help="For emulating one artifact, or serving it (--on cuda); 1800 if not given."),
]
Compare = Annotated[
    bool | None,
    Key("compare"),
    typer.Option("--compare/--no-compare", help="Make fp32 and fp16 too, to compare with; off if not given."),
]
Cache = Annotated[
    bool | None, Key("cache"), typer.Option("--cache/--no-cache", help="Use what earlier runs made; on if not given.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the options and print the plan; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress; the result and errors stay.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="A line for every step, on a terminal too.")]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The project's options; edgeq.toml of the current folder if not given."),
]
