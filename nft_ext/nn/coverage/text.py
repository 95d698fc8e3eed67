"""The coverage of a model as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from nft_ext._common.coverage_line import number, percent, shares
from nft_ext.nn.coverage.groups import Group, grouped
from nft_ext.nn.coverage.rows import CROSSBAR, DIGITAL, Row

MOST = 20  # groups in a section
_NAME = 64  # columns of a name


def coverage_table(coverage) -> str:
    """The text of a Coverage: totals, digital matrices, crossbars, and what is listed only."""
    rows: list[Row] = coverage.rows
    subject = "this plain model, once nft_ext.convert has run" if coverage.planned else "this model"
    counted = [row for row in rows if row.counted]
    others = [row for row in rows if not row.counted]
    total = sum(row.cells for row in counted)
    lines = [f"Coverage of {subject}:", f"  {shares(coverage.summary())}"]
    for place, what in ((CROSSBAR, "on crossbars"), (DIGITAL, "digital")):
        lines.append(_total(what, [row for row in counted if row.place == place], total, coverage.with_example))
    lines += [_total("not counted", others, None, False)] if others else []
    macs = 0 if coverage.mac_share is None else sum(row.macs or 0 for row in counted)
    sections = (
        ("digital matrices", coverage.digital, True),
        ("on crossbars", [row for row in counted if row.place == CROSSBAR], True),
        ("not counted: they multiply no activations as a matrix", others, False),
    )
    for heading, members, is_matrix in sections:
        if members:
            lines += ["", heading, *_section(grouped(members), is_matrix, total, macs, coverage.with_example)]
    return "\n".join(lines)


def _total(what: str, rows: Sequence[Row], of: int | None, with_example: bool) -> str:
    cells = sum(row.cells for row in rows)
    noun = ("matrix" if len(rows) == 1 else "matrices") if of is not None else f"parameter{'s' * (len(rows) != 1)}"
    text = f"  {what:<12} {number(cells):>8} weights in {len(rows)} {noun}"
    if of:
        text += f", {percent(cells / of)}"
    idle = sum(row.macs == 0 for row in rows)
    return text + (f"; {idle} not used in the example" if with_example and idle else "")


def _section(groups: list[Group], is_matrix: bool, cells: int, macs: int, with_example: bool) -> list[str]:
    head = ["  name", "class", "shape", "weights"]
    head += ["share"] if is_matrix else []
    head += ["MACs"] if is_matrix and with_example else []
    arrays = any(group.arrays is not None for group in groups)
    head += ["arrays", "used"] if arrays else []
    table = [[*head, "reason"]]
    for group in groups[:MOST]:
        row = [f"  {_name(group)}", group.module, " x ".join(map(str, group.shape)) or "?", number(group.cells)]
        row += [percent(group.cells / cells) if cells else "-"] if is_matrix else []
        if is_matrix and with_example:
            row.append(percent(group.macs / macs) if macs and group.macs is not None else "-")
        row += _arrays(group) if arrays else []
        table.append([*row, group.reason or ""])
    if not any(row[-1] for row in table[1:]):
        table = [row[:-1] for row in table]
    lines = _aligned(table, numbers=range(3, len(head)))
    if rest := groups[MOST:]:
        count, size = sum(group.count for group in rest), sum(group.cells for group in rest)
        lines.append(f"  and {count} more with {number(size)} weights; .rows has all")
    return lines


def _arrays(group: Group) -> list[str]:
    if group.arrays is None or group.array_use is None:
        return ["-", "-"]
    return [str(group.arrays), percent(group.array_use)]


def _name(group: Group) -> str:
    times = f" ({group.count} x)" if group.count > 1 else ""
    return (group.name if len(group.name) <= _NAME else _short(group.name)) + times


def _short(name: str) -> str:
    """The first part of a long name and its last ones, which say more."""
    first, *rest = name.split(".")
    while len(rest) > 1 and len(f"{first}...{'.'.join(rest)}") > _NAME:
        rest = rest[1:]
    return f"{first}...{'.'.join(rest)}"


def _aligned(rows: list[list[str]], numbers: range) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
