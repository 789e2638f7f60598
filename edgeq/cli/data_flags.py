"""The options that say on which samples a model is calibrated, judged and trained, each with its help."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeq.cli.flags import Key

CalibrationData = Annotated[
    str | None,
    Key("data.calibration"),
    typer.Option(metavar="DATA", help="An image folder, .npz/.npy or file.py:function."),
]
EvalData = Annotated[
    str | None,
    Key("data.evaluation"),
    typer.Option(metavar="DATA", help="The same, for accuracy; no sample may be in both."),
]
Metric = Annotated[
    str | None,
    Key("data.metric"),
    typer.Option(
        metavar="FUNCTION", help="file.py:function, a score of 0 to 1 per sample, higher is better, in place of top-1."
    ),
]
Preprocess = Annotated[
    str | None, Key("data.preprocess"), typer.Option(metavar="NAME|FILE", help="imagenet, unit, or a .toml file.")
]
Labels = Annotated[
    str | None,
    Key("data.labels"),
    typer.Option(metavar="FILE", help="A file that maps class folders to output indices."),
]
NumCalibrationSamples = Annotated[
    int | None,
    Key("data.num_calibration_samples"),
    typer.Option(metavar="N", help="Samples to calibrate on; 128 if not given."),
]
SearchData = Annotated[
    str | None,
    Key("data.search"),
    typer.Option(
        metavar="DATA", help="Samples that mixed-int8 judges on; the rest of the calibration data if not given."
    ),
]
NumSearchSamples = Annotated[
    int | None, Key("data.num_search_samples"), typer.Option(metavar="N", help="At most so many; 512 if not given.")
]
QatData = Annotated[
    str | None,
    Key("qat.data"),
    typer.Option(metavar="DATA", help="Samples for qat-int8, without labels; the calibration data's if not given."),
]
QatSamples = Annotated[
    int | None, Key("qat.samples"), typer.Option(metavar="N", help="Samples to train on; 2048 if not given.")
]
QatEpochs = Annotated[
    int | None, Key("qat.epochs"), typer.Option(metavar="N", help="Epochs of qat-int8; 8 if not given.")
]
QatLr = Annotated[
    float | None,
    Key("qat.lr"),
    typer.Option(metavar="X", help="Its learning rate, relative to the size of the weights; 0.002 if not given."),
]
QatBatch = Annotated[
    int | None, Key("qat.batch"), typer.Option(metavar="N", help="Its samples a step; 32 if not given.")
]
QatTrain = Annotated[
    str | None,
    Key("qat.train"),
    typer.Option(metavar="FUNCTION", help="file.py:function, your own loop: (prepared, teacher, data) -> module."),
]
DataLint = Annotated[
    str | None,
    Key("data.lint"),
    typer.Option(metavar="error|warn", help="What a finding in the data is; error if not given."),
]
SkipBadImages = Annotated[
    bool | None,
    Key("data.skip_bad_images"),
    typer.Option("--skip-bad-images/--no-skip-bad-images", help="Leave out images that do not decode."),
]
