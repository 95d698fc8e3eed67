"""The picture of the README: every dot is one chip, at the accuracy that it has on all test images.

    python docs/figures/make_overview.py              draws overview.png from overview.json
    python docs/figures/make_overview.py --measure    trains and measures first, and writes overview.json

One small convolutional network on scikit-learn's digits, trained three ways from the same weights. The two noisy
methods train at SIGMA. All are measured at every sigma of SIGMAS on the same CHIPS chips.
"""

import io
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo.report.figure_style import FAINT, STYLE

HERE = Path(__file__).parent
SIGMA, SIGMAS, CHIPS, EPOCHS = 0.3, (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4), 200, 12
METHODS = {
    "trained without noise": nft.methods.Vanilla(),
    "noise injection": nft.methods.NoiseInjection(sigma=SIGMA),
    "OVF, negative feedback": nft.methods.OVF(sigma=SIGMA, beta=1e-3),
}
# Okabe and Ito's palette: told apart by every kind of colour vision.
COLOURS = {"trained without noise": "#D55E00", "noise injection": "#7A7A7A", "OVF, negative feedback": "#0072B2"}


def network() -> nn.Module:
    """[B, 1, 32, 32] -> logits [B, 10]; the digits have 8 x 8 pixels, so the rest is taken out first."""

    def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    torch.manual_seed(0)
    return nn.Sequential(
        nn.AvgPool2d(4), *block(1, 8), *block(8, 16), nn.MaxPool2d(2), *block(16, 16), nn.Flatten(), nn.Linear(256, 10)
    )


def measure() -> dict:
    """Correct images of every chip: {"images", "sigmas", "methods": name -> [sigma][chip]}."""
    train, test = nft.data.load("digits")
    train, validation = nft.data.split_validation(train)
    networks = {}
    for name, method in METHODS.items():
        history = nft.fit(network(), method, train, validation, epochs=EPOCHS, batch_size=64, lr=3e-3)
        networks[name] = nft.convert(history.model, nft.NVMDevice())
    curves = nft.sweep(networks, test, SIGMAS, runs=CHIPS)
    print(curves)
    correct = {
        name: [np.rint(r.accuracy.per_run * len(test)).astype(int).tolist() for r in curves.curve(name)]
        for name in networks
    }
    return {"images": len(test), "sigmas": SIGMAS, "methods": correct, "nft_ext": nft.__version__}


def draw(found: dict, path: Path) -> None:
    sigmas = np.array(found["sigmas"])
    outline = [withStroke(linewidth=3.6, foreground="white")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes = figure.subplots()
        ends = []
        for (name, correct), shift in zip(found["methods"].items(), (-0.0085, 0.0, 0.0085), strict=True):
            percent = 100 * np.array(correct) / found["images"]  # [sigmas, chips]
            at = sigmas[1:, None] + shift + 0.0036 * spread(percent.shape[1])  # without noise all chips are one
            axes.plot(at.ravel(), percent[1:].ravel(), ".", color=COLOURS[name], alpha=0.35, ms=4, mew=0, zorder=2)
            mean = percent.mean(1)
            places = sigmas + shift * (sigmas > 0)
            axes.plot(places, mean, color=COLOURS[name], lw=2, marker="o", ms=4.5, zorder=3, path_effects=outline)
            ends.append((mean[-1], name))
        ends.sort()
        for (_, name), height in zip(ends, apart([mean for mean, _ in ends], 5.5), strict=True):
            axes.annotate(name, (sigmas[-1] + 0.02, height), color=COLOURS[name], va="center", annotation_clip=False)
        axes.axvline(SIGMA, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        axes.annotate(
            "sigma of the two\nnoisy trainings",
            (SIGMA, 3),
            xytext=(-5, 0),
            textcoords="offset points",
            color=FAINT,
            fontsize=8.5,
            ha="right",
        )
        axes.set(
            xlabel="device variation: sigma, relative to the largest conductance",
            ylabel="accuracy of a chip, %",
            xlim=(-0.012, 0.416),
            ylim=(0, 101),
        )
        axes.grid(axis="y", color="#E8E8E8", linewidth=0.6)
        axes.set_axisbelow(True)
        chips = len(next(iter(found["methods"].values()))[0])
        figure.suptitle(
            f"Every dot is one chip: one network, trained three ways, {chips} chips per sigma",
            fontsize=11.5,
            x=0.01,
            ha="left",
        )
        picture = io.BytesIO()
        figure.savefig(picture, dpi=140)
    Image.open(picture).convert("RGB").quantize(192).save(path, optimize=True)


def spread(count: int) -> np.ndarray:
    """Places in -1 .. 1 [count] that keep neighbours apart."""
    return 2 * (np.arange(count) * 0.618034 % 1) - 1


def apart(heights: list[float], gap: float) -> list[float]:
    """Ascending heights, moved so that neighbours are at least `gap` apart."""
    placed = [heights[0]]
    for height in heights[1:]:
        placed.append(max(height, placed[-1] + gap))
    return placed


if __name__ == "__main__":
    data = HERE / "overview.json"
    if "--measure" in sys.argv[1:]:
        data.write_text(json.dumps(measure()).replace("]], ", "]],\n ") + "\n")
    draw(json.loads(data.read_text()), HERE / "overview.png")
