"""A fused model sees later changes of what it reads, and refuses changes of what it does not read any more."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nft_ext as nft
from nft_ext.nn.fused import FusedConv2d
from support.fusable import Net, conv, trained

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """A layer that fuse folds into, between two others; at names of two parts."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = conv(), conv(), conv()
        self.norm, self.relu, self.extra = nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)
        self.threshold = 0.25

    def forward(self, x):
        return self.c3(self.relu(self.norm(self.c2(self.c1(x)))) - self.threshold * self.factor)


def models():
    torch.manual_seed(0)
    net = trained(nn.Sequential(Block()))
    return net, nft.fuse(net)


def outputs(model, x=X):
    with torch.no_grad(), nft.chips(model, seed=3):
        return model(x)


def geometry(**settings):
    def change(layer):
        for name, value in settings.items():
            setattr(layer, name, value)

    return change


def groups(layer):
    layer.groups, layer.weight = 2, nn.Parameter(layer.weight.detach()[:, :2].clone(), requires_grad=False)


def padding_mode(layer):
    layer.padding_mode, layer._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]


def new_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * 2, requires_grad=False)


def written_weight(layer):
    layer.weight.detach().mul_(2)


CHANGES = {
    "stride": geometry(stride=(2, 1)),
    "stride as a list": geometry(stride=[2, 2]),
    "padding": geometry(padding=(0, 2)),
    "padding by name": geometry(padding="same", dilation=(2, 1)),
    "dilation": geometry(dilation=(2, 2), padding=(2, 2)),
    "groups": groups,
    "padding mode": padding_mode,
    "weight": new_weight,
    "written weight": written_weight,
    "no bias": geometry(bias=None),
    "bias": geometry(bias=nn.Parameter(torch.arange(4.0), requires_grad=False)),
    "device": lambda layer: layer.set_device(nft.NVMDevice(sigma=0.3, device_bits=4)),
    "noise off": lambda layer: layer.set_enabled(False),
}


@pytest.mark.parametrize("gradients", [False, True], ids=["one operator call", "layer by layer"])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_layer_are_seen_at_the_next_forward(name, gradients):
    net, fused = models()
    with torch.set_grad_enabled(gradients):
        for _ in range(3):
            with nft.chips(net, seed=3), nft.chips(fused, seed=3):
                expected = net(X)
                torch.testing.assert_close(fused(X), expected, rtol=1e-5, atol=1e-5)
            before = expected
        for model in (net, fused):
            CHANGES[name](model[0].c2 if model is net else model.get_submodule("0.c2"))
        for _ in range(2):
            with nft.chips(net, seed=3), nft.chips(fused, seed=3):
                expected = net(X)
                torch.testing.assert_close(fused(X), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape != before.shape or not torch.allclose(expected, before)


def test_a_list_of_settings_may_change_in_place():
    fused, padding = models()[1], [1, 1]
    layer = fused.get_submodule("0.c2")
    layer.padding = padding
    expected = [outputs(fused) for _ in range(2)][1]
    padding[:] = [2, 2]
    assert outputs(fused).shape[2] == expected.shape[2] + 2


def test_changes_of_the_epilogue_are_seen():
    fused = models()[1]
    layer = fused.get_submodule("0.c2")
    seen = []
    layer.register_forward_hook(lambda m, args, y: seen.append(y))
    for change in (lambda: layer.scale.mul_(2), lambda: setattr(layer, "ends_in_relu", False)):
        outputs(fused), change(), outputs(fused)
    assert not torch.allclose(seen[0], seen[1]) and seen[2].min() == 0 > seen[3].min()
    layer.scale = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"scale: must be \[out\]; got \[3\]"):
        outputs(fused)


def test_a_layer_of_another_class_is_called():
    class Doubled(FusedConv2d):
        def forward(self, x, *residual):
            return 2 * super().forward(x, *residual)

    torch.manual_seed(0)
    fused = nft.fuse(trained(nn.Sequential(conv(), nn.ReLU(), conv())))
    once = [outputs(fused) for _ in range(2)][1]
    fused.get_submodule("2").__class__ = Doubled
    assert torch.equal(outputs(fused), 2 * once)


# ---- what is not read any more


REFUSED = {
    "eps": (lambda m: setattr(m.norm, "eps", 1e-3), "norm: was folded into 0.c2 when the model was fused"),
    "statistics": (lambda m: m.norm.running_mean.zero_(), "norm: was folded into 0.c2"),
    "training": (lambda m: m.norm.train(), "norm: was folded into 0.c2"),
    "another norm": (lambda m: setattr(m, "norm", nn.BatchNorm2d(4)), "norm: was folded into 0.c2"),
    "hook": (lambda m: m.relu.register_forward_hook(print), "relu: was folded into 0.c2"),
    "attribute": (
        lambda m: setattr(m, "threshold", 0.5),
        "threshold: was read.*Change the original",
    ),
    "class attribute": (lambda m: setattr(m, "factor", 0.5), "factor: was read"),
    "unused module": (lambda m: setattr(m, "extra", conv()), "extra: was read, or was not needed"),
}


@pytest.mark.parametrize("copied", ["itself", "deepcopy", "pickle", "fused again"])
@pytest.mark.parametrize("name", REFUSED)
def test_changes_without_effect_are_refused_by_name(name, copied):
    fused = models()[1]
    again = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "fused again": nft.fuse}
    fused = again.get(copied, lambda m: m)(fused)
    change, message = REFUSED[name]
    with pytest.raises(AttributeError, match=message):
        change(fused.get_submodule("0"))


def test_the_model_itself_refuses_too_and_takes_new_names():
    net = trained(Net(lambda m, x: m.norm(m.conv(x)) * m.factor, conv=conv(), norm=nn.BatchNorm2d(4), factor=2.0))
    fused = nft.fuse(net)
    for model in (fused, copy.deepcopy(fused), copy.copy(fused), pickle.loads(pickle.dumps(fused))):
        with pytest.raises(AttributeError, match="factor: was read"):
            model.factor = 3.0
        model.remark = "new"
        assert torch.equal(outputs(model), outputs(fused)) and type(model).__name__ == "Net"


def test_monte_carlo_takes_a_fused_model_with_containers():
    net, fused = models()
    heads = [nn.Sequential(m, nn.Flatten(), nn.Linear(256, 3)) for m in (net, fused)]
    data = (X, torch.zeros(2, dtype=torch.int64))
    heads[1].load_state_dict(heads[0].state_dict(), strict=False)
    reports = [nft.monte_carlo(m.eval(), data, runs=3, progress=False) for m in heads]
    assert reports[0].accuracy.per_run.tolist() == reports[1].accuracy.per_run.tolist()


def test_hooks_on_containers_are_refused():
    container = models()[1].get_submodule("0")
    for register in (container.register_forward_hook, container.register_forward_pre_hook):
        with pytest.raises(RuntimeError, match="hook: must be on a layer or on the whole fused model"):
            register(print)


@pytest.mark.parametrize(
    "context",
    [lambda m: nft.noise(m, sigma=0.3), lambda m: nft.noise(m, enabled=False), lambda m: nft.chips(m[0])],
    ids=["sigma", "off", "chips"],
)
def test_a_model_inside_a_noise_context_is_not_fused(context):
    net = models()[0]
    part = nn.Sequential(net[0].c1, nn.ReLU())
    with context(net), pytest.raises(ValueError, match="must be fused outside of noise contexts"):
        nft.fuse(part)
    nft.fuse(part)


def test_training_mode_is_refused_without_any_fused_layer():
    net = trained(Net(lambda m, x: F.dropout(m.conv(m.conv(x)), 0.5, m.training), conv=conv()))
    with pytest.raises(RuntimeError, match=r"model: must stay in eval mode.*; got train\(\)"):
        nft.fuse(net).train()


def test_a_residual_that_is_none_is_no_residual():
    """A model that adds None raises an error, and so does the fused one."""
    layer = nft.noisy_layers(nft.fuse(trained(Net(lambda m, x: m.conv(x) + x.exp(), conv=conv()))))["conv"]
    with pytest.raises(TypeError, match="residual: must be a tensor, because the model adds it; got None"):
        layer(X, None)
