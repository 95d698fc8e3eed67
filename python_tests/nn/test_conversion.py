"""convert, restore and program: from a plain model to a noisy one, back, and to one chip."""

import copy
import warnings

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.ops.keys import stream_of

NVM = nft.NVMDevice(sigma=0.1)


class Net(nn.Module):
    """Two branches of the same names, a subclass of Linear, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.right = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.special = Scaled(4, 4)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.special((self.left(x) + self.right(x)).mean((2, 3))))


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
LAYERS = ["stem", "left.0", "right.0", "special", "head"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def same_state(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# ---- convert


def test_convert_makes_a_noisy_copy_and_leaves_the_model_alone(net):
    before = copy.deepcopy(net.state_dict())
    noisy = nft.convert(net, NVM)
    assert list(nft.noisy_layers(noisy)) == LAYERS
    assert not nft.noisy_layers(net)
    assert same_state(noisy.state_dict(), before)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.zero_()
    assert same_state(net.state_dict(), before)


def test_a_layer_by_itself_is_converted(net):
    assert isinstance(nft.convert(net.stem, NVM), nft.NoisyConv2d)
    assert isinstance(nft.convert(net.head, NVM), nft.NoisyLinear)


def test_everything_a_layer_carries_is_kept(net):
    net.stem.weight.requires_grad_(False)
    net.stem.register_buffer("scale", torch.ones(1))
    net.stem.note = "mine"
    calls = []
    net.stem.register_forward_hook(lambda module, args, y: calls.append(type(module)) or y + 1)
    stem = nft.convert(net, NVM).stem
    assert not stem.weight.requires_grad and stem.bias.requires_grad
    assert stem.note == "mine" and not stem.training and torch.equal(stem.scale, torch.ones(1))
    with nft.noise(stem, enabled=False):
        y = stem(X)
    assert calls == [nft.NoisyConv2d]
    stem._forward_hooks.clear()
    with nft.noise(stem, enabled=False):
        assert torch.equal(y, stem(X) + 1)


def test_a_subclass_keeps_its_own_forward(net):
    noisy = nft.convert(net, NVM).special
    assert isinstance(noisy, Scaled) and not isinstance(noisy, nft.NoisyLinear)
    x = torch.randn(3, 4)
    with nft.noise(noisy, enabled=False):
        quantized = nft.program_weights(net.special.weight, NVM, enabled=False)[0]
        assert torch.equal(noisy(x), 2 * nn.functional.linear(x, quantized, net.special.bias))


class Mixed(nn.Module):
    """Layers of many kinds, all of which multiply by weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.head = nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 2)
        self.attention, self.memory = nn.MultiheadAttention(4, 2, batch_first=True), nn.LSTM(4, 4, batch_first=True)
        self.norm, self.place = (
            nn.LayerNorm([4, 4]),
            nn.Parameter(torch.zeros(1, 4)),
        )  # neither multiplies a crossbar's input

    def forward(self, x):
        x = self.up(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x)[0]
        return self.head(self.memory(x)[0][:, -1])


def test_a_report_accounts_for_layers_that_go_on_without_noise():
    noisy = nft.convert(Mixed(), NVM, include=["conv", "head"])
    report = nft.monte_carlo(noisy, (torch.randn(6, 1, 8, 8), torch.arange(6) % 2), runs=2, progress=False)
    assert report.coverage["share"] == 44 / (44 + 64 + 128 + 64)


class Blind(nn.Conv1d):
    """Reads a copy of its weight, as kernels that keep flat copies do."""

    def forward(self, x):
        return x


def test_layers_that_do_not_read_their_weight_are_named_together():
    left = r"digital: \*\.weight \(9 x Blind, 36: its forward does not read this weight\)$"
    with pytest.warns(UserWarning, match=left):
        nft.convert(nn.Sequential(nn.Linear(2, 2), *(Blind(2, 2, 1) for _ in range(9))), NVM)


def test_no_warning_where_the_user_chose_or_nothing_is_left():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nft.convert(Mixed(), NVM, include="conv")
        nft.convert(nft.models.vgg8(width=0.0625), NVM, exclude="fc1")
        nft.convert(nft.models.resnet18(width=0.0625), NVM)


def test_a_noisy_model_gets_the_new_device_and_keeps_its_streams(net):
    first = nft.convert(net, NVM)
    second = nft.convert(first, NVM.replace(sigma=0.3), exclude="head")
    assert [layer.nvm.sigma for layer in nft.noisy_layers(second).values()] == [0.3, 0.3, 0.3, 0.3, 0.1]
    assert [layer.nvm.sigma for layer in nft.noisy_layers(first).values()] == [0.1] * 5
    streams = [[layer.stream for layer in nft.noisy_layers(m).values()] for m in (first, second)]
    assert streams[0] == streams[1]


# ---- include, exclude


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        ("stem", None, ["stem"]),
        (["stem", "head"], None, ["stem", "head"]),
        ("*.0", None, ["left.0", "right.0"]),
        ("left", None, ["left.0"]),
        (nn.Conv2d, None, ["stem", "left.0", "right.0"]),
        ([nn.Linear, "r*"], None, ["right.0", "special", "head"]),
        (None, "head", ["stem", "left.0", "right.0", "special"]),
        (None, ["stem", nn.Linear], ["left.0", "right.0"]),
        (nn.Conv2d, "stem", ["left.0", "right.0"]),
    ],
)
def test_patterns(net, include, exclude, expected):
    assert list(nft.noisy_layers(nft.convert(net, NVM, include=include, exclude=exclude))) == expected


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error_with_near_matches(net, argument):
    rule = r"must match a layer of the model that has a matrix \(did you mean 'left\.0'\?\); got left\.1"
    with pytest.raises(ValueError, match=f"{argument}: {rule}"):
        nft.convert(net, NVM, **{argument: ["stem", "left.1"]})
    with pytest.raises(ValueError, match=f"{argument}: must match a layer of the model that has a matrix; got .*LSTM"):
        nft.convert(net, NVM, **{argument: nn.LSTM})


def test_names_are_matched_in_full(net):
    """ "0" is no layer, "ste" neither: a prefix counts only up to a dot."""
    for pattern in ("0", "ste"):
        with pytest.raises(ValueError, match="include: must match"):
            nft.convert(net, NVM, include=pattern)


def test_nothing_to_convert_is_an_error(net):
    with pytest.raises(ValueError, match="model: must hold at least one layer with a matrix"):
        nft.convert(nn.ReLU(), NVM)
    with pytest.raises(ValueError, match="model: must hold at least one layer with a matrix"):
        nft.convert(net, NVM, exclude="*")


# ---- sharing


def test_a_module_in_two_places_stays_one_module():
    shared = nn.Linear(4, 4)
    noisy = nft.convert(nn.Sequential(shared, nn.ReLU(), shared), NVM)
    assert noisy[0] is noisy[2] and isinstance(noisy[0], nft.NoisyLinear)
    plain = nft.restore(noisy)
    assert plain[0] is plain[2] and type(plain[0]) is nn.Linear
    assert nft.program(noisy)[0] is not noisy[0]


def test_tied_weights_stay_tied_on_two_crossbars():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    noisy = nft.convert(model, NVM)
    assert noisy[0].weight is noisy[1].weight
    plain = nft.restore(noisy)
    assert plain[0].weight is plain[1].weight
    chip = nft.program(noisy)
    assert not torch.equal(chip[0].weight, chip[1].weight)


# ---- streams


def test_streams_are_a_function_of_the_name_alone(net):
    streams = {name: layer.stream for name, layer in nft.noisy_layers(nft.convert(net, NVM)).items()}
    assert streams == {name: stream_of(name) for name in LAYERS}
    net.extra = nn.Linear(4, 4)
    more = nft.noisy_layers(nft.convert(net, NVM))
    assert {name: more[name].stream for name in LAYERS} == streams
    assert len({layer.stream for layer in more.values()}) == 6
    assert stream_of("stem") == 1991244128  # frozen: published seeds must keep meaning the same chips


def test_a_collision_hashes_on():
    taken = stream_of("stem")
    assert stream_of("stem", [taken]) == stream_of("stem'") != taken


def test_models_converted_apart_and_then_joined_share_no_stream():
    joined = nn.Sequential(*[nft.convert(nn.Sequential(nn.Linear(4, 4)), NVM) for _ in range(2)])
    assert joined[0][0].stream == joined[1][0].stream
    streams = [layer.stream for layer in nft.noisy_layers(joined).values()]
    assert len(set(streams)) == 2
    assert [layer.stream for layer in nft.noisy_layers(joined).values()] == streams


def test_layers_built_by_hand_get_distinct_streams():
    model = nn.Sequential(nft.NoisyLinear(4, 4, nvm=NVM), nft.NoisyLinear(4, 4, nvm=NVM))
    streams = {name: layer.stream for name, layer in nft.noisy_layers(model).items()}
    assert streams == {"0": stream_of("0"), "1": stream_of("1")}


# ---- restore, program


def test_restore_gives_the_model_back(net):
    plain = nft.restore(nft.convert(net, NVM))
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert [vars(m).keys() for m in plain.modules()] == [vars(m).keys() for m in net.modules()]
    assert same_state(plain.state_dict(), net.state_dict())
    assert torch.equal(plain(X), net(X))


@pytest.mark.parametrize("device", [NVM, NVM.replace(clip=(0.0, 1.0)), nft.NVMDevice.preset("fefet6", 0.2)], ids=str)
def test_program_is_the_chip_that_chips_runs(net, device):
    """Bit for bit in the weights (read back through identity inputs), up to the products' rounding in the outputs."""
    noisy = nft.convert(net, device)
    chip = nft.program(noisy, seed=7, draw=12)
    assert [type(m) for m in chip.modules()] == [type(m) for m in net.modules()]
    for name, layer in nft.noisy_layers(noisy).items():
        weights = nft.program_weights(layer.weight, device, seed=7, stream=layer.stream, draws=range(10, 13))
        assert torch.equal(chip.get_submodule(name).weight, weights[2])
    with nft.chips(noisy, seed=7, draws=[12]):
        assert torch.equal(noisy.head(torch.eye(4)).t(), chip.head.weight)
        torch.testing.assert_close(noisy(X), chip(X))


def test_program_copies_and_rests(net):
    noisy = nft.convert(net, NVM)
    chip = nft.program(noisy, draw=1)
    assert torch.equal(chip(X), chip(X))
    assert not torch.equal(chip.stem.weight, nft.program(noisy, draw=2).stem.weight)
    assert same_state(noisy.state_dict(), net.state_dict())
    assert torch.equal(chip.stem.bias, net.stem.bias)


def test_program_follows_the_noise_in_force(net):
    noisy = nft.convert(net, NVM)
    with nft.noise(noisy, sigma=0.3):
        stronger = nft.program(noisy, draw=1)
    assert torch.equal(stronger.stem.weight, nft.program(nft.convert(net, NVM.replace(sigma=0.3)), draw=1).stem.weight)
    with nft.noise(noisy, enabled=False):
        quantized = nft.program(noisy)
    assert torch.equal(quantized.head.weight, nft.program_weights(net.head.weight, NVM, enabled=False)[0])


def test_copies_made_inside_contexts_are_free_of_them(net):
    noisy = nft.convert(net, NVM)
    with nft.chips(noisy, draws=range(3)):
        chip, plain = nft.program(noisy), nft.restore(noisy)
        assert len(chip(X)) == len(plain(X)) == len(X)
    assert torch.equal(plain(X), net(X))


# ---- transformers: torch's fused inference would read the weights past the noisy layers


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_transformer_encoder_in_eval_mode_really_is_noisy(activation, mask):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
    plain = nn.TransformerEncoder(layer, 2).eval()
    noisy = nft.convert(plain, NVM)
    assert len(nft.noisy_layers(noisy)) == 6
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if mask else None
    with torch.inference_mode():
        assert not torch.allclose(noisy(x, src_key_padding_mask=padding), noisy(x, src_key_padding_mask=padding))
        chip = nft.program(noisy, seed=1, draw=2)
        with nft.chips(noisy, seed=1, draws=[2]):
            found = noisy(x, src_key_padding_mask=padding)
        expected = chip(x, src_key_padding_mask=padding)
        visible = slice(None) if padding is None else ~padding
        torch.testing.assert_close(found[visible], expected[visible])
        assert torch.equal(nft.restore(noisy)(x), plain(x))
