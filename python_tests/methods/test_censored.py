"""Censored noise: what it does to a weight, when it does, and that nothing of it is left."""

import copy
import math
import pickle

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, linear

import nft_ext as nft
from nft_ext import methods

KINDS = [
    methods.Censored(0.1, 0.5),
    methods.Censored(0.1, 0.5, "left"),
    methods.Censored(0.1, 0.5, "both"),
    methods.Censored(0.1, 0.5, mean_corrected=True),
    methods.Censored(0.1, 0.5, "left", mean_corrected=True),
]


@pytest.mark.parametrize(
    "method, cut",
    [
        (KINDS[0], lambda z: min(z, 0.5)),
        (KINDS[1], lambda z: max(z, -0.5)),
        (KINDS[2], lambda z: max(min(z, 0.5), -0.5)),
    ],
    ids=["right", "left", "both"],
)
def test_the_noise_and_its_mean_are_those_of_the_cut_normal(method, cut):
    z = torch.tensor([-3.0, -0.4, 0.0, 0.3, 3.0])
    torch.testing.assert_close(method.noise(z), torch.tensor([0.1 * cut(float(v)) for v in z]))
    expected, _ = integrate.quad(lambda v: cut(v) * stats.norm.pdf(v), -9, 9, points=[-0.5, 0.5])
    assert method.mean() == pytest.approx(expected, abs=1e-9)


def test_a_far_cut_is_plain_gaussian_noise():
    z = torch.randn(1000)
    torch.testing.assert_close(methods.Censored(0.2, c=9.0).noise(z), 0.2 * z)
    assert abs(methods.Censored(0.2, c=9.0).mean()) < 1e-15


def test_noise_sigma_replaces_sigma_in_the_noise_only():
    method = methods.Censored(0.3, c=1.0, noise_sigma=0.1)
    torch.testing.assert_close(method.noise(torch.tensor([-1.0])), torch.tensor([-0.1]))
    layer = next(iter(nft.noisy_layers(method.prepare(nn.Linear(3, 2))).values()))
    assert layer.nvm.sigma == 0.3


def injected(method, count=40000, bits=8):
    """(weight, its injected value minus W_d, max|W|) of a linear layer, seen through the identity as its input."""
    torch.manual_seed(0)
    plain = nn.Linear(200, count // 200, bias=False)
    prepared = method.prepare(plain, nft.NVMDevice(weight_bits=bits))
    seen = []
    prepared.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().T))
    method.loss(prepared, torch.eye(200), torch.zeros(200, dtype=torch.long))
    with nft.noise(prepared, enabled=False), torch.no_grad():
        quantized = prepared(torch.eye(200)).T
    return plain.weight.detach(), seen[0] - quantized, float(plain.weight.detach().abs().max())


@pytest.mark.parametrize("method", KINDS, ids=lambda m: f"{m.side} {m.mean_corrected}")
def test_the_noise_is_on_the_signed_quantized_weight(method):
    weight, shift, largest = injected(method, bits=4)
    noise = shift / (largest * 0.1)
    for sign in (weight > 0, weight < 0):  # the noise does not turn with the sign
        values = noise[sign].double()
        offset = method.mean() if method.mean_corrected else 0.0
        low = -math.inf if method.side == "right" else -0.5 - offset
        high = math.inf if method.side == "left" else 0.5 - offset
        assert float(values.min()) >= low - 1e-4 and float(values.max()) <= high + 1e-4
        error = 5 * float(values.std()) / len(values) ** 0.5
        assert float(values.mean()) == pytest.approx(method.mean() - offset, abs=error)
        inner = values[(values > -0.49 - offset) & (values < 0.49 - offset)] + offset  # untouched by the cut
        truncated = stats.truncnorm(-0.49, 0.49)
        assert stats.kstest(inner.numpy(), truncated.cdf).pvalue > 1e-3


def test_a_mean_corrected_noise_has_mean_zero():
    _, shift, largest = injected(methods.Censored(0.1, 0.2, mean_corrected=True))
    assert abs(float(shift.mean())) < 5 * float(shift.std()) / shift.numel() ** 0.5
    _, uncorrected, _ = injected(methods.Censored(0.1, 0.2))
    assert float(uncorrected.mean()) == pytest.approx(methods.Censored(0.1, 0.2).mean() * 0.1 * largest, rel=0.03)


def test_gradients_pass_straight_through():
    torch.manual_seed(0)
    method = methods.Censored(0.2, 1.0)
    convolution = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")
    plain = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    prepared = method.prepare(plain)
    x, target = torch.randn(5, 3, 4, 4), torch.arange(5) % 3
    weights = {}
    for name in ("0", "3"):
        layer = prepared.get_submodule(name)
        compute = layer.injected_weight
        layer.injected_weight = lambda name=name, compute=compute: weights.setdefault(name, compute())
    method.loss(prepared, x, target).backward()
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    hidden = conv2d(padded, leaves["0"], plain[0].bias, 2).relu().flatten(1)
    cross_entropy(linear(hidden, leaves["3"], plain[3].bias), target).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(prepared.get_submodule(name).weight.grad, leaf.grad)


@pytest.fixture
def step():
    torch.manual_seed(0)
    return nft.models.vgg8(num_classes=3, width=0.125), torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])


def test_outside_the_loss_the_prepared_model_runs_on_ordinary_chips(step):
    plain, x, target = step
    method = methods.Censored(0.2)
    prepared, ordinary = method.prepare(plain).eval(), nft.convert(plain, nft.NVMDevice(sigma=0.2)).eval()
    method.loss(prepared, x, target)
    for model in (prepared, ordinary):
        with nft.chips(model, seed=3, draws=range(2)), torch.no_grad():
            output = model(x)
        model.kept = output
    assert torch.equal(prepared.kept, ordinary.kept)


def test_every_step_is_a_new_draw_and_a_seed_repeats_it(step):
    plain, x, target = step
    method = methods.Censored(0.2)
    prepared = method.prepare(plain).eval()
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses += [method.loss(prepared, x, target).item() for _ in range(2)]
    assert len(set(losses)) == 4 and losses[:2] == losses[4:]


def test_a_key_in_force_decides_the_draw(step):
    plain, x, target = step
    method = methods.Censored(0.2)
    prepared = method.prepare(plain).eval()
    losses = []
    for draw in (7, 8, 7):
        with nft.chips(prepared, seed=1, draws=draw, domain="training"):
            losses.append(method.loss(prepared, x, target).item())
    assert losses[0] == losses[2] != losses[1]
    with nft.chips(prepared, draws=range(2)), pytest.warns(UserWarning, match="key: must hold one chip"):
        with pytest.raises(ValueError, match="target: must be class indices"):  # one target, logits of two chips
            method.loss(prepared, x, target)


def test_switched_off_noise_is_off_in_the_loss_too(step):
    plain, x, target = step
    method = methods.Censored(0.2)
    prepared = method.prepare(plain).eval()
    with nft.noise(prepared, enabled=False):
        torch.testing.assert_close(method.loss(prepared, x, target), cross_entropy(prepared(x), target))


def test_an_all_zero_layer_stays_zero():
    plain = nn.Linear(4, 3)
    nn.init.zeros_(plain.weight)
    method = methods.Censored(0.2)
    prepared = method.prepare(plain)
    loss = method.loss(prepared, torch.randn(2, 4), torch.tensor([0, 1]))
    torch.testing.assert_close(loss, cross_entropy(plain.bias.expand(2, 3), torch.tensor([0, 1])))


def test_prepared_models_copy_pickle_program_and_restore(step):
    plain, x, target = step
    method = methods.Censored(0.2)
    prepared = method.prepare(plain)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        torch.manual_seed(1)
        expected = method.loss(prepared.eval(), x, target)
        torch.manual_seed(1)
        assert torch.equal(method.loss(other.eval(), x, target), expected)
    for chip in (nft.restore(prepared), nft.program(prepared, draw=1), method.finish(prepared)):
        assert {type(m) for m in chip.modules() if isinstance(m, (nn.Conv2d, nn.Linear))} == {nn.Conv2d, nn.Linear}


def test_it_trains(step):
    plain, x, target = step
    method = methods.Censored(0.1, c=1.0, mean_corrected=True)
    history = nft.fit(plain, method, (x, target), (x, target), epochs=15, batch_size=4, lr=3e-3, progress=False)
    assert history.rows[-1]["train_loss"] < 0.5 * history.rows[0]["train_loss"]


class Experts(nn.Module):
    """Two experts of very different sizes, [experts, out, in]."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 6) * torch.tensor([1.0, 0.01])[:, None, None])

    def forward(self, x):
        return torch.einsum("bi,eoi->beo", x, self.weight).flatten(1)


nft.register_crossbar(Experts, layout="eoi")
GROUPS = {  # layer -> how the weights that share a step at scale="output" lie: (view, dims of the inputs)
    "oi": (lambda: nn.Linear(6, 4, bias=False), (4, 6), (1,)),
    "convolution": (lambda: nn.Conv2d(6, 4, 1, bias=False), (4, 6, 1, 1), (1, 2, 3)),
    "io with groups": (lambda: nn.ConvTranspose1d(6, 4, 1, groups=2, bias=False), (2, 3, 2, 1), (1, 3)),
    "eoi": (Experts, (2, 4, 6), (2,)),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("scale", ["layer", "output"])
def test_the_injected_weight_has_the_steps_of_the_crossbar(name, scale):
    """W_d and max|W| are those of the weights that share a step, whatever the layout."""
    torch.manual_seed(0)
    make, view, inputs = GROUPS[name]
    plain = make()
    sigma, nvm = 0.25, nft.NVMDevice(weight_bits=4, device_bits=2, scale=scale)
    prepared = methods.Censored(sigma, 1e-9).prepare(plain, nvm)
    (layer,) = nft.noisy_layers(prepared).values()
    x = {4: torch.randn(3, 6, 2, 2), 3: torch.randn(3, 6, 2)}.get(plain.weight.dim(), torch.randn(3, 6))
    x = torch.randn(3, 6) if name == "eoi" else x
    with nft.noise(prepared, enabled=False):
        quantized = nft.program(prepared).weight.view(view)
    with torch.no_grad(), nft.chips(prepared, seed=1, draws=[3]):
        normal = nft.NVMDevice(weight_bits=1, device_bits=1, sigma=1.0, relative_to="spacing")
        z = nft.program_weights(torch.ones(view), normal, seed=1, draws=[3], stream=layer.stream)[0] - 1.0
        shared = inputs if scale == "output" else tuple(range(1 if name == "eoi" else 0, len(view)))
        largest = plain.weight.view(view).abs().amax(shared, keepdim=True)
        wanted = quantized + largest * sigma * z.clamp(max=1e-9)
        expected = copy.deepcopy(plain)
        expected.weight.copy_(wanted.view(plain.weight.shape))
        with methods.injected.injecting(prepared):
            torch.testing.assert_close(prepared(x), expected(x))
