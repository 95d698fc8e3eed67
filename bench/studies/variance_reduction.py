"""Do antithetic chips or a control variate lower the variance? python -m bench.studies.variance_reduction [--out JSON]

Small VGG-8 networks on digits, in plain PyTorch with weights from program_weights. Antithetic: chip z and chip -z, with
weights 2 W_d - W_p, each on all test images. Control variate: the first-order change of the noise-free loss,
sum_w dL/dW (W_p - W_d), whose mean over chips is 0.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import nn

import nft_ext as nft
from bench.harness import machine
from bench.studies.digits import trained
from nft_ext import data
from nft_ext._common.files import write_json


def accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs).argmax(dim=1) == labels).double().mean())


def study(plain: nn.Module, sigma: float, chips: int) -> dict[str, float]:
    """Figures of `chips` chips and their mirror images."""
    test = data.load("digits", None)[1]
    inputs, labels = test.images, test.labels
    noisy = nft.convert(plain, nft.NVMDevice(sigma=sigma)).eval()
    clean = nft.program(nft.convert(plain, nft.NVMDevice(sigma=0.0)), seed=2, draw=0).eval()
    nn.functional.cross_entropy(clean(inputs), labels).backward()
    weights = {name: (w.detach().clone(), w.grad) for name, w in clean.named_parameters() if w.dim() > 1}
    both, control = [], []
    for draw in range(chips):
        chip = nft.program(noisy, seed=2, draw=draw).eval()
        pair = [accuracy(chip, inputs, labels)]
        slope = 0.0
        with torch.no_grad():
            for name, w in chip.named_parameters():
                if name in weights:
                    middle, gradient = weights[name]
                    slope += float(((w - middle) * gradient).sum())
                    w.copy_(2 * middle - w)
        pair.append(accuracy(chip, inputs, labels))
        both.append(pair)
        control.append(slope)
    both, control = np.array(both), np.array(control)
    by_chip = both.var(ddof=1)
    correlation = float(np.corrcoef(both[:, 0], both[:, 1])[0, 1])
    with_control = float(np.corrcoef(both[:, 0], control)[0, 1])
    return {
        "sigma": sigma,
        "pairs": chips,
        "accuracy": float(both.mean()),
        "chip_std": float(np.sqrt(by_chip)),
        "pair_correlation": correlation,
        "correlation_standard_error": (1 - correlation**2) / np.sqrt(chips),
        # Variance of the mean of as many independent chips over that of the pairs.
        "antithetic_gain": 1 / (1 + correlation),
        "control_correlation": with_control,
        "control_gain": 1 / (1 - with_control**2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=machine.output, metavar="JSON")
    arguments = parser.parse_args()
    results = []
    for name, sigmas in (("noise", (0.1, 0.2, 0.3)), ("vanilla", (0.05, 0.1, 0.2))):
        plain = trained(name, 0.125, arguments.epochs)
        for sigma in sigmas:
            result = {"trained": name} | study(plain, sigma, arguments.pairs)
            results.append(result)
            print(
                f"{name:8s} sigma {sigma:g}: accuracy {100 * result['accuracy']:.2f} %, "
                f"chip std {100 * result['chip_std']:.2f}; z and -z: correlation {result['pair_correlation']:+.2f} "
                f"+- {result['correlation_standard_error']:.2f}, variance / {result['antithetic_gain']:.2f}; "
                f"control: correlation {result['control_correlation']:+.2f}, "
                f"variance / {result['control_gain']:.2f}",
                flush=True,
            )
    if arguments.out is not None:
        write_json(arguments.out, results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
