"""How the files of this folder were made, with nft_ext 0.2.0: python make.py FOLDER."""

import sys

import torch
from torch import nn

import nft_ext as nft

torch.manual_seed(0)
torch.set_num_threads(1)
net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 4))
x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 4
out = sys.argv[1]
torch.save({"x": x, "y": y, "start": net.state_dict()}, out + "/start.pt")
h = nft.fit(
    net,
    nft.methods.NoiseInjection(sigma=0.1),
    (x[:30], y[:30]),
    (x[30:], y[30:]),
    nvm=nft.NVMDevice(),
    epochs=2,
    batch_size=10,
    progress=False,
    checkpoint=out + "/net.safetensors",
    state=out + "/net.state",
)
r = nft.monte_carlo(
    nft.convert(h.model, nft.NVMDevice(sigma=0.1)),
    (x, y),
    runs=4,
    seed=1,
    progress=False,
    resume=out + "/journal.jsonl",
)
r.to_json(out + "/report.json")
print(nft.__version__, r.accuracy.per_run, h)
