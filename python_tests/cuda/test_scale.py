"""A step per expert, output or tile on CUDA: the CPU's chips bit for bit in every layout, and products by the library.

The native test csrc/tests/cuda/test_step_runs.cpp plays the same kernels through without a GPU.
"""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import reference
from nft_ext.ops import operators
from support import every_device as identity
from support import products as on_cpu
from support.on_cuda import DTYPES, STREAM, assert_as_good_as_reference, bits, ops, random

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("poisoned_memory_and_exact_float32")]

LAYOUTS = {
    # layout, groups, stored shape
    "linear": ("oi", 1, (7, 301)),
    "long rows": ("oi", 1, (3, 40_000)),
    "conv": ("oi", 1, (16, 24, 3, 3)),
    "depthwise": ("oi", 1, (90, 1, 3, 3)),
    "conv1d": ("io", 1, (300, 7)),
    "experts": ("eoi", 1, (3, 5, 201)),
    "experts transposed": ("eio", 1, (3, 200, 5)),
    "transposed conv": ("io", 1, (8, 5, 3, 3)),
    "grouped transposed conv": ("io", 2, (8, 5, 3, 3)),
}
SCALES = {"layer": {}, "output": dict(scale="output"), "tile": dict(scale="tile", array_rows=5)}
OUTPUT = nft.NVMDevice(sigma=0.1, scale="output")


def weights(layout, groups, shape):
    """Outputs of different sizes; the first one is all zeros."""
    weight = identity.weights(*shape)
    output = {"o": 0, "i": 1, "e": 1 if layout == "eoi" else 2}[layout[0]]
    size = torch.arange(shape[output]).float().view([-1 if d == output else 1 for d in range(len(shape))])
    return weight * size


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_and_codes_are_the_cpus(name, scale):
    layout, groups, shape = LAYOUTS[name]
    weight = weights(layout, groups, shape)
    for weight_bits, device_bits in ((1, 1), (8, 2), (15, 5), (16, 4)):
        nvm = nft.NVMDevice(weight_bits, device_bits, **SCALES[scale])
        scaling = nvm.operator_scaling(layout, groups)
        step = ops.weight_step(weight, weight_bits, scaling)
        found = ops.weight_step(weight.cuda(), weight_bits, scaling)
        assert found.shape == step.shape and torch.equal(bits(found), bits(step))
        codes = ops.quantize(weight, step, weight_bits, scaling)
        assert torch.equal(ops.quantize(weight.cuda(), step.cuda(), weight_bits, scaling).cpu(), codes)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_chips_are_the_cpus_in_every_layout(name, scale):
    layout, groups, shape = LAYOUTS[name]
    weight = weights(layout, groups, shape)
    for fields in (dict(sigma=0.1), dict(sampling="per_device", mapping="differential"), dict(stuck=(0.1, 0.2))):
        nvm = nft.NVMDevice(**fields, **SCALES[scale])
        options = dict(stream=STREAM, layout=layout, groups=groups)
        expected = nft.program_weights(weight, nvm, key=identity.KEY, **options)
        for dtype in DTYPES:
            found = nft.program_weights(weight.cuda(), nvm, key=identity.KEY.cuda(), dtype=dtype, **options)
            assert torch.equal(bits(found), bits(expected.to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", identity.DEVICES)
def test_every_device_model(name, dtype):
    nvm, weight = identity.DEVICES[name].replace(scale="output"), identity.weights(37, 33)
    for enabled in (True, False):
        expected = nft.program_weights(weight, nvm, key=identity.KEY, stream=STREAM, enabled=enabled).to(dtype)
        found = nft.program_weights(
            weight.cuda(), nvm, key=identity.KEY.cuda(), stream=STREAM, dtype=dtype, enabled=enabled
        )
        assert torch.equal(bits(found), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["nothing", "codes"])
def test_layers_of_several_scales_in_one_call(given, dtype):
    """Also where channels last is asked for: several steps keep the logical order, as the fake kernel says."""
    nvms = [nft.NVMDevice(sigma=0.1, **options) for options in SCALES.values()] * 2
    plain = [identity.weights(16, 24, 3, 3, seed=i) for i in range(len(nvms))]
    on = [w.cuda() for w in plain]
    specs = [n for nvm in nvms for n in nvm.operator_spec()]
    tables = [torch.from_numpy(nvm.operator_table()).cuda() for nvm in nvms]
    steps, codes = [], [None] * len(on)
    if given == "codes":
        steps = [ops.weight_step(w, 8, nvm.operator_scaling()) for w, nvm in zip(on, nvms)]
        codes = [ops.quantize(w, s, 8, nvm.operator_scaling()) for w, s, nvm in zip(on, steps, nvms)]
    for channels_last in (False, True):
        found = ops.program_many(
            on, codes, steps, tables, identity.KEY.cuda(), list(range(len(on))), specs, [], dtype, channels_last
        )
        for i, (w, nvm, chips) in enumerate(zip(plain, nvms, found)):
            expected = nft.program_weights(w, nvm, key=identity.KEY, stream=i).to(dtype)
            assert torch.equal(bits(chips), bits(expected))
            laid_out = operators._programmed(on[i], len(identity.KEY), nvm.operator_spec(), dtype, channels_last)
            assert chips.stride() == laid_out.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", ["output", "tile"])
@pytest.mark.parametrize("chips, shared", [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("rows, features, out", [(6, 16, 8), (33, 70, 65)])
def test_linear(rows, features, out, chips, shared, scale, dtype):
    """Forward and gradients; under NFT_EXT_ONE_PASS=always too, where the one-pass kernels would be wrong."""
    nvm, key = nft.NVMDevice(sigma=0.1, **SCALES[scale]), nft.noise_key(1, range(chips))
    rows = rows if shared else rows * chips
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=nvm, key=key.cuda(), stream=STREAM, shared=shared),
        lambda x, w, b: reference.noisy_linear(x, w, b, *on_cpu.noise_of(nvm, key), shared),
        random(rows, features, seed=2, dtype=dtype),
        random(out, features),
        random(out, seed=3),
    )


@pytest.mark.parametrize("scale", ["output", "tile"])
def test_conv2d(scale):
    nvm, key = nft.NVMDevice(sigma=0.1, **SCALES[scale]), nft.noise_key(1, range(2))
    shape = dict(stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=2)
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_conv2d(x, w, b, nvm=nvm, key=key.cuda(), stream=STREAM, **shape),
        lambda x, w, b: reference.noisy_conv2d(x, w, b, *on_cpu.noise_of(nvm, key), **shape, shared=True),
        random(2, 8, 9, 7, seed=2),
        random(16, 4, 3, 3),
        random(16, seed=3),
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_fused_and_programmed_layers(precision):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()).eval()
    model = nft.fuse(nft.convert(plain, OUTPUT))
    x = random(3, 16, 9, 7)
    with torch.no_grad(), nft.chips(model, seed=3, draws=[0, 4]):
        expected = model(x)
    model, x = model.cuda(), x.cuda()
    for programmed in (False, True):
        with torch.no_grad(), nft.chips(model, seed=3, draws=[0, 4], programmed=programmed):
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                found = model(x)
        allowed = (3e-2 if precision == torch.bfloat16 else 1e-4) * float(expected.abs().max())
        torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_a_weight_that_is_not_finite_spoils_its_own_output(bad):
    weight = random(9, 70)
    weight[4, 33] = bad
    x, key = random(3, 70).cuda(), identity.KEY.cuda()
    for dtype in DTYPES:
        spoiled = nft.program_weights(weight.cuda(), OUTPUT, key=key, dtype=dtype).isnan()
        assert spoiled[:, 4].all() and spoiled.sum() == 70 * len(key)
    assert nft.noisy_linear(x, weight.cuda(), nvm=OUTPUT, key=key).isnan()[:, 4].all()


@pytest.mark.parametrize("bits_", [8, 16])
def test_a_code_out_of_range_spoils_all(bits_):
    nvm = nft.NVMDevice(bits_, 2, scale="output")
    scaling, weight = nvm.operator_scaling(), random(300, 70).cuda()
    step = ops.weight_step(weight, bits_, scaling)
    codes = ops.quantize(weight, step, bits_, scaling)
    codes[150, 3] = 2**bits_
    table = torch.from_numpy(nvm.operator_table()).cuda()
    found = ops.program(weight, codes, step, table, identity.KEY.cuda(), STREAM, nvm.operator_spec(), torch.float32)
    assert found.isnan().all()
    assert step.isfinite().all(), "the caller's steps stay as they are"


def test_16_bit_weights_are_widened():
    weight = identity.weights(20, 33).bfloat16()
    for scaling in ([], OUTPUT.operator_scaling()):
        found = ops.weight_step(weight.cuda(), 8, scaling)
        assert torch.equal(bits(found), bits(ops.weight_step(weight.float(), 8, scaling)))
