"""The prose check finds its phrases where people read them; edgeq has none."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
prose = runpy.run_path(str(ROOT / "scripts" / "prose.py"))


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
        ("facts that are none", "that are none"),
        ("--on 'x' names no device", "names no"),
        ("another one than was asked for", "another one than"),
        ("a key that stands twice", "stands twice"),
        ("add it, or leave --device out", "leave --device out"),
        ("there is nothing to gain: leave it out", "leave it out"),
        ("a bundle is held to its manifest", "held to"),
        ("ends with 7 whatever the gate", "whatever"),
        ("nobody can tell", "nobody"),
        ("the sizes of the very files", "the very"),
        ("of equals the first", "of equals"),
        ("in the place of the model", "in the place of"),
        ("the keys are not at hand", "at hand"),
        ("the same command goes on", "goes on"),
        ("the commonest label", "commonest"),
        ("None where there is none", "where there is none"),
    ],
)
def test_a_phrase_of_the_list_is_found(text, phrase):
    assert phrases(text) == [phrase]


PLAIN = [
    "it is no longer read",
    "untold",
    "recommend this",
    "there is no such option",
    "there are no targets",
    "leave a layer in float",
]


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


def test_sources_scripts_examples_and_pages_of_any_depth_are_read(tmp_path):
    for name in ("edgeq/core/a.py", "scripts/faults/b.py", "examples/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('print("it is no file")\n')
    for name in ("README.md", "docs/howto/d.md", "examples/e.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# It is no page\n")
    (tmp_path / "scripts/prose.py").write_text('RULES = ("it is no rule",)\n')
    assert [one.path for one in prose["findings"](tmp_path)] == [
        "README.md",
        "docs/howto/d.md",
        "edgeq/core/a.py",
        "examples/c.py",
        "examples/e.md",
        "scripts/faults/b.py",
    ]


def test_edgeq_has_no_finding():
    assert [str(one) for one in prose["findings"](ROOT)] == []
