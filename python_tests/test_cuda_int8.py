"""The 8-bit products on CUDA are the CPU's, bit for bit: the definition of nft_ext.reference, whatever the shape, the memory format, the
type of x, whether weights are generated on the way or programmed first, and whether tiles are split."""

import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

import nft_ext as nft
from nft_ext import reference

sys.path.insert(0, str(Path(__file__).resolve().parent))

import test_int8 as on_cpu  # noqa: E402
import test_int8_known as known  # noqa: E402
import test_operators as others  # noqa: E402
from on_cuda import CHIPS, DTYPES, NVM, STREAM, needs_cuda, ops, poisoned_memory_and_exact_float32, random  # noqa: E402, F401

pytestmark = [pytest.mark.cuda, needs_cuda]
NOTHING = on_cpu.NOTHING


def there(value):
    return value.cuda() if isinstance(value, torch.Tensor) else value


def assert_same(operator, definition):
    """`operator` on CUDA, of the epilogue's keywords, and the definition on the CPU: without an epilogue and with all of it."""
    y = operator()
    assert torch.equal(y.cpu(), definition(*NOTHING))
    e = on_cpu.epilogue_for(y.cpu())
    assert torch.equal(operator(**{part: there(value) for part, value in e.items()}).cpu(), definition(*e.values()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("rows, features, out", [
    (6, 16, 8), (3, 17, 5), (9, 1, 1), (6, 300, 1), (33, 70, 65), (128, 40, 9),
    (129, 64, 130), (300, 130, 67),  # these two: weights programmed first, chips that begin at no multiple of four
    (5, 3001, 24), (70, 1536, 72)])  # and these: steps dealt to many thread blocks
def test_linear(rows, features, out, chips, shared, dtype):
    key, bias = nft.noise_key(1, range(chips)), random(out, seed=3)
    x, weight = random(rows if shared else rows * chips, features, seed=2, dtype=dtype), random(out, features)
    noise, on = others.noise_of(NVM, key), [t.cuda() for t in (x, weight, bias)]
    assert_same(lambda **e: nft.noisy_linear(*on, nvm=NVM, key=key.cuda(), stream=STREAM, shared=shared, int8=True, **e),
                lambda *e: reference.noisy_linear_int8(x, weight, bias, *noise, shared, *e))


def conv_pair(x, weight, bias, key, shared, options):
    noise, on = others.noise_of(NVM, key), [there(t) for t in (x, weight, bias)]
    return (lambda **e: nft.noisy_conv2d(*on, nvm=NVM, key=key.cuda(), stream=STREAM, shared=shared, int8=True, **options, **e),
            lambda *e: reference.noisy_conv2d_int8(x, weight, bias, *noise, *options.values(), shared, *e))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("geometry", on_cpu.GEOMETRIES)
def test_conv2d(geometry, chips, shared, dtype):
    weight, options = others.convolution(**on_cpu.GEOMETRIES[geometry])
    x = random(3, 6, 9, 7, seed=2, dtype=dtype)
    assert_same(*conv_pair(x, weight, random(len(weight), seed=3), nft.noise_key(1, range(chips)), shared, options))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows, channels, out, side, kernel", [
    (1, 64, 65, 8, 3), (5, 33, 64, 7, 3), (2, 128, 96, 4, 3), (9, 20, 33, 12, 3), (2, 64, 40, 8, 1), (7, 48, 24, 9, 1), (1, 512, 64, 4, 3)])
def test_conv2d_past_one_tile(rows, channels, out, side, kernel, layout):
    """Up to 128 columns a chip and beyond; more numbers an image than one thread block looks at."""
    options = dict(stride=1, padding=kernel // 2, dilation=1, groups=1)
    x = random(rows, channels, side, side, seed=2).contiguous(memory_format=layout)
    operator, definition = conv_pair(x, random(out, channels, kernel, kernel), None, nft.noise_key(1, range(2)), True, options)
    assert_same(operator, definition)
    assert operator().is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels, out, side, kernel, options", [
    (64, 70, 8, (3, 3), dict(stride=1, padding=1, dilation=1, groups=1)),
    (32, 6, 13, (3, 2), dict(stride=(2, 1), padding=(1, 2), dilation=1, groups=2)),
    (48, 33, 11, (2, 3), dict(stride=1, padding=(2, 0), dilation=(2, 1), groups=1)),
    (144, 24, 9, (1, 1), dict(stride=1, padding=0, dilation=1, groups=3))])
@pytest.mark.parametrize("shared", [True, False])
def test_conv2d_of_sixteen_channels_at_once(channels, out, side, kernel, options, layout, dtype, shared):
    """More than 128 columns a chip, and groups of a multiple of 16 channels: the inner index in its other order."""
    x = random(5 if shared else 10, channels, side, side, seed=2, dtype=dtype).contiguous(memory_format=layout)
    weight = random(out, channels // options["groups"], *kernel)
    operator, definition = conv_pair(x, weight, random(out, seed=3), nft.noise_key(1, range(2)), shared, options)
    assert_same(operator, definition)
    assert operator().is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", on_cpu.LAYOUTS)
def test_any_layout(layout):
    weight, options = others.convolution(padding=1, stride=(2, 1))
    x = on_cpu.LAYOUTS[layout](torch.float32)
    _, definition = conv_pair(x, weight, None, nft.noise_key(1, range(2)), True, options)
    on = x[:1, :, :, :1].cuda().expand_as(x) if layout == "expanded" else torch.empty_strided(x.shape, x.stride(), device="cuda").copy_(x)
    y = nft.noisy_conv2d(on, weight.cuda(), nvm=NVM, key=nft.noise_key(1, range(2), device="cuda"), stream=STREAM, int8=True, **options)
    assert torch.equal(y.cpu(), definition(*NOTHING))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("rows", [4, 300])
@pytest.mark.parametrize("device", on_cpu.DEVICES)
def test_every_kind_of_device(device, rows, enabled):
    nvm, key = on_cpu.DEVICES[device], nft.noise_key(1, range(2))
    x, weight, table = random(rows, 11, seed=2), random(9, 11), torch.from_numpy(nvm.operator_table())
    y = nft.noisy_linear(x.cuda(), weight.cuda(), nvm=nvm, key=key.cuda(), stream=STREAM, enabled=enabled, int8=True)
    expected = reference.noisy_linear_int8(x, weight, None, table, key, STREAM, nvm.operator_spec(enabled), True, *NOTHING)
    assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("name", known.CASES)
def test_known_answers(name):
    x, weight, bias, *rest = known.arguments(name, "cuda")
    y = ops.noisy_conv2d_int8(x, weight, bias, None, None, *rest, *NOTHING)
    assert known.words(y.cpu()) == known.answers()[name.replace(" ", "_")]


def test_zeros_stay_zero_and_what_is_not_finite_is_nan():
    key, bias = nft.noise_key(0, range(2), device="cuda"), torch.tensor([1.0, -2.0]).cuda()
    y = nft.noisy_linear(random(3, 4).cuda(), torch.zeros(2, 4).cuda(), bias, nvm=NVM, key=key, int8=True)
    assert torch.equal(y, bias.expand(6, 2))
    x = torch.cat([torch.zeros(1, 4), random(3, 4)]).cuda()
    x[1, 2], x[2, 0] = torch.nan, -torch.inf
    y = nft.noisy_linear(x, random(2, 4, seed=1).cuda(), bias, nvm=NVM, key=key, int8=True).unflatten(0, (2, 4))
    assert torch.equal(y[:, 0], bias.expand(2, 2)) and y[:, 1:3].isnan().all() and y[:, 3].isfinite().all()
    weight = random(2, 4)
    weight[0, 0] = torch.inf
    assert nft.noisy_linear(x[:1], weight.cuda(), nvm=NVM, key=key, int8=True).isnan().all(), "no forward waits for the host"


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_tensors(rows):
    key, bias = nft.noise_key(0, range(2), device="cuda"), random(4).cuda()
    for features, out in ((3, 5), (3, 0), (0, 4)):
        y = nft.noisy_linear(torch.empty(rows, features, device="cuda"), random(out, features).cuda(), bias if out == 4 else None, nvm=NVM,
                             key=key, int8=True)
        assert y.shape == (2 * rows, out)
        assert features or torch.equal(y, bias.expand(2 * rows, 4))


@pytest.mark.parametrize("epilogue", [False, True])
def test_opcheck(epilogue):
    for kind in ("linear", "conv2d"):
        opcheck(getattr(ops, f"noisy_{kind}_int8").default, tuple(map(there, on_cpu.raw(kind, epilogue))))


def test_a_tensor_on_another_device_is_refused_by_name():
    arguments = [there(a) for a in on_cpu.raw("linear", epilogue=True)]
    for position, message in ((0, "x: must be on the weight's device"), (2, "bias: must be on the weight's device"),
                              (-3, "scale, shift and residual: must be on the weight's device")):
        mixed = [a.cpu() if i % len(arguments) == position % len(arguments) else a for i, a in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=message):
            ops.noisy_linear_int8(*mixed)


def test_no_call_waits_for_the_device():
    x, weight, key = random(40, 8, 8, 8).cuda(), random(16, 8, 3, 3).cuda(), nft.noise_key(0, range(2), device="cuda")
    nft.noisy_conv2d(x, weight, nvm=NVM, key=key, int8=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images in (1, 40):  # generated on the way, and programmed first
            nft.noisy_conv2d(x[:images], weight, nvm=NVM, key=key, int8=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network():
    torch.manual_seed(0)
    return nft.convert(nft.models.resnet18(width=0.25).eval(), NVM)


def test_a_network_is_the_cpus_up_to_what_lies_between_its_layers():
    model, x = network(), random(2, 3, 32, 32)
    with torch.no_grad(), nft.int8(model), nft.chips(model, seed=2, draws=range(2)):
        expected = model(x)
    model.cuda()
    with torch.no_grad(), nft.int8(model), nft.chips(model, seed=2, draws=range(2)):
        found = model(x.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("chips", [1, 3])
def test_a_graphs_replay_is_the_models_forward_on_these_chips(chips):
    model, x = network().cuda(), random(4, 3, 32, 32).cuda()
    step = nft.MonteCarloGraph(model, x, chips, precision="int8")
    for seed in range(3):
        key = nft.noise_key(seed, range(chips), device="cuda")
        found = step(x, key).clone()
        with torch.no_grad(), nft.int8(model), nft.chips(model, key=key):
            torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(step(x, key), found)


def test_monte_carlo_finds_the_mean_within_float32s_interval():
    generator = torch.Generator().manual_seed(1)
    inputs, model = torch.randn(64, 3, 32, 32, generator=generator), network()
    with torch.no_grad():
        # An untrained network says the same of every image, until its answers' mean is taken away.
        model.fc.bias -= nft.restore(model)(inputs).mean(0)
        labels = nft.restore(model)(inputs).argmax(1)  # what the network says without noise
    exact, rounded = (nft.monte_carlo(model, (inputs, labels), runs=40, seed=1, device="cuda", precision=precision, progress=False)
                      for precision in ("float32", "int8"))
    assert exact.accuracy.ci95 > 1 / 64, "chips that all agree would prove nothing"
    assert abs((rounded.accuracy.per_run - exact.accuracy.per_run).mean()) <= exact.accuracy.ci95
