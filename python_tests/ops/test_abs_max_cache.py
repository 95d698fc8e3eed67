"""The cache of max|W| (csrc/cpu/torch/abs_max_cache.h): a weight that is programmed repeatedly is read once per call.

The step is guessed from earlier calls and verified on the way, in the sampler and in the one-pass product. Each call
gives what the definition gives, whatever happens to the weight between calls.
"""

import pytest
import torch

import nft_ext as nft
from nft_ext import reference

CALLS = 6  # twice what it takes to be guessed at: csrc/tests/cpu/test_abs_max_cache.cpp
SHAPE = (
    140,
    301,
    # three pieces of the sampler, a short chunk, enough for codes by products (csrc/cpu/sampler/step_reciprocal.h)
)
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


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("draws", [7, [7, 8, 9]], ids=["one chip", "three chips"])
def test_a_right_guess(name, draws):
    weight = programmed_often(DEVICES[name])
    assert torch.equal(program(weight, DEVICES[name], draws), expected(weight, DEVICES[name], draws))


CHANGES = ["larger", "smaller", "last larger", "zero", "halved"]


def change_values(weight, change):
    """Written past torch's version counter, as an optimizer of one's own may do."""
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


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_guess(name, change, threads):
    nvm = DEVICES[name]
    threads(2 if name == "fast" else 1)
    weight = programmed_often(nvm)
    change_values(weight, change)
    for draw in range(50, 50 + CALLS):
        assert torch.equal(program(weight, nvm, draw), expected(weight, nvm, draw))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_longer_finite(bad, name):
    """Their codes, found with a guessed step, are in range all the same: a table is read with them before the error is
    known.
    """
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
    with pytest.raises(RuntimeError, match="step: must be a finite number >= 0; got -1"):
        torch.ops.nft_ext.program(
            weight, None, torch.tensor(-1.0), table, nft.noise_key(0, 0), 0, nvm.operator_spec(), torch.float32
        )


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


# ---- the one-pass product: few images, enough weights

CONVOLUTIONS = {
    "plain": ((96, 32, 3, 3), 1),
    "groups": ((96, 48, 3, 3), 2),
    "one column of blocks": ((16, 512, 1, 1), 1),
}
DRAWS = [[4], [5, 6, 7]]


def convolved_often(kind, name):
    """(layer's weight, a function from draws to its product and that of the definition); the step will be guessed."""
    shape, groups = CONVOLUTIONS[kind]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.1
    ALL.append(weight)
    nvm, x = DEVICES[name], torch.randn(1, shape[1] * groups, 4, 4, generator=torch.Generator().manual_seed(3))

    def both(draws):
        got = nft.noisy_conv2d(
            x, weight, nvm=nvm, key=nft.noise_key(3, draws), stream=5, padding=shape[2] // 2, groups=groups
        )
        chips = expected(weight, nvm, draws)
        return got, torch.cat(
            [torch.nn.functional.conv2d(x, w_p, padding=shape[2] // 2, groups=groups) for w_p in chips]
        )

    for draw in range(CALLS):
        both([draw])
    return weight, both


def assert_products_agree(both):
    for draws in DRAWS:
        got, want = both(draws)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_product_with_a_right_guess(kind, name, threads):
    threads(2 if name == "fast" else 1)
    assert_products_agree(convolved_often(kind, name)[1])


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["fast", "tables"])
def test_a_product_with_a_wrong_guess(name, change, kind):
    weight, both = convolved_often(kind, name)
    change_values(weight, change)
    for _ in range(CALLS):
        assert_products_agree(both)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_a_product_of_weights_that_are_no_longer_finite(bad, kind):
    """Wherever the weight is: every block of rows looks at its own."""
    weight, both = convolved_often(kind, "tables")
    for place in (0, 4000, -1):
        good = weight.view(-1)[place].clone()
        weight.view(-1)[place] = bad
        for _ in range(CALLS):
            with pytest.raises(RuntimeError, match="weight: must be finite"):
                both([1])
        weight.view(-1)[place] = good
        for _ in range(CALLS):
            assert_products_agree(both)


def test_the_step_of_a_guess_reaches_the_backward():
    """The backward programs the forward's chip again, by the step that the forward found."""
    weight, _ = convolved_often("plain", "fast")
    rows = torch.randn(1, 32, 4, 4, requires_grad=True)
    key = nft.noise_key(3, [9])
    nft.noisy_conv2d(rows, weight, nvm=DEVICES["fast"], key=key, stream=5, padding=1).sum().backward()
    w_p = expected(weight, DEVICES["fast"], [9])[0]
    want = torch.nn.grad.conv2d_input(rows.shape, w_p, torch.ones(1, 96, 4, 4), padding=1)
    torch.testing.assert_close(rows.grad, want, rtol=2e-5, atol=2e-4)
