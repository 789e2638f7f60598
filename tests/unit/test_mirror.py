"""Unit tests mirror the tree: tests/unit/<room>/test_<module>[_<subject>].py."""

from __future__ import annotations

from pathlib import Path

UNIT = Path(__file__).parent
PACKAGE = UNIT.parents[1] / "edgeq"
# of the Kotlin store, of the README, and of random graphs as artifacts
NOT_OF_A_MODULE = {
    "android/test_add_to_app.py",
    "android/test_store_vectors.py",
    "cli/test_readme.py",
    "lower/test_random_graphs.py",
}


def has_module(file: Path) -> bool:
    room, words = PACKAGE / file.relative_to(UNIT).parent, file.stem.removeprefix("test_").split("_")
    names = ["_".join(words[: end + 1]) for end in range(len(words))]
    return any((room / f"{name}.py").exists() or name == room.name for name in names)


def test_every_unit_test_is_named_after_a_module():
    files = [file for file in UNIT.rglob("test_*.py") if file.parent != UNIT]
    odd = [str(file.relative_to(UNIT)) for file in files if not has_module(file)]
    assert set(odd) == NOT_OF_A_MODULE
