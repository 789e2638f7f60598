"""The closing table of a run: one row for each target and scheme, or a block where the terminal is too narrow."""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeq.cli.columns import printable
from edgeq.project import of_one
from edgeq.report import schemes, words
from edgeq.report.as_json import to_json
from edgeq.units import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from edgeq.artifacts import BuildReport, DataFacts, Row
    from edgeq.project import ProjectReport

__all__ = ["render", "to_json"]

_NOT_A_TERMINAL = 100
_UNIT = re.compile(r"(?<=\d) (?=(?:[kMG]?i?B|ms|pp|dB|%)\b)")
_STYLES = {"ok": "green", "failed": "bold red"}


def render(report: BuildReport, *, width: int | None = None) -> str:
    """Return the run of one model: see `render_project`."""
    return render_project(of_one(report), width=width)


def render_project(report: ProjectReport, *, width: int | None = None) -> str:
    """Return the table, what failed and by how much, the warnings, and where the bundles are.

    Args:
        report: the run.
        width: columns of the terminal; None to ask it.
    """
    canvas = io.StringIO()
    console = _console(canvas, width)
    if report.rows:
        table = _table(report.rows)
        # a table that does not fit would break numbers apart: then each row becomes a block of lines
        if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
            console.print(table)
        else:
            for row in report.rows:
                console.print(_block(row, console.width))
    below = _below(report)
    if width is not None or sys.stdout.isatty():
        below = [part for line in below for part in _wrapped(line, console.width)]
    above = "\n".join(line.rstrip() for line in canvas.getvalue().splitlines())
    return "\n".join([above.rstrip("\n"), *below]).lstrip("\n")


def _console(canvas: io.StringIO, width: int | None) -> Console:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    columns = width or shutil.get_terminal_size((_NOT_A_TERMINAL, 24)).columns
    return Console(file=canvas, width=columns, force_terminal=terminal, highlight=False, markup=False)


def _wrapped(line: str, width: int) -> list[str]:
    # names and paths stay whole, so that they can be copied; a number stays with its unit
    bound = _UNIT.sub("\N{NO-BREAK SPACE}", line)
    parts = textwrap.wrap(bound, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [part.replace("\N{NO-BREAK SPACE}", " ") for part in parts] or [""]


def _table(rows: Sequence[Row]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    many = len({row.model for row in rows}) > 1
    # ASCII-safe rules and no colours needed: the words alone carry the meaning
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    labelled = any(words.is_labelled(row) for row in rows)
    heads = ["target", "scheme", "size", "download", "accuracy" if labelled else "fidelity", "agreement"]
    emulated = any(words.device(row) != "-" for row in rows)
    heads += ["int8 MACs", *(["on the device"] if emulated else []), "latency p50 / p90", "verdict"]
    for head in [*(["model"] if many else []), *heads]:
        table.add_column(head, no_wrap=True)
    for row in rows:
        cells = [row.target, row.scheme, words.size(row), words.download(row), words.accuracy(row)]
        cells += [words.agreement(row), words.int8_share(row)]
        cells += [*([words.device(row)] if emulated else []), words.latency(row)]
        table.add_row(*([row.model] if many else []), *cells, _verdict(row))
    return table


def _block(row: Row, width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    facts = (
        ("size", words.size(row)),
        ("download", words.download(row)),
        (words.accuracy_head(row), words.accuracy(row)),
        ("agreement", words.agreement(row)),
        ("int8 MACs", words.int8_share(row)),
        *((("on the device", words.device(row)),) if words.device(row) != "-" else ()),
        ("latency p50 / p90", words.latency(row)),
    )
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for head, value in facts:
        lines.add_row(f"  {head}", value.replace("\n", ", "))
    lines.add_row("  verdict", _verdict(row, between=", "))
    title = Text(f"{row.model} {row.target} {row.scheme}", style="bold")
    block = Table.grid()
    block.add_column(max_width=width, overflow="fold")
    block.add_row(title)
    block.add_row(lines)
    block.add_row("")
    return block


def _verdict(row: Row, between: str = "\n") -> Text:
    from rich.text import Text

    verdict = words.verdict(row)
    return Text(verdict.replace("\n", between), style=_STYLES.get(verdict.split()[0].rstrip(":"), ""))


def device_lines(row: Row) -> list[str]:
    """Return the table of the pairs that disagree; nothing where host and devices are equal."""
    from edgeq.cli.device import disagreements

    emulation = row.verified.emulation
    lines = disagreements(emulation) if emulation else []
    return [f"{row.target} {row.scheme}: where the runs differ", *lines] if lines else []


def _warnings(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return each warning once, with the targets that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for text in row.checked.warnings:
            names = about.setdefault(text, [])
            if row.target not in names:
                names.append(row.target)
    return about


def _below(report: ProjectReport) -> list[str]:
    """Return the lines under the table: failures, errors, the app, warnings, data, paths."""
    named = len(report.models) > 1
    devices = [line for row in report.rows for line in device_lines(row)]
    failed = [line for row in report.rows for line in words.failures(row, named=named)]
    failed += [words.failure("app", gate) for gate in report.app if not gate.passed]
    for model in report.models:
        if model.error is not None:
            failed += [
                f"error: {printable(f'{model.name}: {model.error.what}')}",
                f"  fix: {printable(model.error.fix)}",
            ]
    found = [f"search: {words.search(row.search)} ({row.target})" for row in report.rows if row.search]
    tried = [line for row in report.rows for line in _tried(row)]
    app = [f"app: {gate.name}: {gate.measured}, limit {gate.limit}" for gate in report.app if gate.passed]
    warnings = [f"warning: {text} ({', '.join(names)})" for text, names in _warnings(report.rows).items()]
    data = [line for model in report.models if model.report for line in _data(model.report.data)]
    reused = [line for row in report.rows for line in _reused(row)]
    paths = [f"{words.place(row)}: {row.path}" for row in report.rows]
    sections = [section for section in (devices, failed, found, tried, app, warnings, data, reused, paths) if section]
    return [line for section in sections for line in ("", *section)]


def _tried(row: Row) -> list[str]:
    """Return how auto came to the row's scheme, and how that compares with float."""
    lines = []
    if row.choice is not None:
        lines.append(f"auto: {row.target}: {schemes.choice(row.choice)}")
        lines += [f"  {printable(line)}" for line in schemes.choice_lines(row.choice)]
    if row.compared is not None:
        lines += [f"compare: {row.target}: {printable(line)}" for line in schemes.compared(row.compared)]
    return lines


def _reused(row: Row) -> list[str]:
    if row.reuse is None:
        return []
    return [f"reuse: {row.target}: {line}" for line in words.reuse(row.reuse, row.verified.fidelity)]


def _data(facts: DataFacts) -> list[str]:
    lines = [f"data: {finding.name}: {finding.message}" for finding in facts.findings]
    if facts.excluded_shared:
        lines.append(f"data: {counted(facts.excluded_shared, 'sample')} left out: they are in the other set too")
    return lines + [f"data: skipped {name}" for name in facts.skipped]
