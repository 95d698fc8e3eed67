"""The text of an explanation: its answer in the first lines, then one row per effect and per layer."""

from __future__ import annotations

import math
import textwrap

from nft_ext.montecarlo.report.text_table import WIDTH, align, note_lines, shown

NAMED = 3  # layers that the first lines name
MARK = "*"


def explanation_table(found) -> str:
    """The table of `Explanation.table`."""
    lines = [
        *_wrapped(_levels(found)),
        *_wrapped(_split(found), "  "),
        *(line for text in _answers(found) for line in _wrapped(text, "  ")),
        *_wrapped(f"{found.conditions}; {_chips(found)}", "  "),
    ]
    for kind, rows in (("effect", found.effects), ("layer", found.layers)):
        if rows:
            lines += ["", *_rows(found, kind, rows)]
    lines += ["", *(line for text in _legend(found) for line in _wrapped(text, "  "))]
    for note in found.notes:
        lines += note_lines(note)
    return "\n".join(lines)


def number(found, value: float, sign: bool = False) -> str:
    """A value of the metric as text: percent or points for an accuracy."""
    return shown(found.metric).number(value + 0.0, "+" if sign and value else "")  # + 0.0: no sign of a zero


def unit(found) -> str:
    """The unit of changes."""
    how = shown(found.metric)
    return "points" if how.unit else how.label


def _levels(found) -> str:
    how, (mean, half) = shown(found.metric), found.full
    return (
        f"Where the {how.label} goes: {number(found, found.ideal[0])}{how.behind} with float weights, "
        f"{number(found, mean)}{how.behind} +- {number(found, half)} on chips"
        + (" (interrupted)" if found.interrupted else "")
    )


def _split(found) -> str:
    """The change from float weights to chips in two parts, which add up."""
    quantizer, noise = found.quantizer, found.noise
    if shown(found.metric).unit:
        return (
            f"the quantizer {_verb(quantizer)} {number(found, abs(quantizer.mean))}{_half(found, quantizer)} points, "
            f"the noise {_verb(noise)} {number(found, abs(noise.mean))}{_half(found, noise)} points"
        )
    return (
        f"the quantizer changes it by {number(found, quantizer.mean, True)}{_half(found, quantizer)}, "
        f"the noise by {number(found, noise.mean, True)}{_half(found, noise)}"
    )


def _verb(change) -> str:
    return "gains" if change.mean > 0 else "costs"


def _answers(found) -> list[str]:
    """What does most harm, in words."""
    texts = []
    effects = [row for row in found.most("effect") if row.name not in ("quantizer", "programming noise")]
    if effects:
        texts.append(f"of the device's further effects, most harm is done by {_named(found, effects[0])}")
    if found.layers:
        layers = found.most("layer")
        if layers:
            texts.append("the noise does most harm in " + "; then ".join(_named(found, r) for r in layers[:NAMED]))
            texts += _overlap(found)
        else:
            texts.append(f"no layer by itself changes it significantly, of {len(found.layers)} compared")
    return texts


def _overlap(found) -> list[str]:
    """Whether the layers' changes add up to the noise's whole change."""
    rows = [row for row in found.layers if row.without is not None and row.alone is not None]
    if len(rows) < 2 or len(rows) < len(found.layers):
        return []
    alone, rest = (sum(getattr(row, view).mean for row in rows) for view in ("alone", "without"))
    whole = abs(found.noise.mean)
    return [
        f"the layers' changes add up to {number(found, alone, True)} alone and {number(found, rest, True)} without; "
        f"where layers do not interact, both are {number(found, whole)}"
    ]


def _named(found, row) -> str:
    return (
        f"{row.name} (alone {number(found, row.alone.mean, True)}, without it {number(found, row.without.mean, True)})"
    )


def _chips(found) -> str:
    seen = "" if found.images_per_chip == found.images else f"{found.images_per_chip} of "
    variants = len(found.per_chip)
    return (
        f"seed {found.seed}, {found.runs} chips x {seen}{found.images} {found.example}s, {variants} variants, "
        f"{found.inferences:,} inferences, {found.seconds:.1f} s"
    )


def _rows(found, kind: str, rows: list) -> list[str]:
    title = {"effect": "effect", "layer": "noise of layer"}[kind]
    header = [title, "without it", "+- 95 %", "p (Holm)", "", "alone", "+- 95 %", "p (Holm)", ""]
    names = [f"{row.name}, {row.text}" if row.text else row.name for row in rows]
    cells = [[name, *_cells(found, row.without), *_cells(found, row.alone)] for name, row in zip(names, rows)]
    return ["  " + line for line in align([header, *cells])]


def _cells(found, change) -> list[str]:
    if change is None:
        return ["?", "", "", ""]
    mark = MARK if change.significant else ""
    if change.same:
        return [number(found, 0.0), "same", "", ""]
    if change.exact:
        return [number(found, change.mean, True), "exact", "", ""]
    p = "" if math.isnan(change.p_holm) else "<0.0001" if change.p_holm < 1e-4 else f"{change.p_holm:.2g}"
    half = "(no chip)" if change.mean == 0 and math.isnan(change.ci95) else number(found, change.ci95)
    return [number(found, change.mean, True), half, p, mark]


def _legend(found) -> list[str]:
    """What the columns mean, one sentence per text."""
    views = [view for row in found.rows for view in (row.without, row.alone) if view is not None]
    bases = []
    if found.effects:
        bases.append("float weights for an effect")
    if found.layers:
        bases.append("quantized weights without noise for a layer")
    texts = [
        f"without it: everything on but this, minus everything on. alone: only this on, minus nothing on "
        f"({', '.join(bases)}). In {unit(found)}, mean over {found.runs} common chips, with the 95 % interval of each "
        "change by itself."
    ]
    counts = [
        f"{count} comparisons of {name}"
        for name, rows in (("effects", found.effects), ("layers", found.layers))
        if (count := sum(not math.isnan(v.p) for row in rows for v in (row.without, row.alone) if v is not None))
    ]
    if counts:
        texts.append(f"{MARK} p < 0.05 after Holm's adjustment for {' and for '.join(counts)}.")
    if any(view.exact and not view.same for view in views):
        texts.append("exact: no noise on either side, so no interval.")
    if any(view.same for view in views):
        texts.append("same: equal weights on both sides, as for an effect on the noise without any noise.")
    bounds = [view.others_at_most for view in views if not math.isnan(view.others_at_most)]
    if bounds:
        texts.append(f"no chip: no chip changes. At most {100 * max(bounds):.2g} % of all chips do (95 % confidence).")
    if found.screened:
        texts.append(f"A first look on other chips chose the layers. {len(found.screened)} share one row.")
    return texts


def _half(found, change) -> str:
    return f" +- {number(found, change.ci95)}" if change.ci95 > 0 else ""


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
