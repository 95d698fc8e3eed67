"""The compiled operators equal their plain-PyTorch definitions in nft_ext.reference, forward and backward.

Tolerances are not chosen: in each precision an operator may err at most a few times as much as the reference does in
that precision, both measured against the reference in float64. Fresh memory is filled with NaN, so an unwritten
element shows.
"""

import pytest
import torch
from torch.autograd import gradcheck

import nft_ext as nft
from nft_ext import reference
from support.products import (
    CHIPS,
    DEVICES,
    DTYPES,
    GEOMETRIES,
    LAYOUTS,
    NVM,
    STREAM,
    assert_as_good_as_reference,
    conv_pair,
    convolution,
    noise_of,
    random,
    with_gradients,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
ops = torch.ops.nft_ext


# ---- program


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_program_equals_its_definition_bit_for_bit(device, enabled, dtype):
    weight, nvm, key = random(5, 3, 3, 7), DEVICES[device], nft.noise_key(3, [0, 9])
    programmed = nft.program_weights(weight, nvm, key=key, stream=STREAM, dtype=dtype, enabled=enabled)
    expected = reference.program(weight, *noise_of(nvm, key)[:3], nvm.operator_spec(enabled))
    assert programmed.dtype == dtype
    assert torch.equal(programmed, expected.to(dtype))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels_last"])
def test_noise_belongs_to_the_logical_element_whatever_the_strides(layout):
    weight = {
        "transposed": random(7, 3, 5, 4).transpose(0, 3),
        "sliced": random(8, 9, 5, 7)[::2, ::3],
        "channels_last": random(4, 3, 5, 7).to(memory_format=torch.channels_last),
    }[layout]
    assert not weight.is_contiguous()
    assert torch.equal(nft.program_weights(weight, NVM), nft.program_weights(weight.contiguous(), NVM))


def test_gradient_of_program_is_the_sum_over_chips():
    weight = random(4, 5).requires_grad_()
    programmed = nft.program_weights(weight, NVM, draws=range(3))
    grad = random(3, 4, 5, seed=1)
    programmed.backward(grad)
    assert torch.equal(weight.grad, grad.sum(0))


# ---- linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("rows, features, out", [(6, 16, 8), (3, 17, 5), (9, 1, 1), (6, 300, 1)])
def test_linear(rows, features, out, chips, shared, dtype):
    key = nft.noise_key(1, range(chips))
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=NVM, key=key, stream=STREAM, shared=shared),
        lambda x, w, b: reference.noisy_linear(x, w, b, *noise_of(NVM, key), shared),
        random(rows, features, seed=2, dtype=dtype),
        random(out, features),
        random(out, seed=3),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_linear_on_every_kind_of_device(device):
    key, nvm = nft.noise_key(1, range(2)), DEVICES[device]
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=nvm, key=key, stream=STREAM),
        lambda x, w, b: reference.noisy_linear(x, w, b, *noise_of(nvm, key), True),
        random(4, 11, seed=2),
        random(5, 11),
        None,
    )


LEADS = [((), 1, True)] + [
    (lead, *chips) for lead in ((3,), (3, 2), (3, 1, 4)) for chips in CHIPS
]  # a vector: one chip only


@pytest.mark.parametrize("lead, chips, shared", LEADS)
def test_linear_on_leading_dimensions(lead, chips, shared):
    key, weight, x = nft.noise_key(1, range(chips)), random(5, 7), random(*lead, 7, seed=1)
    y = nft.noisy_linear(x, weight, nvm=NVM, key=key, shared=shared)
    rows = nft.noisy_linear(x.reshape(-1, 7), weight, nvm=NVM, key=key, shared=shared)
    assert y.shape == ((chips if shared else 1) * lead[0], *lead[1:], 5) if lead else (5,)
    assert torch.equal(y.reshape(-1, 5), rows)


# ---- conv2d


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d(geometry, chips, shared, dtype):
    weight, options = convolution(**GEOMETRIES[geometry])
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = random(3, 6, 9, 7, seed=2, dtype=dtype)
    assert_as_good_as_reference(operator, definition, x, weight, random(weight.shape[0], seed=3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_in_any_layout(layout, weight_layout, chips, shared, dtype):
    weight, options = convolution(padding=1, stride=(2, 1))
    weight = {
        "contiguous": weight,
        "channels_last": weight.to(memory_format=torch.channels_last),
        "sliced": weight.repeat_interleave(2, 1)[:, ::2],
    }[weight_layout]
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = LAYOUTS[layout](dtype)
    assert_as_good_as_reference(operator, definition, x, weight, None)
    if layout == "channels_last":
        assert operator(x, weight, None).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shared", [True, False])
def test_several_chips_in_one_call_are_one_call_a_chip(shared):
    weight, options = convolution(padding=1)
    x = random(6, 6, 9, 7, seed=2)

    def on(key, shared, x):
        return nft.noisy_conv2d(x, weight, nvm=NVM, key=key, shared=shared, **options)

    together = on(nft.noise_key(1, range(3)), shared, x)
    apart = [on(nft.noise_key(1, [draw]), True, x if shared else x.chunk(3)[draw]) for draw in range(3)]
    assert torch.equal(together, torch.cat(apart))


# ---- gradients


def test_raw_operators_differentiate_like_the_public_functions():
    key = nft.noise_key(1, range(2))
    table, _, _, spec = noise_of(NVM, key)
    x, weight, bias = random(3, 7, seed=1), random(5, 7), random(5, seed=2)

    def raw(x, w, b):
        return ops.noisy_linear(x, w, b, None, ops.weight_step(w.detach(), 8), table, key, STREAM, spec, True)

    def public(x, w, b):
        return nft.noisy_linear(x, w, b, nvm=NVM, key=key, stream=STREAM)

    for a, b in zip(with_gradients(raw, x, weight, bias), with_gradients(public, x, weight, bias)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wanted", range(8))
def test_backward_computes_the_wanted_gradients_only(wanted):
    weight, key = random(4, 6, 3, 3), nft.noise_key(1, range(2))
    table, _, _, spec = noise_of(NVM, key)
    bar = (None, ops.weight_step(weight, 8), table, key, STREAM, spec)
    linear = ops.noisy_linear_backward(random(4, 4), random(2, 54), weight.flatten(1), *bar, True, wanted)
    conv = ops.noisy_conv2d_backward(
        random(4, 4, 1, 1), random(2, 6, 3, 3), weight, *bar, [1, 1], [0, 0], [1, 1], 1, True, wanted
    )
    for grads in (linear, conv):
        assert [g.numel() > 0 for g in grads] == [bool(wanted >> i & 1) for i in range(3)]
        assert not any(g.isnan().any() for g in grads)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("shared", [True, False])
def test_the_definitions_gradients_are_right_in_float64(shared):
    """Numerically in x and bias; the weight's is, straight through, that of the programmed weight."""
    key = nft.noise_key(1, range(2))
    weight, options = random(4, 1, 2, 3), dict(stride=1, padding="same", dilation=1, groups=2)
    x, bias = random(2, 2, 3, 3, seed=1).double().requires_grad_(), random(4, seed=2).double().requires_grad_()
    _, definition = conv_pair(key, shared, options)
    assert gradcheck(lambda x, b: definition(x, weight, b), (x, bias))

    through = weight.double().requires_grad_()
    programmed = reference.program(weight, *noise_of(NVM, key)).double().requires_grad_()
    parts = [x, x] if shared else x.chunk(2)
    plain = torch.cat([torch.nn.functional.conv2d(part, w, bias, **options) for part, w in zip(parts, programmed)])
    grad = random(*plain.shape, seed=3).double()
    (expected,) = torch.autograd.grad(plain, programmed, grad)
    (found,) = torch.autograd.grad(definition(x, through, bias), through, grad)
    torch.testing.assert_close(found, expected.sum(0), rtol=1e-12, atol=1e-12)
