"""Derivatives of every kind and order equal those of the definition in float64, on the same chips.

The layer is bilinear in x and W_p, and dW_p/dW is the identity.
"""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import nft_ext as nft
from support.derivatives import KINDS, PRODUCTS, assert_equal_derivatives, dual, leaves, linear, loss, ops_called
from support.products import NVM, STREAM, noise_of, random

ops = torch.ops.nft_ext
# In float32: a few roundings per order. In float64: none that a product of a few numbers would show.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_derivative_is_that_of_the_definition(product, kind, dtype):
    operator, definition, *exact = PRODUCTS[product]()
    found = KINDS[kind](operator, [t.to(dtype) for t in exact])
    assert_equal_derivatives(found, KINDS[kind](definition, exact), TOLERANCE[dtype])


MIXED = [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("kind", ["jvp", "hessian", "forward over reverse"])
@pytest.mark.parametrize("of_x, of_weight", MIXED)
def test_inputs_and_weights_of_two_types(of_x, of_weight, kind):
    operator, definition, x, weight, bias = PRODUCTS["conv, groups, dilation, 2 chips"]()
    arguments = [x.to(of_x), weight.to(of_weight), bias.to(of_weight)]
    # A derivative has the type of its tensor: the weight's is rounded to of_weight.
    tolerance = 2 * max(torch.finfo(of_x).eps, torch.finfo(of_weight).eps, 1e-6)
    expected = KINDS[kind](definition, [t.double() for t in arguments])
    assert_equal_derivatives(KINDS[kind](operator, arguments), expected, tolerance)


@pytest.mark.parametrize("product", PRODUCTS)
def test_float64_derivatives_are_right_numerically(product):
    """In x and bias: the weight's derivative is straight-through by definition, not by numbers."""
    operator, _, x, weight, bias = PRODUCTS[product]()
    x, bias = leaves([x, bias])

    def of_inputs(x, bias):
        return operator(x, weight, bias)

    assert gradcheck(of_inputs, (x, bias), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(of_inputs, (x, bias), check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", ["jvp", "dual level", "hessian", "three times backward"])
def test_raw_operators_have_the_derivatives_of_the_public_functions(kind):
    key = nft.noise_key(1, range(3))
    table, _, _, spec = noise_of(NVM, key)

    def raw(x, w, b):
        return ops.noisy_linear(x, w, b, None, None, table, key, STREAM, spec, True)

    operator, _, *exact = linear(3, True)
    arguments = [t.float() for t in exact]
    assert_equal_derivatives(KINDS[kind](raw, arguments), KINDS[kind](operator, arguments), 2e-6)


# ---- program


def program(weight):
    return nft.program_weights(weight, NVM, key=nft.noise_key(0, range(3)), stream=STREAM)


def test_the_tangent_of_a_programmed_weight_is_the_weights_for_every_chip():
    weight, tangent = random(2, 3), random(2, 3, seed=1)
    programmed, found = func.jvp(program, (weight,), (tangent,))
    assert torch.equal(programmed, program(weight))
    assert torch.equal(found, tangent.expand(3, 2, 3))
    with forward_ad.dual_level():
        in_level = forward_ad.unpack_dual(program(forward_ad.make_dual(weight, tangent)))
    assert torch.equal(in_level.primal, programmed)
    assert torch.equal(in_level.tangent, found)


def test_programmed_weights_have_second_derivatives():
    weight = random(2, 3)
    found = func.hessian(loss(program))(weight)
    expected = 6 * program(weight).sum(0)
    assert_equal_derivatives(found.view(6, 6), expected.flatten().diag().double(), 1e-6)


# ---- the noise


def by_backward(product, weight):
    """W_p [out, in] of one chip: the gradients of an identity."""
    x = torch.zeros(len(weight), weight.shape[1], requires_grad=True)
    y = product(x, weight.clone().requires_grad_())
    return torch.autograd.grad(y, x, torch.eye(len(weight)), create_graph=True)[0]


def no_grad(product, weight):
    with torch.no_grad():
        return product(torch.eye(weight.shape[1]), weight).mT


MODES = {
    "no gradient": no_grad,
    "gradient": lambda f, w: f(torch.eye(w.shape[1]), w.clone().requires_grad_()).mT,
    "backward": by_backward,
    "dual level": lambda f, w: dual(f, (torch.eye(w.shape[1]), w))[0].mT,
    "jvp": lambda f, w: func.jvp(f, (torch.eye(w.shape[1]), w), (torch.eye(w.shape[1]), w))[0].mT,
    "jacfwd": lambda f, w: func.jacfwd(f)(torch.zeros(1, w.shape[1]), w)[0, :, 0],
    "jacrev": lambda f, w: func.jacrev(f)(torch.zeros(1, w.shape[1]), w)[0, :, 0],
    "vmap": lambda f, w: torch.vmap(f, (0, None))(torch.eye(w.shape[1])[:, None], w)[:, 0].mT,
    "float64": lambda f, w: f(torch.eye(w.shape[1]).double(), w).mT.float(),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_noise_is_the_same_bit_for_bit(mode):
    weight, key = random(4, 5), nft.noise_key(3, [9])
    found = MODES[mode](lambda x, w: nft.noisy_linear(x, w, nvm=NVM, key=key, stream=STREAM), weight)
    assert torch.equal(found, nft.program_weights(weight, NVM, key=key, stream=STREAM)[0])


# ---- which operators compute


@pytest.mark.parametrize("product", ["linear, 3 chips", "conv, groups, dilation, 2 chips"])
def test_training_uses_the_compiled_kernels_and_keeps_no_programmed_weight(product):
    operator, _, *exact = PRODUCTS[product]()
    kind = "linear" if product.startswith("linear") else "conv2d"
    with ops_called() as calls:
        operator(*leaves([t.float() for t in exact])).sum().backward()
    assert calls.names[:2] == [f"noisy_{kind}", f"noisy_{kind}_backward"]
    assert "program" not in calls.names


def test_a_dual_level_changes_nothing_for_tensors_without_tangents():
    operator, _, *exact = linear(3, True)
    arguments = [t.float() for t in exact]
    with forward_ad.dual_level(), ops_called() as calls:
        inside = operator(*arguments)
    assert calls.names == ["noisy_linear"]
    assert torch.equal(inside, operator(*arguments))
