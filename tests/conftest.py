"""Fixtures of both kinds of tests, and what keeps the host's habits and its load out of them."""

import functools
import gc
import importlib
import os
import signal
import sys
from pathlib import Path

import pytest
from boards import board, server
from hypothesis import HealthCheck, settings

from edgeq.pipeline import tracking
from edgeq.pipeline.workers import EXPORT, TORCHVISION

__all__ = ["board", "server"]

# a caller's terminal, and its clock for releases, would change what is printed and published
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "SOURCE_DATE_EPOCH", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# a shell has what it starts in the background ignore Ctrl-C, and what tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

# other work on the machine is no fault of an example's; and what CI tries is what people try
settings.register_profile("edgeq", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeq")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from the libraries that all tests share, and that live until the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # a run of everything
        for name in ("torch", TORCHVISION, *EXPORT):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)


@pytest.fixture(autouse=True)
def _other_tests_are_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep results although other tests of this process name ONNX Runtime, or loaded native libraries of their own."""
    named_in, is_known = tracking._native_reader_named_in, tracking._is_known_library
    modules, libraries = list(sys.modules.values()), Path("/proc/self/maps").read_bytes()

    @functools.cache
    def sources() -> set[str]:  # only once a run asks: it takes longer than most tests
        return tracking._users({str(file) for one in modules if (file := getattr(one, "__file__", None))})

    monkeypatch.setattr(tracking, "_native_reader_named_in", lambda path: "" if path in sources() else named_in(path))
    monkeypatch.setattr(tracking, "_is_known_library", lambda path: os.fsencode(path) in libraries or is_known(path))
