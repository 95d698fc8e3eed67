"""Noisy layers with a step per output or tile: products, gradients, contexts, fusing, compiling, exporting."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nft_ext as nft
from nft_ext import reference
from nft_ext.nn.base import noisy_layers

DEVICES = {
    "output": nft.NVMDevice(sigma=0.1, scale="output"),
    "tile": nft.NVMDevice(sigma=0.1, scale="tile", array_rows=10),
    "per device": nft.NVMDevice(sigma=0.1, scale="output", sampling="per_device", mapping="differential"),
}
every_device = pytest.mark.parametrize("nvm", DEVICES.values(), ids=DEVICES)
KEY = nft.noise_key(3, range(2))
CONVOLUTIONS = {"plain": (4, 6, 1), "grouped": (4, 6, 2), "depthwise": (6, 6, 6)}


def outlier(*shape):
    """Weights of which one is far larger than all others, as in pretrained networks."""
    weight = torch.randn(shape)
    weight.view(-1)[3] = 40.0
    return weight


def programmed(weight, nvm, stream, key=KEY):
    table = torch.from_numpy(nvm.operator_table())
    return reference.program(weight.detach(), table, key, stream, nvm.operator_spec())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)
        self.first.weight = nn.Parameter(outlier(8, 3, 3, 3))
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.head(self.wise(self.norm(self.first(x)).relu()).mean((2, 3)))


@every_device
@pytest.mark.parametrize("rows", [3, 400])
def test_linear(nvm, rows):
    weight, x = outlier(12, 35).requires_grad_(), torch.randn(rows, 35, requires_grad=True)
    y = nft.noisy_linear(x, weight, nvm=nvm, key=KEY, stream=5)
    w_p = programmed(weight, nvm, 5)
    torch.testing.assert_close(y, torch.cat([F.linear(x, w) for w in w_p]), rtol=1e-4, atol=1e-3)
    grad = torch.randn_like(y)
    grad_x, grad_w = torch.autograd.grad(y, (x, weight), grad)
    expected = grad[:rows] @ w_p[0] + grad[rows:] @ w_p[1]
    torch.testing.assert_close(grad_x, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(grad_w, (grad[:rows] + grad[rows:]).T @ x, rtol=1e-4, atol=1e-3)


@every_device
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(nvm, name):
    channels, out, groups = CONVOLUTIONS[name]
    weight = outlier(out, channels // groups, 3, 3).requires_grad_()
    x = torch.randn(2, channels, 9, 9, requires_grad=True)
    y = nft.noisy_conv2d(x, weight, padding=1, groups=groups, nvm=nvm, key=KEY, stream=6)
    w_p = programmed(weight, nvm, 6)
    expected = torch.cat([F.conv2d(x, w, padding=1, groups=groups) for w in w_p])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    grad = torch.randn_like(y)
    got, want = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@every_device
def test_networks_programmed_fused_compiled_and_exported(nvm):
    """Every way to run a network is its plain copy with the same chip baked in."""
    torch.manual_seed(1)
    model = nft.convert(Net(), nvm).eval()
    x = torch.randn(2, 3, 12, 12)
    close = dict(rtol=2e-4, atol=2e-3)
    with torch.no_grad():
        plain = torch.cat([nft.program(model, seed=4, draw=d)(x) for d in (0, 1)])
        for layer in noisy_layers(model).values():
            chip = getattr(nft.program(model, seed=4, draw=1), layer.name).weight
            assert torch.equal(chip, programmed(layer.weight, nvm, layer.stream, nft.noise_key(4, 1))[0])
        fused = nft.fuse(model)
        for one in (model, fused, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            for options in ({}, dict(programmed=True)):
                with nft.chips(one, seed=4, draws=range(2), **options):
                    torch.testing.assert_close(one(x), plain, **close)
        with nft.chips(model, seed=4, draws=1):
            exported = torch.export.export(model, (x,))
        torch.testing.assert_close(exported.module()(x), plain[2:], **close)


@pytest.mark.slow
def test_compiled():
    nvm = DEVICES["tile"]
    model, x = nft.convert(Net(), nvm).eval(), torch.randn(2, 3, 12, 12)
    compiled = torch.compile(model)
    with nft.chips(model, seed=4, draws=0):
        torch.testing.assert_close(compiled(x), model(x), rtol=2e-4, atol=2e-3)


def test_the_scale_of_a_context_is_that_of_its_layer():
    """Sweeping sigma and turning noise off keep the scale."""
    nvm = DEVICES["output"]
    model = nft.convert(nn.Sequential(nn.Linear(9, 4, bias=False)), nvm)
    x = torch.eye(9)
    with torch.no_grad(), nft.chips(model, seed=1, draws=0):
        with nft.noise(model, enabled=False):
            code, sign, step = reference.quantize(model[0].weight, 8, nvm.operator_spec()[4:])
            assert torch.allclose(model(x).T, sign * step * code)
        with nft.noise(model, sigma=0.3):
            expected = programmed(model[0].weight, nvm.replace(sigma=0.3), model[0].stream, nft.noise_key(1, 0))
            assert torch.allclose(model(x).T, expected[0], atol=1e-6)


@every_device
def test_one_outlier_does_not_drown_the_other_outputs(nvm):
    """The reason for the option: with one step per layer, one weight sets the noise of all."""
    weight, layer = outlier(40, 30), nft.NVMDevice(sigma=0.02)
    others = torch.arange(40) != 0

    def error(device):
        w_p = nft.program_weights(weight, device, draws=range(4))
        return float((w_p - weight)[:, others].std() / weight[others].std())

    assert error(nvm.replace(sigma=0.02)) < error(layer) / 5


def test_sharing_codes_between_forward_and_backward():
    nvm, grads = DEVICES["tile"], []
    torch.manual_seed(2)
    model = nft.convert(nn.Sequential(nn.Linear(33, 7)), nvm)
    for shared in (False, True):
        model[0].share_codes(shared)
        x = torch.ones(2, 33, requires_grad=True)
        with nft.chips(model, seed=0, draws=1):
            model(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@every_device
def test_opcheck(nvm):
    weight, ops = torch.randn(5, 33), torch.ops.nft_ext
    spec, table = nvm.operator_spec(), torch.from_numpy(nvm.operator_table())
    step = ops.weight_step(weight, 8, spec[4:])
    codes = ops.quantize(weight, step, 8, spec[4:])
    check = torch.library.opcheck
    check(ops.weight_step.default, (weight, 8, spec[4:]))
    check(ops.quantize.default, (weight, step, 8, spec[4:]))
    check(ops.program.default, (weight, codes, step, table, KEY, 5, spec, torch.float32))
    check(ops.noisy_linear.default, (torch.randn(2, 33), weight, None, None, None, table, KEY, 5, spec, True))
