"""Accuracy over sigma for two trainings, on common chips.  python examples/sweep_and_plot.py [sweep.png]"""

import sys

import torch
from torch import nn

import nft_ext as nft


def main(picture="sweep.png", epochs=10, runs=60, sigmas=(0.05, 0.1, 0.2, 0.3)):
    torch.manual_seed(0)
    train, test = nft.data.load("digits")
    train, validation = nft.data.split_validation(train)
    model = nn.Sequential(
        nn.AvgPool2d(4),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, 10),
    )
    methods = {"vanilla": nft.methods.Vanilla(), "noise injection": nft.methods.NoiseInjection(sigma=0.2)}
    noisy = {}
    for name, method in methods.items():
        history = nft.fit(model, method, train, validation, epochs=epochs, batch_size=64, lr=3e-3, progress=False)
        noisy[name] = nft.convert(history.model, nft.NVMDevice())

    # Run r of every curve is the same chip: differences between curves are much narrower than the curves themselves.
    result = nft.sweep(noisy, test, sigmas=sigmas, runs=runs, seed=0, progress=False)
    print(result)
    print(result.differences_table("vanilla"))
    result.plot(picture)
    print(f"\nwrote {picture}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
