"""Tables of several networks' reports over sigma. Curves are name -> reports, as in `Sweep.reports`."""

from __future__ import annotations

from nft_ext._common.checks import fail
from nft_ext.montecarlo.report.digital_part import digital_part
from nft_ext.montecarlo.report.report import CONVENTIONS, MonteCarloReport
from nft_ext.montecarlo.report.text_table import align, images_per_chip, shown, unseen_line


def _one_sigma(report: MonteCarloReport) -> float:
    if not isinstance(report.sigma, float):
        fail("curves", "every report must have one sigma for all layers", report.sigma)
    return report.sigma


def check_curves(curves: dict[str, list[MonteCarloReport]]) -> list[MonteCarloReport]:
    """All reports of `curves`.

    Raises:
        ValueError: no report, a report with several sigmas, or reports whose first metrics differ.
    """
    reports = [report for curve in curves.values() for report in curve]
    if not reports:
        fail("curves", "must hold at least one report", f"{len(curves)} empty curves")
    for report in reports:
        _one_sigma(report)
    if len(firsts := {report.first for report in reports}) > 1:
        fail("curves", "must have the same first metric", ", ".join(sorted(firsts)))
    return reports


def convention(report: MonteCarloReport) -> str:
    """The unit of the report's sigma, in words."""
    return CONVENTIONS[report.nvm[0]["device"]["relative_to"]]


def common_conditions(reports: list[MonteCarloReport]) -> str:
    """The common conditions of a sweep's reports in words: device, M, K, chips, images and seed."""
    device = reports[0].nvm[0]["device"]
    runs = sorted({report.runs for report in reports})
    chips = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    sizes = {report.slice_images for report in reports}
    images = images_per_chip(reports[0]) if len(sizes) == 1 else f"slices of {reports[0].images} {reports[0].example}s"
    kinds = {
        (group["device"]["name"], group["device"]["weight_bits"], group["device"]["device_bits"])
        for report in reports
        for group in report.nvm
    }
    kind = (
        f"{device['name']}, M = {device['weight_bits']}, K = {device['device_bits']}"
        if len(kinds) == 1
        else "several devices"
    )
    return f"{kind}; {chips} chips x {images}, seed {reports[0].seed}{digital_part(reports)}"


def sweep_table(curves: dict[str, list[MonteCarloReport]]) -> str:
    """Mean of the first metric with its 95 % half-width: one row per sigma, one column per curve.

    A missing point is shown as "-", and an interrupted one is marked "*".

    Args:
        curves: name -> reports, as in `Sweep.reports`.

    Returns:
        The table as text.

    Raises:
        ValueError: no report, or a report with several sigmas.
    """
    reports = check_curves(curves)
    how = shown(reports[0].first)
    rows = [["sigma", *curves]]
    for sigma in sorted({_one_sigma(report) for report in reports}):
        row = [f"{sigma:g}"]
        for curve in curves.values():
            at = [report for report in curve if report.sigma == sigma]
            row.append(_cell(at[0]) if at else "-")
        rows.append(row)
    lines = [
        f"{how.label}{f' in {how.unit}' if how.unit else ''}, mean over chips of a network on these "
        f"{reports[0].example}s +- longer arm of its 95 % interval",
        f"sigma {convention(reports[0])}; {common_conditions(reports)}",
        *align(rows),
    ]
    lines.append(unseen_line(max(reports, key=lambda report: report.unseen_chips)))
    if any(report.interrupted for report in reports):
        lines.append("* interrupted: fewer chips than asked for")
    return "\n".join(lines)


def _cell(report: MonteCarloReport) -> str:
    mark = "*" if report.interrupted else ""
    statistic, how = report.statistics[report.first], shown(report.first)
    return f"{how.number(statistic.mean)} +- {how.number(statistic.ci95)}{mark}"
