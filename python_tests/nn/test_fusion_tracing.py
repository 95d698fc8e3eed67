"""What nft.fuse makes of a forward: the graph computes what the forward computes, or fuse says why it does not."""

import copy
import pickle
import random

import pytest
import torch
from torch import fx, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import nft_ext as nft
from nft_ext.nn.fused import FusedLayer
from support.fusable import Net, conv, trained

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(model, *inputs):
    with torch.no_grad(), nft.chips(model, seed=3):
        found = model(*(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs))
    return found if isinstance(found, tuple) else (found,)


def folds(model):
    return sum(isinstance(m, FusedLayer) and (m.scale is not None or m.ends_in_relu) for m in model.modules())


def check(forward, *inputs, **modules):
    """The fused model of this forward, compared with the model twice."""
    torch.manual_seed(0)
    given = {"conv": conv(), "conv2": conv(), "norm": nn.BatchNorm2d(4), "relu": nn.ReLU()} | modules
    net = trained(Net(forward, **given))
    fused = nft.fuse(net)
    for _ in range(2):
        for found, expected in zip(outputs(fused, *(inputs or [X])), outputs(net, *(inputs or [X])), strict=True):
            assert found.dtype == expected.dtype and found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    return fused


# ---- in place


def augmented(m, x):
    y = m.conv(x)
    skip = y
    y += m.conv2(y)
    return torch.cat([skip, y], 1)


def parts(m, x):
    y, z = m.conv(x).chunk(2, 1)
    y *= z
    z[:, 0] = y[:, 1]
    return torch.cat([y, z, m.conv2(x)[:, ::2]], 1)


def attributes(m, x):
    before = x.shape
    x.unsqueeze_(0)
    return m.conv(x.view(before)), x.data.mul_(2)


def numbers(m, x):
    n = x.shape[0]
    kept = n
    n += 1
    return m.conv(x) * kept + n


def constants(m, x):
    total = torch.zeros(4, 1, 1)
    total += x.mean((0, 2, 3)).view(4, 1, 1)
    return m.conv(x) + total


def relu_in_place_into_input(m, x):
    y = m.relu(m.norm(m.conv(x)))
    return x.relu_() + y


@pytest.mark.parametrize(
    "forward", [augmented, parts, attributes, numbers, constants, relu_in_place_into_input], ids=lambda f: f.__name__
)
def test_in_place_operations_are_what_they_are(forward):
    fused = check(forward)
    assert all(torch.equal(*pair) for pair in zip(outputs(pickle.loads(pickle.dumps(fused)), X), outputs(fused, X)))


IN_PLACE_ADDITIONS = {
    "into the product": lambda m, x: m.relu(m.norm(m.conv(x)).add_(m.other)),
    "into the residual": lambda m, x: m.relu(m.conv(x).add_(m.norm(m.conv2(x)))),
}


@pytest.mark.parametrize("name", IN_PLACE_ADDITIONS)
def test_additions_in_place_are_folded(name):
    assert folds(check(IN_PLACE_ADDITIONS[name], other=nn.Parameter(torch.randn(4, 1, 1)))) >= 1


def test_an_addition_in_place_keeps_type_and_shape():
    fused = check(lambda m, x: m.relu(m.conv(x.bfloat16()).add_(x)))
    assert folds(fused) == 1 and outputs(fused, X)[0].dtype == torch.bfloat16
    wide = nft.fuse(
        trained(Net(lambda m, x: m.conv(x).add_(m.wide), conv=conv(), wide=nn.Parameter(torch.ones(3, 1, 4, 1, 1))))
    )
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        outputs(wide, X)


def test_in_place_operations_compile():
    torch._dynamo.reset()
    fused, counter = check(augmented), CompileCounterWithBackend("aot_eager")
    with torch.no_grad(), nft.chips(fused, seed=3):
        torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend=counter)(X), fused(X))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_a_residual_is_not_read_before_an_unknown_call():
    """The function may have kept a reference to the residual."""
    fused = check(lambda m, x: m.relu(m.norm(m.conv(x)) + halved(x)[0]))
    assert folds(fused) == 1 and all(m._sum is None for m in fused.modules() if isinstance(m, FusedLayer))
    fused = check(lambda m, x: (lambda y, z: m.relu(y + x) + z)(m.norm(m.conv(x)), halved(x)[0]))
    assert not any(m.ends_in_relu for m in fused.modules() if isinstance(m, FusedLayer))


@fx.wrap
def halved(x):
    return x.mul_(0.5), 1


def test_chips_are_drawn_in_the_models_order():
    torch.manual_seed(0)
    net = trained(
        Net(lambda m, x: m.norm(m.conv(x)) + m.conv2(x).tanh(), conv=conv(), conv2=conv(), norm=nn.BatchNorm2d(4))
    )
    results = [model(X) for model in (net, nft.fuse(net)) for _ in [torch.manual_seed(7)]]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


# ---- what a forward does besides


def test_what_is_computed_from_buffers_alone_is_computed_at_each_forward():
    net = trained(Net(lambda m, x: m.conv(x) * (m.buffer * 2), conv=conv()))
    net.buffer = torch.ones(1)  # a plain attribute
    fused = nft.fuse(net)
    before = outputs(fused, X)[0]
    fused.buffer.mul_(3)
    torch.testing.assert_close(outputs(fused, X)[0], 3 * before)


def drawing(m, x):
    return m.conv(x) + torch.rand(1)


def drawing_in_python(m, x):
    return m.conv(x) * random.random()


def counting(m, x):
    m.count = m.count + 1
    return m.conv(x) * m.count


def setting(m, x):
    y = m.conv(x)
    y.data = y.data * 2
    return y


def viewing(m, x):
    total = torch.zeros(4)
    part = total[:2]
    part += x.mean((0, 2, 3))[:2]
    return m.conv(x) + total.view(4, 1, 1)


@pytest.mark.parametrize(
    "forward, reason",
    [
        (drawing, "the forward draws random numbers"),
        (drawing_in_python, "the forward draws random numbers"),
        (counting, "the forward changes the attribute count of the model"),
        (setting, "cannot record that the forward sets .data"),
        (viewing, "the forward writes into a tensor that depends on no input, or uses views of it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_graph_would_not_repeat_is_refused(forward, reason):
    net = trained(Net(forward, conv=conv(), count=1))
    with pytest.raises(ValueError, match=f"model: must have a forward that torch.fx can trace.*{reason}"):
        nft.fuse(net)


def test_a_question_for_the_type_gets_the_answer_tensor_and_is_checked():
    def forward(m, x):
        y = m.relu(m.norm(m.conv(x)))
        return y * 2 if isinstance(x, torch.Tensor) and not isinstance(y, tuple) else y

    fused = check(forward)
    assert folds(fused) == 1
    for model in (fused, pickle.loads(pickle.dumps(fused))):
        with pytest.raises(TypeError, match="model: must get tensors where its forward asked for the type.*; got int"):
            outputs(model, 1)


def test_an_optional_input_stays_none():
    class Optional(Net):
        def forward(self, x, mask=None):
            return self.conv(x) if mask is None else self.conv(x) * mask

    net = trained(Optional(None, conv=conv()))
    fused = nft.fuse(net)
    for model in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(outputs(model, X)[0], outputs(net, X)[0])
        assert torch.equal(outputs(model, X, None)[0], outputs(net, X)[0])
        with pytest.raises(TypeError, match="mask: must be None in a fused model, it was traced with this default"):
            model(X, mask=X)


# ---- hooks, shared modules


@pytest.mark.parametrize("name", ["conv", "norm", "relu", "identity"])
def test_a_module_with_hooks_is_not_folded(name):
    seen = []

    def net():
        torch.manual_seed(0)
        model = trained(
            Net(
                lambda m, x: m.relu(m.norm(m.identity(m.conv(x)))),
                conv=conv(),
                norm=nn.BatchNorm2d(4),
                relu=nn.ReLU(),
                identity=nn.Identity(),
            )
        )
        model.get_submodule(name).register_forward_hook(lambda m, args, y: seen.append(y) or y + 1)
        return model

    expected = outputs(net(), X)[0]
    torch.testing.assert_close(outputs(nft.fuse(net()), X)[0], expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 2


def test_a_module_with_a_forward_of_its_own_is_not_folded():
    def forward(m, x):
        return m.relu(m.norm(m.conv(x)))

    net = trained(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4), relu=nn.ReLU()))
    net.norm.forward = torch.nn.functional.tanh
    fused = nft.fuse(net)
    torch.testing.assert_close(outputs(fused, X), outputs(net, X))
    assert folds(fused) == 0


def test_a_norm_whose_tensors_others_use_is_not_folded():
    twin = nn.BatchNorm2d(4)
    norm = nn.BatchNorm2d(4)
    norm.weight = twin.weight
    assert folds(check(lambda m, x: m.norm(m.conv(x)) + m.twin(x), norm=norm, twin=twin)) == 0
    assert folds(check(lambda m, x: m.norm(m.conv(x)) * m.norm.weight.sum())) == 0


def test_the_other_calls_of_a_folded_relu_do_not_call_the_module():
    fused = check(lambda m, x: m.relu(m.norm(m.conv(x))) + m.relu(x))
    assert not any(isinstance(m, nn.ReLU) for m in fused.modules())
    with pytest.raises(AttributeError, match="relu: was folded into conv"):
        fused.relu.register_forward_hook(print)


# ---- modules that cannot be traced


class Branches(nn.Module):
    """Decides on values; its own layers are called as they are."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.calls = conv(), nn.BatchNorm2d(4), 0

    def forward(self, x):
        self.calls += 1
        y = self.norm(self.conv(x))
        return y if y.sum() > 0 else -y


def test_submodules_that_cannot_be_traced_are_called():
    with pytest.warns(
        UserWarning, match="fuse: these submodules cannot be traced and stay as they are: branches .Trace"
    ):
        fused = check(lambda m, x: m.branches(m.relu(m.norm(m.conv(x)))), branches=Branches())
    assert folds(fused) == 1 and fused.branches.calls == 2
    assert type(fused.branches.norm) is nn.BatchNorm2d
    with pytest.warns(UserWarning, match="cannot be traced"):
        fused = check(lambda m, x: m.branches(x) + F.relu(m.branches.conv(x)), branches=Branches())
    assert folds(fused) == 0


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if x.sum() > -1e9 else x
        return x


class Root(nn.Module):
    """As models of transformers: the outer forwards decide on values."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Sequential(nn.Flatten(), nn.Linear(256, 3), nn.ReLU())

    def forward(self, x):
        return self.head(self.encoder(x)) if x.isfinite().all() else x


def test_where_the_model_cannot_be_traced_the_error_says_what_to_fuse():
    torch.manual_seed(0)
    net = trained(Root())
    with pytest.raises(ValueError) as error:
        nft.fuse(net)
    advice = (
        "fuse the submodules that can be traced, for example "
        "model.encoder.layers[0] = nft_ext.fuse(model.encoder.layers[0]) (also model.encoder.layers[1], model.head)"
    )
    assert advice in str(error.value)
    fused = copy.deepcopy(net)
    for i in range(2):
        fused.encoder.layers[i] = nft.fuse(fused.encoder.layers[i])
    fused.head = nft.fuse(fused.head)
    assert folds(fused) == 3 and list(nft.noisy_layers(fused)) == list(nft.noisy_layers(net))
    torch.testing.assert_close(outputs(fused, X)[0], outputs(net, X)[0], rtol=1e-5, atol=1e-5)


def test_a_layer_alone_has_no_submodules_to_fuse():
    net = trained(Net(lambda m, x: m.conv(x) if x.sum() > 0 else x, conv=conv()))
    with pytest.raises(ValueError, match="mark such functions, or use the model without fuse; got TraceError"):
        nft.fuse(net)
