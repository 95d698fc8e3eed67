"""nft_ext: fast noisy inference and noise-aware training for compute-in-memory crossbars of non-volatile devices.

    import nft_ext as nft

    nvm = nft.NVMDevice(weight_bits=8, device_bits=2, sigma=0.1)
    noisy = nft.convert(model, nvm)
    report = nft.monte_carlo(noisy, (images, labels), runs=200)

docs/reference/noise.md defines the noise. nft_ext.reference defines every operator in plain PyTorch.
"""

from nft_ext.ops import build_info  # noqa: F401  (first: it loads the libraries and nft_ext._core)

# isort: split
from nft_ext import data, methods, metrics, models, reference
from nft_ext._common.moved import keep_old_names
from nft_ext.device import NVMDevice
from nft_ext.montecarlo import (
    ChipsReport,
    CostEstimate,
    Explanation,
    MonteCarloReport,
    estimate_cost,
    explain,
    monte_carlo,
    over_chips,
    sweep,
)
from nft_ext.montecarlo.execution.cuda_graphs import MonteCarloGraph
from nft_ext.nn import NoisyConv2d, NoisyLinear, noisy_layers
from nft_ext.nn.calibration import calibrate
from nft_ext.nn.calibration_report import Calibration
from nft_ext.nn.contexts import checkpoint_contexts, chips, noise
from nft_ext.nn.conversion import convert, program, restore
from nft_ext.nn.coverage.account import coverage
from nft_ext.nn.coverage.table import Coverage
from nft_ext.nn.crossbars import register_crossbar
from nft_ext.nn.fusion import fuse
from nft_ext.ops.build_info import info
from nft_ext.ops.functional import noisy_conv2d, noisy_linear, program_weights
from nft_ext.ops.keys import noise_key
from nft_ext.training import fit
from nft_ext.version import __version__

keep_old_names()

__all__ = [
    "Calibration",
    "ChipsReport",
    "CostEstimate",
    "Coverage",
    "Explanation",
    "MonteCarloGraph",
    "MonteCarloReport",
    "NVMDevice",
    "NoisyConv2d",
    "NoisyLinear",
    "__version__",
    "calibrate",
    "checkpoint_contexts",
    "chips",
    "convert",
    "coverage",
    "data",
    "estimate_cost",
    "explain",
    "fit",
    "fuse",
    "info",
    "methods",
    "metrics",
    "models",
    "monte_carlo",
    "noise",
    "noise_key",
    "noisy_conv2d",
    "noisy_layers",
    "noisy_linear",
    "over_chips",
    "program",
    "program_weights",
    "reference",
    "register_crossbar",
    "restore",
    "sweep",
]
