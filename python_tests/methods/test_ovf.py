"""OVF: N more forwards of the same weights, each noisier, in every layer."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import nft_ext as nft
from nft_ext import methods
from nft_ext.nn import base
from nft_ext.nn.step_key import StepKey

WEIGHT_STD = 0.7776  # of max|W|, at sigma 1, 8-bit weights on 2-bit devices (docs/reference/noise.md)


def watch_noise(model):
    """What each noisy layer adds to its output, observed at its output: a dict name -> list of residuals.

    Every layer is fed white noise of its own in place of its input, the same in every forward. The residual
    y - W x of white x is then as good as the weight noise W_p - W itself.
    """
    seen = {name: [] for name in nft.noisy_layers(model)}

    def feed(name, generator_seed):
        def hook(layer, inputs):
            generator = torch.Generator().manual_seed(generator_seed)
            return (torch.randn(inputs[0].shape, generator=generator),)

        return hook

    def record(name):
        def hook(layer, inputs, output):
            plain = nn.Linear.forward if isinstance(layer, nn.Linear) else nn.Conv2d.forward
            exact = plain(layer, inputs[0])
            # each output sums the noise of its weights times inputs of variance 1
            fan_in = layer.weight[0].numel()
            scale = WEIGHT_STD * float(layer.weight.detach().abs().max()) * fan_in**0.5
            residual = ((output - exact) / scale).detach()
            # at the rim a 3x3 kernel reads padding, which is no white noise
            seen[name].append((residual[..., 1:-1, 1:-1] if residual.dim() == 4 else residual).flatten())

        return hook

    for index, (name, layer) in enumerate(nft.noisy_layers(model).items()):
        layer.register_forward_pre_hook(feed(name, index))
        layer.register_forward_hook(record(name))
    return seen


@pytest.fixture(scope="module")
def resnet18_noise():
    """The noise of all layers of a ResNet-18 in one step of OVF with sigma 0.1, delta 0.1, three feedbacks."""
    torch.manual_seed(0)
    method = methods.OVF(sigma=0.1, beta=0.1, feedbacks=3, delta=0.1)
    model = method.prepare(nft.models.resnet18(width=0.25))
    seen = watch_noise(model)
    method.loss(model, torch.randn(24, 3, 32, 32), torch.arange(24) % 10)
    return seen


def test_every_layer_of_resnet18_runs_in_every_forward(resnet18_noise):
    assert len(resnet18_noise) == 21  # stem, 16 in the blocks, 3 shortcuts, fc
    assert {len(forwards) for forwards in resnet18_noise.values()} == {4}


def test_the_larger_sigma_reaches_every_layer_of_resnet18(resnet18_noise):
    for name, forwards in resnet18_noise.items():
        observed = [float(noise.square().mean().sqrt()) for noise in forwards]
        # the estimate from the fewest values, 240 in fc, is good to 5 %
        assert observed == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.2), name


def test_every_forward_is_a_chip_of_its_own(resnet18_noise):
    for name, forwards in resnet18_noise.items():
        correlation = torch.corrcoef(torch.stack(forwards)) - torch.eye(4)
        assert float(correlation.abs().max()) < 0.3, name


@pytest.fixture
def step():
    """A prepared VGG-8, its logits of each forward of one step as the step goes on, and the step's data."""
    torch.manual_seed(0)
    model = methods.OVF(0.1, 0.1).prepare(nft.models.vgg8(num_classes=3, width=0.125))
    outputs = []

    def record(module, inputs, output):
        output.retain_grad()
        outputs.append(output)

    model.register_forward_hook(record)
    return model, outputs, torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])


def test_the_loss_is_the_cross_entropy_of_equations_1_to_3(step):
    model, outputs, x, target = step
    loss = methods.OVF(sigma=0.1, beta=0.5).loss(model, x, target)
    backbone, first, second, third = outputs
    total = (backbone - 0.5 * (0.01 * first + 0.1 * second + third)) / 4
    torch.testing.assert_close(loss, cross_entropy(total, target))


def test_gradients_flow_through_all_forwards(step):
    model, outputs, x, target = step
    methods.OVF(sigma=0.1, beta=0.5).loss(model, x, target).backward()
    backbone, *feedbacks = outputs
    assert backbone.grad.abs().max() > 0
    for gamma, feedback in zip((0.01, 0.1, 1.0), feedbacks, strict=True):
        torch.testing.assert_close(feedback.grad, -0.5 * gamma * backbone.grad)


def test_a_weights_gradient_is_the_sum_over_all_forwards(step):
    model, outputs, x, target = step
    loss = methods.OVF(sigma=0.1, beta=0.5).loss(model.eval(), x, target)
    parameters = list(model.parameters())
    total = torch.autograd.grad(loss, parameters, retain_graph=True)
    at_logits = torch.autograd.grad(loss, outputs, retain_graph=True)
    each = [torch.autograd.grad(o, parameters, g, retain_graph=True) for o, g in zip(outputs, at_logits, strict=True)]
    assert len(each) == 4
    for parts, whole in zip(zip(*each, strict=True), total, strict=True):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-3, atol=1e-6)


def test_own_gammas_and_any_number_of_feedbacks(step):
    model, outputs, x, target = step
    loss = methods.OVF(sigma=0.1, beta=1.0, feedbacks=2, gammas=(3.0, 0.0)).loss(model, x, target)
    assert len(outputs) == 3
    torch.testing.assert_close(loss, cross_entropy((outputs[0] - 3 * outputs[1]) / 3, target))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (0.01, 0.1, 1.0)),
        ({"gammas": 2}, (0.25, 0.5, 1.0)),
        ({"gammas": lambda n, N: n / N}, (1 / 3, 2 / 3, 1.0)),
        ({"reversed_decay": True}, (1.0, 0.1, 0.01)),
        ({"gammas": (1.0, 2.0, 3.0), "reversed_decay": True}, (3.0, 2.0, 1.0)),
    ],
)
def test_schedules_of_the_feedback_weights(options, expected):
    assert methods.OVF(0.1, 0.1, **options).weights() == pytest.approx(expected)


def test_own_shares_of_backbone_and_feedback(step):
    model, outputs, x, target = step
    loss = methods.OVF(sigma=0.1, beta=0.5, feedbacks=1, a_b=0.7, a_f=0.3).loss(model, x, target)
    torch.testing.assert_close(loss, cross_entropy(0.7 * outputs[0] - 0.3 * 0.5 * outputs[1], target))


def observed(method):
    """RMS noise of the layers of a small ResNet-18 in each forward of one step, and all of it: two dicts by name."""
    torch.manual_seed(0)
    model = method.prepare(nft.models.resnet18(width=0.125))
    seen = watch_noise(model)
    method.loss(model, torch.randn(16, 3, 32, 32), torch.arange(16) % 10)
    return {name: [float(noise.square().mean().sqrt()) for noise in forwards] for name, forwards in seen.items()}, seen


def test_the_published_variant_reaches_stem_and_classifier_only():
    rms, _ = observed(methods.OVF(sigma=0.1, beta=0.1, feedbacks=2, delta=0.1, published_variant=True))
    for name, values in rms.items():
        expected = [0.1, 0.2, 0.3] if name in ("conv1", "fc") else [0.1, 0.1, 0.1]
        assert values == pytest.approx(expected, rel=0.25), name


def test_a_shared_z_is_one_chip_at_growing_sigma():
    _, noise = observed(methods.OVF(sigma=0.1, beta=0.1, feedbacks=2, delta=0.1, shared_z=True))
    for name, (backbone, first, second) in noise.items():
        quantization = 0.02  # what W_d - W adds to the residual, the same in each forward
        torch.testing.assert_close(first, 2 * backbone, rtol=0, atol=quantization, msg=name)
        torch.testing.assert_close(second, 3 * backbone, rtol=0, atol=2 * quantization, msg=name)


def test_a_shared_z_is_a_new_chip_every_step(step):
    model, outputs, x, target = step
    method = methods.OVF(sigma=0.1, beta=0.1, feedbacks=1, shared_z=True)
    for _ in range(2):
        method.loss(model.eval(), x, target)
    assert not torch.equal(outputs[0], outputs[2])


def batchnorm_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_batches" in k}


def test_running_statistics_come_from_the_backbones_forward_alone(step):
    model, _, x, target = step
    start = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    with StepKey(model).forward():
        model(x)
    backbone_only = batchnorm_state(model)
    model.load_state_dict(start)
    torch.manual_seed(5)
    methods.OVF(sigma=0.1, beta=0.1).loss(model, x, target)
    after = batchnorm_state(model)
    assert all(torch.equal(after[key], value) for key, value in backbone_only.items())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_feedback_leaves_the_running_statistics_too(use_reentrant):
    class Net(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=use_reentrant) if self.again else super().forward(x)

    torch.manual_seed(0)
    net = Net(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    net.again = False
    method = methods.OVF(sigma=0.1, beta=0.5)
    model = method.prepare(net)
    x, target = torch.randn(4, 2, 6, 6, requires_grad=True), torch.tensor([0, 1, 1, 0])
    found = []
    for again in (False, True):
        model.again = again
        model[1].reset_running_stats()
        torch.manual_seed(5)
        model.zero_grad()
        method.loss(model, x, target).backward()
        found.append(([p.grad for p in model.parameters()], int(model[1].num_batches_tracked)))
    torch.testing.assert_close(found[1][0], found[0][0])
    # Checkpointing moves them once more for the backbone's forward, as in every model.
    assert [moves for _, moves in found] == [1, 2]


def test_feedbacks_move_the_running_statistics_in_the_published_variant(step):
    model, _, x, target = step
    methods.OVF(sigma=0.1, beta=0.1, feedback_updates_statistics=True).loss(model, x, target)
    assert {int(v) for k, v in batchnorm_state(model).items() if "num_batches" in k} == {4}


def test_the_sigma_of_the_layers_is_back_after_a_step(step):
    model, _, x, target = step
    method = methods.OVF(sigma=0.1, beta=0.1, delta=0.1)
    torch.manual_seed(5)
    before = model.eval()(x)
    method.loss(model, x, target)
    torch.manual_seed(5)
    assert torch.equal(model(x), before)


def test_sigma_of_the_feedbacks():
    assert methods.OVF(sigma=0.3, beta=0.1).sigmas() == pytest.approx((0.35, 0.4, 0.45))
    assert methods.OVF(sigma=0.15, beta=0.1, delta=-0.1).sigmas() == pytest.approx((0.05, 0.0, 0.0))


def test_a_negative_beta_adds_the_feedback(step):
    """a_b O - a_f beta F, with a_b = a_f = 1/4 and no noise: every forward gives O, so the factor is (1 + 1.11) / 4."""
    model, _, x, target = step
    with nft.noise(model.eval(), enabled=False):
        logits = model(x)
        loss = methods.OVF(sigma=0.1, beta=-1.0).loss(model, x, target)
    torch.testing.assert_close(loss, cross_entropy((1 + 1.11) / 4 * logits, target))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"beta": float("nan")}, "beta: must be a finite number"),
        ({"feedbacks": 0}, "feedbacks: must be an integer >= 1"),
        ({"delta": float("inf")}, "delta: must be a finite number"),
        ({"gammas": (1.0, -1.0, 1.0)}, r"gammas\[1\]: must be a finite number >= 0"),
        ({"gammas": (1.0, 1.0)}, "gammas: must hold one weight per feedback, 3; got 2"),
        ({"gammas": 0.0}, "gammas: must be > 0 as a single number"),
        ({"gammas": 1e-300}, "gammas: must be a base whose powers up to 2 are finite"),
        ({"gammas": lambda n, N: -n}, r"gammas\[0\]: must be a finite number >= 0"),
        ({"a_b": 0.0}, "a_b: must be > 0"),
        ({"a_f": -0.1}, "a_f: must be a finite number >= 0"),
        ({"shared_z": "false"}, "shared_z: must be True or False; got 'false'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        methods.OVF(**{"sigma": 0.1, "beta": 0.1} | options)


@pytest.mark.parametrize("writes", [False, True])
def test_forwards_that_hand_codes_to_their_backwards_change_nothing(step, monkeypatch, writes):
    """As CUDA has it. A weight written through `.data` between two forwards counts from there on."""
    model, _, x, target = step
    model.eval()  # batch statistics would move from one call to the next
    first = next(iter(nft.noisy_layers(model).values()))
    before = first.weight.detach().clone()

    def smaller(*_):
        first.weight.data.mul_(0.75)

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        first.weight.data.copy_(before)
        handle = model.register_forward_pre_hook(smaller) if writes else None
        value = methods.OVF(sigma=0.1, beta=0.5, feedbacks=2).loss(model, x, target)
        if handle is not None:
            handle.remove()
        else:
            value.backward()  # after a write, a backward without codes cannot know the weights of the first forward
        return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected, quantized, quantize = gradients(), [], base.operators.ops.quantize

    def toggled(layer, shared):
        layer.shares_codes = not layer.shares_codes

    monkeypatch.setattr(base.NoisyLayer, "share_codes", toggled)
    monkeypatch.setattr(base.operators.ops, "quantize", lambda *arguments: quantized.append(1) or quantize(*arguments))
    found = gradients()
    assert len(quantized) == 3 * len(nft.noisy_layers(model))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not any(layer.shares_codes for layer in nft.noisy_layers(model).values()), "nothing outlives the step"
    first.weight.data.copy_(before)
