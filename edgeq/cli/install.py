"""`edgeq install`: install a bundle into an app's project; `edgeq package --install-into` uses the same steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options
from edgeq.cli.console import say, say_json
from edgeq.core.errors import EdgeqError
from edgeq.core.units import counted, format_bytes

if TYPE_CHECKING:
    import edgeq.core.results.report
    import edgeq.deliver.install
    import edgeq.pipeline.measurement
    from edgeq.core.results.report import ModelError, RunReport
    from edgeq.deliver.android import Growth
    from edgeq.deliver.install import InstallResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A bundle that was installed into an app."""

    app: Path
    target: str | None
    result: InstallResult

    def as_text(self) -> str:
        """Return the lines of text."""
        result = self.result
        size = format_bytes(result.size_bytes)
        first = f"installed: {result.place} ({counted(len(result.files), 'file')}, {size}, digest {result.digest[:12]})"
        lines = [first, *(f"  {growth_text(growth)}" for growth in result.growth)]
        lines += [f"  pruned: {path}, another version of the model" for path in result.pruned]
        lines += [f"  Swift package: {path.parent}" for path in result.package[:1]]
        return "\n".join(lines + [f"  note: {note}" for note in result.notes])

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON."""
        return {
            "app": str(self.app),
            "target": self.target,
            "place": str(self.result.place),
            "files": list(self.result.files),
            "size_bytes": self.result.size_bytes,
            "digest": self.result.digest,
            "pruned": [str(path) for path in self.result.pruned],
            "package": [str(path) for path in self.result.package],
            "growth": [
                dataclasses.asdict(growth) | {"total_bytes": growth.total_bytes} for growth in self.result.growth
            ],
            "notes": list(self.result.notes),
        }


def growth_text(growth: Growth) -> str:
    """Return one line of text with an app's growth."""
    bundle = format_bytes(growth.bundle_bytes)
    if growth.library_bytes is None or growth.total_bytes is None or growth.compressed_bytes is None:
        return f"{growth.abi}: bundle {bundle}, runtime library not known (give --aar FILE to edgeq install)"
    library = (
        f"{growth.library} {format_bytes(growth.library_bytes)} ({format_bytes(growth.compressed_bytes)} compressed)"
    )
    return f"{growth.abi}: bundle {bundle} + {library} = {format_bytes(growth.total_bytes)}"


def install(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, from `edgeq package`.")],
    app: Annotated[
        Path,
        typer.Option(
            "--app", metavar="FOLDER", help="The root of an Android or iOS project, or a Gradle module of it."
        ),
    ],
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="NAME",
            help="Gradle module whose APK packs the model, such as :mobile; default: the only application.",
        ),
    ] = None,
    source_set: Annotated[
        str,
        typer.Option(
            "--source-set", metavar="NAME", help="Source set of that module: main, a flavour or a build type."
        ),
    ] = "main",
    aar: Annotated[
        str,
        typer.Option(
            "--aar", metavar="FILE", help=("The runtime's Android library, to compute how much the app grows.")
        ),
    ] = "",
    digest: options.Digest = None,
    verdict: options.Verdict = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help=("Replace a model of the same name even if its inputs, outputs or labels differ.")
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Install a bundle into an app's project.

    It replaces an older bundle of the same model and target; a failed install changes nothing. A model with different
    inputs, outputs, preprocessing or labels is only replaced with --replace. Bundles of another version of the model
    for other targets are removed. In an iOS project the models become a Swift package of resources.

    With --verdict, its measurements are judged by the gates that were unverified at packaging, and the installed
    manifest has their results.

    The application module of an Android project is found in its Gradle files. An app whose own runtime library is older
    than the bundle needs, or that is built without its ABI, is refused.
    """
    within = edgeq.deliver.install.Within(module=module, source_set=source_set)
    library = Path(aar) if aar else None
    if verdict is None:
        result = edgeq.deliver.install.install(bundle, app, aar=library, digest=digest, replace=replace, within=within)
    else:
        with edgeq.pipeline.measurement.settled_bundle(bundle, verdict, digest=digest) as settled:
            result = edgeq.deliver.install.install(settled.folder, app, aar=library, replace=replace, within=within)
        result = dataclasses.replace(result, notes=(*result.notes, settled.told))
    installed = Installed(app=app, target=None, result=result)
    if as_json:
        say_json({"schema_version": 1, "installed": [installed.as_json()]})
    else:
        say(installed.as_text())


def install_rows(
    report: RunReport, apps: Mapping[Path, tuple[str, ...]]
) -> tuple[tuple[Installed, ...], ModelError | None]:
    """Install the rows of `report` into their apps if all passed; stop at the first refusal.

    Returns:
        The installed bundles, and the error that stopped the installation: the report is printed in either case.
    """
    if report.exit_code or not apps:
        return (), None

    done: list[Installed] = []
    try:
        for app, names in apps.items():
            rows = (row for row in report.rows if row.target in names)
            # what went in before a refusal stays in `done`
            done.extend(
                # the very bundle that was judged: another run may have put its own in the place meanwhile
                Installed(
                    app=app, target=row.target, result=edgeq.deliver.install.install(row.path, app, digest=row.digest)
                )
                for row in rows
            )
    except EdgeqError as err:
        return tuple(done), edgeq.core.results.report.ModelError.of(err)
    return tuple(done), None
