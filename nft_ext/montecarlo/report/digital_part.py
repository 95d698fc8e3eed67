"""What the caption of a figure says about weights that are on no crossbar."""

from __future__ import annotations

from nft_ext._common.coverage_line import is_complete, percent


def digital_part(reports: list) -> str:
    """ "; 81.0 % of matrix weights on crossbars", or a range; empty if all are, or if no report knows.

    Args:
        reports: MonteCarloReports of one figure.
    """
    known = [report.coverage for report in reports if report.coverage is not None]
    if all(map(is_complete, known)):
        return ""
    low, high = (percent(end(c["share"] for c in known)) for end in (min, max))
    return f"; {low if low == high else f'{low} to {high}'} of matrix weights on crossbars"
