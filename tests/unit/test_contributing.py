"""The files and names that CONTRIBUTING.md, ARCHITECTURE.md and SECURITY.md send people to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md")
_PATH = re.compile(r"`((?:[\w.*-]+/)+[\w.*-]*)`")
# a file, then in the same sentence a name that it defines: "`edgeq/lower/__init__.py` … `LOWERINGS`"
_PLACES = (
    ("edgeq/quantize/__init__.py", "METHODS"),
    ("edgeq/lower/__init__.py", "LOWERINGS"),
    ("edgeq/verify/runtimes.py", "RUNNERS"),
    ("edgeq/core/schemes.py", "LIMITS"),
    ("edgeq/core/schemes.py", "SchemeName"),
    ("edgeq/check/evaluate.py", "check"),
    ("edgeq/pipeline/package.py", "package"),
    ("edgeq/pipeline/package.py", "ArtifactBuilder"),
    ("edgeq/pipeline/publish.py", "publish"),
    ("edgeq/verify/verify.py", "judge"),
)


def missing(text: str) -> list[str]:
    """Return the paths in a page that lead nowhere; `pipeline/cache.py` is read as edgeq/pipeline/cache.py."""
    found = {path for path in _PATH.findall(text) if not path.startswith("OUT/")}
    known = {path for path in found for root in (ROOT, ROOT / "edgeq") if any(root.glob(path.rstrip("/")))}
    return sorted(found - known - {"tests/unit/ROOM/", "targets/NAME.toml", "edgeq/lower/NAME.py"})


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    assert missing((ROOT / page).read_text(encoding="utf-8")) == []


def test_a_path_that_leads_nowhere_is_found() -> None:
    assert missing("see `edgeq/check/evaluate.py`, `check/gate.py` and `edgeq/chek/evaluate.py`") == [
        "edgeq/chek/evaluate.py"
    ]


@pytest.mark.parametrize(("path", "name"), _PLACES)
def test_what_is_named_is_defined_there(path: str, name: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:def |class )?{name}\b *[:=(]", source, re.MULTILINE), f"{path} does not define {name}"
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert f"`{name}" in pages
