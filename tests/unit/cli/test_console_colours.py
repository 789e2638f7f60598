"""A verdict's colours reach a terminal; nothing else that would change its state does."""

from __future__ import annotations

import sys

import pytest

from edgeq.cli.console import say

TEXT = "\x1b[1;31mfailed\x1b[0m \x1b[32mok\x1b[0m \x1b[8mhidden\x1b[2J \x1b]0;title\x07"


@pytest.mark.parametrize(
    ("is_terminal", "told"),
    [
        (True, "\x1b[1;31mfailed\x1b[0m \x1b[32mok\x1b[0m ?[8mhidden?[2J ?]0;title?\n"),
        (False, "?[1;31mfailed?[0m ?[32mok?[0m ?[8mhidden?[2J ?]0;title?\n"),
    ],
)
def test_only_the_colours_of_a_verdict_are_kept(is_terminal, told, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    say(TEXT)
    assert capsys.readouterr().out == told
