#!/usr/bin/env python3
"""Lay out the source of the documentation's site in a folder: pages as they are in the repository, and a reference.

    scripts/docs_site.py FOLDER [GALLERY]

GALLERY is what scripts/docs_gallery.py made; without it that page names the commands only. The reference is made from
the code: every command's help, exit codes, schemes, and the Python API by its docstrings. Options, targets, limits and
gates are tables of the pages themselves (scripts/docs_tables.py).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the reference is that of this checkout, whatever is installed

from docs_gallery import PAGES as GALLERY  # noqa: E402
from docs_tables import _table  # noqa: E402

import edgeq  # noqa: E402
from edgeq.core.errors import EdgeqError, ExitCode  # noqa: E402
from edgeq.core.profiles import profile_files  # noqa: E402
from edgeq.core.targets import load_target  # noqa: E402

# by section: pages, each with the title of its first heading
SECTIONS = {
    "Start": ["docs/start/android.md", "docs/start/researcher.md", "docs/start/platform.md"],
    "How-to": [],
    "Guides": [
        *("docs/models.md", "docs/ci.md", "docs/fleets.md", "docs/devices.md", "docs/updates.md", "docs/api.md"),
        *("android_demo/README.md", "examples/README.md"),
    ],
    "Reference": [
        *("docs/options.md", "docs/targets.md", "docs/schemes.md", "docs/gates.md", "reference/commands.md"),
        *("reference/exit-codes.md", "reference/schemes.md", "reference/api.md"),
    ],
    "Explained": ["docs/explained.md", "docs/verdicts.md", "docs/figures.md", "gallery/gallery.md"],
    "Troubleshooting": ["docs/troubleshooting.md"],
    "Project": ["docs/README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"],
}

_SETTINGS = {
    "site_name": "edgeq",
    "docs_dir": "pages",
    "use_directory_urls": False,  # it can be read from a folder, without a server
    "theme": {
        "name": "material",
        "font": False,  # nothing is fetched from elsewhere
        "features": ["navigation.indexes", "navigation.top", "content.code.copy", "search.highlight", "toc.follow"],
        "palette": [
            {"media": "(prefers-color-scheme: light)", "scheme": "default", "primary": "indigo"},
            {"media": "(prefers-color-scheme: dark)", "scheme": "slate", "primary": "indigo"},
        ],
    },
    "plugins": [
        "search",
        {
            "mkdocstrings": {
                "handlers": {
                    "python": {
                        "paths": [str(ROOT)],
                        "options": {
                            "docstring_style": "google",
                            "show_source": False,
                            "show_root_heading": True,
                            "show_if_no_docstring": False,
                            "members_order": "source",
                            "filters": ["!^_", "!^model_"],
                        },
                    }
                }
            }
        },
    ],
    "markdown_extensions": ["tables", "admonition", {"toc": {"permalink": True}}, "pymdownx.superfences"],
    "validation": {"links": {"anchors": "warn", "not_found": "warn", "unrecognized_links": "warn"}},
}


def commands_page() -> str:
    """Return the help of every command, as tests/integration/test_snapshots.py holds it."""
    lines = ["# Commands", "", "What `edgeq COMMAND --help` prints.", ""]
    for path in sorted((ROOT / "tests/snapshots/help").glob("*.txt")):
        name = path.stem.replace("-", " ")
        lines += [f"## {name}", "", "```text", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def exit_codes_page() -> str:
    """Return the exit codes with the errors that have them."""
    kinds: dict[ExitCode, list[str]] = {}
    waiting = [EdgeqError]
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if kind.__module__ == EdgeqError.__module__ and "exit_code" in vars(kind):
            kinds.setdefault(kind.exit_code, []).append(f"`{kind.__name__}`: {(kind.__doc__ or '').partition(' (')[0]}")
    rows = [(str(int(code)), code.name.lower(), "; ".join(kinds.get(code, []))) for code in ExitCode]
    table = _table(("code", "name", "errors"), rows)
    return "\n".join(["# Exit codes", "", "If several gates fail, the exit code is the lowest.", "", *table, ""])


def schemes_page() -> str:
    """Return which target has which scheme."""
    targets = [load_target(path) for path in profile_files()]
    names = list(edgeq.schemes())
    rows = [
        (
            f"`{one.name}`",
            *("default" if name == one.schemes[0] else "yes" if name in one.schemes else "" for name in names),
        )
        for one in targets
    ]
    head = ("target", *names)
    about = "What each scheme does on each runtime: [schemes](../docs/schemes.md)."
    return "\n".join(["# Schemes by target", "", about, "", *_table(head, rows), ""])


def api_page() -> str:
    """Return the page that mkdocstrings fills with the docstrings of every public name."""
    told = "Every public name. [The guide](../docs/api.md) has examples and the forms of data."
    names = [name for name in edgeq.__all__ if not name.startswith("_")]
    places = {name: _place(name) for name in names}
    lines = ["# Python API reference", "", told, ""]
    for name in sorted(names, key=lambda name: (name[0].isupper(), name)):
        lines += [f"::: {places[name]}", ""]
    return "\n".join(lines)


def _place(name: str) -> str:
    """Return the full name of a public name where it is defined: the package resolves its names when they are used."""
    value = getattr(edgeq, name)
    if isinstance(value, ModuleType):  # edgeq.verify is the room and, called, the function of edgeq.api
        return f"edgeq.api.{name}"
    return f"{value.__module__}.{value.__qualname__}"


def gallery_page(folder: Path) -> str:
    """Return the page that links to the report pages in its folder."""
    lines = ["# Gallery of report pages", ""]
    lines += ["Pages that edgeq wrote about its built-in model. Each is one file, and needs no network.", ""]
    for page in GALLERY:
        name = f"[{page.title}]({page.path})" if (folder / page.path).is_file() else page.title
        lines += [f"## {page.title}", "", f"{name} shows {page.shows}.", ""]
        lines += ["```sh", page.command, "```", ""] if page.command else ["The command above writes it too.", ""]
    return "\n".join(lines)


def title(page: Path) -> str:
    """Return a page's first heading."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else page.stem


def lay_out(folder: Path, gallery: Path | None = None) -> None:
    """Write pages and mkdocs.yml into a folder, after removing it; with the report pages of `gallery`."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    shutil.copytree(ROOT / "docs", pages / "docs")
    named = [page for section in SECTIONS.values() for page in section]
    for page in ("README.md", "android_demo/screen.png", *named):
        if not page.startswith(("docs/", "reference/", "gallery/")):
            (pages / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / page, pages / page)
    (pages / "reference").mkdir()
    for name, make in (
        ("commands", commands_page),
        ("exit-codes", exit_codes_page),
        ("schemes", schemes_page),
        ("api", api_page),
    ):
        (pages / f"reference/{name}.md").write_text(make(), encoding="utf-8")
    (pages / "gallery").mkdir()
    for source in sorted(gallery.rglob("*.html")) if gallery is not None else ():
        copy = pages / "gallery" / source.relative_to(gallery)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    (pages / "gallery/gallery.md").write_text(gallery_page(pages / "gallery"), encoding="utf-8")
    how_to = sorted(f"docs/howto/{path.name}" for path in (pages / "docs/howto").glob("*.md"))
    nav: list[dict[str, object]] = [{"edgeq": "README.md"}]
    for section, listed in (SECTIONS | {"How-to": how_to}).items():
        nav.append({section: [{title(pages / page): page} for page in listed]})
    # JSON is YAML
    (folder / "mkdocs.yml").write_text(json.dumps(_SETTINGS | {"nav": nav}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    lay_out(*map(Path, sys.argv[1:]))
