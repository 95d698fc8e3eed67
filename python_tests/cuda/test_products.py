"""Products on CUDA and their gradients are as good as the reference's, in one pass and by the library: as
NFT_EXT_ONE_PASS says. test_cuda_one_pass.py runs all of this once more with every product in one pass.
"""

import pytest
import torch

import nft_ext as nft
from nft_ext import reference
from support import every_device as identity
from support import products as on_cpu
from support.on_cuda import (
    ALWAYS_ONE_PASS,
    CHIPS,
    DTYPES,
    NVM,
    STREAM,
    WINOGRAD,
    assert_as_good_as_reference,
    bar,
    ops,
    random,
)

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("poisoned_memory_and_exact_float32")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize(
    "rows, features, out",
    [(6, 16, 8), (3, 17, 5), (9, 1, 1), (6, 300, 1), (33, 70, 65), (129, 64, 130), (5, 3001, 24), (70, 1536, 72)],
)  # these two: steps dealt to many thread blocks
def test_linear(rows, features, out, chips, shared, dtype):
    key = nft.noise_key(1, range(chips))
    rows = rows if shared else rows * chips
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=NVM, key=key.cuda(), stream=STREAM, shared=shared),
        lambda x, w, b: reference.noisy_linear(x, w, b, *on_cpu.noise_of(NVM, key), shared),
        random(rows, features, seed=2, dtype=dtype),
        random(out, features),
        random(out, seed=3),
    )


@pytest.mark.parametrize("device", on_cpu.DEVICES)
def test_linear_on_every_kind_of_device(device):
    key, nvm = nft.noise_key(1, range(2)), on_cpu.DEVICES[device]
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=nvm, key=key.cuda(), stream=STREAM),
        lambda x, w, b: reference.noisy_linear(x, w, b, *on_cpu.noise_of(nvm, key), True),
        random(4, 11, seed=2),
        random(5, 11),
        None,
    )


def conv_pair(key, shared, options):
    """(operator on CUDA, definition on the CPU) as functions of x, weight, bias."""
    _, definition = on_cpu.conv_pair(key, shared, options)
    return lambda x, w, b: nft.noisy_conv2d(
        x, w, b, nvm=NVM, key=key.cuda(), stream=STREAM, shared=shared, **options
    ), definition


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("geometry", on_cpu.GEOMETRIES)
def test_conv2d(geometry, chips, shared, dtype):
    weight, options = on_cpu.convolution(**on_cpu.GEOMETRIES[geometry])
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = random(3, 6, 9, 7, seed=2, dtype=dtype)
    assert_as_good_as_reference(operator, definition, x, weight, random(weight.shape[0], seed=3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("layout", on_cpu.LAYOUTS)
def test_conv2d_in_any_layout(layout, chips, shared, dtype):
    weight, options = on_cpu.convolution(padding=1, stride=(2, 1))
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = on_cpu.LAYOUTS[layout](dtype)
    assert_as_good_as_reference(operator, definition, x, weight, None)
    strided = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="cuda") if layout != "expanded" else x.cuda()
    y = operator(strided if layout == "expanded" else strided.copy_(x), weight.cuda(), None)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)
    torch.testing.assert_close(
        y, operator(x.cuda().contiguous(), weight.cuda(), None), rtol=0, atol=0.05 * float(y.abs().max())
    )


@pytest.mark.parametrize("rows, channels, out, side", [(1, 64, 65, 8), (5, 33, 64, 7), (2, 128, 96, 4)])
def test_conv2d_past_one_tile(rows, channels, out, side):
    options = dict(stride=1, padding=1, dilation=1, groups=1)
    operator, definition = conv_pair(nft.noise_key(1, range(2)), True, options)
    for dtype in DTYPES:
        x = random(rows, channels, side, side, seed=2, dtype=dtype)
        assert_as_good_as_reference(operator, definition, x, random(out, channels, 3, 3), random(out, seed=3))


@pytest.mark.parametrize("name", ["gaussian", "everything"])
def test_the_products_use_the_cpus_chips(name):
    """A product with the identity reads the programmed weights off, forward and backward."""
    nvm, weight, key = identity.DEVICES[name], identity.weights(40, 30), identity.KEY
    programmed = nft.program_weights(weight, nvm, key=key, stream=STREAM)
    y = nft.noisy_linear(torch.eye(30, device="cuda"), weight.cuda(), nvm=nvm, key=key.cuda(), stream=STREAM)
    torch.testing.assert_close(y.cpu().reshape(3, 30, 40).transpose(1, 2), programmed, rtol=1e-6, atol=0)
    x = torch.zeros(40, 30, device="cuda", requires_grad=True)
    nft.noisy_linear(x, weight.cuda(), nvm=nvm, key=key[1:2].cuda(), stream=STREAM).backward(
        torch.eye(40, device="cuda")
    )
    torch.testing.assert_close(x.grad.cpu(), programmed[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, channels, out, side", [(3, 16, 24, 4), (48, 64, 64, 16)])
def test_gradients_are_the_same_every_time(rows, channels, out, side, dtype, monkeypatch):
    """Without torch being told to be deterministic, and with cuDNN told to take what is fastest."""
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    weight, key = random(out, channels, 3, 3).cuda(), nft.noise_key(1, range(3), device="cuda")
    x, bias = random(rows, channels, side, side, dtype=dtype).cuda(), random(out).cuda()

    def gradients():
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y = nft.noisy_conv2d(*leaves, 1, 1, nvm=NVM, key=key)
        y.float().square().sum().backward()
        return [y.detach(), *[leaf.grad for leaf in leaves]]

    first = gradients()
    for _ in range(5):
        for a, b in zip(gradients(), first):
            assert torch.equal(a, b)
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_sums_are_the_same_every_time(dtype):
    """One chip and few rows: the steps of every tile are dealt to many thread blocks, and added up in their order."""
    torch.use_deterministic_algorithms(False)
    x, weight, key = random(7, 4096, dtype=dtype).cuda(), random(64, 4096).cuda(), nft.noise_key(1, device="cuda")
    first = nft.noisy_linear(x, weight, nvm=NVM, key=key)
    for _ in range(20):
        assert torch.equal(nft.noisy_linear(x, weight, nvm=NVM, key=key), first)


@pytest.mark.parametrize("rows", [0])
def test_no_rows(rows):
    key = nft.noise_key(0, range(2), device="cuda")
    y = nft.noisy_linear(torch.empty(rows, 6, device="cuda"), random(3, 6).cuda(), nvm=NVM, key=key)
    assert y.shape == (0, 3) and y.is_cuda


# ---- the input's gradient from regenerated weights

CONVOLUTIONS = {  # (rows, channels, height, width), out, kernel, options
    "3 x 3": ((1, 64, 4, 4), 32, (3, 3), dict(padding=1)),
    "stride": ((2, 16, 9, 7), 20, (3, 3), dict(padding=1, stride=2)),
    "1 x 1, stride": ((3, 24, 6, 6), 10, (1, 1), dict(stride=2)),
    "rectangle": ((1, 17, 8, 9), 12, (2, 3), dict(stride=(3, 1), padding=(0, 2), dilation=(1, 2))),
    "groups": ((2, 36, 5, 6), 8, (3, 3), dict(padding=1, groups=2)),
    "more taps than a step": ((1, 9, 12, 12), 5, (9, 9), dict(padding=4)),
    "several tiles": ((4, 130, 8, 8), 7, (3, 3), dict(padding=1)),
    "split steps": ((1, 40, 8, 8), 160, (3, 3), dict(padding=1)),
}


def convolution(name):
    """(x's shape, weight, options with every argument)."""
    shape, out, kernel, options = CONVOLUTIONS[name]
    options = dict(stride=1, padding=0, dilation=1, groups=1) | options
    return shape, random(out, shape[1] // options["groups"], *kernel), options


def pairs(options):
    return [
        [v, v] if isinstance(v, int) else list(v) for v in (options["stride"], options["padding"], options["dilation"])
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradient_of_conv2d(name, chips, shared, dtype):
    (rows, *rest), weight, options = convolution(name)
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = random(rows if shared else rows * chips, *rest, seed=2, dtype=dtype)
    assert_as_good_as_reference(operator, definition, x, weight, None)


@pytest.mark.parametrize("name", ["3 x 3", "stride", "groups", "more taps than a step"])
def test_gradient_uses_the_programmed_chips(name):
    """The gradient of one chip's input equals torch's with that chip's weights, in every memory format."""
    shape, weight, options = convolution(name)
    key = nft.noise_key(6, [3, 9])
    chips = nft.program_weights(weight, NVM, key=key, stream=STREAM)
    x = random(2 * shape[0], *shape[1:], seed=2)
    leaves = [part.requires_grad_() for part in x.chunk(2)]
    y = torch.cat([torch.nn.functional.conv2d(leaf, chip, **options) for leaf, chip in zip(leaves, chips)])
    grad = random(*y.shape, seed=4)
    expected = torch.cat(torch.autograd.grad(y, leaves, grad))
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.cuda().contiguous(memory_format=layout).requires_grad_()
        y = nft.noisy_conv2d(leaf, weight.cuda(), nvm=NVM, key=key.cuda(), stream=STREAM, shared=False, **options)
        (found,) = torch.autograd.grad(y, leaf, grad.cuda().contiguous(memory_format=layout))
        assert found.is_contiguous(memory_format=layout)
        largest = float(expected.abs().max())
        torch.testing.assert_close(
            found.cpu(), expected, rtol=1e-5, atol=(1e-5 if ALWAYS_ONE_PASS else WINOGRAD) * largest
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 32, 33, 128, 129, 256, 257])
def test_gradient_of_linear_of_any_number_of_columns(columns, dtype):
    """Narrow and wide tiles, one and several of them."""
    key = nft.noise_key(1, range(2))
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=NVM, key=key.cuda(), stream=STREAM),
        lambda x, w, b: reference.noisy_linear(x, w, b, *on_cpu.noise_of(NVM, key), True),
        random(columns, 70, seed=2, dtype=dtype),
        random(37, 70),
        None,
    )


@pytest.mark.parametrize("device", on_cpu.DEVICES)
@pytest.mark.parametrize("cached", [False, True])
def test_gradient_on_every_kind_of_device(device, cached):
    """A product with the identity reads the chip off, transposed."""
    nvm, weight = on_cpu.DEVICES[device], random(40, 30)
    arguments = bar(weight.cuda(), 1, nvm, cached)
    found, *_ = ops.noisy_linear_backward(
        torch.eye(40, device="cuda"), torch.empty(40, 30, device="cuda"), weight.cuda(), *arguments, False, 1
    )
    expected = nft.program_weights(weight, nvm, seed=0, draws=[0], stream=5)[0]
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.skipif(
    not ALWAYS_ONE_PASS, reason="needs NFT_EXT_ONE_PASS=always, with which test_cuda_one_pass.py runs it"
)
def test_gradient_reads_expanded_and_sliced_gradients():
    """The gradient of a sum is one number seen everywhere, with strides of zero."""
    shape, weight, options = convolution("stride")
    x, arguments = random(*shape).cuda(), bar(weight.cuda(), 1)
    (stride, padding, dilation), y = (
        pairs(options),
        nft.noisy_conv2d(random(*shape), weight, nvm=NVM, key=nft.noise_key(), **options),
    )
    wide = random(*y.shape[:3], 2 * y.shape[3], seed=5).cuda()
    for grad in (torch.ones((), device="cuda").expand(y.shape), wide[..., ::2]):
        found, dense = (
            ops.noisy_conv2d_backward(g, x, weight.cuda(), *arguments, stride, padding, dilation, 1, True, 1)[0]
            for g in (grad, grad.contiguous())
        )
        assert torch.equal(found, dense)


def test_gradients_of_several_tiles_are_the_same_every_time():
    shape, weight, options = convolution("several tiles")
    key = nft.noise_key(1, range(3), device="cuda")

    def gradient():
        x = random(*shape).cuda().requires_grad_()
        return torch.autograd.grad(nft.noisy_conv2d(x, weight.cuda(), nvm=NVM, key=key, **options).square().sum(), x)[0]

    assert torch.equal(gradient(), gradient())
