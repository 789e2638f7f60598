"""A summary in Markdown, as a CI job's page shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeq.artifacts import Gate, Row
from edgeq.project import ProjectReport
from edgeq.report import schemes, words
from edgeq.units import safe_lines

_HEAD = ("model", "target", "scheme", "size", "download", "accuracy or fidelity", "int8 MACs", "latency", "verdict")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def to_markdown(report: ProjectReport) -> str:
    """Return a heading, a table of all targets, and what failed and by how much."""
    failed = sum(bool(row.checked.exit_code) for row in report.rows)
    broken = [model for model in report.models if model.error is not None]
    lines = [f"## edgeq: {_verdict(report, failed, len(broken))}", ""]
    if report.rows:
        lines += _table(_HEAD, [_cells(row) for row in report.rows])
    if report.app:
        lines += ["", "### The app as a whole", "", *_table(("gate", "limit", "measured", "verdict"), _app(report.app))]
    failures = [f"- {_text(line)}" for row in report.rows for line in words.failures(row, named=len(report.models) > 1)]
    failures += [f"- {_text(words.failure('app', gate))}" for gate in report.app if not gate.passed]
    failures += [f"- error: {_text(model.name)}: {_text(model.error.what)}" for model in broken if model.error]
    failures += [f"- error: not installed: {_text(report.not_installed.what)}"] if report.not_installed else []
    if failures:
        lines += ["", "### What failed", "", *failures]
    compared = [
        f"- {_text(f'{row.target}: {line}')}"
        for row in report.rows
        if row.compared
        for line in schemes.compared(row.compared)
    ]
    if compared:
        lines += ["", "### Against float", "", *compared]
    return "\n".join(lines) + "\n"


def _verdict(report: ProjectReport, failed: int, broken: int) -> str:
    if not report.exit_code:
        return "ok"
    told = [f"{failed} of {len(report.rows)} targets failed"] if failed else []
    told += [f"{broken} of {len(report.models)} models could not be built"] if broken else []
    told += ["the app as a whole failed"] if any(not gate.passed for gate in report.app) else []
    told += ["not every bundle was installed"] if report.not_installed else []
    return ", ".join(told) + f" (exit code {int(report.exit_code)})"


def _cells(row: Row) -> tuple[str, ...]:
    figures = (words.size(row), words.download(row), words.accuracy(row), words.int8_share(row), words.latency(row))
    return (row.model, row.target, row.scheme, *figures, words.verdict(row))


def _app(gates: Sequence[Gate]) -> list[tuple[str, ...]]:
    return [(gate.name, gate.limit, gate.measured, gate.outcome) for gate in gates]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [" | ".join(_cell(cell) for cell in cells) for cells in (head, *rows)]
    return [f"| {lines[0]} |", "|" + " --- |" * len(head), *(f"| {line} |" for line in lines[1:])]


def _cell(text: str) -> str:
    return "<br>".join(_text(line) for line in text.splitlines())


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", safe_lines(" ".join(text.split())))
