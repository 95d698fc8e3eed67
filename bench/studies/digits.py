"""The network of the studies: a small VGG-8 on digits."""

from __future__ import annotations

import torch
from torch import nn

import nft_ext as nft
from nft_ext import data, methods, models


def trained(method: str, width: float, epochs: int) -> nn.Module:
    """A VGG-8 trained on digits; methods with noise at sigma 0.3."""
    training, validation = data.split_validation(data.load("digits", None)[0], 0.1, seed=0)
    torch.manual_seed(0)
    options = {"sigma": 0.3} if "sigma" in methods.options_of(method) else {}
    return nft.fit(
        models.vgg8(10, 1, width),
        methods.build(method, **options),
        training,
        validation,
        epochs=epochs,
        batch_size=64,
        seed=0,
        nvm=nft.NVMDevice(sigma=0.3),
        progress=None,
    ).model
