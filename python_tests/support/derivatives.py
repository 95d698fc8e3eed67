"""Derivatives of all kinds, taken of an operator and of its definition in float64."""

import torch
from torch import func
from torch.autograd import forward_ad
from torch.autograd.functional import hvp, jacobian
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import nft_ext as nft
from nft_ext import reference
from support.products import NVM, STREAM, conv_pair, noise_of, random


def linear(chips, shared):
    """(operator, definition, x [B, in], weight [out, in], bias [out]); the tensors are float64."""
    key = nft.noise_key(1, range(chips))
    return (
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=NVM, key=key, stream=STREAM, shared=shared),
        lambda x, w, b: reference.noisy_linear(x, w, b, *noise_of(NVM, key), shared),
        *_operands((2 if shared else 2 * chips, 3), (2, 3)),
    )


def conv2d(chips, shared, weight, image=(4, 5), **geometry):
    """As `linear`, for a convolution: x [B, C, H, W], weight [out, C / groups, kh, kw], bias [out]."""
    options = dict(stride=1, padding=0, dilation=1, groups=1) | geometry
    channels = weight[1] * options["groups"]
    x = (1 if shared else chips, channels, *image)
    return *conv_pair(nft.noise_key(1, range(chips)), shared, options), *_operands(x, weight)


def _operands(x, weight):
    return [random(*shape, seed=seed).double() for seed, shape in enumerate((x, weight, weight[:1]), 1)]


PRODUCTS = {
    "linear": lambda: linear(1, True),
    "linear, 3 chips": lambda: linear(3, True),
    "linear, 3 chips with own inputs": lambda: linear(3, False),
    "conv, stride, padding": lambda: conv2d(1, True, (2, 2, 2, 3), stride=(2, 1), padding=(1, 0)),
    "conv, groups, dilation, 2 chips": lambda: conv2d(2, True, (2, 1, 2, 2), groups=2, dilation=(2, 1), padding=1),
    "conv, same, 2 chips with own inputs": lambda: conv2d(2, False, (2, 1, 1, 3), (2, 3), padding="same"),
}


def loss(function):
    return lambda *arguments: function(*arguments).pow(3).sum()


def leaves(arguments):
    return [t.clone().requires_grad_() for t in arguments]


def tangents_of(arguments):
    return tuple(random(*t.shape, seed=5 + i).to(t.dtype) for i, t in enumerate(arguments))


def dual(function, arguments):
    """(y, its tangent) in a dual level, without gradients."""
    with forward_ad.dual_level(), torch.no_grad():
        y = function(*map(forward_ad.make_dual, arguments, tangents_of(arguments)))
        return tuple(forward_ad.unpack_dual(y))


def reverse(function, arguments):
    """Gradients of the loss, of the gradients' squares, and of the squares of those."""
    given = leaves(arguments)
    found, value = [], loss(function)(*given)
    for order in range(3):
        grads = torch.autograd.grad(value, given, create_graph=order < 2)
        found += grads
        value = sum(grad.square().sum() for grad in grads)
    return found


def forward_over_reverse(function, arguments):
    """The tangents of the loss's gradients in a dual level."""
    with forward_ad.dual_level():
        given = [forward_ad.make_dual(t, v) for t, v in zip(leaves(arguments), tangents_of(arguments))]
        grads = torch.autograd.grad(loss(function)(*given), given)
        return [forward_ad.unpack_dual(grad).tangent for grad in grads]


def dual_gradient(function, arguments):
    """The tangents of gradients where only the gradient of the result has a tangent."""
    given = leaves(arguments)
    y = function(*given)
    with forward_ad.dual_level():
        seed = forward_ad.make_dual(torch.ones_like(y), random(*y.shape, seed=4).to(y.dtype))
        return [forward_ad.unpack_dual(grad).tangent for grad in torch.autograd.grad(y, given, seed)]


ALL = (0, 1, 2)
KINDS = {
    "jvp": lambda f, a: func.jvp(f, tuple(a), tangents_of(a)),
    "dual level": dual,
    "jacfwd": lambda f, a: func.jacfwd(f, ALL)(*a),
    "jacrev": lambda f, a: func.jacrev(f, ALL)(*a),
    "hessian": lambda f, a: func.hessian(loss(f), ALL)(*a),
    "jacrev of jacrev": lambda f, a: func.jacrev(func.jacrev(loss(f), ALL), ALL)(*a),
    "jacfwd of jacfwd": lambda f, a: func.jacfwd(func.jacfwd(loss(f), ALL), ALL)(*a),
    "jacrev of jacfwd": lambda f, a: func.jacrev(func.jacfwd(loss(f), ALL), ALL)(*a),
    "three times backward": reverse,
    "forward over reverse": forward_over_reverse,
    "a gradient with a tangent": dual_gradient,
    "hvp": lambda f, a: hvp(loss(f), tuple(a), tangents_of(a)),
    "jacobian, batched backward": lambda f, a: jacobian(f, tuple(a), vectorize=True),
    "jacobian, forward": lambda f, a: jacobian(f, tuple(a), vectorize=True, strategy="forward-mode"),
}


def assert_equal_derivatives(found, expected, tolerance):
    """Every tensor within `tolerance` of the largest element expected in it."""
    found, expected = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(found) == len(expected)
    for ours, exact in zip(found, expected):
        assert ours.shape == exact.shape
        assert (ours.double() - exact).abs().max() <= tolerance * max(1.0, exact.abs().max())


class ops_called(TorchDispatchMode):
    """Records the names of the compiled operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "nft_ext":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))
