"""The results of `scripts/zoo`: a line of JSON for each model and target, the last one counts; as text and Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "zoo_rows.jsonl"
TARGETS = (
    *(
        "android-arm64-xnnpack",
        "linux-x86_64-x86",
        "linux-x86_64-ort",
        "linux-x86_64-openvino",
        "android-arm64-qnnpack",
    ),
)
VERDICTS = ("ok", "failed", "refused", "wrong")

Row = dict[str, Any]


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """Return the rows by model and target; a line that a kill cut short counts for nothing."""
    rows: dict[tuple[str, str], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["model"], row["target"]] = row
    return rows


def counts(rows: Iterable[Row]) -> Counter[str]:
    """Return how many rows have each verdict."""
    return Counter(row["verdict"] for row in rows)


def cell(row: Row | None) -> str:
    """Return a verdict with the scheme and the SQNR that was measured apart from edgeq."""
    if row is None:
        return "-"
    if row["verdict"] == "ok":
        return f"{row['scheme']} {row['db']:.0f} dB"
    return row["verdict"]


def markdown(rows: Sequence[Row]) -> list[str]:
    """Return the page's lines: what was run, counts by library, the matrix, and every row that is not ok."""
    by_pair = {(row["model"], row["target"]): row for row in rows}
    models = sorted({row["model"] for row in rows})
    dates = sorted({row["date"] for row in rows})
    libraries = sorted({row["library"] for row in rows})
    found = counts(rows)
    pairs = f"{len(models)} models on {len({row['target'] for row in rows})} targets, {len(rows)} pairs"
    lines = [
        f"{pairs}, run from {dates[0]} to {dates[-1]}: {found['ok']} ok ({found['ok'] / len(rows):.1%}),",
        f"{found['failed']} failed, {found['refused']} refused, {found['wrong']} wrong. Architectures of",
        f"{', '.join(libraries)}.",
        "",
        "| from | models | pairs | ok | failed | refused | wrong |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for library in sorted({model.partition(".")[0] for model in models}):
        own = [row for row in rows if row["model"].startswith(f"{library}.")]
        tally = counts(own)
        numbers = [len({row["model"] for row in own}), len(own), *(tally[verdict] for verdict in VERDICTS)]
        lines.append(f"| {library} | {' | '.join(map(str, numbers))} |")
    lines += ["", f"| model | {' | '.join(TARGETS)} |", f"| --- |{' --- |' * len(TARGETS)}"]
    for model in models:
        lines.append(f"| {model} | {' | '.join(cell(by_pair.get((model, target))) for target in TARGETS)} |")
    troubled = [row for row in sorted(rows, key=lambda row: (row["model"], row["target"])) if row["verdict"] != "ok"]
    if troubled:
        lines += ["", "| not ok | target | scheme | verdict | why |", "| --- | --- | --- | --- | --- |"]
    for row in troubled:
        # cut where it may be inside of a command: as plain text, then
        reason = " ".join(row["reason"].split()).replace("`", "").replace("|", "\\|")[:300]
        lines.append(f"| {row['model']} | {row['target']} | {row['scheme'] or '-'} | {row['verdict']} | {reason} |")
    return lines


def text(rows: Sequence[Row]) -> str:
    """Return the matrix and the counts for a terminal."""
    by_pair = {(row["model"], row["target"]): row for row in rows}
    lines = [f"{'model':48}" + "".join(f"{target:24}" for target in TARGETS)]
    names = dict.fromkeys(row["model"] for row in rows)
    lines += [f"{name:48}" + "".join(f"{cell(by_pair.get((name, target))):24}" for target in TARGETS) for name in names]
    found = counts(rows)
    return "\n".join([*lines, ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS)])
