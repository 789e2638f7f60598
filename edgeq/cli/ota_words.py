"""What `edgeq ota` prints of a release, for people and for machines."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from edgeq.cli.columns import aligned, printable
from edgeq.cli.output import say, say_json
from edgeq.units import format_bytes

if TYPE_CHECKING:
    from edgeq.artifacts import Gate
    from edgeq.deliver.ota.release import Published
    from edgeq.pipeline.ota import ReleaseReport, ReleaseRow

SCHEMA_VERSION = 1


def tell_published(head: str, done: Published, as_json: bool) -> None:
    """Print what was published."""
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, **published_json(done)})
    else:
        say("\n".join([head, *_published_lines(done)]))


def published_json(done: Published) -> dict[str, Any]:
    """Return what a channel holds now, for machines."""
    return {
        "release": done.release,
        "files": [{"path": name, "size_bytes": size} for name, size in done.files],
        "root_version": done.root_version,
        "trust": str(done.trust),
        "expires": f"{done.expires:%Y-%m-%dT%H:%M:%SZ}",
    }


def _published_lines(done: Published) -> list[str]:
    return [
        f"release {done.release}, root version {done.root_version}, valid until {done.expires:%Y-%m-%d %H:%M} UTC",
        *aligned([(format_bytes(size), name) for name, size in done.files], right=frozenset({0})),
    ]


def report_text(report: ReleaseReport) -> str:
    """Return a line for each gate and each size, and what was published."""
    from edgeq.report import words

    lines = []
    for row in report.rows:
        lines.append(f"{row.model} {row.model_version} for {row.target}: {printable(str(row.path))}")
        lines += aligned([(gate.outcome, gate.name, _told(gate)) for gate in row.checked.gates])
        if row.settled:
            lines.append(f"  {printable(row.settled)}: digest {row.digest[:12]}")
        lines += aligned(_sizes(row), right=frozenset({1}))
        if row.reuse is not None:
            lines += [f"  {line}" for line in words.reuse(row.reuse.found, row.reuse.fidelity)]
    if report.published is None:
        failed = [gate.name for row in report.rows for gate in row.checked.gates if not gate.passed]
        return "\n".join(
            [*lines, f"refused: {', '.join(failed)} (exit code {int(report.exit_code)}); nothing was written"]
        )
    done = report.published
    head = f"published: release {done.release} in {report.channel}, valid until {done.expires:%Y-%m-%d %H:%M} UTC"
    return "\n".join([*lines, head, *_published_lines(done)[1:], f"an app ships with: {done.trust}"])


def _sizes(row: ReleaseRow) -> list[tuple[str, str, str]]:
    rows = [("download", format_bytes(row.download_bytes), "deflated ZIP")]
    for delta in row.deltas:
        share = f"{delta.size_bytes / row.download_bytes:.1%} of the download, {delta.algorithm}"
        kept = "" if delta.published else ", not published"
        rows.append((f"patch from {delta.label}", format_bytes(delta.size_bytes), share + kept))
    return rows


def _told(gate: Gate) -> str:
    told = " ".join(part for part in (gate.measured, f"({gate.limit})" if gate.limit else "") if part)
    return f"{told}: {gate.detail}" if told and gate.detail else told or gate.detail


def report_json(report: ReleaseReport) -> dict[str, Any]:
    """Return the same for machines."""
    from edgeq.report.as_json import finite

    done = report.published
    return {
        "schema_version": SCHEMA_VERSION,
        "exit_code": int(report.exit_code),
        "channel": str(report.channel),
        "rows": [
            {
                "model": row.model,
                "model_version": row.model_version,
                "target": row.target,
                "path": str(row.path),
                "digest": row.digest,
                "download_bytes": row.download_bytes,
                "deltas": [dataclasses.asdict(delta) for delta in row.deltas],
                "settled": row.settled or None,
                "reuse": finite(dataclasses.asdict(row.reuse)) if row.reuse else None,
                "gates": [{**dataclasses.asdict(gate), "passed": gate.passed} for gate in row.checked.gates],
            }
            for row in report.rows
        ],
        "published": published_json(done) if done else None,
    }
