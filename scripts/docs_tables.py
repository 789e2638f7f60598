#!/usr/bin/env python3
"""Write the tables of README.md and docs/ that are made from code and results; --check fails where one differs.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# the tables are those of this checkout, whatever is installed; a test runs this file from elsewhere
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import zoo_table  # noqa: E402

from edgeq.check.gates import GATES  # noqa: E402
from edgeq.core.config import PANELS, PackageConfig  # noqa: E402
from edgeq.core.marks import Option, options_of  # noqa: E402
from edgeq.core.profiles import profile_files  # noqa: E402
from edgeq.core.schemes import LIMITS, SCHEMES  # noqa: E402
from edgeq.core.targets import NPU, VerifiedBy, accelerator, load_target, verified_by  # noqa: E402
from edgeq.quantize import FILE_METHODS, METHODS  # noqa: E402

_TABLE = re.compile(r"(?<=^<!-- table: )([a-z ]+)( -->\n)(.*?)(?=^<!-- end of table -->$)", re.MULTILINE | re.DOTALL)


def option_table(topic: str) -> list[str]:
    """Return the options of a panel and of its advanced one, the common ones first."""
    panels = [panel for panel in PANELS if panel.topic == topic]
    options = [option for panel in panels for option in options_of(PackageConfig) if option.panel == panel]
    rows = [(_flag(option), _code(option.key), _default(option), _text(option)) for option in options]
    return _table(("option", "edgeq.toml", "default", "what it does"), rows)


def limit_table() -> list[str]:
    """Return the limits."""
    rows = [
        (_code(option.key.partition(".")[2]), _text(option))
        for option in options_of(PackageConfig)
        if option.key.startswith("limit.")
    ]
    return _table(("limit", "what is judged"), rows)


def app_table() -> list[str]:
    """Return the options of [app], which have no flag."""
    options = [option for option in options_of(PackageConfig) if option.key.startswith("app.") and not option.is_table]
    return _table(
        ("edgeq.toml", "default", "what it does"),
        [(_code(option.key), _default(option), _text(option)) for option in options],
    )


def gate_table() -> list[str]:
    """Return the gates without a `--limit`."""
    rows = [
        (
            _code(name),
            kind.doc,
            ", ".join(map(_code, kind.commands)),
            str(int(kind.exit_code)),
            "yes" if kind.may_stay_unmeasured else "no",
        )
        for name, kind in GATES.items()
        if name not in LIMITS
    ]
    return _table(("gate", "what it requires of the artifact", "judged by", "exit code", "`--allow-unmeasured`"), rows)


_VERIFIED_BY: dict[VerifiedBy, str] = {
    "emulator": "its own kernels under QEMU",
    "runtime": "its runtime, with this host's kernels",
    "stand-in": "its runtime on this host's CPU",
    "reference": "TOSA's reference model",
    "none": "its graph only",
}


def target_table() -> list[str]:
    """Return the shipped targets."""
    rows = []
    for target in map(load_target, profile_files()):
        cpus = f": {', '.join(target.device.cpu)}" if verified_by(target) == "emulator" else ""
        rows.append(
            (
                _code(target.name),
                f"{target.runtime}, {accelerator(target.backend)}",
                ", ".join(target.schemes),
                ("its vendor's emulator of the NPU" if target.backend == NPU else _VERIFIED_BY[verified_by(target)])
                + cpus,
                target.app.oldest,
                target.app.adds,
            )
        )
    return _table(("target", "runtime, accelerator", "schemes", "verified by", "oldest runtime", "an app adds"), rows)


def method_table() -> list[str]:
    """Return the method of each scheme, by the runtime of a PyTorch model and for an ONNX file."""
    runtimes = {"torchscript": "TorchScript", "executorch": "ExecuTorch", "onnx": "ONNX Runtime", "cuda": "CUDA"}
    rows = []
    for scheme in SCHEMES:
        found = [*(METHODS.get((runtime, scheme)) for runtime in runtimes), FILE_METHODS.get(scheme)]
        texts = ["-" if method is None else method.description.replace("{backend}", "target's") for method in found]
        rows.append((_code(scheme), *texts))
    return _table(("scheme", *runtimes.values(), "an .onnx file"), rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    **{f"{panel.topic.lower()} options": functools.partial(option_table, panel.topic) for panel in PANELS},
    "limits": limit_table,
    "app options": app_table,
    "gates": gate_table,
    "methods": method_table,
    "targets": target_table,
    "zoo": lambda: zoo_table.markdown(list(zoo_table.read_rows(zoo_table.ROWS).values())),
}


def updated(text: str) -> str:
    """Return a page with its tables as the code has them.

    Raises:
        KeyError: a table of an unknown name.
    """
    return _TABLE.sub(lambda found: found[1] + found[2] + "\n".join(["", *TABLES[found[1]](), "", ""]), text)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [head, tuple("---" for _ in head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]


def _code(text: str) -> str:
    return f"`{text}`"


def _flag(option: Option) -> str:
    if option.flag is None:
        return ""
    names = [*([option.flag.short] if option.flag.short else []), *option.flag.name.split("/")]
    metavar = f" {option.flag.metavar}" if option.flag.metavar else ""
    return ", ".join(_code(f"{name}{metavar}") for name in names)


def _default(option: Option) -> str:
    if option.doc is not None and option.doc.default:
        return option.doc.default
    value = str(option.default) if isinstance(option.default, Path) else option.default
    if value is dataclasses.MISSING:
        return "must be given"
    if value is None or value == () or isinstance(value, Mapping) or option.is_table:
        return ""
    return _code(f"{value:g}" if isinstance(value, float) else json.dumps(value))


def _text(option: Option) -> str:
    return "" if option.doc is None else option.doc.text


def main() -> int:
    """Write or check every page; return 1 where --check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a table differs")
    check = parser.parse_args().check
    differing = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if updated(text) != text:
            differing.append(page.relative_to(ROOT))
            if not check:
                page.write_text(updated(text), encoding="utf-8")
    for page in differing:
        print(f"{page}: {'differs from the code: run scripts/docs_tables.py' if check else 'written'}")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
