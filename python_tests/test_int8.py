"""The products of 8-bit numbers (docs/int8.md): equal to their definition in nft_ext.reference bit for bit, since integer sums are
exact, whatever shares the batch, the call or the threads. Fresh memory is filled with NaN, so an element nobody wrote shows."""

import math

import pytest
import test_operators as others
import torch
from test_operators import CHIPS, DEVICES, DTYPES, GEOMETRIES, LAYOUTS, NVM, STREAM, poisoned_memory, random  # noqa: F401
from torch.library import opcheck

import nft_ext as nft
from nft_ext import reference

ops = torch.ops.nft_ext
NOTHING = (None, None, None, False)  # scale, shift, residual, relu


def epilogue_for(y):
    """Every part of it, by name."""
    return dict(scale=random(y.shape[1], seed=4), shift=random(y.shape[1], seed=5), residual=random(*y.shape, seed=6, dtype=y.dtype),
                relu=True)


def assert_same(operator, definition):
    """Both, functions of the epilogue's keywords, without one and with all of it."""
    y = operator()
    assert torch.equal(y, definition(*NOTHING))
    e = epilogue_for(y)
    assert torch.equal(operator(**e), definition(*e.values()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("rows, features, out", [(6, 16, 8), (3, 17, 5), (9, 1, 1), (6, 300, 1), (150, 33, 67), (2, 5000, 9)])
def test_linear_equals_its_definition_bit_for_bit(rows, features, out, chips, shared, dtype):
    key, bias = nft.noise_key(1, range(chips)), random(out, seed=3)
    x, weight = random(rows if shared else rows * chips, features, seed=2, dtype=dtype), random(out, features)
    noise = others.noise_of(NVM, key)
    assert_same(lambda **e: nft.noisy_linear(x, weight, bias, nvm=NVM, key=key, stream=STREAM, shared=shared, int8=True, **e),
                lambda *e: reference.noisy_linear_int8(x, weight, bias, *noise, shared, *e))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_equals_its_definition_bit_for_bit(geometry, chips, shared, dtype):
    weight, options = others.convolution(**GEOMETRIES[geometry])
    key, x = nft.noise_key(1, range(chips)), random(3, 6, 9, 7, seed=2, dtype=dtype)
    bias, noise = random(len(weight), seed=3), others.noise_of(NVM, key)
    assert_same(lambda **e: nft.noisy_conv2d(x, weight, bias, nvm=NVM, key=key, stream=STREAM, shared=shared, int8=True, **options, **e),
                lambda *e: reference.noisy_conv2d_int8(x, weight, bias, *noise, *options.values(), shared, *e))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_every_kind_of_device(device, enabled):
    nvm, key = DEVICES[device], nft.noise_key(1, range(2))
    x, weight, table = random(4, 11, seed=2), random(5, 11), torch.from_numpy(nvm.operator_table())
    y = nft.noisy_linear(x, weight, nvm=nvm, key=key, stream=STREAM, enabled=enabled, int8=True)
    assert torch.equal(y, reference.noisy_linear_int8(x, weight, None, table, key, STREAM, nvm.operator_spec(enabled), True, *NOTHING))
    exact = nft.noisy_linear(x, weight, nvm=nvm, key=key, stream=STREAM, enabled=enabled)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits_in_its_own_memory_format(layout, chips, shared):
    weight, options = others.convolution(padding=1, stride=(2, 1))
    x = LAYOUTS[layout](torch.float32)

    def run(x, residual=None):
        return nft.noisy_conv2d(x, weight, nvm=NVM, key=nft.noise_key(1, range(chips)), shared=shared, int8=True, residual=residual,
                                **options)

    y = run(x)
    assert torch.equal(y, run(x.contiguous()))
    assert y.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    residual = random(*y.shape, seed=6)
    assert torch.equal(run(x, residual.to(memory_format=torch.channels_last)), y + residual)


def small_conv(x, weight, key, **options):
    return nft.noisy_conv2d(x, weight, padding=1, nvm=NVM, key=key, stream=STREAM, int8=True, **options)


def test_an_image_does_not_see_its_neighbours_nor_a_chip_the_others():
    x, weight, key = random(5, 6, 9, 7, seed=2), random(8, 6, 3, 3), nft.noise_key(1, range(3))
    together = small_conv(x * torch.tensor([1.0, 30.0, 1e-3, 1.0, 7.0]).view(5, 1, 1, 1), weight, key).unflatten(0, (3, 5))
    for chip in range(3):
        assert torch.equal(together[chip, 3], small_conv(x[3:4], weight, key[chip : chip + 1])[0])
    own = torch.cat([x, 2 * x, x.flip(0)])  # every chip its own images
    apart = [small_conv(part, weight, key[i : i + 1]) for i, part in enumerate(own.chunk(3))]
    assert torch.equal(small_conv(own, weight, key, shared=False), torch.cat(apart))


def test_threads_do_not_change_a_bit():
    x, weight, key, threads = random(4, 16, 12, 12, seed=2), random(40, 16, 3, 3), nft.noise_key(1, range(3)), torch.get_num_threads()
    many = small_conv(x, weight, key)
    torch.set_num_threads(1)
    try:
        assert torch.equal(small_conv(x, weight, key), many)
    finally:
        torch.set_num_threads(threads)


def test_cached_codes_and_step_change_nothing():
    x, weight, key = random(4, 30, seed=2), random(8, 30), nft.noise_key(1, range(2))
    step = ops.weight_step(weight, 8)
    table, _, _, spec = others.noise_of(NVM, key)
    found = [ops.noisy_linear_int8(x, weight, None, codes, s, table, key, STREAM, spec, True, *NOTHING)
             for codes, s in ((None, None), (None, step), (ops.quantize(weight, step, 8), step))]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# ---- what 8 bits mean


def stored(weight, nvm, key):
    """The weights as 8-bit numbers, read off with one-hot inputs (127 times a number), and the unit: fl(u_w / 127) is known."""
    table, spec = torch.from_numpy(nvm.operator_table()), nvm.operator_spec()
    unit = reference.quantize(weight, nvm.weight_bits)[2] * reference.reach(table, spec) / 127.0
    y = nft.noisy_linear(torch.eye(weight.shape[1]), weight, nvm=nvm, key=key, int8=True)
    return (y / (unit * torch.tensor(1 / 127.0)) / 127.0).round().t(), unit


@pytest.mark.parametrize("sigma, added", [(0.05, 0.0023), (0.2, 0.00028)])
def test_rounding_adds_as_little_noise_as_docs_say(sigma, added):
    """To the noise's std, in quadrature: 0.23 % at sigma 0.05."""
    nvm, weight, key = nft.NVMDevice(sigma=sigma), random(1000, 1000), nft.noise_key(2)
    bytes_, unit = stored(weight, nvm, key)
    chip, quantized = (nft.program_weights(weight, nvm, key=key, enabled=on)[0].double() for on in (True, False))
    assert (bytes_.abs() <= 127).all() and (bytes_ * unit - chip).abs().max() <= 0.5001 * unit
    noise, rounding = (chip - quantized).std(), (bytes_.double() * unit - chip).std()
    assert rounding == pytest.approx(float(unit) / math.sqrt(12), rel=0.01)
    assert math.hypot(1, rounding / noise) - 1 == pytest.approx(added, rel=0.05)
    # Rounding and noise are independent: their sample correlation is within five standard errors of zero, 1 in 1.7 million.
    five_errors = 5 * (rounding / noise).item() / weight.numel() ** 0.5
    assert ((bytes_.double() * unit - quantized).std() / noise - 1).item() == pytest.approx(added, abs=five_errors + 0.05 * added)


@pytest.mark.parametrize("device", DEVICES)
def test_the_unit_covers_the_noise(device):
    """Hardly a weight lies beyond 127 units, and most of the range is in use."""
    nvm, weight, key = DEVICES[device], random(300, 300), nft.noise_key(2)
    bytes_, unit = stored(weight, nvm, key)
    off = (bytes_ * unit - nft.program_weights(weight, nvm, key=key)[0]).abs()
    assert (off > 0.51 * unit).float().mean() < 1e-4 and bytes_.abs().max() > 80


def test_zeros_stay_zero_and_what_is_not_finite_is_nan_in_its_own_image():
    key, bias = nft.noise_key(0, range(2)), torch.tensor([1.0, -2.0])
    assert torch.equal(nft.noisy_linear(random(3, 4), torch.zeros(2, 4), bias, nvm=NVM, key=key, int8=True), bias.expand(6, 2))
    x = torch.cat([torch.zeros(1, 4), random(3, 4)])
    x[1, 2], x[2, 0] = math.nan, -math.inf
    y = nft.noisy_linear(x, random(2, 4, seed=1), bias, nvm=NVM, key=key, int8=True).unflatten(0, (2, 4))
    assert torch.equal(y[:, 0], bias.expand(2, 2)) and y[:, 1:3].isnan().all() and y[:, 3].isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_tensors(rows):
    key = nft.noise_key(0, range(2))
    assert nft.noisy_linear(torch.empty(0, 3), random(5, 3), nvm=NVM, key=key, int8=True).shape == (0, 5)
    assert nft.noisy_linear(torch.empty(rows, 3), torch.empty(0, 3), nvm=NVM, key=key, int8=True).shape == (2 * rows, 0)
    bias = random(4)
    y = nft.noisy_linear(torch.empty(rows, 0), torch.empty(4, 0), bias, nvm=NVM, key=key, int8=True)
    assert torch.equal(y, bias.expand(2 * rows, 4))


# ---- what torch must know, and bad input


def raw(kind, epilogue=False, dtype=torch.float32, layout="contiguous"):
    """Arguments of the raw operator."""
    conv = kind == "conv2d"
    x = LAYOUTS[layout](dtype) if conv else random(4, 6, dtype=dtype)
    weight, key = random(*((4, 3, 3, 3) if conv else (5, 6))), nft.noise_key(0, range(2))
    static = ([1, 2], [1, 2], [1, 1], 2, True) if conv else (True,)
    arguments = (x, weight, random(len(weight)), None, ops.weight_step(weight, 8), *others.noise_of(NVM, key), *static)
    y = getattr(ops, f"noisy_{kind}_int8")(*arguments, *NOTHING)
    return (*arguments, *(epilogue_for(y).values() if epilogue else NOTHING))


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_linear(dtype, epilogue):
    opcheck(ops.noisy_linear_int8.default, raw("linear", epilogue, dtype))


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_conv2d(layout, epilogue):
    opcheck(ops.noisy_conv2d_int8.default, raw("conv2d", epilogue, layout=layout))


@pytest.mark.parametrize("which", ["x", "weight", "bias", "scale", "shift", "residual"])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_gradient_is_refused_by_name(kind, which):
    arguments = list(raw(kind, epilogue=True))
    position = {"x": 0, "weight": 1, "bias": 2, "scale": -4, "shift": -3, "residual": -2}[which]
    arguments[position] = arguments[position].clone().requires_grad_()
    operator = getattr(ops, f"noisy_{kind}_int8")
    with pytest.raises(RuntimeError, match=f"noisy_{kind}_int8: arguments must not require a gradient, the int8 operators have none"):
        operator(*arguments)
    with torch.no_grad():
        assert not operator(*arguments).requires_grad


def test_the_public_functions_refuse_a_gradient_too():
    weight, options = random(5, 7).requires_grad_(), dict(nvm=NVM, key=nft.noise_key(0), int8=True)
    with pytest.raises(RuntimeError, match="must not require a gradient, the int8 operators have none.*got a tensor .5, 7. that does"):
        nft.noisy_linear(random(3, 7), weight, **options)
    with torch.no_grad():
        assert nft.noisy_linear(random(3, 7), weight, **options).shape == (3, 5)


@pytest.mark.parametrize("change, message", [
    (dict(int8=1), "int8: must be True or False; got 1"),
    (dict(x=torch.ones(2, 3).double()), "x: must be float32, bfloat16 or float16"),
    (dict(x=torch.ones(2, 3).half()), "x: must be float32 or bfloat16 on the CPU; got torch.float16"),
    (dict(x=torch.ones(2, 133145), weight=torch.ones(1, 133145)),
     "weight: must have at most 133144 inputs an output with int8, so that 32 bits hold the sums; got 133145"),
    (dict(scale=torch.ones(3)), r"scale: must have the shape \[4\]; got \[3\]"),
])
def test_what_does_not_fit_is_named(change, message):
    arguments = dict(x=torch.ones(2, 3), weight=torch.ones(4, 3), nvm=NVM, key=nft.noise_key(0), int8=True) | change
    with pytest.raises((TypeError, ValueError), match=message):
        nft.noisy_linear(arguments.pop("x"), arguments.pop("weight"), **arguments)


@pytest.mark.parametrize("kind, position, value, message", [
    ("linear", 1, torch.ones(5, 6).double(), "weight: must be float32"), ("linear", 0, torch.ones(4, 5), "x: must be .rows, in."),
    ("conv2d", 0, torch.ones(1, 6, 1, 1)[..., :0], "x: must, padded, be at least as large as the kernel; got .1, 6, 1, 0."),
    ("conv2d", -4, torch.ones(3), "scale: must be .out."), ("linear", -2, torch.ones(1, 2), "residual: must have the result's shape"),
])
def test_the_raw_operators_check_too(kind, position, value, message):
    arguments = list(raw(kind, epilogue=True))
    arguments[position] = value
    if position == 0 and kind == "conv2d":
        arguments[10] = [1, 0]  # padding
    with pytest.raises(RuntimeError, match=f"nft_ext::noisy_{kind}_int8: {message}"):
        getattr(ops, f"noisy_{kind}_int8")(*arguments)


def test_the_longest_sum():
    """All products of one sign, as large as they can be: float32's nearest to the exact sum."""
    x, weight = torch.ones(1, 133144), torch.full((2, 133144), -0.5)
    nvm, key = nft.NVMDevice(sigma=0.0), nft.noise_key(0)
    y = nft.noisy_linear(x, weight, nvm=nvm, key=key, int8=True)
    unit = (torch.tensor(0.5) / 255 * 255 / 127) * (torch.tensor(1.0) / 127)
    assert torch.equal(y, torch.tensor(-127.0 * 127 * 133144) * unit.expand(1, 2))
    with pytest.raises(RuntimeError, match="weight: must have at most 133144 inputs an output in 8 bits; got 133145"):
        table, _, _, spec = others.noise_of(nvm, key)
        ops.noisy_linear_int8(torch.ones(1, 133145), torch.ones(1, 133145), None, None, None, table, key, 0, spec, True, *NOTHING)
