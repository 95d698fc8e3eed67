"""Models on several chips, in one pass and one by one."""

import warnings

import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
DRAWS = [4, 0, 7]


def rand(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Calling(nn.Module):
    """forward = function(self.net, ...)."""

    def __init__(self, function, net=None):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) if net is None else net

    def forward(self, *args, **kwargs):
        return self.function(self.net, *args, **kwargs)


def noisy(model):
    """An LSTM stays digital: it mixes chips that share a pass, while a noisy one splits them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that stay digital
        digital = nn.LSTM if any(isinstance(m, nn.LSTM) for m in model.modules()) else None
        return nft.convert(model, NVM, exclude=digital).eval()


def apart(model, *args, **kwargs):
    results = []
    for draw in DRAWS:
        with torch.no_grad(), nft.chips(model, seed=3, draws=draw):
            results.append(model(*args, **kwargs))
    return results


def together(model, *args, **kwargs):
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS):
        return model(*args, **kwargs)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(8, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x):  # [T, B, 8]
        return self.last(self.lstm(self.first(x))[0])
