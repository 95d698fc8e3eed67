"""Records which chips of a small VGG-8 classify which test images right: python -m bench.studies.record_chips OUT.npz

`bench.studies.coverage --recorded` resamples this matrix. The network is trained on digits. Ten minutes on a core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import nft_ext as nft
from bench.harness import machine
from bench.studies.digits import trained
from nft_ext import data
from nft_ext._common.files import atomic_file


def record(model: torch.nn.Module, chips: int, seed: int) -> np.ndarray:
    """Right answers, bool [chips, I], of chips 0 .. chips - 1 of `seed` on the test images."""
    test = data.load("digits", None)[1]
    inputs, labels = test.images, test.labels
    rows = []
    with torch.no_grad():
        for draw in range(chips):
            with nft.chips(model, seed=seed, draws=draw):
                rows.append(model(inputs).argmax(dim=1) == labels)
    return torch.stack(rows).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=machine.output)
    parser.add_argument("--sigma", type=float, default=0.2)
    parser.add_argument("--chips", type=int, default=2000)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoint", type=Path, help="use this network instead of training one")
    arguments = parser.parse_args()
    if arguments.checkpoint is not None:
        plain = nft.training.load_model(arguments.checkpoint)[0]
    else:
        plain = trained("noise", arguments.width, arguments.epochs)
    noisy = nft.convert(plain, nft.NVMDevice(sigma=arguments.sigma)).eval()
    correct = record(noisy, arguments.chips, seed=1)
    by_chip = correct.mean(axis=1)
    print(
        f"accuracy {100 * correct.mean():.2f} %, std over chips {100 * by_chip.std(ddof=1):.2f} points, "
        f"worst {100 * by_chip.min():.2f} %"
    )
    with atomic_file(arguments.out) as file:
        np.savez_compressed(file, bits=np.packbits(correct, axis=1), shape=np.array(correct.shape))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
