"""A measured device: from a table of levels to the accuracy of a network.  python examples/measured_device.py
[TABLE.csv]
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import nft_ext as nft

# Mean and standard deviation of the conductance at each level, in microsiemens. Replace by your own measurements.
TABLE = """level,mean,std
0,2.4,2.1
1,17.1,7.6
2,33.8,8.9
3,49.6,5.2
"""


def device(path, sigma=1.0):
    """The measured device. `sigma` is a factor on the measured standard deviations: 1 is as measured."""
    return nft.NVMDevice.from_table(path, unit="microsiemens", g_min=2.0, g_max=50.0, sigma=sigma)


def main(path=None, runs=100, epochs=20):
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder, "levels.csv")
            path.write_text(TABLE)
        as_measured, tighter = device(path), device(path, sigma=0.5)
    mean, std = as_measured.level_table()
    print("level  mean  std   (in steps from one level to the next)")
    for level, (m, s) in enumerate(zip(mean, std)):
        print(f"{level:5d} {m:5.2f} {s:4.2f}")

    torch.manual_seed(0)
    train, test = nft.data.load("digits")
    train, validation = nft.data.split_validation(train)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    recipe = {"epochs": epochs, "batch_size": 32, "lr": 3e-3, "progress": False}
    history = nft.fit(model, nft.methods.Vanilla(), train, validation, **recipe)

    accuracy = {}
    for name, nvm in {"as measured": as_measured, "half the spread": tighter}.items():
        report = nft.monte_carlo(nft.convert(history.model, nvm), test, runs=runs, seed=0)
        accuracy[name] = report.accuracy
        print(f"{name}: {report.accuracy.mean:.1%} +- {report.accuracy.ci95:.1%}, worst of {runs}: ", end="")
        print(f"{float(report.accuracy.worst):.1%}")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
