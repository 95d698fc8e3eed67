"""A weight programmed again and again is read once a call: the step is guessed from the calls before and verified on the way
(csrc/cpu/foreseen.h). Whatever happens to the weight in between, each call gives what the definition gives."""

import pytest
import torch

import nft_ext as nft
from nft_ext import reference

CALLS = 6  # twice what it takes to be guessed at: csrc/tests/test_foreseen.cpp
SHAPE = (140, 301)  # three pieces of the sampler, a short chunk, enough weights for codes by products (csrc/cpu/reciprocal.h)
DEVICES = {
    "fast": nft.NVMDevice(sigma=0.1),
    "tables": nft.NVMDevice.preset("fefet6", sigma=0.2),
    "devices": nft.NVMDevice(sigma=0.1, stuck=(0.01, 0.01)),
    "16 bits": nft.NVMDevice(16, 4, 0.1),
}


def program(weight, nvm, draw, **how):
    return nft.program_weights(weight, nvm, seed=3, stream=5, draws=draw, **how)


def expected(weight, nvm, draws):
    table = torch.from_numpy(nvm.operator_table())
    return reference.program(weight, table, nft.noise_key(3, draws), 5, nvm.operator_spec(True))


ALL = []  # kept alive: at an address that was another weight's, what is remembered of that one may forbid a guess


def programmed_often(nvm):
    """A weight whose largest entry will be guessed at the next call."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 0.1
    ALL.append(weight)
    for draw in range(CALLS):
        program(weight, nvm, draw)
    return weight


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("draws", [7, [7, 8, 9]], ids=["one chip", "three chips"])
def test_a_right_guess(name, draws):
    weight = programmed_often(DEVICES[name])
    assert torch.equal(program(weight, DEVICES[name], draws), expected(weight, DEVICES[name], draws))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("change", ["larger", "smaller", "last larger", "zero", "halved"])
def test_a_wrong_guess(name, change):
    """Written past torch's version counter, as an optimizer of one's own may do."""
    nvm = DEVICES[name]
    weight = programmed_often(nvm)
    values = weight.numpy().reshape(-1)
    largest = abs(values).argmax()
    if change == "larger":
        values[largest] *= 3
    elif change == "smaller":
        values[largest] = 0.01
    elif change == "last larger":
        values[-1] = -2.5
    elif change == "zero":
        values[:] = 0
    else:
        values *= 0.5
    for draw in range(50, 50 + CALLS):
        assert torch.equal(program(weight, nvm, draw), expected(weight, nvm, draw))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_longer_finite(bad, name):
    """Their codes, found with a guessed step, are in range all the same: a table is read with them before the error is known."""
    nvm = DEVICES[name]
    weight = programmed_often(nvm)
    good = weight.clone()
    weight.view(-1)[[20000, 300, -1]] = bad
    for _ in range(2 * CALLS):
        with pytest.raises(RuntimeError, match="weight: must be finite"):
            program(weight, nvm, 0)
    weight.copy_(good)
    for draw in range(CALLS):
        assert torch.equal(program(weight, nvm, draw), expected(weight, nvm, draw))


def test_other_bits_of_the_same_weight():
    weight = programmed_often(DEVICES["fast"])
    for nvm in (nft.NVMDevice(4, 2, 0.1), DEVICES["16 bits"], DEVICES["fast"]):
        assert torch.equal(program(weight, nvm, 2), expected(weight, nvm, 2))


def test_a_step_is_not_negative():
    nvm, weight = DEVICES["tables"], torch.ones(4)
    table = torch.from_numpy(nvm.operator_table())
    with pytest.raises(RuntimeError, match="step: must not be negative; got -1"):
        torch.ops.nft_ext.program(weight, None, torch.tensor(-1.0), table, nft.noise_key(0, 0), 0, nvm.operator_spec(), torch.float32)


def test_bfloat16_and_no_noise():
    nvm = DEVICES["fast"]
    weight = programmed_often(nvm)
    assert torch.equal(program(weight, nvm, 4, dtype=torch.bfloat16), expected(weight, nvm, 4).bfloat16())
    code, sign, step = reference.quantize(weight, 8)
    assert torch.equal(program(weight, nvm, 4, enabled=False)[0], sign * (step * code))


def test_a_product_from_weights_that_change():
    """The functional layer, forward and backward, its weight new at each step."""
    nvm, x = DEVICES["fast"], torch.randn(3, SHAPE[1])
    weight = programmed_often(nvm).requires_grad_()
    table = torch.from_numpy(nvm.operator_table())
    for step in range(2 * CALLS):
        key = nft.noise_key(0, step)
        rows = x.clone().requires_grad_()
        nft.noisy_linear(rows, weight, nvm=nvm, key=key).sum().backward()
        w_p = reference.program(weight, table, key, 0, nvm.operator_spec(True))[0]
        torch.testing.assert_close(rows.grad, torch.ones(3, SHAPE[0]) @ w_p)
        with torch.no_grad():
            weight -= 0.05 * weight.grad
        weight.grad = None
