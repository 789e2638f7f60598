"""Reports for CI: JUnit XML (a suite per target and scheme, a test case per gate), Markdown, annotations and SARIF."""

from __future__ import annotations

import hashlib
import json
import math
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from edgeq.core.errors import ExitCode
from edgeq.core.results.report import Gate, ModelError, PackageResult, ProjectReport
from edgeq.core.units import counted, format_bytes, safe_lines
from edgeq.report import text as words

# what XML 1.0 cannot say, even escaped
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: ProjectReport) -> str:
    """Return the run as JUnit XML. A gate that may stay unmeasured is a skipped test; a model's error is an error."""
    root = ElementTree.Element("testsuites", name="edgeq")
    for model in report.models:
        for row in model.rows:
            # the name stays the same whichever candidate was the fastest
            about = {}
            if row.fastest is not None:
                about = {"target": row.target, "fastest": words.fastest(row.fastest)}
                about |= {
                    f"candidate {one.target}": line
                    for one, line in zip(row.fastest.candidates, words.candidate_lines(row.fastest), strict=True)
                }
            name = f"{model.name} {row.named_target} {row.scheme}"
            _suite(root, name, row.checked.gates, about, _steps(row, report))
        for one in model.refused:
            _broken(root, f"{model.name} {one.label}", one.error)
        if model.error is not None:
            _broken(root, model.name, model.error)
    if report.app:
        _suite(root, "app", report.app, {})
    if report.not_installed is not None:
        _broken(root, "install", report.not_installed, case="install")
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(
    root: ElementTree.Element, name: str, gates: Sequence[Gate], about: Mapping[str, str], steps: Sequence[str] = ()
) -> None:
    failed, allowed = (sum(test(gate) for gate in gates) for test in (_is_failed, _is_allowed))
    counts = {"tests": len(gates), "failures": failed, "errors": 0, "skipped": allowed}
    attributes = {"name": _legal(name)} | {key: str(count) for key, count in counts.items()}
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    if about:
        properties = ElementTree.SubElement(suite, "properties")
        for key, value in about.items():
            ElementTree.SubElement(properties, "property", name=_legal(key), value=_legal(value))
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=_legal(name), name=_legal(gate.name))
        told = _legal(words.gate_facts(gate).removeprefix(f"{gate.name}: "))
        if _is_failed(gate):
            failure = ElementTree.SubElement(case, "failure", message=told, type=gate.outcome)
            lines = (f"exit code {int(gate.exit_code)}", *(f"next: {step}" for step in steps))
            failure.text = _legal("\n".join(lines))
        elif _is_allowed(gate):
            ElementTree.SubElement(case, "skipped", message=told)


def _broken(root: ElementTree.Element, name: str, error: ModelError, case: str = "build") -> None:
    count = str(len(error.findings))
    suite = ElementTree.SubElement(
        root, "testsuite", name=_legal(name), tests=count, failures="0", errors=count, skipped="0"
    )
    for one in error.findings:
        test = ElementTree.SubElement(suite, "testcase", classname=_legal(name), name=_legal(one.key or case))
        ElementTree.SubElement(test, "error", message=_legal(one.what), type=one.exit_code.name).text = _legal(
            f"fix: {one.fix}"
        )


def _steps(row: PackageResult, report: ProjectReport) -> list[str]:
    """Return what to try next for a row; [] where it passed."""
    return words.next_steps(row, report.rows) if row.checked.exit_code else []


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
    """Return a heading, a table of all bundles, each failure with its margin, and what differs from `base`.

    Args:
        report: the run.
        base: the bundles of the base branch, none if it has none yet; None where no comparison was asked for.
    """
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
    failures += [
        f"- error: {_text(model.name)}: {_text(one.what)}"
        for model in broken
        if model.error
        for one in model.error.findings
    ]
    failures += [f"- error: not installed: {_text(report.not_installed.what)}"] if report.not_installed else []
    if failures:
        lines += ["", "### What failed", "", *failures]
    steps = [
        f"- {_text(f'{words.subject(row, named=len(report.models) > 1)}: {step}')}"
        for row in report.rows
        for step in _steps(row, report)
    ]
    if steps:
        lines += ["", "### What to try next", "", *steps]
    chosen = [
        line
        for row in report.rows
        if row.fastest
        for line in (
            f"- {_text(f'{row.fastest.name}: {words.fastest(row.fastest)}')}",
            *(f"  - {_text(line)}" for line in words.candidate_lines(row.fastest)),
        )
    ]
    if chosen:
        lines += ["", "### The fastest of several targets", "", *chosen]
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
    if not base.rows:
        return ["There are no bundles of the base branch to compare with."]
    new, old = ({(row.model, row.named_target, row.scheme): row for row in one.rows} for one in (report, base))
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
    of_all = counted(len(report.rows) + refused, "bundle")
    told = [f"{failed} of {of_all} failed"] if failed else []
    told += [f"{refused} of {of_all} refused"] if refused else []
    told += [f"{broken} of {len(report.models)} models could not be built"] if broken else []
    told += ["the app as a whole failed"] if any(not gate.passed for gate in report.app) else []
    told += ["not every bundle was installed"] if report.not_installed else []
    return ", ".join(told) + f" (exit code {int(report.exit_code)})"


def _cells(row: PackageResult) -> tuple[str, ...]:
    figures = (words.size(row), words.download(row), words.accuracy(row), words.int8_share(row), words.latency(row))
    return (row.model, words.target_text(row), row.scheme, *figures, words.verdict_text(row))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        " | ".join("<br>".join(_text(line) for line in cell.splitlines()) for cell in cells) for cells in (head, *rows)
    ]
    return [f"| {lines[0]} |", "|" + " --- |" * len(head), *(f"| {line} |" for line in lines[1:])]


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", safe_lines(" ".join(text.split())))


# --- What failed, at the lines of edgeq.toml: GitHub's annotations in a job's log, and SARIF for code scanning.


# keys that a [[model]] entry has under another name
_IN_ENTRY = {"model": "source", "model_version": "version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectLines:
    """Where the keys of an edgeq.toml stand.

    Attributes:
        file: its path, relative to the repository.
        lines: line by model and key, from 1; the model is "" above the entries, the key "" at an entry itself.
    """

    file: str
    lines: Mapping[tuple[str, str], int]

    def of(self, model: str, key: str) -> int:
        """Return the line of a model's key, in its entry or above all, else of its entry, or of the file."""
        table = key.rpartition(".")[0]
        places = [(model, _IN_ENTRY.get(key, key)), ("", key)] if key else []
        places += [(model, table)] if table else []
        # a table for all models says less of this one than its entry
        places += [(model, ""), ("", table), ("", "app") if key.startswith("app.") else ("", "model")]
        return next((self.lines[place] for place in places if place in self.lines), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Notice:
    """A gate that failed, an error or a warning.

    Attributes:
        rule: the gate, or the kind of error by its exit code; `warning` of a warning.
        about: model, target and scheme.
        model: its name in edgeq.toml; "" of the app as a whole.
        key: the option in edgeq.toml that it is about; "" for the model itself.
        steps: what to try next.
        passes: whether it comes and goes with the load of the machine.
    """

    level: Literal["error", "warning"]
    rule: str
    about: str
    message: str
    model: str = ""
    key: str = ""
    steps: tuple[str, ...] = ()
    passes: bool = False

    @property
    def text(self) -> str:
        """What happened, and below it what to try next."""
        return "\n".join((self.message, *(f"next: {step}" for step in self.steps)))


def _notices(report: ProjectReport) -> list[_Notice]:
    """Return each gate that failed, each model, target or install that did, and each warning."""

    def of_error(about: str, error: ModelError, model: str = "", key: str = "") -> list[_Notice]:
        return [
            _Notice(
                level="error",
                rule=one.exit_code.name.lower(),
                about=about,
                message=f"{one.what}; fix: {one.fix}",
                model=model,
                key=one.key or key,
            )
            for one in error.findings
        ]

    def of_gate(about: str, gate: Gate, key: str, model: str = "", steps: Sequence[str] = ()) -> _Notice:
        told = f"{gate.outcome}: {words.gate_facts(gate)}"
        return _Notice(
            level="error", rule=gate.name, about=about, message=told, model=model, key=key, steps=tuple(steps)
        )

    notices = []
    for model in report.models:
        if model.error is not None:
            notices += of_error(model.name, model.error, model.name)
        for one in model.refused:
            notices += of_error(f"{one.model} {one.label}", one.error, model.name, "targets")
        for row in model.rows:
            about = f"{row.model} {row.named_target} {row.scheme}"
            failed = (gate for gate in row.checked.gates if not gate.passed)
            steps = _steps(row, report)
            notices += [of_gate(about, gate, f"limit.{gate.name}", model.name, steps) for gate in failed]
            load = row.verified.timing.warning if row.verified.timing else ""
            notices += [
                _Notice(
                    level="warning", rule="warning", about=about, message=text, model=model.name, passes=text == load
                )
                for text in row.checked.warnings
            ]
    failed = (gate for gate in report.app if not gate.passed)
    notices += [of_gate("app", gate, f"app.limit.{gate.name.removeprefix('app_')}") for gate in failed]
    if report.not_installed is not None:
        notices += of_error("install", report.not_installed, key="install_into")
    return notices


def to_annotations(report: ProjectReport, project: ProjectLines | None = None) -> list[str]:
    """Return a line for each gate that failed, each model, target or install that did, and each warning.

    With `project`, they are at the lines of the file that hold the limit, the option or the model.
    """
    lines = []
    for one in _notices(report):
        place = ""
        if project is not None:
            place = f"file={_escaped(project.file, ':,')},line={project.of(one.model, one.key)},"
        # a line break would end the annotation, and what follows could be a command of its own
        lines.append(f"::{one.level} {place}title={_escaped(f'edgeq: {one.about}', ':,')}::{_escaped(one.text)}")
    return lines


_NO_VERDICT = (ExitCode.INTERNAL, ExitCode.ENVIRONMENT, ExitCode.INTERRUPTED)

_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def to_sarif(
    report: ProjectReport, *, version: str, gates: Mapping[str, str], project: ProjectLines | None = None
) -> str:
    """Return the same as SARIF 2.1.0: a rule for each gate and kind of error, a result for each that failed.

    Args:
        report: the run.
        version: of edgeq.
        gates: what each gate requires, by its name.
        project: the file that the results stand in; without it they have no place, since nothing else of a run lies
            in a repository.
    """
    # an alert of a repository stays until it is mended, and a calm machine mends nothing
    notices = [one for one in _notices(report) if not one.passes]
    rules = list(dict.fromkeys(one.rule for one in notices))
    results = []
    for one in notices:
        identity = f"{one.about}\0{one.rule}\0{one.key}".encode(errors="replace")
        result: dict[str, Any] = {
            "ruleId": one.rule,
            "ruleIndex": rules.index(one.rule),
            "level": one.level,
            "message": {"text": safe_lines(f"{one.about}: {one.text}")},
            # the same of a later run that measured another value: a viewer then knows it again
            "partialFingerprints": {"edgeq/v1": hashlib.sha256(identity).hexdigest()},
        }
        if project is not None:
            place = {
                "artifactLocation": {"uri": urllib.parse.quote(project.file)},
                "region": {"startLine": project.of(one.model, one.key)},
            }
            result["locations"] = [{"physicalLocation": place}]
        results.append(result)
    kinds = {code.name.lower(): f"edgeq ended with exit code {int(code)}" for code in ExitCode} | {"warning": "warning"}
    described = [{"id": name, "shortDescription": {"text": gates.get(name) or kinds.get(name, name)}} for name in rules]
    run = {
        "tool": {"driver": {"name": "edgeq", "version": version, "rules": described}},
        "invocations": [{"executionSuccessful": report.exit_code not in _NO_VERDICT, "exitCode": report.exit_code}],
        "results": results,
    }
    document = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _escaped(text: str, also: str = "") -> str:
    for char in "%\r\n" + also:
        text = text.replace(char, f"%{ord(char):02X}")
    return safe_lines(text)


# --- A badge: what passed, as a small picture for a README.


_GREEN, _RED = "#2e7d32", "#c62828"

_GATES = 3  # names in a badge

_CHAR_PX, _PAD_PX = 6.6, 12  # of Verdana at 11 px, on average; the texts are stretched to these widths


def to_badge(report: ProjectReport) -> str:
    """Return an SVG with the number of bundles that pass, and the gates that failed, those of the exit code first."""
    gates = [gate for row in report.rows for gate in row.checked.gates if not gate.passed]
    gates += [gate for gate in report.app if not gate.passed]
    failed = list(dict.fromkeys(gate.name for gate in sorted(gates, key=lambda gate: gate.exit_code)))
    more = f" and {len(failed) - _GATES} more" if len(failed) > _GATES else ""
    passed = sum(not row.checked.exit_code for row in report.rows)
    broken = len(report.refused) + sum(model.error is not None for model in report.models)
    told = f"{passed} of {len(report.rows) + broken} pass" + (
        f", {', '.join(failed[:_GATES])}{more} failed" if failed else ""
    )
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
