"""Reports for CI: JUnit XML (a suite per target and scheme, a test case per gate), Markdown and annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from edgeq.core.results.report import Gate, ModelError, PackageResult, ProjectReport
from edgeq.core.units import safe_lines
from edgeq.report import text as words

# what XML 1.0 cannot say, even escaped
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: ProjectReport) -> str:
    """Return the run as JUnit XML. A gate that may stay unmeasured is a skipped test; a model's error is an error."""
    root = ElementTree.Element("testsuites", name="edgeq")
    for model in report.models:
        for row in model.rows:
            _suite(root, f"{model.name} {row.target} {row.scheme}", row.checked.gates)
        for one in model.refused:
            _broken(root, f"{model.name} {one.label}", one.error)
        if model.error is not None:
            _broken(root, model.name, model.error)
    if report.app:
        _suite(root, "app", report.app)
    if report.not_installed is not None:
        _broken(root, "install", report.not_installed, case="install")
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, name: str, gates: Sequence[Gate]) -> None:
    failed, allowed = (sum(test(gate) for gate in gates) for test in (_is_failed, _is_allowed))
    counts = {"tests": len(gates), "failures": failed, "errors": 0, "skipped": allowed}
    attributes = {"name": _legal(name)} | {key: str(count) for key, count in counts.items()}
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=_legal(name), name=_legal(gate.name))
        told = _legal(words.gate_facts(gate).removeprefix(f"{gate.name}: "))
        if _is_failed(gate):
            failure = ElementTree.SubElement(case, "failure", message=told, type=gate.outcome)
            failure.text = f"exit code {int(gate.exit_code)}"
        elif _is_allowed(gate):
            ElementTree.SubElement(case, "skipped", message=told)


def _broken(root: ElementTree.Element, name: str, error: ModelError, case: str = "build") -> None:
    suite = ElementTree.SubElement(
        root, "testsuite", name=_legal(name), tests="1", failures="0", errors="1", skipped="0"
    )
    test = ElementTree.SubElement(suite, "testcase", classname=_legal(name), name=case)
    ElementTree.SubElement(test, "error", message=_legal(error.what), type=error.exit_code.name).text = _legal(
        f"fix: {error.fix}"
    )


def _is_failed(gate: Gate) -> bool:
    return not gate.passed


def _is_allowed(gate: Gate) -> bool:
    return gate.outcome == "allowed"


def _legal(text: str) -> str:
    return _ILLEGAL.sub("?", text)


# --- A summary in Markdown, as a CI job's page shows it.


_HEAD = ("model", "target", "scheme", "size", "download", "accuracy or fidelity", "int8 MACs", "latency", "verdict")

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def to_markdown(report: ProjectReport) -> str:
    """Return a heading, a table of all targets, and each failure with its margin."""
    failed = sum(bool(row.checked.exit_code) for row in report.rows)
    broken = [model for model in report.models if model.error is not None]
    lines = [f"## edgeq: {_verdict(report, failed, len(broken))}", ""]
    if report.rows:
        refused = [(one.model, one.target, one.scheme, *("-",) * 5, words.refusal_text(one)) for one in report.refused]
        lines += _table(_HEAD, [*(_cells(row) for row in report.rows), *refused])
    if report.app:
        lines += [
            "",
            "### The app as a whole",
            "",
            *_table(
                ("gate", "limit", "measured", "verdict"),
                [(gate.name, gate.limit, gate.measured, gate.outcome) for gate in report.app],
            ),
        ]
    failures = [f"- {_text(line)}" for row in report.rows for line in words.failures(row, named=len(report.models) > 1)]
    failures += [f"- {_text(words.failure('app', gate))}" for gate in report.app if not gate.passed]
    failures += [f"- refused: {_text(f'{one.model} {one.label}: {one.error.what}')}" for one in report.refused]
    failures += [f"- error: {_text(model.name)}: {_text(model.error.what)}" for model in broken if model.error]
    failures += [f"- error: not installed: {_text(report.not_installed.what)}"] if report.not_installed else []
    if failures:
        lines += ["", "### What failed", "", *failures]
    compared = [
        f"- {_text(f'{row.target}: {line}')}"
        for row in report.rows
        if row.compared
        for line in words.compared(row.compared)
    ]
    if compared:
        lines += ["", "### Against float", "", *compared]
    return "\n".join(lines) + "\n"


def _verdict(report: ProjectReport, failed: int, broken: int) -> str:
    if not report.exit_code:
        return "ok"
    refused = len(report.refused)
    told = [f"{failed} of {len(report.rows) + refused} targets failed"] if failed else []
    told += [f"{refused} of {len(report.rows) + refused} targets refused"] if refused else []
    told += [f"{broken} of {len(report.models)} models could not be built"] if broken else []
    told += ["the app as a whole failed"] if any(not gate.passed for gate in report.app) else []
    told += ["not every bundle was installed"] if report.not_installed else []
    return ", ".join(told) + f" (exit code {int(report.exit_code)})"


def _cells(row: PackageResult) -> tuple[str, ...]:
    figures = (words.size(row), words.download(row), words.accuracy(row), words.int8_share(row), words.latency(row))
    return (row.model, row.target, row.scheme, *figures, words.verdict_text(row))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        " | ".join("<br>".join(_text(line) for line in cell.splitlines()) for cell in cells) for cells in (head, *rows)
    ]
    return [f"| {lines[0]} |", "|" + " --- |" * len(head), *(f"| {line} |" for line in lines[1:])]


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", safe_lines(" ".join(text.split())))


# --- GitHub's annotations: lines in a job's log that it shows beside the change.


def to_annotations(report: ProjectReport) -> list[str]:
    """Return a line for each gate that failed, each model, target or install that did, and each warning."""
    lines = []
    for model in report.models:
        if model.error is not None:
            lines.append(_line("error", f"edgeq: {model.name}", f"{model.error.what}; fix: {model.error.fix}"))
        lines += [
            _line("error", f"edgeq: {one.model} {one.label}", f"{one.error.what}; fix: {one.error.fix}")
            for one in model.refused
        ]
        for row in model.rows:
            where = f"edgeq: {row.model} {row.target} {row.scheme}"
            lines += [_failure(where, gate) for gate in row.checked.gates if not gate.passed]
            lines += [_line("warning", where, text) for text in row.checked.warnings]
    lines += [_failure("edgeq: app", gate) for gate in report.app if not gate.passed]
    if report.not_installed is not None:
        lines.append(_line("error", "edgeq: install", f"{report.not_installed.what}; fix: {report.not_installed.fix}"))
    return lines


def _failure(where: str, gate: Gate) -> str:
    return _line("error", where, f"{gate.outcome}: {words.gate_facts(gate)}")


def _line(level: str, title: str, message: str) -> str:
    # a line break would end the annotation, and what follows could be a command of its own
    return f"::{level} title={_escaped(title, ':,')}::{_escaped(message)}"


def _escaped(text: str, also: str = "") -> str:
    for char in "%\r\n" + also:
        text = text.replace(char, f"%{ord(char):02X}")
    return safe_lines(text)
