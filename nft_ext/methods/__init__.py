"""Training methods: vanilla, noise injection, censored noise, CorrectNet, Negative Feedback Training (OVF, IRS) and its
control.

Each method is one small object, for your own loop (see `Method`) and for `nft_ext.fit`. docs/reference/methods.md
lists them with their equations, and shows how to add one.
"""

from __future__ import annotations

from nft_ext.methods.base import Method
from nft_ext.methods.censored import Censored
from nft_ext.methods.control import ScaledLogits, control_of
from nft_ext.methods.correctnet import CorrectNet
from nft_ext.methods.irs import IRS
from nft_ext.methods.noise_injection import NoiseInjection
from nft_ext.methods.ovf import OVF
from nft_ext.methods.paper import BETAS, paper_beta
from nft_ext.methods.points import snapshot_points_of
from nft_ext.methods.registry import build, names, options_of, register
from nft_ext.methods.vanilla import Vanilla

for _kind in (Vanilla, NoiseInjection, ScaledLogits, OVF, IRS, Censored, CorrectNet):
    register(_kind)
NAMES = names()  # the built-in methods, in this order

__all__ = [
    "BETAS",
    "IRS",
    "NAMES",
    "OVF",
    "Censored",
    "CorrectNet",
    "Method",
    "NoiseInjection",
    "ScaledLogits",
    "Vanilla",
    "build",
    "control_of",
    "names",
    "options_of",
    "paper_beta",
    "register",
    "snapshot_points_of",
]
