"""Plain text for a terminal: aligned columns, and names from files that cannot move the cursor."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return `text` on one line, without the control characters that a bundle from elsewhere may hold."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def aligned(rows: Sequence[Sequence[str]], *, indent: str = "  ", right: frozenset[int] = frozenset()) -> list[str]:
    """Return a line for each row, its cells under those of the row above.

    Args:
        rows: cells; all rows have as many.
        indent: put before each line.
        right: the columns whose cells end together.
    """
    safe = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*safe, strict=True)]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in safe
    ]
