"""Layers with a DAC and an ADC: against the definition and NumPy, tile by tile, with gradients and in contexts."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import reference
from nft_ext.methods.injected import with_injection
from nft_ext.nn.converters import weights_in_steps
from nft_ext.ops.converters import rounded

KEY = nft.noise_key(3, range(2))
SCALES = {
    "layer": dict(scale="layer", array_rows=10),
    "output": dict(scale="output", array_rows=7),
    "tile": dict(scale="tile", array_rows=10),
    "one array": dict(scale="output"),
    "devices": dict(scale="tile", array_rows=9, sampling="per_device", mapping="differential", stuck=(0.02, 0.02)),
}
every_scale = pytest.mark.parametrize("fields", SCALES.values(), ids=SCALES)
# in, out, kernel, stride, padding, dilation, groups
CONVOLUTIONS = {
    "plain": (4, 6, 3, 1, 1, 1, 1),
    "strided": (4, 6, (3, 2), (2, 1), (0, 1), 1, 1),
    "dilated": (3, 4, 3, 1, 2, 2, 1),
    "grouped": (4, 6, 3, 1, 1, 1, 2),
    "depthwise": (6, 12, 3, 1, 1, 1, 6),
    "pointwise": (24, 6, 1, 1, 0, 1, 2),
}


def device(bits=8, **fields):
    return nft.NVMDevice(**{"sigma": 0.1, "input_bits": bits, "output_bits": bits, **fields})


def whole_numbers(*shape, most=15):
    """Inputs on the levels of a DAC of range `most`, so that float32 sums of codes are exact in any order."""
    return torch.randint(-most, most + 1, shape).float()


def definition(layer, x, key=KEY, enabled=True):
    """The layer's result by nft_ext.reference, chips of `key`."""
    nvm = layer.nvm
    table, spec = torch.from_numpy(nvm.operator_table()), nvm.operator_spec(enabled)
    limits = layer.dac_range if nvm.input_range == "static" else None
    x = reference.converted_input(x, nvm.input_bits, limits, 1 if isinstance(layer, nn.Linear) else 3)
    chips = layer.weight, layer.bias, table, key, layer.stream, spec
    converter = nvm.array_rows, layer.adc_range, nvm.output_bits
    if isinstance(layer, nn.Linear):
        return reference.converted_linear(x, *chips, *converter)
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    return reference.converted_conv2d(x, *chips, *geometry, *converter)


def linear(nvm, inputs=35, outputs=6, dac=(-127.0, 127.0), adc=4000.0):
    layer = nft.NoisyLinear(inputs, outputs, nvm=nvm)
    return with_ranges(layer, dac, adc)


def with_ranges(layer, dac, adc):
    with torch.no_grad():
        if "dac_range" in layer._buffers:
            layer.dac_range.copy_(torch.tensor(dac))
        if "adc_range" in layer._buffers:
            layer.adc_range.fill_(adc)
    return layer


def convolution(name, nvm, dac=(-127.0, 127.0), adc=4000.0):
    inputs, outputs, kernel, *geometry = CONVOLUTIONS[name]
    return with_ranges(nft.NoisyConv2d(inputs, outputs, kernel, *geometry, nvm=nvm), dac, adc)


# ---- the converter itself


def test_a_signed_converter_has_two_to_the_bits_minus_one_levels_and_an_unsigned_one_all():
    x = torch.linspace(-3, 3, 20001)
    signed = rounded(x, torch.tensor(-2.0), torch.tensor(2.0), 4)
    unsigned = rounded(x, torch.tensor(0.0), torch.tensor(2.0), 4)
    assert signed.unique().equal(2.0 * torch.arange(-7.0, 8) / 7)
    assert unsigned.unique().equal(2.0 * torch.arange(16.0) / 15)


@pytest.mark.parametrize("low", [-1.7, 0.0])
@pytest.mark.parametrize("bits", [2, 5, 16])
def test_a_converter_rounds_like_numpy_in_the_order_of_the_equation(low, bits):
    x = torch.randn(5000) * 1.5
    x[:40] = torch.arange(40) * 1.7 / 14 / 2  # ties
    high = np.float32(1.7)
    top = np.float32(2 ** (bits - 1) - 1 if low < 0 else 2**bits - 1)
    level = np.clip(np.rint(x.numpy() / high * top), -top if low < 0 else np.float32(0), top)
    expected = high * level / top
    assert expected.dtype == np.float32
    found = rounded(x, torch.tensor(low), torch.tensor(high), bits)
    assert np.array_equal(found.numpy(), expected)
    assert found.equal(reference.converter(x, torch.tensor(low), torch.tensor(high), bits))


def test_a_range_of_zero_gives_zero_and_nan_stays_nan():
    zero = torch.tensor(0.0)
    assert rounded(torch.tensor([-1.0, 0.0, 3.0]), zero, zero, 8).equal(torch.zeros(3))
    assert rounded(torch.tensor([torch.nan]), torch.tensor(-1.0), torch.tensor(1.0), 8).isnan().all()


# ---- weights in steps


@every_scale
def test_weights_in_steps_times_the_step_are_the_programmed_weights_bit_for_bit(fields):
    layer = linear(device(**fields))
    with torch.no_grad():
        layer.weight[2] = 0
    layer.set_key(KEY)
    in_steps, _ = weights_in_steps(layer.crossbar())
    nvm = layer.nvm
    table, spec = torch.from_numpy(nvm.operator_table()), nvm.operator_spec()
    assert in_steps.equal(reference.program_in_steps(layer.weight, table, KEY, layer.stream, spec))
    step = reference.quantize(layer.weight.detach(), nvm.weight_bits, spec[4:])[2]
    programmed = nft.program_weights(layer.weight, nvm, stream=layer.stream, key=KEY)
    assert torch.where(step == 0, 0.0, step * in_steps).equal(programmed)


# ---- the layers against their definition


@every_scale
def test_a_linear_layer_without_noise_equals_the_definition_bit_for_bit(fields):
    layer = linear(device(**fields))
    x = whole_numbers(9, 35, most=127)
    with nft.noise(layer, enabled=False):
        assert layer(x).equal(definition(layer, x, KEY[:1], enabled=False))


@every_scale
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_without_noise_equals_the_definition_bit_for_bit(fields, name):
    layer = convolution(name, device(**fields))
    x = whole_numbers(3, layer.in_channels, 9, 8, most=127)
    with nft.noise(layer, enabled=False):
        found, expected = layer(x), definition(layer, x, KEY[:1], enabled=False)
    assert found.equal(expected) and len(found.unique()) > 20


@every_scale
@pytest.mark.parametrize("name", ["linear", *CONVOLUTIONS])
def test_a_noisy_layer_equals_the_definition_but_where_a_sum_sits_on_a_boundary(fields, name):
    nvm = device(**fields)
    layer = linear(nvm) if name == "linear" else convolution(name, nvm)
    x = torch.randn(6, 35) * 50 if name == "linear" else torch.randn(4, layer.in_channels, 9, 8) * 50
    with nft.chips(layer, key=KEY, repeat=False):
        found = layer(x)
    expected = definition(layer, x)
    level = float(layer.adc_range) / 127 * float(layer.weight.abs().max()) / 255
    off = (found - expected).abs()
    assert float(off.max()) <= 2.01 * level, "at most one level of a sum or two"
    assert float((off > 1e-4 * level).double().mean()) < 2e-3


def test_a_small_layer_by_hand():
    """An independent derivation in NumPy, float64: two tiles, the second one shorter; noise off."""
    nvm = nft.NVMDevice(weight_bits=4, scale="tile", array_rows=2, input_bits=3, output_bits=4)
    layer = with_ranges(nft.NoisyLinear(3, 1, nvm=nvm), (-3.0, 3.0), 21.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.30, -0.11, 0.06]]))
        layer.bias.fill_(0.5)
    x = np.array([1.2, -9.0, 2.4])
    x_q = 3 * np.clip(np.rint(x / 3 * 3), -3, 3) / 3
    assert x_q.tolist() == [1, -3, 2]
    steps = np.array([0.30, 0.06]) / 15
    codes = np.array([15, -np.rint(0.11 / steps[0]), 15])
    sums = np.array([codes[0] * x_q[0] + codes[1] * x_q[1], codes[2] * x_q[2]])  # 15 + 18, and 30: both are clamped
    assert sums.tolist() == [33, 30]
    y = sum(steps * 21 * np.clip(np.rint(sums / 21 * 7), -7, 7) / 7) + 0.5
    with nft.noise(layer, enabled=False):
        found = layer(torch.tensor([x], dtype=torch.float32))
    assert float(found) == pytest.approx(float(y), rel=1e-6)


def test_tiles_are_summed_in_their_order():
    layer = linear(device(scale="tile", array_rows=5), inputs=12)
    x = torch.randn(4, 12) * 60
    with nft.chips(layer, draws=[0]):
        found = layer(x)
    layer.set_key(nft.noise_key(0, 0))
    weights, step = weights_in_steps(layer.crossbar())
    limit, y = layer.adc_range, torch.zeros(4, 6)
    x_q = rounded(x, *layer.dac_range, 8)
    for tile in range(3):
        block = slice(5 * tile, 5 * tile + 5)
        y = y + rounded(x_q[:, block] @ weights[0][:, block].T, -limit, limit, 8) * step[0, :, tile]
    assert found.equal(y + layer.bias)


@every_scale
@pytest.mark.parametrize("name", ["linear", "grouped", "depthwise"])
def test_more_bits_approach_the_ideal_product(fields, name):
    def error(bits):
        torch.manual_seed(5)
        nvm = device(bits, **fields)
        layer = linear(nvm) if name == "linear" else convolution(name, nvm)
        torch.manual_seed(6)
        x = torch.randn(8, 35) if name == "linear" else torch.randn(4, layer.in_channels, 9, 8)
        nft.calibrate(layer, torch.cat([x, 1.5 * x]), 100, noise=True)
        with nft.chips(layer, draws=[0]), torch.no_grad():
            return float((layer(x) - layer.ideal(x)).norm() / layer.ideal(x).norm())

    errors = [error(bits) for bits in (4, 8, 14)]
    assert errors[2] < 1e-2 and errors[0] > 4 * errors[1] > 4 * errors[2]


def test_a_dac_alone_is_the_ideal_product_of_the_converted_input():
    nvm = device(output_bits=None)
    layer = linear(nvm, dac=(-2.0, 2.0))
    x = torch.randn(5, 35)
    with nft.chips(layer, draws=[0]):
        assert layer(x).equal(layer.ideal(reference.converter(x, *layer.dac_range, 8)))
    assert "adc_range" not in layer.state_dict()


# ---- ranges per example


@pytest.mark.parametrize("kind", ["vector", "sequence", "image"])
def test_a_dynamic_range_belongs_to_one_example_whatever_the_batch(kind):
    nvm = device(input_range="dynamic", array_rows=9, scale="output")
    layer = convolution("plain", nvm) if kind == "image" else linear(nvm)
    shape = {"vector": (4, 35), "sequence": (4, 3, 35), "image": (4, 4, 9, 8)}[kind]
    x = torch.randn(shape) * torch.tensor([0.1, 1.0, 10.0, 0.0]).view(-1, *[1] * (len(shape) - 1))
    x_q = layer.converted_input(x)
    alone = torch.cat([layer.converted_input(one) for one in x.split(1)])
    assert x_q.equal(alone)
    flat = x.flatten(1) if kind == "image" else x.reshape(-1, 35)
    levels = [len(row.unique()) for row in x_q.reshape(flat.shape)]
    assert max(levels) > 20 and levels[-1] == 1
    assert x_q.reshape(flat.shape).abs().amax(1).equal(flat.abs().amax(1)), "the largest value is a level"
    assert "dac_range" not in layer.state_dict()


# ---- gradients


def gradients(y, *tensors):
    return torch.autograd.grad(y.sin().sum(), tensors)


@every_scale
@pytest.mark.parametrize("name", ["linear", *CONVOLUTIONS])
def test_gradients_are_those_of_the_definition(fields, name):
    nvm = device(**fields)
    layer = linear(nvm, adc=30000.0) if name == "linear" else convolution(name, nvm, adc=30000.0)
    shape = (6, 35) if name == "linear" else (4, layer.in_channels, 7, 8)
    x = whole_numbers(*shape, most=150).requires_grad_()
    with nft.noise(layer, enabled=False):  # sums are exact, so no sum changes its level
        found = gradients(layer(x), x, layer.weight, layer.bias)
    expected = gradients(definition(layer, x, KEY[:1], enabled=False), x, layer.weight, layer.bias)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert (found[0][x.detach().abs() > 127] == 0).all() and (found[0] != 0).any()


def test_the_gradient_is_one_inside_the_range_and_zero_outside():
    layer = linear(device(scale="output", array_rows=2), inputs=4, outputs=1, dac=(-1.0, 1.0), adc=200.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, 0.2, -0.2]]))
    x = torch.tensor([[0.5, 0.6, 0.2, -1.5]], requires_grad=True)
    with nft.noise(layer, enabled=False):
        layer(x).sum().backward()
    # Tile 0 sums to 255 * 1.1 > 200: no gradient. Tile 1 is inside, but its second input is not.
    assert x.grad[0, :2].tolist() == [0, 0] and x.grad[0, 3] == 0
    assert float(x.grad[0, 2]) == pytest.approx(51 / 255)  # the quantized weight
    x_q = reference.converter(x.detach(), *layer.dac_range, 8)[0]
    assert layer.weight.grad[0].equal(torch.tensor([0.0, 0.0, x_q[2], x_q[3]]))


def test_an_output_of_zeros_is_zero_and_its_weights_get_the_gradient_of_the_programmed_weight():
    layer = linear(device(scale="output", array_rows=20), outputs=2)
    with torch.no_grad():
        layer.weight[1] = 0
    x = torch.randn(3, 35)
    y = layer(x)
    assert (y[:, 1] == layer.bias[1]).all()
    y[:, 1].sum().backward()
    assert layer.weight.grad[1].allclose(reference.converter(x, *layer.dac_range, 8).sum(0), atol=1e-5)


def test_second_derivatives_are_refused():
    layer = linear(device())
    x = torch.randn(2, 35, requires_grad=True)
    with pytest.raises(RuntimeError, match="ideal outputs for second derivatives"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


# ---- chips, contexts, copies


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding="same", padding_mode="zeros"), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, groups=2, padding=1, padding_mode="reflect")
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(6, 3, 8, 7)


@pytest.fixture
def net(images):
    torch.manual_seed(2)
    return nft.calibrate(nft.convert(Net().eval(), device(array_rows=20, scale="tile")), images)[0]


def test_chips_in_one_pass_are_bit_identical_to_chips_alone(net, images):
    with nft.chips(net, seed=4, draws=range(3)), torch.no_grad():
        together = net(images)
    alone = []
    for draw in range(3):
        with nft.chips(net, seed=4, draws=draw), torch.no_grad():
            alone.append(net(images))
    assert together.equal(torch.cat(alone))
    with nft.chips(net, seed=4, draws=range(3), programmed=True), torch.no_grad():
        assert net(images).equal(together)


def test_probes_for_mixed_chips_run_with_converters_off(images):
    coarse = nft.convert(Net().eval(), device(2, input_range="dynamic"))
    coarse, _ = nft.calibrate(coarse, images)
    with nft.chips(coarse, draws=range(2)) as inside, torch.no_grad():
        assert inside(images).shape == (12, 5)  # no warning: the suite makes warnings errors
    assert all(layer.converts for layer in nft.noisy_layers(coarse).values())


def test_monte_carlo_explains_and_sweeps(net, images):
    labels = torch.arange(6) % 5
    report = nft.monte_carlo(net, (images, labels), runs=6, progress=False)
    alone = nft.monte_carlo(net, (images, labels), runs=6, progress=False, chips_per_pass=1, batch_size=6)
    assert np.array_equal(report.accuracy.per_run, alone.accuracy.per_run)
    assert nft.explain(net, (images, labels), runs=4, by=("effect",), progress=False).rows


def test_held_weights_without_the_quantizer_go_through_the_adc():
    layer = linear(device(scale="tile", array_rows=10))
    weights = torch.randn(1, 6, 35)
    layer.hold_programmed([weights])
    in_steps, step = layer._programmed
    full = step[0].repeat_interleave(10, 1)[:, :35]
    torch.testing.assert_close(in_steps * full, weights)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_have_the_ranges(net, images, copied):
    other = copied(net)
    with nft.chips(net, draws=1), nft.chips(other, draws=1), torch.no_grad():
        assert net(images).equal(other(images))


def test_ranges_stay_float32(net):
    before = {name: value.clone() for name, value in net.state_dict().items() if name.endswith("_range")}
    half = net.bfloat16().state_dict()
    assert len(before) == 6 and all(half[name].equal(value) for name, value in before.items())


def test_autocast_keeps_the_array_in_float32(net, images):
    with nft.chips(net.second, draws=0), torch.no_grad():
        x = torch.rand(2, 8, 5, 5)
        plain = net.second(x)
        with torch.autocast("cpu"):
            found = net.second(x)
    assert found.dtype == torch.bfloat16 and found.equal(plain.bfloat16())


@pytest.mark.slow
def test_a_compiled_layer_gives_the_same(net, images):
    layer = net.first  # two tiles, the second one shorter
    compiled = torch.compile(layer, backend="aot_eager")
    with nft.chips(layer, draws=[0]), torch.no_grad():
        assert compiled(images).equal(layer(images))
    with nft.chips(layer, draws=[0]):
        one, other = (gradients(m(images), *layer.parameters()) for m in (layer, compiled))
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_fusing_leaves_layers_with_converters_as_they_are(net, images):
    fused = nft.fuse(net)
    assert [type(layer) for layer in nft.noisy_layers(fused).values()] == [
        type(layer) for layer in nft.noisy_layers(net).values()
    ]
    with nft.chips(net, draws=0), nft.chips(fused, draws=0), torch.no_grad():
        assert fused(images).equal(net(images))


def test_an_exported_program_has_the_converters(net, images):
    with nft.noise(net.first, enabled=False), torch.no_grad():
        exported = torch.export.export(net.first, (images,)).module()
        assert exported(images).equal(net.first(images))


def test_training_steps_go_through_converters(net, images):
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    loss = nft.methods.OVF(sigma=0.1, beta=0.1).loss(net, images, torch.arange(6) % 5)
    loss.backward()
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert {"first.weight", "second.weight", "head.weight"} <= changed
    assert not any(name.endswith("_range") for name in changed)


# ---- conversion, state, refusals


def test_ranges_travel_in_the_state_dict_only_with_converters(net, images):
    plain = Net()
    assert set(nft.restore(net).state_dict()) == set(plain.state_dict())
    assert {k for k in net.state_dict() if k not in plain.state_dict()} == {
        f"{layer}.{name}" for layer in ("first", "second", "head") for name in ("dac_range", "adc_range")
    }
    assert set(nft.convert(net, nft.NVMDevice()).state_dict()) == set(plain.state_dict())


def test_a_checkpoint_with_ranges_loads_and_missing_ranges_are_named(net, images):
    other = nft.convert(Net().eval(), device(array_rows=20, scale="tile"))
    with pytest.raises(RuntimeError, match=r'Missing key.*"first.dac_range", "first.adc_range"'):
        other.load_state_dict(nft.restore(net).state_dict())
    other.load_state_dict(net.state_dict())
    with nft.chips(net, draws=0), nft.chips(other, draws=0), torch.no_grad():
        assert other(images).equal(net(images))


def test_a_static_range_that_was_never_calibrated_is_refused_by_name(images):
    fresh = nft.convert(Net(), device(), example=images)  # the example runs with ideal converters
    with pytest.raises(RuntimeError, match=r"first.dac_range: must be calibrated: call nft_ext.calibrate"):
        fresh(images)
    with pytest.raises(RuntimeError, match=r"first.adc_range: must be calibrated"):
        nft.convert(Net(), device(input_range="dynamic"))(images)


def test_another_device_keeps_a_range_where_it_still_holds(net):
    nvm = net.first.nvm
    finer = nft.convert(net, nvm.replace(input_bits=4, output_bits=10, sigma=0.2))
    assert finer.first.dac_range.equal(net.first.dac_range) and finer.first.adc_range.equal(net.first.adc_range)
    other = nft.convert(net, nvm.replace(array_rows=5))
    assert other.first.dac_range.equal(net.first.dac_range) and other.first.adc_range.isnan()


def test_a_failed_conversion_in_place_leaves_no_ranges(monkeypatch):
    model = Net()
    keys = list(model.state_dict())
    monkeypatch.setattr("nft_ext.nn.conversion._leave_fast_paths", lambda m: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nft.convert(model, device(), inplace=True)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.Conv1d(2, 2, 3)])
def test_modules_with_a_product_of_their_own_are_refused_by_name(module):
    model = nn.Sequential(nn.Linear(3, 3), module)
    with pytest.raises(ValueError, match=rf"1: must be a Linear or Conv2d itself.*got {type(module).__name__}"):
        nft.convert(model, device())
    assert isinstance(nft.convert(model, device(), exclude="1")[0], nft.NoisyLinear)


def test_what_has_no_converters_is_refused(net, images):
    with pytest.raises(ValueError, match="first: must have no input_bits and output_bits, because a plain layer"):
        nft.program(net)
    with pytest.raises(ValueError, match="nvm: must have no input_bits and output_bits"):
        nft.noisy_linear(images.flatten(1), torch.randn(2, 168), nvm=device(), key=KEY)
    with pytest.raises(ValueError, match="first: must have no input_bits and output_bits for a method"):
        with_injection(net, lambda z: z)
    fused = nft.fuse(nft.convert(Net().eval(), nft.NVMDevice()))
    with pytest.raises(ValueError, match="must be a Linear or Conv2d itself.*got Fused"):
        nft.convert(fused, device())


def test_bad_inputs_are_refused_behind_converters():
    layer = linear(device())
    with pytest.raises(ValueError, match="x: must have the shape"):
        layer(torch.randn(2, 34))
    with nft.chips(layer, key=KEY, repeat=False), pytest.raises(ValueError, match="chip-major"):
        layer(torch.randn(3, 35))
    with pytest.raises(ValueError, match="x: must have the shape"):
        convolution("plain", device())(torch.randn(2, 3, 9, 9))
