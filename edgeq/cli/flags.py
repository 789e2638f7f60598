"""Options that several commands have and no edgeq.toml: how a result is printed, and what it is held against.

The options of a configuration are the fields of `edgeq.job.PackageConfig`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.job import MORE_OUTPUT, OUTPUT, PROJECT_FILE

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Project file with options. [default: {PROJECT_FILE}, if there is one]",
        rich_help_panel=OUTPUT.title,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check the options and print the plan; write nothing.", rich_help_panel=OUTPUT.title
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=OUTPUT.title)
]
Junit = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write JUnit XML, a test case for each gate.", rich_help_panel=MORE_OUTPUT.title),
]
Markdown = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a summary in Markdown.", rich_help_panel=MORE_OUTPUT.title),
]
Github = Annotated[
    bool,
    typer.Option(
        "--github",
        help="In GitHub Actions: annotate the change and add the summary to the job's page.",
        rich_help_panel=MORE_OUTPUT.title,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Show no progress, only the result and errors.", rich_help_panel=MORE_OUTPUT.title
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print a line for every step, even on a terminal.", rich_help_panel=MORE_OUTPUT.title
    ),
]
Digest = Annotated[
    str | None,
    typer.Option(metavar="HEX", help="Expected digest of the bundle, as `edgeq package --json` printed it."),
]
Verdict = Annotated[
    Path | None,
    typer.Option(
        "--verdict",
        metavar="FILE",
        help="Measurements of this very bundle from another device, written there by `edgeq verify --write-verdict`: "
        "latency, load time, peak memory and golden outputs. They are judged here.",
    ),
]
TrustSource = Annotated[
    bool, typer.Option("--trust-source", help="Let code in the bundle's artifact run: pickled objects, machine code.")
]
