"""Which libraries a result depends on: what was looked for, by content, whatever the path of the environment."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeq.pipeline import installed
from edgeq.pipeline.tracking import current_state, recording

Site = Callable[[str, str, str], None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Site]]:
    """Return a function that makes an environment with a library of a content, by an installer."""

    def enter(name: str) -> Site:
        root = tmp_path / name
        root.mkdir()
        monkeypatch.setattr(installed, "site_folders", lambda: (str(root),))
        installed.forget()

        def install(content: str, version: str, installer: str) -> None:
            info = root / f"my_models-{version}.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Name: my-models\nVersion: {version}\n\n")
            (info / "entry_points.txt").write_text("[my.plugins]\na = models:a\n")
            (root / "models").mkdir(exist_ok=True)
            own = f"../../../bin/models,sha256={installer},3\n{info.name}/INSTALLER,sha256={installer},4\n"
            lines = [f"models/__init__.py,sha256={content},5", "models/__pycache__/__init__.cpython-311.pyc,,"]
            lines = lines if installer == "pip" else lines[:1]
            (info / "RECORD").write_text(own + "\n".join(lines) + "\n")
            installed.forget()

        return install

    yield enter
    monkeypatch.undo()
    installed.forget()


NAMES = ("library:models", "distribution:my_models", "plugins:my.plugins", "libraries:")


def test_equal_libraries_at_two_paths_have_equal_states(site) -> None:
    found = []
    for path, content, version, installer in (
        ("a", "x", "1.0", "pip"),
        ("b", "x", "1.0", "uv"),
        ("c", "y", "1.0", "pip"),
        ("d", "x", "1.1", "pip"),
    ):
        install = site(path)
        assert [current_state(name) for name in NAMES[:3]] == ["", "", ""]
        install(content, version, installer)
        found.append([current_state(name) for name in NAMES])
    assert found[0] == found[1]
    assert all("" not in states for states in found)
    for other in found[2:]:
        assert all(one != two for one, two in zip(found[0], other, strict=True))


def test_a_module_that_was_put_there_by_hand_counts_by_its_content(site, tmp_path: Path) -> None:
    site("a")
    states = []
    for text in ("A = 1", "A = 2"):
        (tmp_path / "a" / "by_hand.py").write_text(text)
        installed.forget()
        states.append(current_state("library:by_hand"))
    assert "" not in states
    assert len(set(states)) == 2


def test_what_every_result_needs_is_in_every_key() -> None:
    own = installed.own_libraries()
    assert {"torch", "torchao", "executorch", "numpy", "sympy"} <= set(own)
    assert "pytest" not in own
    assert all(own.values())


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("import edgeq_no_such_library", "library:edgeq_no_such_library"),
        ("importlib.util.find_spec('edgeq_no_such_library')", "library:edgeq_no_such_library"),
        ("importlib.metadata.version('edgeq_no_such_library')", "distribution:edgeq-no-such-library"),
        ("importlib.metadata.entry_points(group='edgeq.none')", "plugins:edgeq.none"),
        ("importlib.metadata.packages_distributions()", "libraries:"),
    ],
)
def test_whoever_looks_for_a_library_depends_on_it_found_or_not(question: str, name: str) -> None:
    """What an optional library changes is computed again once it is installed."""
    code = "import importlib.metadata, importlib.util, contextlib\nfrom edgeq.pipeline.installed import looked_for\n"
    code += f"assert {name!r} not in looked_for()\nwith contextlib.suppress(ImportError):\n    {question}\n"
    code += f"assert {name!r} in looked_for(), looked_for()\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_torch_was_imported_first_the_whole_environment_counts() -> None:
    code = "import torch\nfrom edgeq.pipeline.installed import looked_for\nassert 'libraries:' in looked_for()\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recording_has_what_was_looked_for() -> None:
    with recording() as recorder:
        assert importlib.util.find_spec("edgeq_another_library") is None
        known = recorder.dependencies()
    assert known is not None
    assert known["library:edgeq_another_library"] == ""
    assert importlib.metadata.version("edgeq")


def test_every_file_counts_where_no_installer_listed_them(site, tmp_path: Path) -> None:
    site("system")
    info = tmp_path / "system/odd_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: odd-models\nVersion: 1.0\n\n")
    (info / "top_level.txt").write_text("odd\n")
    states = []
    for package in ("odd", "by_hand"):  # of one a system's packager left facts, of the other nobody
        (tmp_path / "system" / package / "inner").mkdir(parents=True)
        for content in ("one", "two"):
            (tmp_path / "system" / package / "inner/__init__.py").write_text(content)
            (tmp_path / "system" / package / "__init__.py").write_text("same")
            installed.forget()
            states.append(current_state("distribution:odd-models" if package == "odd" else "library:by_hand"))
    assert len(set(states)) == 4
