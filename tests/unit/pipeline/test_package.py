"""The work folder; the whole of `build` is tested in tests/integration."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

import pytest

from edgeq.core.errors import EdgeqError
from edgeq.pipeline.package import WORK_NAME, _quick_registrations, work_folder


def test_what_a_killed_run_left_goes_first(tmp_path: Path) -> None:
    (tmp_path / WORK_NAME / "bundle-0").mkdir(parents=True)
    (tmp_path / WORK_NAME / "bundle-0" / "model.pte").touch()
    with work_folder(tmp_path) as work:
        assert list(work.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_librarys_words_for_a_full_disk_are_translated(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(OSError, match="No space left") as caught, work_folder(small_disk):
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert caught.value.errno == errno.ENOSPC


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(EdgeqError, match="mine"), work_folder(tmp_path):
        raise EdgeqError("mine", "mend it")


def test_a_registration_still_notes_its_place_and_its_module() -> None:
    import inspect

    import torch
    from torch._library.simple_registry import singleton

    library = torch.library.Library("edgeq_test", "FRAGMENT")
    sources = []
    for name, quick in (("plain", contextlib.nullcontext()), ("quick", _quick_registrations())):
        library.define(f"{name}(Tensor x) -> Tensor")
        with quick:
            library._register_fake(name, torch.neg)
        source = singleton.find(f"edgeq_test::{name}").fake_impl.kernel.source
        sources.append(source)
    assert sources[0] == sources[1]
    assert sources[0].startswith(f"{__file__}:")
    assert torch.library.inspect is inspect
