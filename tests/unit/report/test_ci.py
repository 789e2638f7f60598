"""JUnit, Markdown, annotations and JSON: whole whatever the names hold, and each failure in them once."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import ExitCode
from edgeq.core.results.report import DataFacts, Gate, ModelError, ModelResult, PackageResult, ProjectReport, RunReport
from edgeq.report.ci import ProjectLines, to_annotations, to_badge, to_junit, to_markdown, to_sarif
from edgeq.report.diff import diff, diff_json
from edgeq.report.json import DOCUMENTS, project_json, schema_of, to_json


def gate(text: str, outcome: str = "failed", code: ExitCode = ExitCode.SIZE) -> Gate:
    return Gate(name=text, outcome=outcome, limit=text, measured=text, detail=text, exit_code=code)


def project(row: PackageResult, text: str = "size") -> ProjectReport:
    gates = (gate(text), gate(text, "ok"), gate(text, "allowed"), gate(text, "unverified", ExitCode.VERIFICATION))
    checked = dataclasses.replace(row.checked, gates=gates, warnings=(text,))
    report = RunReport(rows=(dataclasses.replace(row, checked=checked),), data=DataFacts())
    error = ModelError(what=text, fix=text, exit_code=ExitCode.UNSUPPORTED)
    models = (ModelResult(name="good", report=report), ModelResult(name=text, report=None, error=error))
    return ProjectReport(models=models, app=(gate(text),))


@pytest.fixture
def report(row: PackageResult) -> ProjectReport:
    return project(row)


def test_the_exit_code_is_the_lowest_of_all(report):
    assert report.exit_code == ExitCode.UNSUPPORTED
    assert dataclasses.replace(report, models=report.models[:1]).exit_code == ExitCode.SIZE
    assert ProjectReport(models=(), app=(gate("x", "unverified", ExitCode.VERIFICATION),)).exit_code == 7


def test_junit_counts_each_gate_once(report):
    root = ElementTree.fromstring(to_junit(report))  # noqa: S314  # our own
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "3",
        "errors": "1",
        "skipped": "1",
    }
    assert len(root.findall(".//failure")) == 3
    assert [node.get("type") for node in root.iter("error")] == ["UNSUPPORTED"]


def test_markdown_tells_what_failed(report):
    text = to_markdown(report)
    assert "1 of 1 bundle failed, 1 of 2 models could not be built, the app as a whole failed (exit code 3)" in text
    assert text.count("- failed:") == 2
    assert text.count("- unverified:") == 1
    assert text.count("- error:") == 1


def test_annotations_have_a_line_for_each_failure_and_warning(report):
    lines = to_annotations(report)
    assert [line.partition(" ")[0] for line in lines].count("::error") == 4
    assert [line.partition(" ")[0] for line in lines].count("::warning") == 1


def of(*rows: PackageResult) -> ProjectReport:
    return ProjectReport(models=(ModelResult(name="good", report=RunReport(rows=rows, data=DataFacts())),))


def test_markdown_tells_what_differs_from_the_base_branch(row):
    passed = dataclasses.replace(row.checked, gates=(gate("size", "ok"),))
    failed = dataclasses.replace(row.checked, gates=(gate("size"),))
    other = dataclasses.replace(row, target="linux-x86_64-x86", checked=passed)
    before = dataclasses.replace(row, checked=passed, size_bytes=8_000, digest="0" * 64)
    gone = dataclasses.replace(row, scheme="fp32", checked=passed)
    now = of(dataclasses.replace(row, checked=failed), other)
    told = to_markdown(now, of(before, other, gone)).partition("### Against the base branch\n\n")[2]
    head, _, *lines = [line for line in told.splitlines() if line.startswith("|")]
    assert head.startswith("| model | target | scheme | size |")
    assert [line.split(" | ")[-1].removesuffix(" |") for line in lines] == ["ok → failed: size", "gone"]
    assert "10.0 kB<br>+25.0%" in lines[0]
    assert "1 of 2 bundles are equal to those of the base branch, byte for byte." in told
    assert "base branch" not in to_markdown(now)


def test_markdown_has_no_second_table_where_the_base_branch_has_no_bundles(row):
    text = to_markdown(of(row), ProjectReport(models=()))
    assert text.endswith("### Against the base branch\n\nThere are no bundles of the base branch to compare with.\n")
    assert text.count("| model |") == 1


def test_annotations_are_at_the_lines_of_the_project_file(row, report):
    lines = ProjectLines(
        file="models/edgeq.toml", lines={("", "limit.size"): 3, ("good", ""): 9, ("good", "limit.size"): 12}
    )
    assert to_annotations(report, lines)[0].startswith("::error file=models/edgeq.toml,line=12,title=edgeq%3A ")
    other = ProjectLines(file="a,b.toml", lines={("", "limit.size"): 3})
    assert to_annotations(of(*report.models[0].rows), other)[0].startswith("::error file=a%2Cb.toml,line=3,title=")
    assert to_annotations(of(*report.models[0].rows), other)[-1].startswith("::warning file=a%2Cb.toml,line=1,title=")


FILE = ProjectLines(
    file="models/my edgeq.toml",
    lines={
        ("", "targets"): 1,
        ("", "limit.size"): 3,
        ("good", ""): 9,
        ("good", "limit.size"): 12,
        ("bad", ""): 14,
        ("bad", "source"): 16,
        ("bad", "data"): 18,
    },
)


def test_what_failed_without_a_limit_of_its_own_is_at_its_model() -> None:
    lines = {("", "limit"): 1, ("", "limit.size"): 2, ("one", ""): 5, ("two", ""): 8, ("two", "data"): 10}
    found = ProjectLines(file="edgeq.toml", lines=lines)
    assert [found.of("one", key) for key in ("limit.parity", "limit.size", "data.calibration", "")] == [5, 2, 5, 5]
    assert found.of("two", "data.calibration") == 10
    assert found.of("", "limit.parity") == 1


def test_every_view_says_what_to_try_next(row):
    size = gate("size")
    row = dataclasses.replace(row, checked=dataclasses.replace(row.checked, gates=(size,)))
    step = "the largest layer is conv: 90 B of 10.0 kB"
    assert f"### What to try next\n\n- android-arm64-xnnpack static-int8: {step}\n" in to_markdown(of(row))
    root = ElementTree.fromstring(to_junit(of(row)))  # noqa: S314  # our own
    assert [node.text for node in root.iter("failure")] == [f"exit code 4\nnext: {step}"]
    assert sarif(of(row))["results"][0]["message"]["text"].endswith(f"\nnext: {step}")
    assert to_annotations(of(row))[0].endswith(f"%0Anext: {step}")


def test_a_drop_that_the_data_cannot_prove_asks_for_data_and_not_for_another_scheme(row):
    drop = dataclasses.replace(gate("accuracy_drop"), exit_code=ExitCode.ACCURACY, bound=0.1)
    fidelity = dataclasses.replace(row.verified.fidelity, distinct=599, lost=1, won=0)
    verified = dataclasses.replace(row.verified, fidelity=fidelity)
    failed = dataclasses.replace(row, verified=verified, checked=dataclasses.replace(row.checked, gates=(drop,)))
    text = to_markdown(of(failed))
    assert "give more evaluation data (599 distinct samples prove a drop within 0.33 pp at best" in text
    assert "--limit-on point" in text
    assert "--keep-fp32" not in text
    enough = dataclasses.replace(
        failed, verified=dataclasses.replace(verified, fidelity=dataclasses.replace(fidelity, distinct=5000))
    )
    assert "give more evaluation data" not in to_markdown(of(enough))


def test_a_busy_host_is_no_alert_of_the_repository(row):
    timing = dataclasses.replace(row.verified.timing, p90_ms=9 * row.verified.timing.p50_ms)
    verified = dataclasses.replace(row.verified, timing=timing)
    checked = dataclasses.replace(row.checked, gates=(), warnings=(timing.warning, "two classes tie"))
    busy = of(dataclasses.replace(row, verified=verified, checked=checked))
    assert "this host was busy" in timing.warning
    assert [one["message"]["text"].partition(": ")[2] for one in sarif(busy)["results"]] == ["two classes tie"]
    assert len(to_annotations(busy)) == 2


def sarif(report: ProjectReport, lines: ProjectLines | None = None) -> dict:
    """Return the run of a SARIF document, after checks of what its schema requires of every part in it."""
    document = json.loads(to_sarif(report, version="1.2", gates={"size": "bytes of the artifact"}, project=lines))
    assert (document["version"], document["$schema"].rpartition("/")[2]) == ("2.1.0", "sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    assert run["tool"]["driver"]["name"] == "edgeq"
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert all(rule["shortDescription"]["text"] for rule in rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        assert result["message"]["text"]
        for place in result.get("locations", ()):
            assert place["physicalLocation"]["region"]["startLine"] >= 1
            assert " " not in place["physicalLocation"]["artifactLocation"]["uri"]
    return run


def test_sarif_has_a_result_for_each_failure_at_its_line(row, report):
    several = (
        ModelError(what="no such file", fix="check it", exit_code=ExitCode.USAGE, key="data.calibration"),
        ModelError(what="no such factory", fix="name it", exit_code=ExitCode.USAGE, key="model"),
        ModelError(what="no evaluation data", fix="give some", exit_code=ExitCode.VERIFICATION, key="limit.drop"),
    )
    error = dataclasses.replace(several[0], what="3 errors", several=several)
    broken = ModelResult(name="bad", report=None, error=error)
    found = sarif(dataclasses.replace(report, models=(report.models[0], broken), app=()), FILE)
    told = [
        (one["ruleId"], one["level"], one["locations"][0]["physicalLocation"]["region"]["startLine"])
        for one in found["results"]
    ]
    assert told == [
        ("size", "error", 12),
        ("size", "error", 12),
        ("warning", "warning", 9),
        ("usage", "error", 18),
        ("usage", "error", 16),
        ("verification", "error", 14),
    ]
    assert found["results"][4]["message"]["text"] == "bad: no such factory; fix: name it"
    assert (
        found["results"][4]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "models/my%20edgeq.toml"
    )
    assert found["invocations"] == [{"executionSuccessful": True, "exitCode": 2}]
    assert found["tool"]["driver"]["rules"][0] == {
        "id": "size",
        "shortDescription": {"text": "bytes of the artifact"},
    }


def test_sarif_of_a_later_run_has_the_same_fingerprints(report):
    (row,) = report.rows
    gates = tuple(dataclasses.replace(one, measured="another", detail="") for one in row.checked.gates)
    checked = dataclasses.replace(row.checked, gates=gates)
    models = (
        dataclasses.replace(report.models[0], report=of(dataclasses.replace(row, checked=checked)).models[0].report),
    )
    before, after = sarif(report), sarif(dataclasses.replace(report, models=(*models, report.models[1])))
    assert [one["message"] for one in before["results"]] != [one["message"] for one in after["results"]]
    assert [one["partialFingerprints"] for one in before["results"]] == [
        one["partialFingerprints"] for one in after["results"]
    ]
    assert all("locations" not in one for one in before["results"])
    assert len({one["partialFingerprints"]["edgeq/v1"] for one in before["results"]}) > 1


def test_a_run_that_had_no_verdict_was_not_successful(report):
    broken = ModelResult(
        name="bad", report=None, error=ModelError(what="no disk", fix="free some", exit_code=ExitCode.ENVIRONMENT)
    )
    (invocation,) = sarif(ProjectReport(models=(broken,)))["invocations"]
    assert invocation == {"executionSuccessful": False, "exitCode": 9}
    assert sarif(ProjectReport(models=()))["results"] == []


def test_the_badge_says_how_many_pass(row, report):
    passed = dataclasses.replace(row, checked=dataclasses.replace(row.checked, gates=(gate("size", "ok"),)))
    good, bad = to_badge(of(passed)), to_badge(report)
    assert "edgeq: 1 of 1 pass<" in good
    assert "edgeq: 0 of 2 pass, size failed<" in bad
    codes = {"parity": 7, "accuracy_drop": 5, "size": 4, "audit": 6}
    gates = tuple(gate(name, "failed", ExitCode(code)) for name, code in codes.items())
    several = dataclasses.replace(row, checked=dataclasses.replace(row.checked, gates=gates[:3]))
    # the gate of the exit code is the first
    assert "edgeq: 0 of 1 pass, size, accuracy_drop, parity failed<" in to_badge(of(several))
    several = dataclasses.replace(row, checked=dataclasses.replace(row.checked, gates=gates))
    assert "edgeq: 0 of 1 pass, size, accuracy_drop, audit and 1 more failed<" in to_badge(of(several))
    assert "#2e7d32" in good
    assert "#c62828" in bad
    ElementTree.fromstring(good)  # noqa: S314  # our own


def test_every_view_tells_that_a_bundle_was_not_installed(report):
    passed = dataclasses.replace(report, models=(), app=())
    problem = ModelError(what="random weights", fix="give --weights", exit_code=ExitCode.VERIFICATION)
    told = dataclasses.replace(passed, not_installed=problem)
    assert (passed.exit_code, told.exit_code) == (0, 7)
    assert (project_json(passed)["error"], project_json(told)["error"]["exit_code"]) == (None, 7)
    assert project_json(told)["exit_code"] == 7
    root = ElementTree.fromstring(to_junit(told))  # noqa: S314  # our own
    assert (root.get("tests"), root.get("errors")) == ("1", "1")
    assert "not every bundle was installed (exit code 7)" in to_markdown(told)
    assert "- error: not installed: random weights" in to_markdown(told)
    assert to_annotations(told) == ["::error title=edgeq%3A install::random weights; fix: give --weights"]


HOSTILE = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("|<>&\"'`\r\n:%,\0\x1b]")), min_size=1, max_size=30
)


@given(text=HOSTILE)
def test_any_text_stays_in_its_place(text):
    report = ProjectReport(
        models=(ModelResult(name=text, report=None, error=ModelError(what=text, fix=text, exit_code=ExitCode.USAGE)),),
        app=(gate(text),),
    )
    root = ElementTree.fromstring(to_junit(report).encode(errors="replace"))  # noqa: S314  # our own
    assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("2", "1", "1")
    lines = to_annotations(report)
    assert len(lines) == 2
    assert all("\n" not in line and "\r" not in line and line.startswith("::error title=") for line in lines)
    table = [line for line in to_markdown(report).splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {5}
    json.dumps(project_json(report), allow_nan=False)
    assert len(sarif(report, ProjectLines(file=text, lines={}))["results"]) == 2


def keys_in_schema(value: object, node: dict, root: dict, path: str = "") -> None:
    """Assert that every key of a document is in its schema."""
    options = [node, *node.get("anyOf", [])]
    options = [root["$defs"][one["$ref"].rsplit("/", 1)[1]] if "$ref" in one else one for one in options]
    if isinstance(value, dict):
        known = next((one for one in options if "properties" in one or one.get("type") == "object"), None)
        assert known is not None, path
        for key, inner in value.items():
            if "properties" in known:
                assert key in known["properties"], f"{path}.{key}"
                keys_in_schema(inner, known["properties"][key], root, f"{path}.{key}")
    elif isinstance(value, list):
        items = next((one["items"] for one in options if "items" in one), {})
        for inner in value:
            keys_in_schema(inner, items, root, f"{path}[]")


def test_documents_are_what_their_schemas_say(report, row):
    installed: dict = {"installed": []}
    documents = {
        "package": to_json(report.models[0].report) | installed,
        "build": project_json(report) | installed,
    }
    for name, document in documents.items():
        DOCUMENTS[name].model_validate(json.loads(json.dumps(document)))
        schema = schema_of(name)
        keys_in_schema(document, schema, schema)


def test_a_difference_names_what_changed_and_nothing_else(row):
    from edgeq.pipeline.reports import read_source

    old = read_source(row.path)
    assert diff(old, old).changes == ()
    layers = (dataclasses.replace(row.layers[0], weight_bytes=45), dataclasses.replace(row.layers[1], name="tail"))
    new = dataclasses.replace(old, row=dataclasses.replace(old.row, size_bytes=11_000, layers=layers))
    found = diff(old, new)
    assert [(one.section, one.name, one.told_old, one.told_new, one.delta) for one in found.changes] == [
        ("size", "size_bytes", "10.0 kB", "11.0 kB", "+1.00 kB (+10.0%)"),
        ("layers", "conv", "int8, 90 B, 900 MACs", "int8, 45 B, 900 MACs", ""),
        ("layers", "head", "float, 10 B, 100 MACs", "-", ""),
        ("layers", "tail", "-", "float, 10 B, 100 MACs", ""),
    ]
    DOCUMENTS["diff"].model_validate(diff_json(found))
    assert json.dumps(diff_json(found), allow_nan=False)
