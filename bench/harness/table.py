"""Tables and JSON of measured cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bench.harness.case import DRAWS, Case
from bench.harness.measure import Ratio, Row, Verdict, best_torch, ratio

COMPARED = {"one": "vs 1 normal", "device": "vs 1/device"}  # against the best PyTorch with these draws


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3f}" if value < 1e-2 else f"{value * 1e3:.1f}"


def _ratio(found: Ratio | None) -> str:
    return "-" if found is None else f"{found.of_medians:.2f} ({found.of_rounds:.2f})"


def _rate(case: Case, row: Row) -> str:
    work, seconds = row.variant.work, row.timing.median
    if case.unit == "ns/normal":
        return f"{1e9 * seconds / work.normals:.2f}"
    return f"{work.flops / seconds / 1e9:.1f}"


def text(case: Case, rows: Sequence[Row]) -> str:
    """The case's table: one line per variant, fastest first; no ratio for wrong results."""
    rounds = max((len(r.timing.seconds) for r in rows if r.timing), default=0)
    width = max(len(r.variant.name) for r in rows) + 2
    lines = [
        f"{case.name}: {case.shape}",
        f"  medians of {rounds} interleaved rounds; ratios of medians, in brackets the medians of the rounds' ratios",
        f"  {'variant':{width}s}{'ms':>10s}{'p20 .. p80':>20s}{case.unit:>11s}{'GB/s':>8s}{'faults':>8s}"
        + "".join(f"{title:>16s}" for title in COMPARED.values()),
    ]
    for row in sorted((r for r in rows if r.timing), key=lambda r: r.timing.median):
        timing = row.timing
        spread = f"{_seconds(timing.quantile(0.2))} .. {_seconds(timing.quantile(0.8))}"
        found = []
        for draws in COMPARED:
            best = best_torch(case, rows, row, draws)
            found.append(None if best is None or row.variant.draws == "none" else ratio(row, best))
        lines.append(
            f"  {row.variant.name:{width}s}{_seconds(timing.median):>10s}{spread:>20s}{_rate(case, row):>11s}"
            f"{row.variant.work.bytes / timing.median / 1e9:8.1f}{timing.page_faults:8.0f}"
            + "".join(f"{_ratio(f):>16s}" for f in found)
        )
    lines += [f"  {r.variant.name:{width}s}WRONG, no speed shown: {r.failure}" for r in rows if r.failure]
    return "\n".join(lines)


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    lines = ["targets"]
    for v in verdicts:
        what = f"  {v.target.case}: {v.target.rule}, >= {v.target.at_least:g}x"
        if v.ratio is None:
            lines.append(f"{what}: NOT SHOWN, {v.why}")
        else:
            said = v.why if v.reached is None else "reached" if v.reached else "NOT REACHED"
            lines.append(
                f"{what}: {said}, {v.ratio.of_medians:.2f}x "
                f"({v.ratio.of_rounds:.2f}x by rounds): {v.ours} against {v.ratio.against}"
            )
    return "\n".join(lines)


# ---- JSON


def case_record(case: Case, rows: Sequence[Row]) -> dict[str, Any]:
    return {"case": case.name, "shape": case.shape, "variants": [_row_record(case, rows, row) for row in rows]}


def row_facts(row: Row) -> dict[str, Any]:
    """What was measured, whether it is right, and its time; or why it has none."""
    v, t = row.variant, row.timing
    record: dict[str, Any] = {
        "variant": v.name,
        "family": v.family,
        "draws": DRAWS[v.draws],
        "precision": v.precision,
        "mode": v.mode,
        "cached": v.cached,
        "right": row.failure is None,
    }
    if t is None:
        return record | {"failure": row.failure}
    return record | {
        "median_s": t.median,
        "p20_s": t.quantile(0.2),
        "p80_s": t.quantile(0.8),
        "calls_a_timing": t.calls,
    }


def _row_record(case: Case, rows: Sequence[Row], row: Row) -> dict[str, Any]:
    v, t, record = row.variant, row.timing, row_facts(row)
    if t is None:
        return record
    record |= {
        "seconds": t.seconds,
        "page_faults_a_call": t.page_faults,
        "bytes_per_second": v.work.bytes / t.median,
        "flops_per_second": v.work.flops / t.median,
        "seconds_a_normal": t.median / v.work.normals if v.work.normals else None,
    }
    if v.draws != "none":
        against = {draws: best_torch(case, rows, row, draws) for draws in COMPARED}
        record["ratios"] = {
            DRAWS[d]: dataclasses.asdict(r)
            for d, best in against.items()
            if best is not None and (r := ratio(row, best)) is not None
        }
    return record


def verdict_record(v: Verdict) -> dict[str, Any]:
    return {
        "case": v.target.case,
        "rule": v.target.rule,
        "at_least": v.target.at_least,
        "reached": v.reached,
        "ours": v.ours,
        "ratio": None if v.ratio is None else dataclasses.asdict(v.ratio),
        "why": v.why,
    }
