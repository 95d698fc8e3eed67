"""IRS: noisy classifiers on intermediate features, there for the training only."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

import nft_ext as nft
from nft_ext import methods


def small_net():
    """Flat names, an in-place ReLU, a module that never runs."""
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 3))
    net.add_module("relu1", nn.ReLU(inplace=True))
    net.add_module("conv2", nn.Conv2d(4, 6, 3))
    net.add_module("pool", nn.AdaptiveAvgPool2d(2))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(24, 5))
    return net


@pytest.fixture
def step():
    torch.manual_seed(0)
    plain = nft.models.vgg8(num_classes=3, width=0.125)
    return plain, torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("name, inputs", [("vgg8", [2304, 2048, 2304]), ("resnet18", [2304, 2304, 2048, 2304])])
def test_classifiers_are_those_of_the_paper(name, inputs):
    model = nft.models.build(name, num_classes=10, in_channels=1)
    heads = methods.IRS(sigma=0.1, beta=0.1, noisy_classifiers=False).prepare(model).snapshots
    assert [head.fc1.in_features for head in heads] == inputs
    assert {head.fc1.out_features for head in heads} == {512}
    assert {tuple(head.fc2.weight.shape) for head in heads} == {(10, 512)}


def test_the_loss_is_the_cross_entropy_of_equations_1_to_3(step):
    plain, x, target = step
    method = methods.IRS(sigma=0.1, beta=0.5)
    model = method.prepare(plain).eval()
    with nft.noise(model, enabled=False):
        loss = method.loss(model, x, target)
        net, heads = model.backbone, model.snapshots
        first = net.block1(x)
        second = net.block2(first)
        third = net.block4(net.block3(second))
        outputs = [
            head.fc2(torch.relu(head.fc1(adaptive_avg_pool2d(feature, size).flatten(1))))
            for head, feature, size in zip(heads, (first, second, third), (6, 4, 3), strict=True)
        ]
        total = (net(x) - 0.5 * (outputs[0] + 0.1 * outputs[1] + 0.01 * outputs[2])) / 4
    torch.testing.assert_close(loss, cross_entropy(total, target))


def test_classifiers_are_noisy_layers_with_streams_of_their_own(step):
    plain = step[0]
    layers = nft.noisy_layers(methods.IRS(sigma=0.2, beta=0.1).prepare(plain))
    heads = [f"snapshots.{n}.{fc}" for n in range(3) for fc in ("fc1", "fc2")]
    assert set(heads) < set(layers)
    assert {layer.nvm.sigma for layer in layers.values()} == {0.2}
    assert len({layer.stream for layer in layers.values()}) == len(layers)


def test_the_backbone_keeps_the_streams_of_the_plain_model(step):
    plain = step[0]
    backbone = nft.noisy_layers(methods.IRS(sigma=0.2, beta=0.1).prepare(plain).backbone)
    expected = nft.noisy_layers(nft.convert(plain, nft.NVMDevice(sigma=0.2)))
    assert {n: layer.stream for n, layer in backbone.items()} == {n: layer.stream for n, layer in expected.items()}


def test_noise_free_classifiers_are_an_option(step):
    model = methods.IRS(sigma=0.2, beta=0.1, noisy_classifiers=False).prepare(step[0])
    assert not nft.noisy_layers(model.snapshots)
    assert nft.noisy_layers(model.backbone)


def test_the_prepared_model_is_called_as_its_backbone(step):
    plain, x, _ = step
    model = methods.IRS(sigma=0.2, beta=0.1).prepare(plain).eval()
    with nft.chips(model, seed=0, draws=range(2), domain="selection"):
        through = model(x)
    noisy = nft.convert(plain, nft.NVMDevice(sigma=0.2)).eval()
    with nft.chips(noisy, seed=0, draws=range(2), domain="selection"):
        expected = noisy(x)
    assert torch.equal(through, expected)


def test_gradients_reach_backbone_and_classifiers(step):
    plain, x, target = step
    method = methods.IRS(sigma=0.1, beta=0.1)
    model = method.prepare(plain)
    method.loss(model, x, target).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.dim() > 1)


def test_feedback_changes_the_gradient_below_its_snapshot_only(step):
    plain, x, _ = step
    gradients = []
    for beta in (0.0, 1.0):
        method = methods.IRS(sigma=0.0, beta=beta, points=[("block4", 3)])
        torch.manual_seed(1)
        model = method.prepare(plain).eval()
        backbone, (feedback,) = model(x, feedback=True)
        (backbone.sum() - beta * feedback.sum()).backward()
        gradients.append({name: p.grad for name, p in model.backbone.named_parameters()})
    without, with_feedback = gradients
    assert not torch.equal(without["block4.conv.weight"], with_feedback["block4.conv.weight"])
    assert torch.equal(without["block5.conv.weight"], with_feedback["block5.conv.weight"])


def test_features_are_let_go_after_a_step(step):
    plain, x, target = step
    method = methods.IRS(sigma=0.1, beta=0.1)
    model = method.prepare(plain)
    method.loss(model, x, target)
    assert all(tap.feature is None for tap in model.taps)


def test_a_copy_of_the_prepared_model_taps_itself(step):
    plain, x, target = step
    method = methods.IRS(sigma=0.0, beta=0.1)
    model = method.prepare(plain).eval()
    twin = copy.deepcopy(model)
    expected = method.loss(model, x, target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(method.loss(twin, x, target), expected)


def test_preparing_and_finishing_leave_the_users_hooks_and_mode(step):
    plain = step[0].eval()
    calls = []
    plain.block1.register_forward_hook(lambda *_: calls.append(1))
    method = methods.IRS(sigma=0.1, beta=0.1)
    finished = method.finish(method.prepare(plain))
    calls.clear()
    finished(step[1])
    plain(step[1])
    assert len(calls) == 2
    assert not plain.training


def test_points_by_name_for_a_model_of_ones_own():
    method = methods.IRS(sigma=0.1, beta=0.1, points=["relu1", ("conv2", 2)])
    model = method.prepare(small_net())
    assert [head.fc1.in_features for head in model.snapshots] == [4 * 4 * 4, 6 * 2 * 2]
    loss = method.loss(model, torch.randn(2, 3, 9, 9), torch.tensor([0, 4]))
    loss.backward()
    assert list(method.finish(model).state_dict()) == list(small_net().state_dict())


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (1.0, 0.1, 0.01)),
        ({"gammas": 2}, (1.0, 0.5, 0.25)),
        ({"gammas": lambda n, N: N - n, "feedbacks": 3}, (2.0, 1.0, 0.0)),
        ({"reversed_decay": True}, (0.01, 0.1, 1.0)),
    ],
)
def test_schedules_of_the_feedback_weights(step, options, expected):
    plain, x, target = step
    method = methods.IRS(sigma=0.1, beta=0.5, a_b=0.7, a_f=0.3, **options)
    model = method.prepare(plain).eval()
    with nft.noise(model, enabled=False):
        backbone, feedbacks = model(x, feedback=True)
        loss = method.loss(model, x, target)
    feedback = sum(gamma * output for gamma, output in zip(expected, feedbacks, strict=True))
    torch.testing.assert_close(loss, cross_entropy(0.7 * backbone - 0.3 * 0.5 * feedback, target))


def test_classifiers_start_as_the_network_did():
    """fan_out of the last layer is 10 classes: standard deviation sqrt(2 / 10). torch's own is below 1 / sqrt(512)."""
    deviations = {}
    for init in ("default", "published"):
        torch.manual_seed(0)
        heads = methods.IRS(sigma=0.1, beta=0.1).prepare(nft.models.vgg8(width=0.125, init=init)).snapshots
        deviations[init] = [float(head.fc2.weight.detach().std()) for head in heads]
        assert all(bool((head.fc2.bias == 0).all()) for head in heads) is (init == "published")
    assert deviations["published"] == pytest.approx([0.2**0.5] * 3, rel=0.05)
    assert max(deviations["default"]) < 512**-0.5


@dataclass(frozen=True)
class TurnedHeads(methods.IRS):
    """IRS whose classifiers' last layers start with the other sign."""

    def prepare(self, model, nvm=None):
        prepared = super().prepare(model, nvm)
        with torch.no_grad():
            for head in prepared.snapshots:
                head.fc2.weight.neg_()
                head.fc2.bias.neg_()
        return prepared


@pytest.mark.parametrize("noisy", [True, False], ids=["noisy classifiers", "noise-free classifiers"])
def test_a_turned_sign_of_beta_is_the_same_training_with_turned_classifiers_bit_for_bit(noisy):
    """So the feedback of IRS is no more negative than positive: its classifiers' signs are free."""
    torch.manual_seed(0)
    plain = nft.models.vgg8(num_classes=3, width=0.0625)
    images, labels = torch.randn(16, 1, 32, 32), torch.arange(16) % 3
    options = {"seed": 3, "epochs": 2, "batch_size": 8, "progress": False, "lr": 1e-2}
    positive, negative, usual = (
        nft.fit(plain, method, (images, labels), (images, labels), **options)
        for method in (
            methods.IRS(sigma=0.2, beta=-0.5, noisy_classifiers=noisy),
            TurnedHeads(sigma=0.2, beta=0.5, noisy_classifiers=noisy),
            methods.IRS(sigma=0.2, beta=0.5, noisy_classifiers=noisy),
        )
    )
    losses = [[row["train_loss"] for row in history.rows] for history in (positive, negative, usual)]
    assert losses[0] == losses[1] != losses[2]
    for one, other in zip(positive.model.state_dict().values(), negative.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def refused(words, model=None, **options):
    with pytest.raises(ValueError, match=words):
        methods.IRS(**{"sigma": 0.1, "beta": 0.1} | options).prepare(small_net() if model is None else model)


def test_bad_options_are_refused():
    refused("beta: must be a finite number", beta=float("nan"))
    refused(r"gammas\[0\]", gammas=(-1.0,), points=["relu1"])
    refused("gammas: must hold one weight per feedback, 1; got 2", gammas=(1.0, 1.0), points=["relu1"])
    refused("gammas: must come with feedbacks or points", gammas=lambda n, N: 1.0)
    refused("noisy_classifiers: must be True or False", noisy_classifiers=0, points=["relu1"])
    refused(r"input_shape: must be \(C, H, W\)", input_shape=(3, 32), points=["relu1"])
    refused(
        r"input_shape: must be the \(C, H, W\) of an image that the model accepts",
        input_shape=(2, 32, 32),
        points=["relu1"],
    )


def test_bad_snapshot_points_are_refused():
    refused("points: must be given for a model without snapshot_points.*; got Sequential")
    refused("at least one snapshot point", points=[])
    refused("name each module once", points=["relu1", ("relu1", 2)])
    refused(r"points\['relu1'\]: must be an integer >= 1", points=[("relu1", 0)])
    refused("pairs", points=[3])
    refused(r"did you mean 'relu1'\?\); got rulu1", points=["rulu1"])
    refused("before the one that gives the model's output; got fc", points=["fc"])
    refused("no later module changes in place.*got conv1", points=["conv1"])


def test_a_module_that_does_not_run_is_no_snapshot_point():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = small_net(), nn.ReLU()

        def forward(self, x):
            return self.net(x)

    refused("run in the model's forward; got spare", model=Idle(), points=["spare"])


def test_a_model_without_convolution_needs_an_input_shape():
    flat = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    refused("input_shape: must be given", model=flat, points=["1"])
