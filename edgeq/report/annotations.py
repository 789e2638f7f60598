"""GitHub's annotations: lines in a job's log that it shows beside the change."""

from __future__ import annotations

from edgeq.artifacts import Gate
from edgeq.project import ProjectReport
from edgeq.units import safe_lines


def to_annotations(report: ProjectReport) -> list[str]:
    """Return a line for each gate that failed, each model or install that did, and each warning."""
    lines = []
    for model in report.models:
        if model.error is not None:
            lines.append(_line("error", f"edgeq: {model.name}", f"{model.error.what}; fix: {model.error.fix}"))
        for row in model.rows:
            where = f"edgeq: {row.model} {row.target} {row.scheme}"
            lines += [_failure(where, gate) for gate in row.checked.gates if not gate.passed]
            lines += [_line("warning", where, text) for text in row.checked.warnings]
    lines += [_failure("edgeq: app", gate) for gate in report.app if not gate.passed]
    if report.not_installed is not None:
        lines.append(_line("error", "edgeq: install", f"{report.not_installed.what}; fix: {report.not_installed.fix}"))
    return lines


def _failure(where: str, gate: Gate) -> str:
    told = f"{gate.name} {gate.outcome}: limit {gate.limit or 'none'}, measured {gate.measured}: {gate.detail}"
    return _line("error", where, told)


def _line(level: str, title: str, message: str) -> str:
    # a line break would end the annotation, and what follows could be a command of its own
    return f"::{level} title={_escaped(title, ':,')}::{_escaped(message)}"


def _escaped(text: str, also: str = "") -> str:
    for char in "%\r\n" + also:
        text = text.replace(char, f"%{ord(char):02X}")
    return safe_lines(text)
