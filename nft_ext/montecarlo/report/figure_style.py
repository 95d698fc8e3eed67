"""The style of figures, and the import of matplotlib."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from nft_ext._common.files import write_atomically

# Okabe and Ito's palette, which suits every kind of colour vision. Dark colours come first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#8A8A8A"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}
DPI = 150


def require_matplotlib():
    """Imports matplotlib.

    Returns:
        The package.

    Raises:
        ImportError: matplotlib is not installed. The message has the command that installs it.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return matplotlib


def save_figure(figure, path: str | os.PathLike) -> None:
    """Writes a figure atomically. The suffix of `path` selects PNG, PDF or SVG; without one ".png" is added."""
    target = Path(path)
    if not target.suffix:
        target = target.with_name(target.name + ".png")
    content = io.BytesIO()
    figure.savefig(content, format=target.suffix[1:], dpi=DPI)
    write_atomically(target, content.getvalue())
