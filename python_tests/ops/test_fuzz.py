"""Random calls of the public functions on tensors agree with their definitions (support/fuzz.py).

More of them: python python_tests/support/fuzz.py --count 10000.
"""

import pytest
import torch

import nft_ext as nft
from support import fuzz


@pytest.mark.parametrize("start", range(0, 150, 30))
def test_random_calls_agree_with_their_definitions(start):
    for seed in range(start, start + 30):
        fuzz.check(seed)


def one_bit_off(function):
    def call(*arguments, **options):
        found = function(*arguments, **options).clone()
        flat = found.view(-1).view(torch.int32 if found.dtype == torch.float32 else torch.int16)
        flat[:1] ^= 1
        return found

    return call


def another_chip(function):
    return lambda *arguments, key, **options: function(*arguments, key=key + 1, **options)


@pytest.mark.parametrize(
    "name, wrong", [("program_weights", one_bit_off), ("noisy_linear", another_chip), ("noisy_conv2d", another_chip)]
)
def test_a_wrong_result_is_noticed(monkeypatch, name, wrong):
    monkeypatch.setattr(nft, name, wrong(getattr(nft, name)))
    with pytest.raises(AssertionError, match="seed="):
        for seed in range(40):
            fuzz.check(seed)
