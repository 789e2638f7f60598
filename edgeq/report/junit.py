"""JUnit XML, which CI systems show: a suite for each target and scheme, a test case for each gate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from edgeq.artifacts import Gate
from edgeq.project import ModelError, ProjectReport

# what XML 1.0 cannot say, even escaped
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: ProjectReport) -> str:
    """Return the run as JUnit XML. What is allowed to stay unmeasured is a skipped test; a model's error is one too."""
    root = ElementTree.Element("testsuites", name="edgeq")
    for model in report.models:
        for row in model.rows:
            _suite(root, f"{model.name} {row.target} {row.scheme}", row.checked.gates)
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
        told = _legal(f"limit {gate.limit or 'none'}, measured {gate.measured or 'nothing'}: {gate.detail}")
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
