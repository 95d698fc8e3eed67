"""Vanilla, noise injection and its control; building methods by name."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import nft_ext as nft
from nft_ext import methods
from nft_ext.nn.step_key import StepKey

CONFIGURATIONS = [
    methods.Vanilla(),
    methods.NoiseInjection(sigma=0.2, logit_scale=0.5),
    methods.ScaledLogits(sigma=0.2, feedbacks=4),
    methods.ScaledLogits(sigma=0.2, a_b=0.3),
    methods.OVF(sigma=0.3, beta=1e-3, feedbacks=2, gammas=(0.5, 1.0), feedback_updates_statistics=True),
    methods.OVF(sigma=0.3, beta=1e-3, gammas=lambda n, N: n / N, reversed_decay=True),
    methods.OVF(sigma=0.3, beta=1e-3, shared_z=True, published_variant=True),
    methods.OVF(sigma=0.3, beta=1e-3, gammas=2, a_b=0.5, a_f=0.25, delta=-0.05),
    methods.IRS(sigma=0.3, beta=1e-2, points=(("block1", 6), "block2"), noisy_classifiers=False, input_shape=(1, 8, 8)),
    methods.IRS(sigma=0.3, beta=1e-2, points=[("block1", None)], gammas=lambda n, N: N),
    methods.IRS(sigma=0.3, beta=1e-2, feedbacks=5, gammas=3.0, reversed_decay=True, a_b=1.0, a_f=0.1),
    methods.Censored(sigma=0.3, c=0.5, side="left", mean_corrected=True, noise_sigma=0.2),
    methods.CorrectNet(),
    methods.CorrectNet(base=methods.IRS(sigma=0.3, beta=1e-2, gammas=(1.0, 0.5)), strength=1e-3, diagonal=0.5),
]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0])


@pytest.fixture
def vgg8():
    torch.manual_seed(0)
    return nft.models.vgg8(num_classes=3, width=0.125)


def test_vanilla_is_plain_float_training(vgg8, batch):
    prepared = methods.Vanilla().prepare(vgg8)
    assert not nft.noisy_layers(prepared)
    expected = cross_entropy(vgg8(batch[0]), batch[1])
    assert torch.equal(methods.Vanilla().loss(prepared, *batch), expected)


def test_noise_injection_draws_a_new_chip_every_step(vgg8, batch):
    method = methods.NoiseInjection(sigma=0.2)
    prepared = method.prepare(vgg8).eval()
    losses = {method.loss(prepared, *batch).item() for _ in range(3)}
    assert len(losses) == 3


def test_preparing_replaces_only_the_sigma_of_the_device(vgg8):
    nvm = nft.NVMDevice(weight_bits=6, device_bits=3, sigma=0.05)
    layers = nft.noisy_layers(methods.NoiseInjection(sigma=0.2).prepare(vgg8, nvm))
    assert {layer.nvm for layer in layers.values()} == {nvm.replace(sigma=0.2)}


@pytest.mark.parametrize("method", [methods.ScaledLogits(0.2, feedbacks=3), methods.NoiseInjection(0.2, 0.25)])
def test_the_control_scales_the_logits_inside_the_cross_entropy(method, vgg8, batch):
    prepared = method.prepare(vgg8).eval()
    torch.manual_seed(5)
    loss = method.loss(prepared, *batch)
    torch.manual_seed(5)
    with StepKey(prepared).forward():
        torch.testing.assert_close(loss, cross_entropy(prepared(batch[0]) / 4, batch[1]))


def test_the_control_is_ovf_at_beta_zero_up_to_the_chips(vgg8, batch):
    control, ovf = methods.ScaledLogits(sigma=0.2), methods.OVF(sigma=0.2, beta=0.0)
    prepared = control.prepare(vgg8).eval()
    torch.manual_seed(5)
    loss = control.loss(prepared, *batch)
    torch.manual_seed(5)  # the backbone's forward comes first, on the same chip
    torch.testing.assert_close(ovf.loss(prepared, *batch), loss)


@pytest.mark.parametrize("method", CONFIGURATIONS, ids=lambda m: m.name)
def test_a_configuration_survives_json(method):
    import json

    assert methods.build(**json.loads(json.dumps(method.config()))) == method


@pytest.mark.parametrize(
    "method",
    [
        methods.Vanilla(),
        methods.NoiseInjection(0.1),
        methods.ScaledLogits(0.1),
        methods.OVF(0.1, 0.01),
        methods.IRS(0.1, 0.01),
        methods.Censored(0.1),
        methods.CorrectNet(methods.Censored(0.1)),
    ],
    ids=lambda m: m.name,
)
@pytest.mark.parametrize("name", nft.models.NAMES)
def test_what_is_left_is_the_plain_model(method, name):
    model = nft.models.build(name, num_classes=3, in_channels=1, width=0.125)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = method.finish(method.prepare(model))
    assert list(plain.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert not nft.noisy_layers(plain)
    assert type(plain) is type(model)
    assert not any(module._forward_hooks for module in plain.modules())


def test_finishing_leaves_the_prepared_model_trainable(vgg8, batch):
    method = methods.NoiseInjection(sigma=0.1)
    prepared = method.prepare(vgg8)
    plain = method.finish(prepared)
    with torch.no_grad():
        plain.fc2.weight.zero_()
    assert prepared.fc2.weight.abs().max() > 0
    assert nft.noisy_layers(prepared)


def test_names_and_near_matches():
    assert methods.NAMES == ("vanilla", "noise", "control", "ovf", "irs", "censored", "correctnet")
    with pytest.raises(ValueError, match=r"method: must be one of .*did you mean 'control'.*got contol"):
        methods.build("contol", sigma=0.1)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("ovf", {"sigma": 0.1}, "must include beta"),
        ("noise", {"sigma": 0.1, "bta": 1}, "must be among sigma, logit_scale"),
        ("vanilla", {"sigma": 0.1}, "must be among none"),
        ("noise", {"sigma": -0.1}, "sigma: must be a finite number >= 0"),
        ("noise", {"sigma": float("nan")}, "sigma"),
        ("noise", {"sigma": 0.1, "logit_scale": 0.0}, "logit_scale: must be > 0"),
        ("noise", {"sigma": 0.1, "logit_scal": 1}, "did you mean 'logit_scale'"),
        ("control", {"sigma": 0.1, "feedbacks": 0}, "feedbacks: must be an integer >= 1"),
        ("control", {"sigma": 0.1, "a_b": 0.0}, "a_b: must be > 0"),
        ("censored", {"sigma": 0.1, "c": 0.0}, "c: must be > 0; got 0.0"),
        ("censored", {"sigma": 0.1, "c": -1}, "c: must be > 0; got -1"),
        ("censored", {"sigma": 0.1, "side": "top"}, "side: must be one of right, left, both; got top"),
        ("censored", {"sigma": 0.1, "mean_corrected": 1}, "mean_corrected: must be True or False; got 1"),
        ("censored", {"sigma": 0.1, "noise_sigma": -0.1}, "noise_sigma: must be a finite number >= 0"),
        ("correctnet", {"strength": -1e-4}, "strength: must be a finite number >= 0"),
        ("correctnet", {"diagonal": -1.0}, "diagonal: must be a finite number >= 0"),
        ("correctnet", {"base": "noize"}, "did you mean 'noise'"),
        ("correctnet", {"base": 3}, "base: must be a method, its name or its config"),
        ("correctnet", {"base": {"name": "correctnet"}}, "base: must be .* not another correctnet"),
    ],
)
def test_bad_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        methods.build(name, **options)


def test_a_method_serves_in_anybodys_loop(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 3))
    method = methods.NoiseInjection(sigma=0.05)
    prepared = method.prepare(model)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    first = method.loss(prepared, *batch).item()
    for _ in range(40):
        optimizer.zero_grad()
        method.loss(prepared, *batch).backward()
        optimizer.step()
    with torch.no_grad():
        assert cross_entropy(method.finish(prepared)(batch[0]), batch[1]) < 0.5 * first
