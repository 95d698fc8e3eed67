"""Fused layers that feed each other are one operator call (noisy_cascade) with the bits of a call a layer; where
somebody wants more of a layer than that, layers are called.
"""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.nn.utils import parametrize

import nft_ext as nft
from nft_ext.nn import cascade
from nft_ext.nn.cascade import Cascade, Link
from nft_ext.nn.fused import FusedConv2d
from support.fusable import Net, conv, trained

ops = torch.ops.nft_ext
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch):
    """How many layers each call of the operator took."""
    seen = []
    operator = cascade._operator

    def counted(inputs, weights, *others):
        seen.append(len(weights))
        return operator(inputs, weights, *others)

    monkeypatch.setattr(cascade, "_operator", counted)
    return seen


@pytest.fixture
def layer_by_layer(monkeypatch):
    """Runs a function without the operator."""

    def run(f, *args):
        with monkeypatch.context() as patch:
            patch.setattr(cascade, "_only_layer_by_layer", lambda: True)
            return f(*args)

    return run


def block(**options):
    """Three products, a residual from outside and one from inside."""
    torch.manual_seed(0)
    return nft.fuse(
        trained(
            Net(
                lambda m, x: F.relu(m.n2(m.c2(F.relu(m.n1(m.c1(x)) + x))) + m.c3(x)),
                c1=conv(**options),
                c2=conv(),
                c3=nn.Conv2d(4, 4, 1),
                n1=nn.BatchNorm2d(4),
                n2=nn.BatchNorm2d(4),
            )
        )
    )


def twice(model, x):
    """Results of the first call, which checks, and of the second, which does not any more; fresh chips of one seed."""
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(model(x))
    return results


# ---- one call, the same bits


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name, runs", [("resnet18", [20]), ("vgg8", [2, 2, 2, 2])])
@pytest.mark.parametrize("images", [1, 3])
def test_the_models_are_few_calls_with_the_layers_bits(name, runs, images, calls, layer_by_layer):
    torch.manual_seed(0)
    model, x = nft.fuse(trained(nft.models.build(name, 10, 3, 0.25))), torch.randn(images, 3, 32, 32)
    expected = layer_by_layer(twice, model, x)[0]
    assert calls == []
    for found in twice(model, x):
        assert torch.equal(found, expected)
    assert calls == runs  # of the second: the first was checked, layer after layer


@pytest.mark.parametrize("draws", [[0], range(3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_chips_types_and_layouts(draws, dtype, layout, calls, layer_by_layer):
    model, x = block(), X.to(dtype).contiguous(memory_format=layout)
    with nft.chips(model, seed=4, draws=draws):
        expected = layer_by_layer(twice, model, x)[0]
        for found in twice(model, x):
            assert torch.equal(found, expected) and found.dtype == dtype and found.stride() == expected.stride()
    assert calls == [3]


@pytest.mark.parametrize("noise", [dict(enabled=False), dict(sigma=0.3), dict(sigma=0.0)], ids=str)
def test_contexts_reach_the_layers(noise, calls, layer_by_layer):
    model = block()
    twice(model, X)
    with nft.noise(model, **noise), nft.chips(model, seed=1):
        assert torch.equal(twice(model, X)[1], layer_by_layer(twice, model, X)[0])
    assert calls == [3, 3, 3]


def test_devices_may_differ_between_layers(calls, layer_by_layer):
    """Presets, a per-device path and widths of weights, each with the table of its own."""
    model = block()
    layers = list(nft.noisy_layers(model).values())
    layers[0].set_device(nft.NVMDevice(sigma=0.2, weight_bits=6, device_bits=3))
    layers[1].set_device(nft.NVMDevice.preset("rram4", sigma=0.2))
    layers[2].set_device(nft.NVMDevice(sigma=0.2, clip=(0.0, 1.0), mapping="differential"))
    expected = layer_by_layer(twice, model, X)[0]
    assert all(torch.equal(found, expected) for found in twice(model, X)) and calls == [3]


def test_several_results_and_several_inputs(calls, layer_by_layer):
    """A result that others use too is returned beside the last; a stride, a dilation, groups and linear layers take
    part.
    """
    torch.manual_seed(0)
    made = Net(
        lambda m, x: several(m, x),
        c1=conv(8, stride=2),
        c2=nn.Conv2d(8, 6, (1, 3), padding=(0, 2), dilation=2, groups=2),
        c3=nn.Conv2d(4, 8, 1, stride=2),
        l1=nn.Linear(8, 5),
        l2=nn.Linear(5, 3, bias=False),
    )
    model = nft.fuse(trained(made))
    expected = layer_by_layer(twice, model, X)[0]
    for found in twice(model, X):
        assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * 3
    assert calls == [3, 2]


def several(m, x):
    first = F.relu(m.c1(x))
    second, third = m.c2(first), m.c3(x) + first
    return second, third, m.l2(F.relu(m.l1(third.mean((2, 3)))))


@pytest.mark.parametrize("options", [dict(padding_mode="reflect"), dict(padding_mode="circular")], ids=str)
def test_a_layer_that_pads_by_itself_is_called(options, calls):
    model = block(**options)
    twice(model, X)
    assert calls == [2]


def test_what_is_written_in_place_between_layers_is_read_in_the_same_order(layer_by_layer):
    torch.manual_seed(0)
    net = trained(Net(lambda m, x: m.c2(m.c1(x)) + m.c1b(x.clone().add_(1)), c1=conv(), c2=conv(), c1b=conv()))
    model = nft.fuse(net)
    assert torch.equal(twice(model, X)[1], layer_by_layer(twice, model, X)[0])
    torch.testing.assert_close(twice(model, X)[1], twice(net, X)[0], rtol=1e-5, atol=1e-5)


# ---- random numbers


def test_fresh_keys_are_those_of_single_calls():
    torch.manual_seed(2)
    together, after = ops.draw_keys(X, 5), torch.get_rng_state()
    torch.manual_seed(2)
    assert all(torch.equal(key, ops.draw_key(X)) for key in together) and torch.equal(torch.get_rng_state(), after)
    assert ops.draw_keys(X, 0) == []
    with pytest.raises(RuntimeError, match="draw_keys: count: must be in 0..2.20, the number of layers; got -1"):
        ops.draw_keys(X, -1)


def test_every_call_draws_other_chips_and_a_seed_repeats_them():
    model = block()
    with torch.no_grad():
        results = [model(X) for _ in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    first, second = twice(model, X)
    assert torch.equal(first, second)


def test_where_some_layers_have_keys_only_the_others_draw(calls, layer_by_layer):
    model = block()
    nft.noisy_layers(model)["c2"].set_key(nft.noise_key(9))
    expected = layer_by_layer(twice, model, X)[0]
    assert all(torch.equal(found, expected) for found in twice(model, X))
    assert calls == [3]


# ---- what the operator does not see is called


def test_hooks_on_layers_run(calls, layer_by_layer):
    model, seen = block(), []
    twice(model, X)
    handle = nft.noisy_layers(model)["c2"].register_forward_hook(lambda m, args, y: seen.append(y))
    results = twice(model, X)
    assert len(seen) == 2 and calls == [3]
    handle.remove()
    assert torch.equal(twice(model, X)[0], results[0]) and calls == [3] * 3
    with nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(m)):
        twice(model, X)
    assert calls == [3] * 3 and {type(m) for m in seen if isinstance(m, nn.Module)} >= {FusedConv2d, Cascade}


def test_a_layer_put_in_anothers_place_is_what_is_called(calls):
    torch.manual_seed(0)
    model, constant = (
        nft.fuse(trained(nn.Sequential(conv(), nn.ReLU(), nn.Sequential(conv(), nn.ReLU())))),
        nn.Conv2d(4, 4, 1),
    )
    twice(model, X)
    nn.init.zeros_(constant.weight), nn.init.constant_(constant.bias, 7.0)
    setattr(model.get_submodule("2"), "0", constant)
    assert torch.equal(twice(model, X)[1], torch.full((2, 4, 8, 8), 7.0)) and calls == [2]


def test_new_weights_are_seen(calls):
    model = block()
    before = twice(model, X)[1]
    with torch.no_grad():
        nft.noisy_layers(model)["c2"].weight.mul_(2)
    after = twice(model, X)
    assert torch.equal(*after) and not torch.allclose(after[0], before)
    assert calls == [3, 3, 3]


def test_weights_of_another_shape_are_checked_anew(calls, layer_by_layer):
    torch.manual_seed(0)
    model = nft.fuse(trained(nn.Sequential(conv(), nn.ReLU(), conv())))
    twice(model, X)
    nft.noisy_layers(model)["0"].weight = nn.Parameter(torch.randn(4, 4, 1, 1), requires_grad=False)
    expected = layer_by_layer(twice, model, X)[0]
    assert expected.shape == (2, 4, 10, 10) and all(torch.equal(found, expected) for found in twice(model, X))
    assert calls == [2, 2]


def test_a_write_through_data_counts():
    model = block()
    before = twice(model, X)[1]
    nft.noisy_layers(model)["c2"].weight.data.zero_()
    assert not torch.allclose(twice(model, X)[1], before)


def test_parametrized_weights_autocast_and_gradients_are_the_layers_own_affair(calls, layer_by_layer):
    model = block()
    expected = layer_by_layer(twice, model, X)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert twice(model, X)[1].dtype == torch.bfloat16
    torch.manual_seed(3)
    assert torch.equal(model(X), expected)  # gradients on, none asked for
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        model(X.clone().requires_grad_())
    parametrize.register_parametrization(nft.noisy_layers(model)["c1"], "weight", nn.Identity())
    assert torch.equal(twice(model, X)[1], expected)
    assert calls == []


def test_programmed_chips_are_used(calls):
    model = block()
    with nft.chips(model, seed=2, draws=range(2), programmed=True):
        held = twice(model, X)[1]
    assert calls == []
    with nft.chips(model, seed=2, draws=range(2)):
        torch.testing.assert_close(held, twice(model, X)[1], rtol=1e-4, atol=1e-4)
    assert calls == [3]


def test_inference_mode(calls):
    model = block()
    expected = twice(model, X)[1]
    with torch.inference_mode():
        for _ in range(2):
            torch.manual_seed(3)
            assert torch.equal(model(X), expected)
    assert calls == [3] * 3


@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_vmap_goes_through_the_layers(calls):
    """No batched tensor gets into the operator's pointers."""
    model = block()
    expected = twice(model, X)[1]
    torch.manual_seed(3)
    with torch.no_grad():
        found = torch.vmap(model, randomness="same")(X.unsqueeze(0))
    assert torch.equal(found[0], expected) and calls == [3]


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (torch.randn(2, 3, 8, 8), ValueError, r"x: must have the shape \[B, 4, H, W\]"),
        (X.cfloat(), TypeError, "x: must be float32, bfloat16, float16 or float64"),
        (X.to_sparse(), TypeError, "x: must be a dense tensor"),
        (X.numpy(), TypeError, "x: must be a torch.Tensor; got ndarray"),
    ],
)
def test_bad_inputs_get_the_layers_errors(bad, error, message):
    model = block()
    twice(model, X)
    with pytest.raises(error, match=message), torch.no_grad():
        model(bad)


def test_training_mode_and_weights_that_are_not_finite_are_refused():
    model = block()
    twice(model, X)
    with torch.no_grad(), pytest.raises(RuntimeError, match="must be in eval mode"):
        model.train()(X)
    model.eval()
    with torch.no_grad():
        nft.noisy_layers(model)["c2"].weight[0, 0, 0, 0] = float("nan")
        with pytest.raises(RuntimeError, match="weight: must be finite"):
            model(X)


def test_a_residual_of_another_shape_is_added_by_torch(calls, layer_by_layer):
    torch.manual_seed(0)
    model = nft.fuse(
        trained(
            Net(
                lambda m, x: m.c2(F.relu(m.c1(x) + m.other)),
                c1=conv(),
                c2=conv(),
                other=nn.Parameter(torch.randn(4, 1, 1)),
            )
        )
    )
    expected = layer_by_layer(twice, model, X)[0]
    assert all(torch.equal(found, expected) for found in twice(model, X)) and calls == []


# ---- the module


def test_no_value_lives_longer_than_it_is_needed():
    """Layer after layer, as fx does it: of a chain there are two results at a time."""
    alive = []

    class Layer(nn.Module):
        def forward(self, x):
            y = x + 1
            alive.append(weakref.ref(y))
            most.append(sum(ref() is not None for ref in alive))
            return y

    most = []
    chain = Cascade([(i,) for i in range(6)], [Link(i) for i in range(6)], [5], 1)
    assert torch.equal(chain([Layer() for _ in range(6)], torch.zeros(2)), torch.full((2,), 6.0))
    assert most == [1] + [2] * 5


def test_the_state_is_that_of_the_layers():
    model = block()
    assert {key.rpartition(".")[0] for key in model.state_dict()} == {"c1", "c2", "c3"}
    assert list(nft.noisy_layers(model)) == ["c1", "c2", "c3"]


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nft.fuse], ids=["deepcopy", "pickle", "fuse"]
)
def test_copies_compute_with_their_own_layers(again, calls):
    torch.manual_seed(0)
    model = nft.fuse(trained(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(conv(), nn.ReLU()))))
    expected = twice(model, X)[1]
    other = again(model)
    assert all(torch.equal(found, expected) for found in twice(other, X))
    nft.noisy_layers(model)["0"].weight.zero_()
    assert torch.equal(twice(other, X)[1], expected)
    nft.noisy_layers(other)["0"].weight.zero_()
    assert not torch.equal(twice(other, X)[1], expected)
    assert set(calls) == {2}


# ---- torch.compile


def test_a_compiled_graph_holds_the_layers_and_needs_no_other_for_other_chips():
    torch._dynamo.reset()
    model, counter = block(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for draw, sigma in enumerate((0.1, 0.2)):
            with nft.noise(model, sigma=sigma), nft.chips(model, seed=draw):
                torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()
