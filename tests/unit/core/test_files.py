from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.core import files
from edgeq.core.errors import EnvironmentProblem, UsageError
from edgeq.core.files import disk_errors, lock_dir, recover_dir, staged_dir, write_atomic

FILES = ("a", "b", "c")
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    for name in FILES:
        (folder / name).write_text(text * 1000)


def state(target: Path) -> str | None:
    """Return what all files of a whole `target` say; None where there is none; fails on a torn one."""
    if not target.exists():
        return None
    assert names(target) == list(FILES)
    texts = {(target / name).read_text() for name in FILES}
    assert len(texts) == 1, "torn"
    text = texts.pop()
    assert len(text) % 1000 == 0
    assert text, "empty"
    return text[: len(text) // 1000]


def replace(target: Path, text: str) -> None:
    with disk_errors(target), staged_dir(target) as staging:
        fill(staging, text)


@pytest.fixture(params=["exchange", "renames"])
def switching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Switch in one step, and as on a file system that cannot."""
    if request.param == "renames":
        monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)
    return str(request.param)


@pytest.mark.usefixtures("switching")
def test_staged_dir_makes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "x" / "target"
    for text in ("1", "2"):
        replace(target, text)
        assert state(target) == text
        assert names(target.parent) == ["target"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_staged_dir_leaves_nothing_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(target: Path) -> None:
        with staged_dir(target) as staging:
            fill(staging, "2")
            raise error

    with pytest.raises(error):
        fail(tmp_path / "new" / "deep" / "target")
    assert names(tmp_path) == []
    replace(tmp_path / "target", "1")
    with pytest.raises(error):
        fail(tmp_path / "target")
    assert state(tmp_path / "target") == "1"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupt_at_a_rename_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    target = tmp_path / "target"
    replace(target, "1")
    real, calls = os.rename, []

    def rename(source: object, destination: object) -> None:
        calls.append(source)
        real(source, destination)  # type: ignore[arg-type]
        if len(calls) == nth:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)
    with pytest.raises(KeyboardInterrupt):
        replace(target, "2")
    assert state(target) == ("1" if nth == 1 else "2")
    assert names(tmp_path) == ["target"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    with pytest.raises(UsageError, match=r"expected a file at .*r\.html, found a folder"), disk_errors(tmp_path):
        write_atomic(tmp_path / "r.html", b"page")
    assert names(tmp_path) == ["r.html"]


@pytest.mark.parametrize(
    "make", [Path.touch, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(".")]
)
def test_staged_dir_refuses_what_is_no_folder(tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    make(target)
    before = target.lstat()
    with pytest.raises(UsageError, match="found a file"):
        replace(target, "1")
    assert target.lstat() == before
    assert names(tmp_path) == ["target"]


def test_recover_dir_takes_only_its_own_leftovers(tmp_path: Path) -> None:
    kept = (".v1.2.abcdefgh.tmp", ".v1.tmp", ".v1.notes.old", ".v12.abcdefgh.tmp", ".v1.ABCDEFGH.tmp")
    for name in (*kept, ".v1.abcdefgh.tmp"):
        (tmp_path / name).mkdir()
    recover_dir(tmp_path / "v1")
    assert names(tmp_path) == sorted(kept)
    (tmp_path / ".[a].abcdefgh.tmp").mkdir()
    recover_dir(tmp_path / "[a]")
    assert names(tmp_path) == sorted(kept)
    recover_dir(tmp_path / "absent" / "target")


def killed_at(nth: int, work: Callable[[], None]) -> bool:
    """Run `work` in a fork that dies just before its nth file operation; return whether it died."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    seen = 0

    def hook(event: str, _args: object) -> None:
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == nth:
                os._exit(9)

    sys.addaudithook(hook)
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("code", [errno.EIO, errno.EPERM])
def test_a_refused_exchange_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    target = tmp_path / "target"
    replace(target, "1")

    def refuse(_one: Path, other: Path) -> bool:
        raise OSError(code, os.strerror(code), str(other))

    monkeypatch.setattr(files, "_exchange", refuse)
    with pytest.raises(EnvironmentProblem):
        replace(target, "2")
    assert state(target) == "1"
    assert names(tmp_path) == ["target"]


def test_exchange_tells_what_it_cannot_from_what_fails(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "one", tmp_path / "other")
    assert names(tmp_path / "one") == ["other"]
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "one", tmp_path / "absent")
    assert not files._exchange(tmp_path / "one", tmp_path / "one" / "other")  # into itself: EINVAL


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_before_any_operation_leaves_the_old_or_the_new(tmp_path: Path, existing: bool) -> None:
    allowed = {"1" if existing else None, "2"}
    states = []
    for nth in range(1, 200):
        target = tmp_path / str(nth) / "target"
        if existing:
            replace(target, "1")
        if not killed_at(nth, lambda target=target: replace(target, "2")):
            break
        assert state(target.parent / ".target.old") in {None, "1"}  # what may be restored is whole
        recover_dir(target)
        states.append(state(target))
        assert states[-1] in allowed
        assert not target.parent.exists() or names(target.parent) in ([], ["target"])
    else:
        pytest.fail("the work never ended")
    assert state(target) == "2"
    # the switch is seen, and never undone
    assert states[0] == ("1" if existing else None)
    assert states == sorted(states, key=lambda found: found == "2")
    assert not existing or states[-1] == "2"


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    target = tmp_path / "out" / "target"
    code = (
        "import sys; from pathlib import Path; from edgeq.core.files import staged_dir\n"
        "n = int(sys.argv[2])\n"
        "while True:\n"
        "    n += 1\n"
        "    with staged_dir(Path(sys.argv[1])) as staging:\n"
        "        for name in 'abc': (staging / name).write_text(str(n) * 1000)\n"
        "    print('made', flush=True)\n"
    )
    luck, last = random.Random(0), 0
    for _ in range(50):
        child = subprocess.Popen([sys.executable, "-c", code, str(target), str(last)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"made\n"
        time.sleep(luck.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        recover_dir(target)
        found = state(target)
        assert found is not None, "lost"
        assert int(found) > last, "an older state came back"
        last = int(found)
        assert names(target.parent) == ["target"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("function", ["fsync", "rename", "open", "mkdir"])
def test_a_disk_error_at_any_call_is_named_and_tears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switching: str, function: str, code: int
) -> None:
    real = getattr(os, function)
    for nth in range(1, 30):
        target = tmp_path / str(nth) / "target"
        replace(target, "1")
        calls = 0

        def failing(*args: object, nth: int = nth, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(code, os.strerror(code), str(args[0]))
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing)
            failed = False
            try:
                replace(target, "2")
            except EnvironmentProblem:
                failed = True
        assert state(target) == ("1" if failed else "2")
        recover_dir(target)
        assert state(target) == ("1" if failed else "2")
        assert names(target.parent) == ["target"]
        if calls < nth:
            assert nth > 1 or (switching, function) == ("exchange", "rename"), f"os.{function} was never called"
            return
    pytest.fail("the work never ended")


def test_a_real_full_disk(small_disk: Path) -> None:
    target = small_disk / "target"
    replace(target, "1")
    with pytest.raises(EnvironmentProblem, match="no space left"):
        replace(target, "2" * 100)
    assert state(target) == "1"
    with pytest.raises(EnvironmentProblem, match="no space left"), disk_errors(small_disk):
        write_atomic(small_disk / "file", bytes(100_000))
    assert names(small_disk) == ["target"]
    replace(target, "3")
    assert state(target) == "3"


def test_a_file_with_the_name_of_a_lock_that_somebody_wrote_stays(tmp_path: Path) -> None:
    mine = tmp_path / ".edgeq.lock"
    mine.write_text("mine")
    with pytest.raises(UsageError, match="not a lock file of edgeq"), lock_dir(tmp_path, wait_s=1):
        pass
    assert mine.read_text() == "mine"
    mine.write_bytes(b"")  # left by a run that was killed
    with lock_dir(tmp_path, wait_s=1):
        pass
    assert not mine.exists()
