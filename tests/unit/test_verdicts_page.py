"""docs/verdicts.md names the tests that hold what it says: each exists, and each row has some."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "verdicts.md").read_text()


def rows(heading: str) -> list[str]:
    """Return the rows of a section's table, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 50
    for path, name in named:
        tree = ast.parse((TESTS / path).read_text())
        assert name in {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}, (path, name)


def test_every_row_of_the_page_has_tests():
    held = rows("Tests")
    assert len(held) == len(rows("Table"))
    assert all("::test_" in row for row in held)
