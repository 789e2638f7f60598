"""What a project of several models was asked to do, and how each of them ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeq.artifacts import BuildReport, Gate, Row
from edgeq.errors import ExitCode
from edgeq.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """What the app as a whole is held to, in bytes, for each ABI (`android-arm64`).

    Attributes:
        size_bytes, download_bytes: the most that artifacts, or ZIPs, with the runtime libraries may have.
        runtime_bytes: of a runtime's library, by (runtime, ABI), where people told it.
    """

    size_bytes: int | None = None
    download_bytes: int | None = None
    runtime_bytes: tuple[tuple[tuple[str, str], int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A runtime's native library for one ABI, as the app carries it, and as it is downloaded.

    Attributes:
        origin: where the sizes come from, in words.
    """

    size_bytes: int
    download_bytes: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One `edgeq build`: its models have different names, and one output folder."""

    jobs: tuple[Job, ...]
    out: Path
    app: AppOptions = AppOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelError:
    """Why a model has no bundles, or an app lacks some: two lines, an exit code, and a traceback where there is one."""

    what: str
    fix: str
    exit_code: ExitCode
    trace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """How one model ended: with a report, or with an error."""

    name: str
    report: BuildReport | None
    error: ModelError | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Its rows; none where it ended with an error."""
        return self.report.rows if self.report else ()

    @property
    def exit_code(self) -> ExitCode:
        """The error's code, or the lowest of the gates that failed."""
        if self.error is not None:
            return self.error.exit_code
        return self.report.exit_code if self.report else ExitCode.INTERNAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectReport:
    """A whole project.

    Attributes:
        app: gates of the app as a whole, one for each limit and ABI.
        not_installed: why not every bundle that passed went into its app; None where all did, or none was to.
    """

    models: tuple[ModelResult, ...]
    app: tuple[Gate, ...] = ()
    not_installed: ModelError | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all models."""
        return tuple(row for model in self.models for row in model.rows)

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code of all that failed."""
        codes = [model.exit_code for model in self.models] + [gate.exit_code for gate in self.app if not gate.passed]
        codes += [self.not_installed.exit_code] if self.not_installed else []
        return min((code for code in codes if code), default=ExitCode.OK)


def of_one(report: BuildReport) -> ProjectReport:
    """Return the report of a single model as a project's."""
    return ProjectReport(models=(ModelResult(name=report.rows[0].model, report=report),))
