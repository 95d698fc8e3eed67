"""No derivative of a raw operator is lost in silence: it is right (test_derivatives.py) or refused here."""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

import nft_ext as nft
from support.derivatives import ops_called
from support.products import NVM, noise_of, random

ops = torch.ops.nft_ext
INTEGERS = {"quantize", "draw_key", "draw_keys"}  # their results have no derivatives
KEY = nft.noise_key(0)
TABLE, _, STREAM, SPEC = noise_of(NVM, KEY)
BAR = (None, None, TABLE, KEY, STREAM, SPEC)
GEOMETRY = ([1, 1], [0, 0], [1, 1], 1)
EPILOGUE = (None, None, None, True)
SINGLE = [0, -1, 0, 1, 1, 0, 0, 1, 1, 1]  # the wiring of one layer


def test_every_operator_says_what_autograd_does():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("nft_ext::")}
    assert len(names) > 10
    silent = {name for name in names if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autograd")}
    assert silent == {f"nft_ext::{name}" for name in INTEGERS}


def cascade(x):
    noise = ([TABLE], [KEY], [STREAM], SPEC)
    return ops.noisy_cascade([x], [random(3, 5)], [None], *noise, [None], [None], SINGLE, [1])[0]


def epilogue(x):
    y = x.clone()
    ops.epilogue_(y, None, None, None, True)
    return y


def convolution_backward(x):
    mask = [True, False, False]
    grad = random(1, 1, 2, 2)
    return ops.convolution_backward(
        grad, x.view(1, 1, 2, 5), random(1, 1, 1, 4), None, *GEOMETRY[:3], False, [0, 0], 1, mask
    )[0]


REFUSED = {
    "noisy_linear_fused": lambda x: ops.noisy_linear_fused(x, random(3, 5), None, *BAR, True, *EPILOGUE),
    "noisy_conv2d_fused": lambda x: ops.noisy_conv2d_fused(
        x.view(2, 5, 1, 1), random(3, 5, 1, 1), None, *BAR, *GEOMETRY, True, *EPILOGUE
    ),
    "noisy_cascade": cascade,
    "program_many": lambda x: ops.program_many([x], [None], [], [TABLE], KEY, [STREAM], SPEC, [], torch.float32)[0],
    "epilogue_": epilogue,
    "convolution_backward": convolution_backward,
}


@pytest.mark.parametrize("name", REFUSED)
def test_operators_for_inference_refuse_every_derivative(name):
    function, x = REFUSED[name], random(2, 5)
    message = f"nft_ext::{name}: arguments must not {{}}, the operator has no derivative; got one that does. Call it"
    gradient, tangent = message.format("require a gradient"), message.format("have a tangent")
    with pytest.raises(RuntimeError, match=gradient):
        function(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=gradient):
        func.grad(lambda x: function(x).sum())(x)
    with pytest.raises(RuntimeError, match=tangent), torch.no_grad():
        func.jvp(function, (x,), (x,))
    with forward_ad.dual_level(), torch.no_grad():
        with pytest.raises(RuntimeError, match=tangent):
            function(forward_ad.make_dual(x, x))
        assert forward_ad.unpack_dual(function(x)).tangent is None


def test_the_step_is_a_constant():
    weight = random(3, 5).requires_grad_()
    assert not ops.weight_step(weight, 8).requires_grad
    assert not ops.weight_step_many([weight], [8]).requires_grad
    step, tangent = func.jvp(lambda w: ops.weight_step(w, 8), (weight.detach(),), (weight.detach(),))
    assert step > 0
    assert tangent == 0


# ---- vmap


def linear(x, weight, key=KEY):
    return nft.noisy_linear(x, weight, nvm=NVM, key=key)


def test_vmap_over_inputs_programs_the_weight_once():
    x, weight = random(4, 2, 3, 5), random(6, 5)
    expected = linear(x.flatten(0, 2), weight).view(4, 2, 3, 6)
    with ops_called() as calls:
        torch.testing.assert_close(torch.vmap(linear, (0, None))(x, weight), expected)
        torch.testing.assert_close(torch.vmap(linear, (1, None), 1)(x, weight), expected)
    assert calls.names == ["program", "program"]


def test_vmap_over_weights_and_keys_is_a_call_for_each():
    x, weights = random(2, 5), random(3, 6, 5)
    keys = torch.stack([nft.noise_key(seed, range(2)) for seed in range(3)])
    expected = torch.stack([linear(x, weight, key) for weight, key in zip(weights, keys)])
    torch.testing.assert_close(torch.vmap(linear, (None, 0, 0))(x, weights, keys), expected)


def test_vmap_of_a_raw_operator_is_a_call_for_each():
    x, weight = random(3, 2, 5), random(6, 5)
    found = torch.vmap(lambda x: ops.noisy_linear(x, weight, None, *BAR, True))(x)
    expected = torch.stack([ops.noisy_linear(one, weight, None, *BAR, True) for one in x])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("chips", [1, 2])
def test_gradients_per_sample_are_those_of_one_call_each(chips):
    key = nft.noise_key(2, range(chips))
    weight, bias, images = random(4, 3, 3, 3), random(4), random(5, 3, 6, 6)

    def loss(weight, bias, image):
        return nft.noisy_conv2d(image[None], weight, bias, nvm=NVM, key=key).pow(3).sum()

    gradient = func.grad(loss, (0, 1))
    together = torch.vmap(gradient, (None, None, 0))(weight, bias, images)
    for i, image in enumerate(images):
        leaves = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        alone = torch.autograd.grad(loss(*leaves, image), leaves)
        for ours, expected in zip(together, alone):
            torch.testing.assert_close(ours[i], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("place", ["step", "table"])
def test_only_x_weight_and_bias_have_derivatives(place):
    weight, x, step = random(3, 5), random(2, 5), ops.weight_step(random(3, 5), 8)

    def of_noise(t):
        bar = (None, t, TABLE, *BAR[3:]) if place == "step" else (None, step, t, *BAR[3:])
        return ops.program(weight, *bar, torch.float32), ops.noisy_linear(x, weight, None, *bar, True)

    given = step if place == "step" else TABLE
    with pytest.raises(RuntimeError, match="step and table must have no gradient and no tangent"):
        of_noise(given.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="step and table must have no gradient and no tangent"):
        func.jvp(of_noise, (given,), (given,))
