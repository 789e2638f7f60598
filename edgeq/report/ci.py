"""Reports for CI: JUnit XML (a suite per target and scheme, a test case per gate), Markdown and annotations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from edgeq.core.results.report import Gate, ModelError, PackageResult, ProjectReport
from edgeq.core.units import format_bytes, safe_lines
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


def to_markdown(report: ProjectReport, base: ProjectReport | None = None) -> str:
    """Return a heading, a table of all targets, each failure with its margin, and what differs from `base`."""
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
    if base is not None:
        lines += ["", "### Against the base branch", "", *_against(report, base)]
    return "\n".join(lines) + "\n"


def _against(report: ProjectReport, base: ProjectReport) -> list[str]:
    """Return a table of the bundles that are new, gone or different, and how many are equal."""
    new, old = ({(row.model, row.target, row.scheme): row for row in one.rows} for one in (report, base))
    changed, equal = [], 0
    for key in dict.fromkeys((*new, *old)):
        row, before = new.get(key), old.get(key)
        if row is not None and before is not None and row.digest == before.digest:
            equal += 1
        elif row is not None and before is not None:
            changed.append((*key, *_changes(row, before)))
        elif row is not None:
            changed.append((*key, words.size(row), words.download(row), words.accuracy(row), "new"))
        else:
            changed.append((*key, "-", "-", "-", "gone"))
    head = ("model", "target", "scheme", "size", "download", "accuracy or fidelity", "verdict")
    told = f"{equal} of {len(new)} bundles are equal to those of the base branch, byte for byte."
    return [*(_table(head, changed) if changed else []), *([""] if changed else []), told]


def _changes(row: PackageResult, before: PackageResult) -> tuple[str, ...]:
    """Return size, download, accuracy and verdict of a row, each with its change."""
    sizes = [
        f"{format_bytes(now)}\n{now / was - 1:+.1%}" if was else format_bytes(now)
        for now, was in ((row.size_bytes, before.size_bytes), (row.download_bytes, before.download_bytes))
    ]
    came, went = row.verified.fidelity, before.verified.fidelity
    accuracy = "-"
    if came is not None and went is not None and came.metric == went.metric:
        if came.score is not None and went.score is not None:
            accuracy = f"{came.score:.2%}\n{100 * (came.score - went.score):+.2f} pp"
        elif came.sqnr_db is not None and went.sqnr_db is not None:
            accuracy = f"{came.sqnr_db:.1f} dB" + (
                f"\n{came.sqnr_db - went.sqnr_db:+.1f} dB" if math.isfinite(came.sqnr_db - went.sqnr_db) else ""
            )
    verdicts = [words.verdict_text(one).splitlines()[0] for one in (before, row)]
    return (*sizes, accuracy, verdicts[1] if verdicts[0] == verdicts[1] else " → ".join(verdicts))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectLines:
    """Where the keys of an edgeq.toml stand.

    Attributes:
        file: its path, relative to the repository.
        lines: line by model and key, from 1; the model is "" above the entries, the key "" at an entry itself.
    """

    file: str
    lines: Mapping[tuple[str, str], int]

    def of(self, model: str, gate: str) -> str:
        """Return the properties of an annotation about a gate of a model, or about the model."""
        keys = ((model, f"limit.{gate}"), ("", f"limit.{gate}"), (model, ""), ("", f"app.limit.{gate}"), ("", "app"))
        line = next((self.lines[key] for key in keys if key in self.lines), 1)
        return f"file={_escaped(self.file, ':,')},line={line},"


def to_annotations(report: ProjectReport, project: ProjectLines | None = None) -> list[str]:
    """Return a line for each gate that failed, each model, target or install that did, and each warning.

    With `project`, they are at the lines of the file that hold the limit or the model.
    """

    def line(level: str, title: str, message: str, model: str = "", gate: str = "") -> str:
        place = project.of(model, gate) if project is not None else ""
        # a line break would end the annotation, and what follows could be a command of its own
        return f"::{level} {place}title={_escaped(title, ':,')}::{_escaped(message)}"

    lines = []
    for model in report.models:
        if model.error is not None:
            told = f"{model.error.what}; fix: {model.error.fix}"
            lines.append(line("error", f"edgeq: {model.name}", told, model.name))
        for one in model.refused:
            told = f"{one.error.what}; fix: {one.error.fix}"
            lines.append(line("error", f"edgeq: {one.model} {one.label}", told, model.name))
        for row in model.rows:
            where = f"edgeq: {row.model} {row.target} {row.scheme}"
            lines += [
                line("error", where, _failure(gate), model.name, gate.name)
                for gate in row.checked.gates
                if not gate.passed
            ]
            lines += [line("warning", where, text, model.name) for text in row.checked.warnings]
    lines += [
        line("error", "edgeq: app", _failure(gate), gate=gate.name.removeprefix("app_"))
        for gate in report.app
        if not gate.passed
    ]
    if report.not_installed is not None:
        lines.append(line("error", "edgeq: install", f"{report.not_installed.what}; fix: {report.not_installed.fix}"))
    return lines


def _failure(gate: Gate) -> str:
    return f"{gate.outcome}: {words.gate_facts(gate)}"


def _escaped(text: str, also: str = "") -> str:
    for char in "%\r\n" + also:
        text = text.replace(char, f"%{ord(char):02X}")
    return safe_lines(text)


# --- A badge: what passed, as a small picture for a README.


_GREEN, _RED = "#2e7d32", "#c62828"

_CHAR_PX, _PAD_PX = 6.6, 12  # of Verdana at 11 px, on average; the texts are stretched to these widths


def to_badge(report: ProjectReport) -> str:
    """Return an SVG with the number of bundles that pass, and the first gate that failed."""
    failed = [gate.name for row in report.rows for gate in row.checked.gates if not gate.passed]
    failed += [gate.name for gate in report.app if not gate.passed]
    passed = sum(not row.checked.exit_code for row in report.rows)
    broken = len(report.refused) + sum(model.error is not None for model in report.models)
    told = f"{passed} of {len(report.rows) + broken} pass" + (f", {failed[0]} failed" if failed else "")
    widths = [round(_CHAR_PX * len(text) + _PAD_PX) for text in ("edgeq", told)]
    fill = _RED if failed or broken else _GREEN
    svg = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", width=str(sum(widths)), height="20", role="img"
    )
    ElementTree.SubElement(svg, "title").text = f"edgeq: {told}"
    places = ((0, widths[0], "#444", "edgeq"), (widths[0], widths[1], fill, told))
    for x, width, colour, text in places:
        ElementTree.SubElement(svg, "rect", x=str(x), width=str(width), height="20", fill=colour)
        label = ElementTree.SubElement(svg, "text", x=str(x + _PAD_PX // 2), y="14", fill="#fff")
        label.attrib |= {"font-family": "Verdana,sans-serif", "font-size": "11", "textLength": str(width - _PAD_PX)}
        label.text = _legal(text)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"
