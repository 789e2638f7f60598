"""The shape of the package: no circle of files, a bounded number of modules and of imports inside functions.

Which room may import which is import-linter's (pyproject.toml); `scripts/check` runs it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_MODULES = 245
# Imports of edgeq's own modules inside functions. Lower it whenever the number falls; the goal is 60, and what remains
# should be those that keep torch, pydantic or rich out of `edgeq --help` and `import edgeq`.
NESTED_IMPORTS = 13
SLACK = 5


def sources(root: Path) -> dict[str, Path]:
    """Return the files of the package by module name, `edgeq.core` for edgeq/core/__init__.py."""
    found = {}
    for path in sorted((root / "edgeq").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """Yield the modules of `known` that any import statement below `tree` names, wherever it stands."""
    names = frozenset(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in names:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else str(node.module)


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a circle, its first module again at the end; [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        found: list[str] = err.args[1]
        return found
    return []


def nested(tree: ast.AST, known: Iterable[str]) -> Iterator[ast.stmt]:
    """Yield each import statement inside a function that names a module of `known`, once."""
    names = frozenset(known)
    seen = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in seen:
                    seen.add(id(node))
                    if any(imported(node, names)):
                        yield node


MODULES = sources(ROOT)


@functools.cache  # not where test workers collect what another one runs
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: set(imported(tree, MODULES)) - {name} for name, tree in trees().items()}
    assert sum(map(len, graph.values())) > 500  # the graph is that of the whole package
    assert " -> ".join(circle(graph)) == ""


def test_a_circle_through_a_function_and_a_type_hint_is_found() -> None:
    known = ("edgeq.a", "edgeq.b", "edgeq.c")
    bodies = {
        "edgeq.a": "def f():\n    from edgeq.b import g",
        "edgeq.b": "if TYPE_CHECKING:\n    from edgeq import c",
        "edgeq.c": "import edgeq.a, os",
    }
    graph = {name: set(imported(ast.parse(body), (*known, "edgeq"))) for name, body in bodies.items()}
    assert graph == {"edgeq.a": {"edgeq.b"}, "edgeq.b": {"edgeq.c"}, "edgeq.c": {"edgeq.a"}}
    assert set(circle(graph)) == set(known)
    assert circle({"edgeq.a": {"edgeq.b"}, "edgeq.b": set()}) == []


def test_the_package_stays_small_enough_to_learn() -> None:
    assert len(MODULES) <= MOST_MODULES


def test_imports_inside_functions_only_become_fewer() -> None:
    places = [f"{name}:{node.lineno}" for name, tree in trees().items() for node in nested(tree, MODULES)]
    count = len(places)
    assert count <= NESTED_IMPORTS, f"{count}: move an import to the top\n" + "\n".join(places)
    assert count >= NESTED_IMPORTS - SLACK, f"only {count} are left: set NESTED_IMPORTS to {count}"


def test_an_import_in_a_nested_function_counts_once() -> None:
    tree = ast.parse("import edgeq.a\ndef f():\n    def g():\n        import edgeq.a\n        import os\n")
    assert [node.lineno for node in nested(tree, ("edgeq.a",))] == [4]
