"""What scripts and people parse or read stays: help pages, schemas, and the shape of `package --json`.

The expected texts lie in tests/snapshots/. After a change that is meant, write them anew and read the diff:
`EDGEQ_UPDATE_SNAPSHOTS=1 scripts/test tests/integration/test_snapshots.py`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer.main

from edgeq.cli.main import app, run
from edgeq.cli.report import SCHEMAS

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
UPDATE = bool(os.environ.get("EDGEQ_UPDATE_SNAPSHOTS"))


def compare(name: str, text: str) -> None:
    """Compare a text with its snapshot, or write the snapshot where that was asked for."""
    path = SNAPSHOTS / name
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.relative_to(SNAPSHOTS.parent)} is missing: run again with EDGEQ_UPDATE_SNAPSHOTS=1"
    assert text == path.read_text(encoding="utf-8")


def command_line(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        code = run(words)
    return code, out.getvalue()


def command_names(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield names
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from command_names(inner, (*names, name))


COMMANDS = list(command_names(typer.main.get_command(app)))


def shape(value: Any) -> Any:
    """Return a document with types in place of values; of a list the distinct shapes of its items."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        shapes: list[Any] = []
        for item in map(shape, value):
            if item not in shapes:
                shapes.append(item)
        return sorted(shapes, key=lambda one: json.dumps(one, sort_keys=True))
    return "null" if value is None else type(value).__name__


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(("edgeq", *words)))
def test_help(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    code, text = command_line(*words, "--help")
    assert code == 0
    compare(f"help/{'-'.join(('edgeq', *words))}.txt", text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    code, text = command_line("schema", name)
    assert code == 0
    compare(f"schema/{name}.json", text)


@pytest.mark.slow
def test_shape_of_package_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("digits", "--target", "linux-x86_64-x86", "--limit", "size=100kB", "--limit", "accuracy_drop=1pp")
    code, text = command_line("package", *words, "--no-cache", "--json", "-o", "out")
    assert code == 0
    document = json.loads(text)
    assert [row["scheme"] for row in document["rows"]] == ["static-int8"]
    for row in document["rows"]:  # a busy machine is warned of
        row["warnings"] = [warning for warning in row["warnings"] if not warning.startswith("the latency of ")]
    gates = [(gate["name"], gate["outcome"]) for gate in document["rows"][0]["gates"]]
    compare("package-digits.json", json.dumps({"gates": gates, "shape": shape(document)}, indent=1) + "\n")


def test_a_shape_has_no_values_but_every_key() -> None:
    document = {"b": [1, 2, {"x": None}], "a": 1.5, "c": True}
    assert shape(document) == {"a": "float", "b": ["int", {"x": "null"}], "c": "bool"}


def test_no_snapshot_is_left_over() -> None:
    expected = {f"help/{'-'.join(('edgeq', *words))}.txt" for words in COMMANDS}
    expected |= {f"schema/{name}.json" for name in SCHEMAS} | {"package-digits.json"}
    assert {str(path.relative_to(SNAPSHOTS)) for path in SNAPSHOTS.rglob("*.*")} == expected
