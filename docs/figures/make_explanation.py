"""The example of docs/guide/where_accuracy_goes.md: a network on digits, and where its accuracy goes on chips.

    python docs/figures/make_explanation.py    trains, explains, and writes explanation.txt, .json and .png

The network is trained without noise. Its chips have devices of four levels with a level-dependent spread, and two
devices of a hundred are stuck.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

import nft_ext as nft

HERE = Path(__file__).parent
DEVICE = nft.NVMDevice.preset("fefet2", sigma=0.3, stuck=(0.01, 0.01))


def network() -> nn.Module:
    """[B, 1, 32, 32] -> logits [B, 10]; the digits have 8 x 8 pixels, so the rest is taken out first."""
    torch.manual_seed(0)
    layers: list[tuple[str, nn.Module]] = [("pixels", nn.AvgPool2d(4))]
    for number, (inputs, outputs) in enumerate([(1, 8), (8, 16), (16, 16)], start=1):
        layers += [
            (f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)),
            (f"norm{number}", nn.BatchNorm2d(outputs)),
            (f"relu{number}", nn.ReLU()),
        ]
    return nn.Sequential(OrderedDict([*layers, ("flatten", nn.Flatten()), ("fc", nn.Linear(1024, 10))]))


def explanation() -> nft.Explanation:
    train, test = nft.data.load("digits")
    train, validation = nft.data.split_validation(train)
    history = nft.fit(network(), nft.methods.Vanilla(), train, validation, epochs=12, batch_size=64, lr=3e-3)
    return nft.explain(nft.convert(history.model, DEVICE), test, runs=64)


if __name__ == "__main__":
    found = explanation()
    print(found)
    (HERE / "explanation.txt").write_text(f"{found}\n")
    found.to_json(HERE / "explanation.json")
    found.plot(HERE / "explanation.png")
