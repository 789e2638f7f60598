"""Errors are two lines and an exit code; signals unwind; machines get JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edgeq.cli.main import run
from edgeq.core.errors import EdgeqError, IntegrityError

ROOT = Path(__file__).parents[3]
PACKAGE = ("package", "digits", "--target", "android-arm64-xnnpack", "--on", "host")


def raiser(err: BaseException):
    def act() -> None:
        raise err

    return act


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/out/model.pte")


@pytest.mark.parametrize(
    ("err", "code", "what", "fix"),
    [
        (IntegrityError("the hash differs", "build it again"), 8, "the hash differs", "build it again"),
        (full(), 9, "no space left on the disk that holds /data/out/model.pte", "free some space"),
        (MemoryError(), 9, "out of memory", "more memory"),
        (ZeroDivisionError("by zero\nsecond"), 1, "internal error: ZeroDivisionError: by zero", "--debug and report"),
        (EOFError("Ran out of input"), 1, "internal error: EOFError: Ran out of input", "--debug and report"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "internal error: BrokenPipeError", "--debug and report"),
        (KeyboardInterrupt(), 130, "interrupted", "same command again"),
    ],
)
def test_every_exception_is_two_lines_and_a_code(pipeline, project, capfd, err, code, what, fix):
    pipeline.act = raiser(err)
    assert run([*PACKAGE, "--quiet"]) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {what}")
    assert lines[1].startswith("  fix: ")
    assert fix in lines[1]


def test_a_full_disk_is_found_under_another_exception(pipeline, project, capfd):
    wrapped = RuntimeError("could not write")
    wrapped.__cause__ = full()
    pipeline.act = raiser(wrapped)
    assert run([*PACKAGE, "-q"]) == 9
    assert "no space left" in capfd.readouterr().err


def test_a_message_cannot_break_the_two_lines(pipeline, project, capfd):
    pipeline.act = raiser(EdgeqError("a\nb\x1b[31m", "c\nd"))
    assert run([*PACKAGE, "-q"]) == 1
    assert capfd.readouterr().err == "error: a b?[31m\n  fix: c d\n"


@pytest.mark.parametrize("place", [0, 2, 5])
def test_debug_prints_the_traceback_wherever_it_stands(pipeline, project, capfd, place):
    pipeline.act = raiser(ZeroDivisionError("by zero"))
    argv = [*PACKAGE, "-q"]
    argv.insert(place, "--debug")
    assert run(argv) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "in act" in err


def test_errors_are_json_too(pipeline, project, capfd):
    pipeline.act = raiser(IntegrityError("the hash differs", "build it again"))
    assert run([*PACKAGE, "-q", "--json"]) == 8
    out, err = capfd.readouterr()
    error = {"what": "the hash differs", "fix": "build it again", "kind": "IntegrityError", "exit_code": 8}
    assert json.loads(out) == {"schema_version": 1, "error": error}
    assert err.startswith("error: the hash differs\n")


@pytest.mark.parametrize(
    ("argv", "what", "fix"),
    [
        (["pakage"], "no such command 'pakage'. Did you mean 'package'?", "`edgeq --help`"),
        (["package", "--traget", "x"], "no such option '--traget'. Did you mean '--target'?", "`edgeq package --help`"),
        (["package", "--seed", "x"], "invalid value for '--seed'", "`edgeq package --help`"),
        (["targets"], "missing command", "`edgeq targets --help`"),
        (["install"], "missing argument", "`edgeq install --help`"),
    ],
)
def test_usage_errors_look_the_same(project, capfd, argv, what, fix):
    assert run(argv) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {what}")
    assert lines[1] == f"  fix: see {fix}"


SLEEPER = """
    import time
    from pathlib import Path

    import edgeq.pipeline.package

    def build(job, progress):
        with progress.task("sleeping"):
            try:
                Path("temporary").touch()
                time.sleep(600)
            finally:
                Path("temporary").unlink()

    edgeq.pipeline.package.package = build
    from edgeq.cli import main
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up(project, number):
    argv = [sys.executable, "-c", textwrap.dedent(SLEEPER), *PACKAGE]
    # a shell in the background has its children ignore SIGINT, and nohup SIGHUP
    before = signal.signal(number, signal.default_int_handler)
    try:
        process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    while not Path("temporary").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == ["error: interrupted", "  fix: run the same command again"]
    assert list(project.iterdir()) == []


def test_a_signal_while_python_runs_generated_text_keeps_the_exit_code(project):
    """As `import torch` does for each of its dataclasses; Python would then end `-m` by SIGINT."""
    stop = """
        import signal
        import edgeq.pipeline.package
        from edgeq.cli import main

        def build(job, progress):
            exec("signal.raise_signal(signal.SIGINT)", {"signal": signal})

        edgeq.pipeline.package.package = build
        main()
    """
    Path("stop.py").write_text(textwrap.dedent(stop))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), "."))}
    done = subprocess.run([sys.executable, "-m", "stop", *PACKAGE], env=environment, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-2:] == ["error: interrupted", "  fix: run the same command again"]


@pytest.mark.parametrize("code", [0, None, 3, "done"])
def test_a_model_that_ends_the_process_is_no_success(pipeline, project, capfd, code):
    pipeline.act = lambda: sys.exit(code)
    assert run(PACKAGE) == 2
    first, second = capfd.readouterr().err.splitlines()[-2:]
    assert re.fullmatch(rf"error: user code called exit\({code}\) at test_main.py:\d+", first)
    assert second.startswith("  fix: remove that call")


def test_an_error_that_a_signal_brought_about_is_no_error_of_the_model(pipeline, project, capfd):
    def act() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise AttributeError("module 'torch._dynamo' has no attribute 'utils'") from None

    pipeline.act = act
    assert run(PACKAGE) == 130
    assert capfd.readouterr().err.splitlines()[-2:] == ["error: interrupted", "  fix: run the same command again"]


def test_what_a_models_code_prints_stays_out_of_the_json(pipeline, project, capfd):
    def act() -> None:
        sys.stdout.write("from Python\n")
        os.write(1, b"from C\n")

    pipeline.act = act
    assert run([*PACKAGE, "--quiet", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["exit_code"] == 0
    assert sorted(err.splitlines()) == ["from C", "from Python"]


def test_stdout_is_as_before_when_a_run_ends_in_an_error(pipeline, project, capfd):
    pipeline.act = raiser(IntegrityError("the hash differs", "build it again"))
    assert run([*PACKAGE, "--quiet", "--json"]) == 8
    assert json.loads(capfd.readouterr().out)["error"]["what"] == "the hash differs"


def test_a_pipe_that_breaks_in_the_middle_of_a_run_is_no_success(pipeline, project):
    """`edgeq package … 2>&1 | head`: nothing was made when a print of the user's model fails."""
    pipeline.act = raiser(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(1)
    os.dup2(write, 1)
    try:
        assert run([*PACKAGE, "--quiet"]) == 1
    finally:
        os.dup2(kept, 1)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("args", "code"), [("targets list", 0), ("package gone", 2)])
def test_a_stream_that_was_closed_beforehand_changes_no_exit_code(project, closed, args, code):
    script = f'"$0" -m edgeq {args} {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    nowhere = subprocess.DEVNULL
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], env=environment, check=False, stdout=nowhere, stderr=nowhere
    )
    assert done.returncode == code


@pytest.mark.parametrize("argv", [["--help"], ["targets", "list"], ["package", "--help"]])
def test_a_reader_that_went_away_is_no_error(project, argv):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "edgeq", *argv], stdout=write, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 0
