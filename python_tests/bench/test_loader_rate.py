"""bench/studies/loader.py: the three rates are measured, and add up."""

import pytest
import torch

from bench.studies import loader
from nft_ext import methods
from nft_ext.training import Recipe


def test_rates_of_a_small_step():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    images, labels = torch.randn(40, 1, 8, 8), torch.arange(40) % 3
    augmented = []
    rates = loader.measure(
        net,
        methods.NoiseInjection(sigma=0.1),
        images,
        labels,
        augmented.append,
        Recipe(batch_size=8),
        torch.device("cpu"),
        seconds=0.02,
    )
    assert len(augmented) >= 2 and augmented[0].shape == (8, 1, 8, 8)
    assert min(rates.batches, rates.augmented, rates.step) > 0
    assert "images/s" in rates.text()


def test_the_loaders_share_of_a_step():
    assert loader.Rates(batches=1e4, augmented=300.0, step=100.0).share == pytest.approx(0.25)
