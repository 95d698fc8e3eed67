"""The report of finished cells beside the published numbers: text, CSV, JSON, a plot and a page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nft_ext._common.files import write_atomically
from nft_ext._common.progress import duration
from nft_ext.reproduce import published
from nft_ext.reproduce.convergence import Converged, converged
from nft_ext.reproduce.figures import drawn
from nft_ext.reproduce.html import Picture, Section, page
from nft_ext.reproduce.protocol import check_cells, conditions, differences, machines, networks, seconds
from nft_ext.reproduce.ranking import contrasts, ranked, ranking_tables
from nft_ext.reproduce.summary import MARGIN, NO_CLAIM, Comparison, Row, comparisons, rows
from nft_ext.reproduce.tables import (
    Table,
    accuracy_tables,
    calibration_tables,
    comparison_tables,
    convergence_tables,
    write_csv,
    write_json,
)
from nft_ext.reproduce.theme import DARK, LIGHT
from nft_ext.reproduce.tuning import described

WIDTH = 108
TITLES = {
    "figure3": "Accuracy against device sigma (Figure 3)",
    "figure4": "EKL against device sigma (Figure 4)",
    "table1": "Number of feedbacks N",
    "table2": "Pretrained start",
    "convergence": "Convergence of training",
    "ablations": "Ablations",
    "protocol": "The methods under other settings of the training",
}
# experiment -> plots; the first is also the PNG
PLOTS = {
    "figure3": ("accuracy", "ekl"),
    "figure4": ("ekl", "accuracy"),
    "convergence": ("convergence",),
    "protocol": ("settings",),
}
LEADS = {"convergence": "Convergence", "protocol": "One setting changed at a time"}  # title of the first section
CAPTIONS = {
    "accuracy": "Mean accuracy over programmed chips against the device sigma. Bars or bands: 95 % interval over "
    "training seeds. Hollow markers: published.",
    "ekl": "Expected KL divergence of right answers against the device sigma, logarithmic. Bars or bands: lowest "
    "to highest training seed. Hollow markers: published, for a model and data set that the paper does not name.",
    "convergence": "Accuracy of every training. Crosses are more than 5 points below their method's mean (short line); "
    "the dashed line is 90 % of the highest clean accuracy.",
    "settings": "Mean accuracy over programmed chips under each setting, with its 95 % interval over training seeds. "
    "Small dots: single seeds.",
    "variants": "Mean accuracy over programmed chips of each variant, with its 95 % interval over training seeds. "
    "Small dots: single seeds. Hollow: published.",
}


def write_report(
    experiment: str, cells: list[dict[str, Any]], out: Path, command: str, settings: dict[str, Any]
) -> str:
    """Writes OUT/EXPERIMENT.txt, .csv, .json, .png and .html from the finished cells.

    Every file is written atomically. An unfinished grid gets "-" for missing values and a note. Without matplotlib a
    note replaces the plots.

    Args:
        experiment: names the files and chooses the plots ("figure3", "figure4", "convergence", "protocol"; others: one
            line per variant).
        cells: contents of the cells' files.
        out: an existing folder.
        command: the command line, to print.
        settings: settings to print. "cells" and "finished" count the grid's cells and the finished ones.

    Returns:
        The text of the report.

    Raises:
        ValueError: there is no cell, a cell lacks an entry, or two cells have the same panel, variant, sigma and seed.
        OSError: a file cannot be written.
    """
    check_cells(cells)
    table = rows(cells)
    counts = converged(table) if experiment == "convergence" else []
    order = ranked(table) if experiment == "protocol" else []
    found = contrasts(order) if order else comparisons(table)
    plots, unplotted = _plots(experiment, table, counts)
    notes = _notes(experiment, cells, table, found, settings) + unplotted
    results = accuracy_tables(table, paper_ekl=experiment == "figure4") + ([] if order else calibration_tables(table))
    tests = [] if order else comparison_tables(found)
    shares = ranking_tables(order) if order else convergence_tables(counts)
    title = f"{TITLES.get(experiment, experiment)}, ours and the paper's"
    text = _text(title, [*shares, *results, *tests], notes, cells)
    if plots:
        write_atomically(out / f"{experiment}.png", plots[0][0])
    write_csv(table, out / f"{experiment}.csv")
    write_json(
        {
            "format": "nft_ext.reproduce/1",
            "experiment": experiment,
            "command": command,
            "settings": settings,
            "reference": published.REFERENCE,
            "conditions": conditions(cells),
            "differences": differences(cells),
            "versions": machines(cells),
            "notes": notes,
            "rows": table,
            "comparisons": found,
            "convergence": counts,
            "ranking": [
                {"setting": one.setting, "method": one.method, "place": one.place, "variant": one.row.variant}
                for one in order
            ],
            "networks": networks(cells),
        },
        out / f"{experiment}.json",
    )
    sections = _sections(
        experiment, cells, [picture for _, picture in plots], results, tests, shares, notes, command, settings
    )
    lead = [f"Published numbers: {published.REFERENCE}.", f"{_progress(cells, settings)}."]
    write_atomically(out / f"{experiment}.html", page(title, lead, sections).encode())
    write_atomically(out / f"{experiment}.txt", (text + "\n").encode())
    return text


def _plots(
    experiment: str, table: Sequence[Row], counts: Sequence[Converged]
) -> tuple[list[tuple[bytes, Picture]], list[str]]:
    """One (PNG, picture for the page) per plot, and a note if matplotlib is missing."""
    try:
        return [
            (
                drawn(kind, table, counts, LIGHT, "png"),
                Picture(
                    drawn(kind, table, counts, LIGHT, "svg"), drawn(kind, table, counts, DARK, "svg"), CAPTIONS[kind]
                ),
            )
            for kind in PLOTS.get(experiment, ("variants",))
        ], []
    except ImportError as error:
        return [], [f"no plot: {error}"]


def _progress(cells: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    finished, whole = settings.get("finished", len(cells)), settings.get("cells", len(cells))
    missing = "" if finished == whole else '; tables show "-" for the others'
    return f"{finished} of {whole} networks are finished, after {duration(seconds(cells))} of work{missing}"


def _notes(
    experiment: str,
    cells: Sequence[dict[str, Any]],
    table: Sequence[Row],
    found: Sequence[Comparison],
    settings: dict[str, Any],
) -> list[str]:
    notes = [_progress(cells, settings)]
    most = max(len(row.seeds) for row in table)
    if any(len(row.seeds) < most for row in table):
        notes.append(
            f"some lines have fewer than {most} training seeds; comparisons use the seeds that both lines have"
        )
    if most == 1:
        notes.append(NO_CLAIM)
    elif any(len(one.seeds) == 1 for one in found):
        notes.append(f"a difference without an interval: {NO_CLAIM}")
    if any(len(one.seeds) > 1 for one in found):
        notes.append(
            "comparisons pair the training seeds (same initial weights, same batches). p: two-sided paired t test; "
            "p (Holm): adjusted for all comparisons of this report"
        )
        notes.append(
            f"methods are called equal only by a test of equality, p equal: two one-sided t tests for a difference of "
            f"less than {MARGIN:g} points, adjusted for all comparisons of this report (Holm). A large p shows nothing"
        )
    notes += _choices(cells)
    notes.append(
        "+-seeds: 95 % half-width over training seeds; it describes the method. +-chips: 95 % half-width over chips, "
        "as in the paper; it describes only these networks. EKL and NLL in nat, pooled over chips"
    )
    if experiment != "protocol" and any(row.temperature == row.temperature for row in table):
        notes.append(
            "a method's factor on the logits acts as a temperature and changes ECE, NLL and EKL. The figures at T do "
            "not depend on it: T is fitted to each network on validation images and validation chips"
        )
    if blank := sum(value != value for row in table for value in row.ekl_per_seed):
        notes.append(f"{blank} networks have no right answer and so no EKL; the means exclude them")
    if experiment == "figure4":
        notes.append(
            "the paper does not name the model and data set of its EKL figure, so its values are no target for a panel"
        )
    if experiment == "convergence":
        notes.append(
            "the paper's criterion compares a method with its own mean, so a method that always fails passes. p "
            "against noise: two-sided Fisher's exact test"
        )
    if experiment == "protocol":
        notes.append(
            "differences in points with 95 % half-widths. minus noise, minus control: under the same setting. *: p "
            "below 0.05, adjusted for all differences of this report (Holm). =: the same for equality, within "
            f"{MARGIN:g} points. place: by mean accuracy over the seeds that all methods have"
        )
    if experiment in ("table2", "ablations") and any("pretrained" in row.variant for row in table):
        notes.append(
            "pretrained E/200: a full vanilla training, then the share E/200 of the epochs with the method. The line "
            "without pretraining starts from scratch and has fewer epochs in total"
        )
    return notes


def _choices(cells: Sequence[dict[str, Any]]) -> list[str]:
    """One note per tuned line and sigma: the value that its search chose."""
    found = dict.fromkeys(
        f"{cell['config']['variant']}, sigma {cell['config']['sigma']:g}: {described(cell['tuned'])}, chosen on "
        f"validation images with training seed {', '.join(map(str, cell['tuned']['seeds']))}, which no line here uses"
        for cell in cells
        if "tuned" in cell
    )
    return list(found)


def _text(title: str, tables: Sequence[Table], notes: Sequence[str], cells: Sequence[dict[str, Any]]) -> str:
    parts = [title, *("\n" + str(table) for table in tables), ""]
    for heading, texts in (("How to read it", notes), ("What differs from the paper's protocol", differences(cells))):
        parts.append(heading)
        for text in texts:
            parts += textwrap.wrap(
                f"- {text}", WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
    return "\n".join(parts)


def _sections(
    experiment: str,
    cells: Sequence[dict[str, Any]],
    pictures: Sequence[Picture],
    results: Sequence[Table],
    tests: Sequence[Table],
    shares: Sequence[Table],
    notes: Sequence[str],
    command: str,
    settings: dict[str, Any],
) -> list[Section]:
    sections = [Section(LEADS.get(experiment, ""), tables=shares)] if shares else []
    sections.append(Section("Ours and the paper's", tables=results))
    if tests:
        sections.append(
            Section(
                "OVF, IRS and the controls against each other",
                tables=tests,
                paragraphs=[
                    "The control is noise injection with the same logit factor 1/(N+1), no feedback and equal epochs. "
                    "The factor acts as a temperature of the cross-entropy. A gain over noise injection that is no "
                    "gain over the control does not come from the feedback. Equality is claimed only by a test of "
                    "equality."
                ],
            )
        )
    sections[0] = Section(
        sections[0].title, pictures=pictures, tables=sections[0].tables, paragraphs=sections[0].paragraphs
    )
    run = {name: str(value) for name, value in settings.items() if name not in ("cells", "finished")}
    return [
        *sections,
        Section("How to read it", items=notes),
        Section("What differs from the paper's protocol", items=differences(cells)),
        Section("Known flaws of the published results", items=published.flaws()),
        Section("Settings", pairs=run | conditions(cells)),
        Section("Command, machine, versions", code=command, items=machines(cells)),
    ]
