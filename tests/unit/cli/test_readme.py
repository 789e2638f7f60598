"""What the documentation tells people to type exists: commands, options, names of targets, scripts, links."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from edgeq.cli.main import app

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "android_demo" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# an index, and a page of Python
WITHOUT_COMMANDS = {"docs/README.md", "docs/howto/python.md"}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the blocks of code with their language, those in lists too."""
    for indent, kind, block in re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL):
        yield kind, textwrap.dedent(block) if indent else block


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the lines of `edgeq`, in blocks and in running text, as a shell takes them apart."""
    lines = [line for _, block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(edgeq [^`]+)`", page.read_text())
    for line in lines:
        bare = line.removeprefix("$ ").removeprefix("- run: ").strip()
        if bare.startswith("edgeq "):
            yield shlex.split(bare, comments=True)[1:]


def problems(words: list[str]) -> list[str]:
    """Return what no command knows."""
    command, told = typer.main.get_command(app), []
    words = ["report merge", *words[2:]] if words[:2] == ["report", "merge"] else words
    while (inner := getattr(command, "commands", None)) and words and not words[0].startswith("-"):
        names = words[0].split("|")
        told += [f"no command {name}" for name in names if name not in inner]
        if told:
            return told
        command, words = inner[names[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return [f"{command.name} has no {option}" for option in sorted(used - known - {"--help", "--debug"})]


@pages
def test_every_command_and_option_exists(page: Path) -> None:
    found = list(commands(page))
    assert bool(found) == (str(page.relative_to(ROOT)) not in WITHOUT_COMMANDS)
    assert [(words, told) for words in found if (told := problems(words))] == []


def test_readme_is_short_and_has_the_path_of_a_newcomer() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 250
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["Install", "First run", "Your own model", "Python", "CI", "Where to read on"]
    run = {words[0] for words in commands(ROOT / "README.md")}
    assert run >= {"doctor", "package", "verify", "inspect", "install", "build", "init"}


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([a-z_/-]+\.md)\)", (docs / "README.md").read_text()))
    assert linked == {str(path.relative_to(docs)) for path in docs.rglob("*.md")} - {"README.md"}


def test_python_and_toml_of_the_pages_can_be_parsed() -> None:
    kinds = []
    for page in PAGES:
        for kind, block in blocks(page):
            if kind in ("python", "toml"):
                kinds.append(kind)
                ast.parse(block) if kind == "python" else tomllib.loads(block)
    assert {"python", "toml"} <= set(kinds)


def test_what_does_not_exist_is_found() -> None:
    assert problems(["pakage", "x"]) == ["no command pakage"]
    assert problems(["ota", "release|relaese"]) == ["no command relaese"]
    assert problems(["package", "x", "--traget", "y", "-o", "out"]) == ["package has no --traget"]


@pages
def test_every_target_and_script_exists(page: Path) -> None:
    text = page.read_text()
    names = set(re.findall(r"\b(?:android|ios|linux)-(?:arm64|x86_64)-[a-z0-9-]*[a-z0-9]", text))
    own = {"android-arm64-oldapp", "linux-x86_64-oldhost"}  # the user's own, in examples
    assert names - {path.stem for path in (ROOT / "targets").rglob("*.toml")} <= own
    scripts = set(re.findall(r"\bscripts/[a-z_.]+[a-z]", text))
    assert [name for name in scripts if not (ROOT / name).exists()] == []


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]*(?:#[^)]*)?)\)", page.read_text()):
        place, _, anchor = link.partition("#")
        there = (page.parent / place).resolve() if place else page
        assert there.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_the_tables_are_as_the_code_has_them() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/docs_tables.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_table_that_differs_is_written_anew() -> None:
    updated = runpy.run_path(str(ROOT / "scripts/docs_tables.py"))["updated"]
    page = (ROOT / "docs/options.md").read_text()
    assert updated(page.replace("`128`", "`64`")) == page
    with pytest.raises(KeyError):
        updated("<!-- table: no such -->\n<!-- end of table -->\n")
