"""The site's source is whole: every page has its place, and the how-tos are what their runner can run."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
run = runpy.run_path(str(ROOT / "scripts/docs_run.py"))


def test_every_page_of_the_documentation_has_a_place_on_the_site(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/docs_site.py", tmp_path / "site"], check=True)
    settings = json.loads((tmp_path / "site/mkdocs.yml").read_text())
    pages = tmp_path / "site/pages"
    listed = {
        page
        for entry in settings["nav"]
        for value in entry.values()
        for page in ([value] if isinstance(value, str) else [one for item in value for one in item.values()])
    }
    assert listed == {str(path.relative_to(pages)) for path in pages.rglob("*.md")}
    commands = (pages / "reference/commands.md").read_text()
    assert "## edgeq ota release\n" in commands
    assert "| 4 | size |" in (pages / "reference/exit-codes.md").read_text()
    assert "::: edgeq.api.verify\n" in (pages / "reference/api.md").read_text()


def test_the_gallery_links_to_the_pages_that_were_made(tmp_path: Path) -> None:
    made = tmp_path / "made/small/rejected/digits/linux-x86_64-x86/report.html"
    made.parent.mkdir(parents=True)
    made.write_text("<p>rejected</p>")
    subprocess.run([sys.executable, ROOT / "scripts/docs_site.py", tmp_path / "site", tmp_path / "made"], check=True)
    pages = tmp_path / "site/pages/gallery"
    text = (pages / "gallery.md").read_text()
    assert f"[A rejected bundle]({made.relative_to(tmp_path / 'made')}) shows" in text
    assert "\nA bundle shows" in text  # it was not made
    assert (pages / made.relative_to(tmp_path / "made")).read_text() == "<p>rejected</p>"


def test_every_how_to_has_commands_or_says_why_not() -> None:
    pages = sorted((ROOT / "docs/howto").glob("*.md"))
    assert len(pages) >= 20
    bare = [page.name for page in pages if run["files_and_commands"](page.read_text())[1] == "set -euo pipefail"]
    assert bare == ["add-to-app.md"]  # it needs the Android SDK


def test_the_runner_writes_files_runs_commands_and_stops_at_the_first_that_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n# one.py\nprint(6 * 7)\n```\n\n```sh\npython one.py\n```\n")
    done = run["run"](page)
    assert (done.returncode, done.stdout) == (0, "42\n")
    page.write_text("```sh\nfalse\necho later\n```\n")
    done = run["run"](page)
    assert (done.returncode, done.stdout) == (1, "")
