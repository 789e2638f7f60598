"""Whose line it was: libraries raise from deep inside, people want the line of their own model."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from types import FrameType

# the demo's model stands for a user's
_OWN = Path(__file__).resolve().parent
_DEMO = _OWN / "demo"
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python3")


def user_line(err: BaseException) -> str:
    """Return " at file.py:12 in Head.forward" of the innermost frame that is the user's own code, or ""."""
    users = [(frame, line) for frame, line in traceback.walk_tb(err.__traceback__) if _is_users(frame)]
    return _words(*users[-1]) if users else ""


def calling_line() -> str:
    """Return the same of the code that is running now."""
    user = next(((frame, line) for frame, line in traceback.walk_stack(sys._getframe(1)) if _is_users(frame)), None)
    return _words(*user) if user else ""


def traced_line(stack: str | None) -> str:
    """Return the same of a stack in Python's words, as torch keeps it of each node of a graph."""
    frames = re.findall(r'File "(.+)", line (\d+), in (\S+)', stack or "")
    user = next(((name, line, where) for name, line, where in reversed(frames) if _is_users_file(name)), None)
    return f" at {user[0]}:{user[1]} in {user[2]}" if user else ""


def _words(frame: FrameType, line: int) -> str:
    return f" at {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"


def _is_users(frame: FrameType) -> bool:
    return _is_users_file(frame.f_code.co_filename)


def _is_users_file(filename: str) -> bool:
    """Whether a frame's file is neither Python's, a library's, edgeq's, nor generated code."""
    if filename.startswith("<") or any(part in filename for part in _LIBRARIES):
        return False
    path = Path(filename).resolve()
    return not path.is_relative_to(_OWN) or path.is_relative_to(_DEMO)
