#!/usr/bin/env python3
"""Find phrases that read like a translation, in what people read: messages, help texts, docstrings, README and docs.

Checked are all string literals with a space in them and the docstrings of modules and public names, in edgeq/, scripts/
and examples/, and the Markdown pages. Only this file is exempt, which quotes the phrases.

Replace the words of a rule by what they stand for: "'score' is no gate" becomes "unknown gate 'score'".
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "android_demo/*.md", "examples/**/*.md")
SOURCES = ("edgeq/**/*.py", "scripts/**/*.py", "examples/**/*.py")

# (pattern, what to write)
RULES: tuple[tuple[str, str], ...] = (
    (
        r"(?<!there )\b(?:is|are|was|were) no (?!longer|more|less|fewer|better|worse|larger|smaller|such)",
        "is not a …, or: unknown …, expected …",
    ),
    (r"\bof which\b", "start a new sentence, or say whose"),
    (r"\bso many\b", "give the number, or name the option"),
    (r"\botherwise than\b", "different from …"),
    (r"\btold\b", "say who gets what: given, reported, printed"),
    (r"\bmend(?:s|ed|ing)?\b", "fix"),
    (r"\b(?:is|lies|measured|kept|made) elsewhere\b", "name the place: another machine, another file"),
    (r"\bwhatever ships\b", "name it"),
    (r"\banew\b", "again"),
    (r"\bwhat must not\b", "name it"),
    (r"\bthe wish for\b", "name it"),
    (r"\bwhat (?:was|is) (?:lent|settled|wanted)\b", "name it"),
    (r"\bsettles? nothing\b", "has no measurement for …"),
    (r"\bevened out\b", "equalized"),
    (r"\bsay nothing\b", "are not meaningful"),
    (r"\bsays? otherwise\b", "name the option that overrides it"),
    (r"\ball the same\b", "even so, or leave it out"),
    (r"\bmust it be\b", "must be"),
    (r"\bhas not\b(?= *[,.;:)]|$)", "does not have"),
    (r"\bthat (?:is|are) none\b", "is not a …, or: invalid"),
    (r"\bnames no\b", "does not name a …, or: unknown …"),
    (r"\banother one than\b", "different from …"),
    (r"\bstands? twice\b", "occurs twice, is listed twice"),
    (r"\bleave (?:it|--\S+|this \w+) out\b|\bleave out --", "omit …"),
    (r"\bheld (?:to|against)\b", "checked against, compared with, the limits of …"),
    (r"\bwhatever\b", "regardless of …, any …"),
    (r"\b(?:nobody|somebody|anybody)\b", "say who, or use the passive"),
    (r"\b(?:the|this) very\b", "the same, this"),
    (r"\bof equals\b", "of several equal …"),
    (r"\bin the place of\b", "in place of, instead of"),
    (r"\bat hand\b", "available"),
    (r"\bgo(?:es)? on\b", "continue"),
    (r"\b(?:dearest|commonest)\b", "most expensive, most common"),
    (r"\bwhere there (?:is|are) none\b", "if there is none, or: without …"),
)
_RULES = tuple((re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One match of a rule; `line` counts from 1."""

    path: str
    line: int
    phrase: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r}: {self.advice}"


def found_in(text: str, path: str, first_line: int = 1) -> Iterator[Finding]:
    """Yield the findings in a text whose first line is `first_line` of its file."""
    for pattern, advice in _RULES:
        for match in pattern.finditer(text):
            yield Finding(
                path=path, line=first_line + text.count("\n", 0, match.start()), phrase=match[0].strip(), advice=advice
            )


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each message and each public docstring of a module.

    Private docstrings and comments are for those who read the code; keys and names have no space in them.
    """
    tree = ast.parse(source)
    private = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name.startswith("_")
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for value in node.values
        for part in ast.walk(value)
        if isinstance(value, ast.Constant)
    }
    hidden = private | parts
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            # a placeholder stands for a noun
            yield (
                node.lineno,
                "".join(str(value.value) if isinstance(value, ast.Constant) else "X" for value in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden:
            yield from ((node.lineno, text) for text in (node.value,) if " " in text)


def page_text(text: str) -> str:
    """Return a Markdown page without its blocks of code, line for line."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def findings(root: Path) -> list[Finding]:
    """Return all findings below `root`, by file and line."""
    found: list[Finding] = []
    for path in (path for pattern in SOURCES for path in root.glob(pattern) if path != root / "scripts/prose.py"):
        name = path.relative_to(root).as_posix()
        for line, text in python_texts(path.read_text(encoding="utf-8")):
            found += found_in(text, name, line)
    for path in (path for pattern in PAGES for path in root.glob(pattern)):
        found += found_in(page_text(path.read_text(encoding="utf-8")), path.relative_to(root).as_posix())
    return sorted(found, key=lambda one: (one.path, one.line))


def main() -> int:
    """Print all findings; return 1 if there are any."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = findings(ROOT)
    print("\n".join(map(str, found)), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
