"""chips(..., programmed=True): all layers programmed once, in one launch; the same chips, products by torch."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import nft_ext as nft
from nft_ext.nn.programmed import program_layers
from support.epilogues import finishes

NVM = nft.NVMDevice(sigma=0.1)
DRAWS = {"one chip": [4], "three chips": [7, 0, 2]}


class Net(nn.Module):
    """Strides, groups, dilation, all kinds of padding, a linear layer on [B, 4, in]."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding="same")
        self.b = nn.Conv2d(8, 8, 4, stride=2, padding=1, groups=4, bias=False)
        self.c = nn.Conv2d(8, 6, 3, padding=2, dilation=2, padding_mode="circular")
        self.d = nn.Conv2d(6, 4, (3, 1), padding="same")
        self.e = nn.Linear(16, 5, bias=False)
        self.f = nn.Linear(20, 3)

    def forward(self, x):
        x = self.d(self.c(self.b(self.a(x)).relu()).relu())
        return self.f(self.e(x.flatten(2)).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nft.convert(Net(), NVM).eval()


def images(count=5):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
def test_the_results_are_those_of_the_same_chips(model, draws, layout):
    x = images().to(memory_format=layout)
    with torch.no_grad():
        with nft.chips(model, seed=3, draws=draws):
            expected = model(x)
        with nft.chips(model, seed=3, draws=draws, programmed=True):
            found = model(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
def test_every_layer_holds_what_program_bakes_in(model, draws):
    with torch.no_grad(), nft.chips(model, seed=3, draws=draws, programmed=True):
        held = {name: layer.noise_state()[2] for name, layer in nft.noisy_layers(model).items()}
    for chip, draw in enumerate(draws):
        baked = nft.program(model, seed=3, draw=draw)
        for name, weights in held.items():
            assert torch.equal(weights[chip], baked.get_submodule(name).weight)


def test_under_autocast_the_weights_are_rounded_once(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with nft.chips(model, seed=1, draws=range(2)):
            expected = model(images())
        with nft.chips(model, seed=1, draws=range(2), programmed=True):
            assert model.a.noise_state()[2].dtype == torch.bfloat16
            found = model(images())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_noise_inside_programs_as_usual(model):
    x = images()
    with torch.no_grad(), nft.noise(model, sigma=0.3), nft.chips(model, seed=3, draws=1):
        expected = model(x)
    with torch.no_grad(), nft.chips(model, seed=3, draws=1, programmed=True):
        before = model(x)
        with nft.noise(model, sigma=0.3):
            assert torch.equal(model(x), expected)
        assert torch.equal(model(x), before), "held again after it"


def test_gradients_go_through_the_operators(model):
    def gradients(programmed):
        model.zero_grad()
        with nft.chips(model, seed=3, draws=range(2), programmed=programmed):
            model(images()).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for with_held, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_held, without)


def test_nothing_is_left_after_the_context_nor_in_copies(model):
    with nft.chips(model, draws=1, programmed=True):
        assert model.a._programmed is not None
        twin = copy.deepcopy(model)
    assert model.a._programmed is None and twin.a._programmed is None
    assert not any("programmed" in key for key in model.state_dict())


def test_one_launch_serves_layers_with_different_devices(model):
    mixed = nft.convert(model, nft.NVMDevice.preset("rram4", sigma=0.2), include=["b", "e"])
    mixed = nft.convert(mixed, nft.NVMDevice(stuck=(0.1, 0.05)), include=["f"])
    layers = nft.noisy_layers(mixed).values()
    with nft.chips(mixed, seed=8, draws=range(2)):
        found = program_layers(layers, torch.float32)
        for layer, weights in zip(layers, found, strict=True):
            expected = nft.program_weights(layer.weight, layer.nvm, seed=8, stream=layer.stream, draws=range(2))
            assert torch.equal(weights[0], expected.detach())


def test_rows_must_divide_among_the_chips(model):
    layer = model.f
    with torch.no_grad(), nft.chips(layer, draws=range(3), programmed=True):
        found = layer(torch.zeros(2, 20))
        layer._entry = None  # as a layer that gets its chips by hand
        assert layer(torch.zeros(6, 20)).shape == found.shape
        with pytest.raises(
            ValueError, match=r"x: dim 0 must be a multiple of the 3 chips of the key \(chip-major\); got 4"
        ):
            layer(torch.zeros(4, 20))
        with pytest.raises(ValueError, match="x: must have a batch dimension for 3 chips"):
            layer(torch.zeros(20))


def test_compiled_models_take_other_chips_without_a_new_graph(model):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x, graphs = images(), []
    for draws in ([0, 1], [2, 3], [4, 5]):
        with torch.no_grad(), nft.chips(model, seed=3, draws=draws, programmed=True):
            torch.testing.assert_close(compiled(x), model(x), rtol=2e-5, atol=2e-5)
        graphs.append(counter.frame_count)
    assert graphs[0] >= 1 and graphs[1:] == graphs[:1] * 2


# ---- fused models: torch's product, and what follows it in one pass


class Block(nn.Module):
    """Batch-norm, ReLU and a residual after convolutions; a residual that broadcasts; a linear layer on [B, in]."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1, bias=False, padding_mode="reflect"), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 8, 1)
        self.d, self.nd = nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        x = self.na(self.a(x)).relu()
        x = (self.nb(self.b(x)) + x).relu()
        x = (self.c(x) + x.mean((2, 3), keepdim=True)).relu()
        return self.nd(self.d(x.mean((2, 3)))).relu()


@pytest.fixture
def block():
    torch.manual_seed(0)
    net = Block().eval()
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return nft.fuse(nft.convert(net, NVM))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
def test_fused_layers_compute_with_what_is_held(block, draws, layout, dtype):
    x = images().to(memory_format=layout)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with nft.chips(block, seed=3, draws=draws):
            expected = block(x)
        with nft.chips(block, seed=3, draws=draws, programmed=True):
            found = block(x)
            for layer in nft.noisy_layers(block).values():  # nothing else can have multiplied
                layer.noise_state()[2].zero_()
            silenced = block(x)
    allowed = 2e-5 if dtype == torch.float32 else 3e-2
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed * float(expected.abs().max()))
    assert not torch.allclose(silenced, found)


def test_compiled_fused_layers_compute_with_what_is_held(block):
    torch._dynamo.reset()
    compiled, x = torch.compile(block, fullgraph=True, backend="aot_eager"), images()
    with torch.no_grad(), nft.chips(block, seed=3, draws=range(2), programmed=True):
        torch.testing.assert_close(compiled(x), block(x), rtol=2e-5, atol=2e-5)


SHAPES = {"linear": (5, 8), "images": (2, 8, 3, 5), "many images": (3, 16, 8, 8)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_finish_is_its_definition(name, dtype):
    """relu(y * scale + shift + residual), in both layouts."""
    g = torch.Generator().manual_seed(3)
    shape = SHAPES[name]
    y, residual = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    scale, shift = (torch.randn(shape[1], generator=g) for _ in range(2))
    for layout in (torch.contiguous_format, torch.channels_last)[: len(shape) // 2]:
        for given, relu, expected in finishes(y, scale, shift, residual):
            found = y.clone(memory_format=layout)
            assert torch.ops.nft_ext.epilogue_(found, *given, relu) is None
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(y=torch.zeros(2, 8, 3)), r"y: must be \[N, out\] or \[N, out, height, width\]"),
        (dict(y=torch.zeros(8, 2).t()), "y: must be dense"),
        (dict(y=torch.zeros(2, 8, dtype=torch.float64)), "y: must be float32 or bfloat16"),
        (dict(scale=torch.zeros(7)), "scale and shift: must be float32"),
        (dict(shift=torch.zeros(8, dtype=torch.float64)), "scale and shift: must be float32"),
        (dict(residual=torch.zeros(2, 7)), "residual: must have y's shape and dtype"),
    ],
)
def test_finish_refuses(change, message):
    arguments = dict(y=torch.zeros(2, 8), scale=None, shift=None, residual=None, relu=True) | change
    with pytest.raises(RuntimeError, match=f"epilogue_: {message}"):
        torch.ops.nft_ext.epilogue_(*arguments.values())


def test_finish_passes_torchs_checks():
    torch.library.opcheck(
        torch.ops.nft_ext.epilogue_.default,
        (torch.randn(2, 8), torch.ones(8), None, torch.randn(2, 8), True),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("fused", [False, True])
def test_weights_rounded_for_autocast_serve_no_wider_product(model, fused):
    used = nft.fuse(model) if fused else model
    x = images()
    with torch.no_grad(), nft.chips(used, seed=3, draws=[7, 0, 2]):
        expected = used(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with nft.chips(used, seed=3, draws=[7, 0, 2], programmed=True), torch.autocast("cpu", enabled=False):
            found = used(x)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
