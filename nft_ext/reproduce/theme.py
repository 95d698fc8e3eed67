"""Colours, markers and names in the plots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHANCE = {
    "mnist": 10.0,
    "digits": 10.0,
    "cifar10": 10.0,
    "cifar100": 1.0,
    "tinyimagenet": 0.5,
}  # accuracy of a guess, percent
MARKERS = {
    "vanilla": "v",
    "noise": "s",
    "control": "D",
    "control-ovf": "D",
    "control-irs": "d",
    "censored": "P",
    "correctnet": "X",
    "ovf": "o",
    "irs": "^",
    "noise tuned": "p",
    "noise compute": "h",
    "ovf tuned": "8",
    "irs tuned": ">",
    "ovf positive": "*",
    "irs positive": "<",
}
NAMES = {
    "noise": "noise injection",
    "control": "control (scaled logits)",
    "control-ovf": "control of OVF",
    "control-irs": "control of IRS",
    "ovf": "OVF",
    "irs": "IRS",
    "noise tuned": "noise injection, tuned temperature",
    "noise compute": "noise injection, equal compute",
    "ovf tuned": "OVF, tuned beta",
    "irs tuned": "IRS, tuned beta",
    "ovf positive": "OVF, positive feedback",
    "irs positive": "IRS, positive feedback",
    "correctnet": "CorrectNet",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a page: Okabe and Ito's palette, lighter on dark ground. The control is black or white."""

    ground: str
    ink: str
    faint: str
    grid: str
    colours: dict[str, str]

    def colour(self, variant: str) -> str:
        return self.colours.get(variant.split()[0], self.ink)


LIGHT = Theme(
    "#FFFFFF",
    "#222222",
    "#767676",
    "#E4E4E4",
    {
        "vanilla": "#767676",
        "noise": "#0072B2",
        "control": "#000000",
        "control-ovf": "#000000",
        "control-irs": "#6B4C9A",
        "censored": "#B8860B",
        "correctnet": "#CC79A7",
        "ovf": "#D55E00",
        "irs": "#009E73",
    },
)
DARK = Theme(
    "#16181C",
    "#E8E8E8",
    "#9A9A9A",
    "#33363C",
    {
        "vanilla": "#9A9A9A",
        "noise": "#56B4E9",
        "control": "#FFFFFF",
        "control-ovf": "#FFFFFF",
        "control-irs": "#B79CED",
        "censored": "#F0C244",
        "correctnet": "#E7A3CB",
        "ovf": "#FF8A3D",
        "irs": "#2FD1A2",
    },
)


def style(theme: Theme) -> dict[Any, Any]:
    """matplotlib's settings for a theme."""
    return {
        "font.size": 10,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "axes.facecolor": theme.ground,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "svg.hashsalt": "nft_ext",
        "legend.frameon": False,
        "text.parse_math": False,
    }
