"""Bad input to operators, layers, keys and conversions: the error names the argument, the rule and the value, before
any work. Degenerate input that is not bad (nothing to do, nothing but zeros) gives the right result.
"""

import re

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.reference import ONE_STEP

NVM = nft.NVMDevice(sigma=0.1)
KEY = nft.noise_key(0)
ops = torch.ops.nft_ext


def linear(x=None, weight=None, bias=None, **options):
    x = torch.randn(4, 6) if x is None else x
    weight = torch.randn(3, 6) if weight is None else weight
    return nft.noisy_linear(x, weight, bias, **(dict(nvm=NVM, key=KEY) | options))


def conv(x=None, weight=None, bias=None, **options):
    x = torch.randn(2, 4, 5, 5) if x is None else x
    weight = torch.randn(6, 4, 3, 3) if weight is None else weight
    return nft.noisy_conv2d(x, weight, bias, **(dict(nvm=NVM, key=KEY) | options))


KEY_RULE = "key: must have the shape [S, 2] with S >= 1; got "
CALLS = {
    # operands
    "x no tensor": (lambda: linear([1.0]), TypeError, "x: must be a torch.Tensor; got list"),
    "x complex": (
        lambda: linear(torch.randn(4, 6).cfloat()),
        TypeError,
        "x: must be float32, bfloat16, float16 or float64; got torch.complex64",
    ),
    "x float16": (
        lambda: linear(torch.randn(4, 6).half()),
        TypeError,
        "x: must be float32 or bfloat16 on the CPU; got torch.float16",
    ),
    "x integer": (lambda: conv(torch.ones(2, 4, 5, 5, dtype=torch.long)), TypeError, "got torch.int64"),
    "x elsewhere": (
        lambda: linear(torch.empty(4, 6, device="meta")),
        ValueError,
        "x: must be on the weight's torch device cpu; got meta",
    ),
    "x sparse": (
        lambda: linear(torch.eye(6).to_sparse()),
        TypeError,
        "x: must be a dense tensor; got torch.sparse_coo",
    ),
    "x width": (
        lambda: linear(torch.randn(4, 5)),
        ValueError,
        "x: must have the shape [..., in] with in = 6; got [4, 5]",
    ),
    "x scalar": (lambda: linear(torch.tensor(1.0)), ValueError, "x: must have the shape [..., in] with in = 6; got []"),
    "x channels": (
        lambda: conv(torch.randn(2, 3, 5, 5)),
        ValueError,
        "x: must have the shape [B, 4, H, W]; got [2, 3, 5, 5]",
    ),
    "x unbatched": (
        lambda: conv(torch.randn(4, 5, 5)),
        ValueError,
        "x: must have the shape [B, 4, H, W]; got [4, 5, 5]",
    ),
    "x too small": (
        lambda: conv(torch.randn(2, 4, 2, 5)),
        ValueError,
        "x: padded height must be at least the kernel's 3; got 2",
    ),
    "x not a multiple": (
        lambda: linear(key=nft.noise_key(0, range(3)), shared=False),
        ValueError,
        "x: dim 0 must be a multiple of the 3 chips of the key (chip-major); got 4",
    ),
    "x one vector": (
        lambda: linear(torch.randn(6), key=nft.noise_key(0, range(2))),
        ValueError,
        "x: must have a batch dimension for 2 chips; got [6]",
    ),
    "weight no tensor": (
        lambda: linear(weight=np.ones((3, 6))),
        TypeError,
        "weight: must be a torch.Tensor; got ndarray",
    ),
    "weight complex": (lambda: linear(weight=torch.randn(3, 6).cfloat()), TypeError, "weight: must be float32"),
    "weight dims": (
        lambda: linear(weight=torch.randn(3, 6, 1)),
        ValueError,
        "weight: must have the shape [out, in]; got [3, 6, 1]",
    ),
    "weight dims conv": (
        lambda: conv(weight=torch.randn(6, 4)),
        ValueError,
        "weight: must have the shape [out, C / groups, kh, kw]; got [6, 4]",
    ),
    "bias shape": (lambda: linear(bias=torch.randn(4)), ValueError, "bias: must have the shape [3]; got [4]"),
    "bias dtype": (lambda: conv(bias=torch.ones(6, dtype=torch.int32)), TypeError, "bias: must be float32"),
    "bias elsewhere": (
        lambda: linear(bias=torch.empty(3, device="meta")),
        ValueError,
        "bias: must be on the weight's torch device cpu; got meta",
    ),
    # geometry
    "stride": (lambda: conv(stride=0), ValueError, "stride: must be an integer in 1..1073741823; got 0"),
    "stride fraction": (
        lambda: conv(stride=(1, 1.5)),
        ValueError,
        "stride: must be an integer in 1..1073741823; got 1.5",
    ),
    "stride type": (lambda: conv(stride=2.0), ValueError, "stride: must be one or two integers; got 2.0"),
    "stride length": (lambda: conv(stride=(1, 1, 1)), ValueError, "stride: must be one or two integers; got (1, 1, 1)"),
    "padding": (lambda: conv(padding=-1), ValueError, "padding: must be an integer in 0..1073741823; got -1"),
    "padding name": (
        lambda: conv(padding="full"),
        ValueError,
        'padding: must be integers, "same" or "valid"; got full',
    ),
    "same, stride": (
        lambda: conv(padding="same", stride=2),
        ValueError,
        'padding: must not be "same" with a stride other than 1; got [2, 2]',
    ),
    "dilation": (lambda: conv(dilation=0), ValueError, "dilation: must be an integer in 1..1073741823; got 0"),
    "padding and stride that overflow": (
        lambda: conv(padding=2**61, stride=2**62),
        ValueError,
        f"stride: must be an integer in 1..1073741823; got {2**62}",
    ),
    "kernel of size 0": (
        lambda: conv(weight=torch.ones(6, 4, 0, 3)),
        ValueError,
        "weight: must have no dimension of size 0; got [6, 4, 0, 3]",
    ),
    "groups": (lambda: conv(groups=0), ValueError, "groups: must be an integer >= 1; got 0"),
    "groups divide": (lambda: conv(groups=4), ValueError, "groups: must divide the 6 output channels; got 4"),
    # noise
    "nvm": (lambda: linear(nvm=0.1), TypeError, "nvm: must be an NVMDevice; got float"),
    "key type": (
        lambda: linear(key=7),
        TypeError,
        "key: must be an int64 tensor [S, 2], see nft_ext.noise_key; got int",
    ),
    "key dtype": (lambda: linear(key=torch.zeros(1, 2)), TypeError, "key: must be an int64 tensor"),
    "key shape": (lambda: linear(key=torch.zeros(3, dtype=torch.long)), ValueError, KEY_RULE + "[3]"),
    "key empty": (lambda: linear(key=torch.zeros(0, 2, dtype=torch.long)), ValueError, KEY_RULE + "[0, 2]"),
    "key elsewhere": (
        lambda: linear(key=KEY.to("meta")),
        ValueError,
        "key: must be on the weight's torch device cpu; got meta",
    ),
    "stream": (lambda: linear(stream=2**32), ValueError, "stream: must be an integer in 0..4294967295; got 4294967296"),
    "dtype": (
        lambda: nft.program_weights(torch.ones(2, 2), NVM, dtype=torch.float64),
        ValueError,
        "dtype: must be torch.float32 or torch.bfloat16 (or float16 on CUDA); got torch.float64",
    ),
    # keys
    "draw negative": (
        lambda: nft.noise_key(0, [0, -1]),
        ValueError,
        "draws: must be an integer in 0..4294967295; got -1",
    ),
    "draw large": (
        lambda: nft.noise_key(0, 2**32),
        ValueError,
        "draws: must be an integer in 0..4294967295; got 4294967296",
    ),
    "draw fraction": (
        lambda: nft.noise_key(0, [0.5]),
        ValueError,
        "draws: must be an integer in 0..4294967295; got 0.5",
    ),
    "draw bool": (lambda: nft.noise_key(0, [True]), ValueError, "draws: must be an integer in 0..4294967295; got True"),
    "no draws": (lambda: nft.noise_key(0, []), ValueError, "draws: must name at least one chip; got []"),
    "draws no list": (
        lambda: nft.noise_key(0, 1.5),
        ValueError,
        "draws: must be an integer or an iterable of integers; got 1.5",
    ),
    "seed": (lambda: nft.noise_key(-1), ValueError, "seed: must be an integer in 0..18446744073709551615; got -1"),
    "domain": (
        lambda: nft.noise_key(domain="test"),
        ValueError,
        "domain: must be one of evaluation, training, selection, permutation; got test",
    ),
    # layers and models
    "layer nvm": (lambda: nft.NoisyLinear(4, 3, nvm="rram1"), TypeError, "nvm: must be an NVMDevice; got str"),
    "conv layer x": (lambda: nft.NoisyConv2d(4, 3, 3, nvm=NVM)([1]), TypeError, "x: must be a torch.Tensor; got list"),
    "conv layer x dims": (
        lambda: nft.NoisyConv2d(4, 3, 3, padding_mode="reflect", nvm=NVM)(torch.randn(4, 5)),
        ValueError,
        "x: must have the shape [B, 4, H, W] or [4, H, W]; got [4, 5]",
    ),
    "layer complex": (
        lambda: nft.NoisyLinear(6, 3, nvm=NVM, dtype=torch.complex64)(torch.randn(2, 6)),
        TypeError,
        "NoisyLinear.weight: must be float32",
    ),
    "convert model": (lambda: nft.convert("net", NVM), TypeError, "model: must be a torch.nn.Module; got str"),
    "convert nvm": (lambda: nft.convert(nn.Linear(2, 2), 0.1), TypeError, "nvm: must be an NVMDevice; got float"),
    "restore model": (lambda: nft.restore(None), TypeError, "model: must be a torch.nn.Module; got NoneType"),
    "program model": (lambda: nft.program(3), TypeError, "model: must be a torch.nn.Module; got int"),
    "program plain": (
        lambda: nft.program(nn.Linear(2, 2)),
        ValueError,
        "model: must hold noisy layers; make them with nft_ext.convert(model, nvm); got Linear",
    ),
    "program draw": (
        lambda: nft.program(nft.convert(nn.Linear(2, 2), NVM), draw=-1),
        ValueError,
        "draw: must be an integer in 0..4294967295; got -1",
    ),
    "program_weights key and seed": (
        lambda: nft.program_weights(torch.ones(2, 2), NVM, seed=1, key=nft.noise_key()),
        ValueError,
        "key: must be given without seed and draws, which it replaces; got seed 1, draws 0",
    ),
    "program_weights by position": (
        lambda: nft.program_weights(torch.ones(2, 2), NVM, 1, 2, 3),
        TypeError,
        "takes 2 positional arguments but 5 were given",
    ),
    "noise by position": (
        lambda: nft.noise(nft.NoisyLinear(2, 2, nvm=NVM), 0.3),
        TypeError,
        "takes 1 positional argument but 2 were given",
    ),
    "noise off": (
        lambda: nft.noise(nft.NoisyLinear(2, 2, nvm=NVM), enabled="off").__enter__(),
        ValueError,
        "enabled: must be True or False; got 'off'",
    ),
    "noise plain": (lambda: nft.noise(nn.Linear(2, 2)).__enter__(), ValueError, "model: must hold noisy layers"),
    "noise sigma": (
        lambda: nft.noise(nft.NoisyLinear(2, 2, nvm=NVM), sigma=float("nan")).__enter__(),
        ValueError,
        "sigma: must be a finite number >= 0; got nan",
    ),
    "chips plain": (lambda: nft.chips(nn.Linear(2, 2)).__enter__(), ValueError, "model: must hold noisy layers"),
}


@pytest.mark.parametrize("case", CALLS)
def test_refused_by_name_rule_and_value(case):
    call, kind, message = CALLS[case]
    with pytest.raises(kind, match=re.escape(message)):
        call()


# ---- weights that are not finite

BAD = [float("nan"), float("inf"), float("-inf")]


def poisoned(value, *shape):
    weight = torch.randn(shape)
    weight[-1, -1] = value
    return weight


@pytest.mark.parametrize("value", BAD)
def test_weights_that_are_not_finite_are_refused(value):
    rule = r"weight: must be finite \(no NaN, no infinity\); got (nan|inf)"
    with pytest.raises(RuntimeError, match=rule):
        linear(weight=poisoned(value, 3, 6))
    with pytest.raises(RuntimeError, match=rule):
        nft.program_weights(poisoned(value, 3, 6), NVM, enabled=False)
    layer = nft.NoisyLinear(600, 700, nvm=NVM)
    with torch.no_grad():
        layer.weight.copy_(poisoned(value, 700, 600))
        for _ in range(2):
            with pytest.raises(RuntimeError, match=rule):
                layer(torch.randn(1, 600))


@pytest.mark.parametrize("value", BAD)
def test_convert_and_program_name_the_layer(value):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    noisy = nft.convert(model, NVM)
    for m in (model, noisy):
        m[1].weight.data.copy_(poisoned(value, 3, 6))
    for call in (lambda: nft.convert(model, NVM), lambda: nft.program(noisy)):
        with pytest.raises(ValueError, match=r"1.weight: must be finite \(no NaN, no infinity\)"):
            call()


# ---- the raw operators guard their memory themselves


def bar(**changes):
    weight = torch.ones(3, 6)
    args = dict(
        weight=weight,
        codes=None,
        step=ops.weight_step(weight, 8),
        table=torch.from_numpy(NVM.operator_table()),
        key=KEY,
        stream=0,
        spec=NVM.operator_spec(),
    )
    return list((args | changes).values())


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(weight=torch.ones(3, 6).double()), "weight: must be float32"),
        (dict(table=torch.zeros(8)), r"table: must have 2 \* 2\^M entries .*; got 8"),
        (dict(table=torch.zeros(512).double()), "table: must be contiguous float32"),
        (dict(step=torch.zeros(2)), r"step: must be one float32; got \[2\]"),
        (dict(key=torch.zeros(1, 3, dtype=torch.long)), r"key: must be int64 \[S, 2\] with S >= 1; got \[1, 3\]"),
        (dict(key=torch.zeros(2, 2, dtype=torch.long).t()), "key: must be contiguous"),
        (dict(key=torch.tensor([[0, 1], [0, 2**40]])), r"key: must have draw \+ domain .*; got 1099511627776"),
        (dict(key=torch.tensor([[0, -1]])), r"key: must have draw \+ domain .*; got -1"),
        (dict(codes=torch.zeros(3, 5, dtype=torch.int16)), r"codes: must be the contiguous result .*; got \[3, 5\]"),
        (dict(codes=torch.zeros(3, 6, dtype=torch.int32)), "codes: must be the contiguous result"),
        (dict(stream=-1), "stream: must be a 32-bit unsigned number; got -1"),
        (
            dict(spec=[8, 3, 1, 0, *ONE_STEP]),
            "spec: needs weight_bits in 1..16, a multiple of device_bits; got",
        ),
        (dict(spec=[8, 0, 1, 0, *ONE_STEP]), "spec: needs weight_bits in 1..16, a multiple of device_bits"),
        (
            dict(spec=[8, 2, 3, 0, *ONE_STEP]),
            r"spec: needs path 0 .*; got 3",
        ),
        (dict(spec=[8, 2, 1, 2, *ONE_STEP]), "spec: needs mapping 0 or 1; got 2"),
        (
            dict(spec=[8, 2]),
            "spec: must hold weight_bits, .* and a scaling of four numbers; got 2",
        ),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_raw_operators_refuse_what_does_not_fit(changes, message):
    args = bar(**changes)
    with pytest.raises(RuntimeError, match="nft_ext::program: " + message):
        ops.program(*args, torch.float32)
    with pytest.raises(RuntimeError, match="nft_ext::noisy_linear: " + message):
        ops.noisy_linear(torch.ones(2, 6), args[0], None, *args[1:], True)


def convolve(x=None, weight=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, bias=None):
    x = torch.ones(1, 3, 5, 5) if x is None else x
    weight = torch.ones(6, 3, 3, 3) if weight is None else weight
    args = bar(weight=weight)
    return ops.noisy_conv2d(x, weight, bias, *args[1:], list(stride), list(padding), list(dilation), groups, True)


SMALL = r"x: padded (height|width) must be at least the kernel's {}; got {}"
CONVOLUTIONS = {
    # (2 - 3) / 2, rounded down, plus 1 is 0; a division that rounds towards zero gives 1
    "kernel one larger, stride 2": (dict(x=torch.ones(1, 3, 2, 2), stride=(2, 2)), SMALL.format(3, 2)),
    "kernel larger": (dict(x=torch.ones(1, 3, 1, 5)), SMALL.format(3, 1)),
    "dilated kernel larger": (dict(dilation=(1, 3)), SMALL.format(7, 5)),
    "stride": (dict(stride=(2**62, 2**62), padding=(2**61, 2**61)), "stride: must be two ints in .*; got .4611"),
    "padding": (dict(padding=(2**62, 0)), "padding: must be two ints in 0..2.30 - 1"),
    "dilation": (dict(dilation=(1, 2**30)), "dilation: must be two ints in 1..2.30 - 1"),
    "one stride": (dict(stride=(1,)), r"stride: must be two ints in .*; got \[1\]"),
    "height 0": (dict(x=torch.ones(1, 3, 0, 5), padding=(2, 2)), "x: must have a height and a width"),
    "no outputs": (dict(weight=torch.ones(0, 3, 3, 3)), "weight: must have no dimension of size 0"),
    "groups": (dict(weight=torch.ones(6, 1, 3, 3), groups=2**62), "groups: must divide the output channels"),
    "bias dtype": (dict(bias=torch.ones(6, dtype=torch.long)), "bias: must be float32 or bfloat16"),
    "result too large": (
        dict(x=torch.ones(1, 3, 5, 5).expand(2**56, 3, 5, 5), padding=(100, 100)),
        "result: sizes: must have a product of at most 2.59 elements",
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_raw_convolutions_check_geometry_before_torch_sees_it(case):
    changes, message = CONVOLUTIONS[case]
    with pytest.raises(RuntimeError, match=message):
        convolve(**changes)


def test_the_fake_kernel_refuses_the_same_geometry():
    x = torch.ones(1, 3, 2, 2, device="meta")
    args = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in bar(weight=torch.ones(6, 3, 3, 3))]
    with pytest.raises(ValueError, match=SMALL.format(3, 2)):
        ops.noisy_conv2d(x, args[0], None, *args[1:], [2, 2], [0, 0], [1, 1], 1, True)


# ---- codes index the device table


@pytest.mark.parametrize("bits, devices", [(4, 2), (16, 4)])
@pytest.mark.parametrize("name", ["program", "program_many", "noisy_linear", "noisy_linear_backward"])
def test_codes_of_more_bits_than_the_device_has_are_refused(bits, devices, name):
    device = nft.NVMDevice(bits, devices, 0.1)
    weight, x = torch.randn(300, 400), torch.ones(1, 400)
    step = ops.weight_step(weight, bits)
    codes = ops.quantize(weight, step, bits)
    table, spec = torch.from_numpy(device.operator_table()), device.operator_spec()

    def call():
        if name == "program":
            return ops.program(weight, codes, step, table, KEY, 0, spec, torch.float32)
        if name == "program_many":
            return ops.program_many([weight], [codes], [step], [table], KEY, [0], spec, [], torch.float32)[0]
        if name == "noisy_linear":
            return ops.noisy_linear(x, weight, None, codes, step, table, KEY, 0, spec, True)
        grad = torch.ones(1, 300)
        return ops.noisy_linear_backward(grad, x, weight, codes, step, table, KEY, 0, spec, True, 1)[0]

    assert call().isfinite().all(), "codes in range are taken"
    for wrong in (2**bits, ~(2**bits)):
        codes[299, 399] = wrong
        with pytest.raises(RuntimeError, match=f"nft_ext::{name}: codes: must fit weight_bits.*; got {wrong}$"):
            call()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_step_that_is_no_step_is_refused(value):
    step = torch.tensor(value)
    for call in (
        lambda: ops.program(*bar(step=step), torch.float32),
        lambda: ops.quantize(torch.ones(3), step, 8),
    ):
        with pytest.raises(RuntimeError, match="step: must be a finite number >= 0"):
            call()


def test_sizes_that_overflow_are_refused():
    huge = torch.ones(1).expand(2**40, 2**20)
    with pytest.raises(RuntimeError, match="result: sizes: must have a product of at most 2.59 elements"):
        nft.program_weights(huge, NVM)
    with pytest.raises(RuntimeError, match="result: sizes: must have a product of at most 2.59 elements"):
        linear(torch.ones(1, 1).expand(2**40, 1), torch.ones(1, 1).expand(2**40, 1))


@pytest.mark.parametrize("wanted", [-1, 8])
def test_gradients_that_do_not_exist_are_refused(wanted):
    with pytest.raises(RuntimeError, match="wanted: must be in 0..7"):
        ops.noisy_linear_backward(torch.ones(2, 3), torch.ones(2, 6), *bar(), True, wanted)


def test_keys_of_more_layers_than_a_network_has_are_refused():
    with pytest.raises(RuntimeError, match="count: must be in 0..2.20"):
        ops.draw_keys(torch.ones(1), 10**12)


@pytest.mark.parametrize(
    "shape, dtype", [((2, 4), torch.float32), ((3, 3), torch.float32), ((6,), torch.float32), ((2, 3), torch.bfloat16)]
)
def test_a_gradient_that_does_not_fit_is_refused(shape, dtype):
    grad = torch.ones(shape, dtype=dtype)
    with pytest.raises(RuntimeError, match="noisy_linear_backward: grad: must"):
        ops.noisy_linear_backward(grad, torch.ones(2, 6), *bar(), True, 7)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (3, 6, 3, 3), (2, 6, 4, 3), (2, 6)], ids=str)
def test_a_convolutions_gradient_that_does_not_fit_is_refused(shape):
    grad = torch.ones(shape)
    args = bar(weight=torch.ones(6, 4, 3, 3))
    with pytest.raises(RuntimeError, match="noisy_conv2d_backward: grad: must"):
        ops.noisy_conv2d_backward(grad, torch.ones(2, 4, 5, 5), *args, [1, 1], [0, 0], [1, 1], 1, True, 7)


def test_quantize_refuses_what_is_no_step():
    for step in (torch.ones(2), torch.ones(0), torch.ones((), dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="nft_ext::quantize: step: must be one float32"):
            ops.quantize(torch.ones(3), step, 8)


# ---- degenerate, not bad

DEVICES = [NVM, NVM.replace(sampling="per_device"), NVM.replace(stuck=(0.5, 0.5)), NVM.replace(mapping="differential")]


@pytest.mark.parametrize("device", DEVICES, ids=["fast", "per_device", "stuck", "differential"])
@pytest.mark.parametrize("fill", [0.0, -0.0, 1e-44])
def test_all_zero_weights_give_exactly_the_bias(device, fill):
    """1e-44 is so small that the step underflows."""
    weight, bias, x = torch.full((3, 6), fill), torch.randn(3), torch.randn(4, 6)
    assert torch.equal(linear(x, weight, bias, nvm=device), bias.expand(4, 3))
    programmed = nft.program_weights(weight, device, draws=range(2))
    assert torch.equal(programmed, torch.zeros(2, 3, 6)) and not programmed.signbit().any()


def test_a_zero_weight_is_a_positive_one_and_carries_noise():
    weight = torch.tensor([[1.0, 0.0, -0.0, -1.0]])
    programmed = nft.program_weights(weight, NVM.replace(level_mean=(1.0, 1.0, 2.0, 3.0), level_std=(0.0,) * 4))[0, 0]
    assert programmed[1] == programmed[2] > 0
    assert nft.program_weights(weight, NVM)[0, 0, 1] != 0


@pytest.mark.parametrize("chips, shared", [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches_forward_and_backward(rows, chips, shared):
    count, key = rows if shared else rows * chips, nft.noise_key(0, range(chips))
    for x, weight, call, tail in (
        (torch.randn(count, 6), torch.randn(1, 6), linear, (1,)),
        (torch.randn(count, 4, 5, 5), torch.randn(1, 4, 3, 3), conv, (1, 3, 3)),
    ):
        x.requires_grad_(), weight.requires_grad_()
        y = call(x, weight, torch.ones(1), key=key, shared=shared)
        y.sum().backward()
        assert y.shape == (rows * chips, *tail)
        assert x.grad.shape == x.shape and weight.grad.shape == weight.shape
        assert bool(weight.grad.any()) == (rows > 0)


def test_one_class_and_one_input():
    layer = nft.NoisyLinear(1, 1, nvm=NVM)
    with nft.chips(layer, draws=range(2)):
        assert layer(torch.randn(1, 1)).shape == (2, 1)
    assert linear(torch.randn(0, 7, 6)).shape == (0, 7, 3)


def test_seeds_and_draws_take_any_integer_in_range():
    assert nft.noise_key(2**64 - 1, [2**32 - 1]).tolist() == [[-1, 2**32 - 1]]
    assert torch.equal(nft.noise_key(np.int64(3), np.arange(2)), nft.noise_key(3, range(2)))
    assert torch.equal(nft.noise_key(3, np.int32(5)), nft.noise_key(3, 5))
