"""The prose check finds its phrases where people read them, and its baseline only shrinks."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
prose = runpy.run_path(str(ROOT / "scripts" / "prose.py"))
Finding = prose["Finding"]


def phrases(text):
    return [one.phrase for one in prose["found_in"](text, "page.md")]


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("'score' is no gate", "is no"),
        ("three models, of which two are small", "of which"),
        ("At most so many", "so many"),
        ("scored otherwise than here", "otherwise than"),
        ("as it was told", "told"),
        ("mend the line", "mend"),
        ("a key that is elsewhere", "is elsewhere"),
    ],
)
def test_a_phrase_of_the_list_is_found(text, phrase):
    assert phrases(text) == [phrase]


PLAIN = ["it is no longer read", "untold", "recommend this", "there is no such option", "there are no targets"]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_english_is_not(text):
    assert phrases(text) == []


def test_messages_and_public_docstrings_are_read_and_private_ones_are_not():
    source = '''"""It is no module."""
KEY = "told"
def public(): "Told to all."
def _private(): "Told to nobody."
def message(x): return f"{x} is no {x}", 'it is no text'
# told
'''
    texts = dict.fromkeys(text for _, text in prose["python_texts"](source))
    assert list(texts) == ["It is no module.", "Told to all.", "X is no X", "it is no text"]


def test_code_blocks_of_a_page_are_left_out_and_lines_keep_their_numbers():
    page = "one\n```\nis no gate\n```\nis no gate\n"
    assert [one.line for one in prose["found_in"](prose["page_text"](page), "page.md")] == [5]


def test_more_findings_than_the_baseline_fail_and_fewer_ask_for_an_update():
    one = Finding(path="a.py", line=3, phrase="told", advice="…")
    assert prose["problems"]([one], {"a.py": 1}) == []
    assert prose["problems"]([one], {}) == ["a.py:3: 'told': …"]
    assert len(prose["problems"]([one, one], {"a.py": 1})) == 2
    assert prose["problems"]([], {"a.py": 1})[0].startswith("a.py: 0 findings, 1 in")
    assert prose["lowered"]([one], {"a.py": 4, "b.py": 2}) == {"a.py": 1}
    assert prose["lowered"]([one, one], {"a.py": 1}) == {"a.py": 1}


def test_the_baseline_holds():
    baseline = json.loads((ROOT / prose["BASELINE"]).read_text())
    assert prose["problems"](prose["findings"](ROOT), baseline) == []
