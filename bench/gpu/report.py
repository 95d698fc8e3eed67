"""The final table of bench/gpu_check.py: measured results, and the reasons for missing ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.gpu import stages
from bench.gpu.stages import Outcome, Stage

NOT_MEASURED = "not measured"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds * 1e3:.4f}"
        if seconds < 1e-4
        else f"{seconds * 1e3:.3f}"
        if seconds < 1e-2
        else f"{seconds * 1e3:.1f}"
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column flush left, the others flush right."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def stage_lines(wanted: Sequence[Stage], outcomes: Mapping[str, Outcome]) -> list[str]:
    """One line per stage: its purpose, its state, and the reason or a summary."""
    lines = []
    for stage in wanted:
        outcome = outcomes.get(stage.name, Outcome(stages.NOT_RUN))
        found = outcome.found if isinstance(outcome.found, dict) else {}
        note = stages.first_line(outcome.why) if outcome.why else str(found.get("summary", ""))
        lines.append(f"{stage.name:10s} {outcome.state:12s} {outcome.seconds:5.0f} s  {note}"[:160].rstrip())
    return lines


def case_lines(case: Mapping[str, Any]) -> list[str]:
    """A measured case: our fastest and the fastest PyTorch per precision and number of normals, if right.

    case: {"name", "rows": [{"variant", "median_s", "floor_s", ...}], "compared": [{"what", "ours", "ours_s", "against",
    "against_s", "ratio", "floor_s", "bound_by"}], "failures": [..], "unmeasured": [..]}.
    """
    lines = [str(case["name"])]
    rows = [["  what", "ours ms", "against ms", "ratio", "floor ms", "x floor"]]
    for c in case.get("compared", ()):
        over = "-" if not c.get("floor_s") else f"{c['ours_s'] / c['floor_s']:.1f}"
        floor = "-" if not c.get("floor_s") else f"{milliseconds(c['floor_s'])} {c['bound_by']}"
        rows.append(
            [
                f"  {c['what']} [{c['ours']} / {c['against']}]",
                milliseconds(c["ours_s"]),
                milliseconds(c["against_s"]),
                f"{c['ratio']:.2f}",
                floor,
                over,
            ]
        )
    lines += columns(rows) if len(rows) > 1 else [f"  {NOT_MEASURED}: nothing right stands on both sides"]
    lines += [f"  WRONG, no time shown: {f}"[:160] for f in case.get("failures", ())]
    if case.get("unmeasured"):
        lines.append(f"  {NOT_MEASURED}, no time left: {len(case['unmeasured'])} variants (named in the JSON)")
    return lines


def target_lines(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per target: reached, NOT REACHED, or not measured and why; with the measured value."""
    lines = []
    for t in targets:
        if t["value"] is None:
            lines.append(f"{t['rule']}: {NOT_MEASURED}" + (f", {t['why']}" if t["why"] else ""))
        else:
            lines.append(
                f"{t['rule']}: {'reached' if t['reached'] else 'NOT REACHED'}, {t['value']:.2f}x ({t['what']})"
            )
    return lines


def text(wanted: Sequence[Stage], outcomes: Mapping[str, Outcome], targets: Sequence[Mapping[str, Any]]) -> str:
    """The whole table."""
    lines = []
    for stage in wanted:
        outcome = outcomes.get(stage.name)
        if outcome is not None and isinstance(outcome.found, dict):
            for case in outcome.found.get("cases", ()):
                lines += [*case_lines(case), ""]
    lines += ["targets", *("  " + line for line in target_lines(targets)), ""] if targets else []
    return "\n".join([*lines, "stages", *("  " + line for line in stage_lines(wanted, outcomes))])
