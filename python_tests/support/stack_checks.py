"""What holds for every network of another package after `convert`; each check is a sentence of the contract."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)


@dataclass
class Case:
    """A network of toy size with random weights.

    Attributes:
        make: builds the network, called after torch.manual_seed(0).
        inputs: makes the arguments of its forward: a tuple, or a dict of keywords.
        share: the least share of matrix weights on crossbars; below 0.99 a comment says why.
        result: what is compared, of the forward's result; None for the first tensor.
        one_by_one: whether several chips take a pass each, with a warning: inputs or results have no batch in dim 0.
        options: further arguments of `convert`.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    share: float = 0.99
    result: Callable[[Any], torch.Tensor] | None = None
    one_by_one: bool = False
    options: dict = field(default_factory=dict)


class Network:
    """The plain network of a case and its noisy copy, with the forward that the checks compare."""

    def __init__(self, case):
        self.case = case
        torch.manual_seed(0)
        self.plain = case.make().eval()
        self.inputs = case.inputs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks read the account itself
            self.noisy = nft.convert(self.plain, NVM, example=self.inputs, **case.options)

    def __call__(self, model):
        given = self.inputs
        result = model(**given) if isinstance(given, Mapping) else model(*given)
        return first_tensor(result) if self.case.result is None else self.case.result(result)


def first_tensor(result):
    if isinstance(result, torch.Tensor):
        return result
    if isinstance(result, Mapping):
        return result["logits"] if "logits" in result else first_tensor(next(iter(result.values())))
    return first_tensor(result[0])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def differ(found, other):
    """By far more than rounding."""
    assert (found - other).abs().max() > 1e-3 * other.abs().max()


def check_share(network):
    """The share of matrix weights on crossbars, with the multiply-accumulates that a forward showed."""
    account = nft.coverage(network.noisy, network.inputs)
    found = account.share
    assert found >= network.case.share, account.line()
    assert not account.mac_share < 0.95 * network.case.share, account.line()


def check_keys(network):
    """Same keys in the same order, and a checkpoint loads either way."""
    plain, noisy = network.plain.state_dict(), network.noisy.state_dict()
    assert list(plain) == list(noisy)
    network.noisy.load_state_dict(plain)
    network.plain.load_state_dict(noisy)


def check_a_chip_is_a_plain_network(network):
    """`chips` and `program` give the same result. Bit for bit on weights that were programmed on entry, as both then
    call torch's products; to rounding with the operators, which sum in their own order. Another chip differs.
    """
    with torch.no_grad():
        with nft.chips(network.noisy, seed=3, draws=[5], programmed=True):
            found = network(network.noisy)
        assert torch.equal(found, network(nft.program(network.noisy, seed=3, draw=5)))
        with nft.chips(network.noisy, seed=3, draws=[5]):
            close(network(network.noisy), found)
        with nft.chips(network.noisy, seed=3, draws=[6]):
            differ(network(network.noisy), found)
        assert found.isfinite().all()


def check_two_chips_are_two_passes(network):
    """To rounding: products of other sizes may sum in another order."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alone = []
        for draw in (0, 1):
            with nft.chips(network.noisy, seed=3, draws=[draw]):
                alone.append(network(network.noisy))
        with nft.chips(network.noisy, seed=3, draws=[0, 1]):
            together = network(network.noisy)
    close(together, torch.cat(alone))
    differ(*alone)
    said = any("one chip per pass" in str(warning.message) for warning in caught)
    assert said == network.case.one_by_one, [str(warning.message) for warning in caught]


def check_restore(network):
    with torch.no_grad():
        assert torch.equal(network(nft.restore(network.noisy)), network(network.plain))


def check_gradients(network):
    """Every parameter that has a gradient in the plain network has a finite one under noise, and no other."""
    found = []
    for model in (network.plain, network.noisy):
        model.zero_grad()
        network(model).float().square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert set(found[0]) == set(found[1]) and found[1]
    assert not [name for name, gradient in found[1].items() if not gradient.isfinite().all()]
    total = math.fsum(float(gradient.abs().sum()) for gradient in found[1].values())
    assert total > 0


CHECKS = (
    check_share,
    check_keys,
    check_a_chip_is_a_plain_network,
    check_two_chips_are_two_passes,
    check_restore,
    check_gradients,
)
