"""The operators on CUDA under autocast, torch.compile and torch.library.opcheck."""

import pytest
import torch
from torch.library import opcheck

import nft_ext as nft
from support.on_cuda import NVM, bar, ops, random

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("poisoned_memory_and_exact_float32")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_x_and_nothing_else(dtype):
    layer, x, key = (
        nft.NoisyLinear(24, 7, nvm=NVM).cuda(),
        random(5, 24).cuda(),
        nft.noise_key(2, range(2), device="cuda"),
    )
    with nft.chips(layer, key=key):
        with torch.autocast("cuda", dtype):
            y = layer(x)
        assert y.dtype == dtype and torch.equal(y, layer(x.to(dtype)))
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


LAYERS = {
    "linear": lambda: (nft.NoisyLinear(6, 3, nvm=NVM), random(4, 5, 6)),
    "conv": lambda: (nft.NoisyConv2d(4, 6, 3, stride=(1, 2), padding=(2, 1), groups=2, nvm=NVM), random(2, 4, 7, 8)),
    "conv channels_last": lambda: (
        nft.NoisyConv2d(4, 6, 3, nvm=NVM),
        random(2, 4, 7, 8).contiguous(memory_format=torch.channels_last),
    ),
}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_equals_the_eager_one(name, backend):
    """The same noise under the same torch seed; outputs and gradients alike, with their strides."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = LAYERS[name]()
    layer.cuda()
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        torch.manual_seed(3)
        layer.zero_grad()
        leaf = x.cuda().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, *[p.grad.clone() for p in layer.parameters()]])
        assert results[-1][0].stride() == results[0][0].stride()
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("sampling, cached", [("fast", False), ("fast", True), ("per_device", False)])
def test_opcheck_program(sampling, cached, needs_grad):
    weight, nvm = random(3, 4).cuda().requires_grad_(needs_grad), NVM.replace(sampling=sampling)
    opcheck(ops.program.default, (weight, *bar(weight, 2, nvm, cached), torch.float16))


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("chips, shared", [(1, True), (2, True), (2, False)])
def test_opcheck_products(chips, shared, needs_grad):
    x, weight, bias = (t.cuda().requires_grad_(needs_grad) for t in (random(4, 6), random(3, 6), random(3)))
    opcheck(ops.noisy_linear.default, (x, weight, bias, *bar(weight, chips), shared))
    geometry = ([1, 2], [1, 2], [1, 1], 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = random(4, 4, 5, 6).cuda().to(memory_format=layout).requires_grad_(needs_grad)
        weight, bias = (t.cuda().requires_grad_(needs_grad) for t in (random(6, 2, 3, 3), random(6)))
        opcheck(ops.noisy_conv2d.default, (x, weight, bias, *bar(weight, chips), *geometry, shared))


@pytest.mark.parametrize("wanted", [1, 2, 4, 7])
@pytest.mark.parametrize("chips, shared", [(1, True), (2, True), (2, False)])
def test_opcheck_backwards(chips, shared, wanted):
    x, weight = random(4, 6).cuda(), random(3, 6).cuda()
    grad = random(4 * chips if shared else 4, 3).cuda()
    opcheck(ops.noisy_linear_backward.default, (grad, x, weight, *bar(weight, chips), shared, wanted))
    noise, geometry = bar(random(6, 2, 3, 3).cuda(), chips), ([1, 2], [1, 2], [1, 1], 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight = random(4, 4, 5, 6).cuda().to(memory_format=layout), random(6, 2, 3, 3).cuda()
        grad = torch.randn_like(ops.noisy_conv2d(x, weight, None, *noise, *geometry, shared))
        opcheck(ops.noisy_conv2d_backward.default, (grad, x, weight, *noise, *geometry, shared, wanted))


def test_opcheck_the_rest():
    weight = random(3, 4).cuda()
    opcheck(ops.weight_step.default, (weight, 8))
    opcheck(ops.quantize.default, (weight, ops.weight_step(weight, 8), 8))
    opcheck(ops.draw_key.default, (weight,))
