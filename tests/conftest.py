"""Fixtures of both kinds of tests."""

from boards import board, server

__all__ = ["board", "server"]
