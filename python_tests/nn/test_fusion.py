"""nft.fuse: what follows a noisy product goes into its epilogue; chips, contexts and names stay, values change by
rounding only.
"""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import nft_ext as nft
from nft_ext.nn.cascade import Cascade
from nft_ext.nn.fused import FusedLayer
from support.fusable import NVM, Net, conv, trained

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def left(model, *kinds):
    """The modules of these types that are still called."""
    return [m for m in model.modules() if isinstance(m, kinds)]


def operands(model):
    """Number of operands per layer or module that the model calls, by its name. A cascade counts as its layers."""
    found = {}
    for node in model.graph.nodes:
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        if not isinstance(module, Cascade):
            found[node.target] = len(node.args)
            continue
        holders = [holder.target for holder in node.args[0]]
        for (holder, *names), link in zip(module.paths, module.links, strict=True):
            found[".".join([holders[holder], *names])] = 1 if link.residual < 0 else 2
    return found


def folded(model):
    """What each fused layer does after its product, in the order of the layers, and whether it is called with a
    residual.
    """
    given = operands(model)
    return [
        ("norm " if m.scale is not None else "")
        + ("residual " if given[name] > 1 else "")
        + ("relu" if m.ends_in_relu else "")
        for name, m in model.named_modules()
        if isinstance(m, FusedLayer)
    ]


def outputs(model, x, draws=range(2)):
    with torch.no_grad(), nft.chips(model, seed=3, draws=draws):
        return model(x)


def assert_same(net, fused, x):
    expected, y = outputs(net, x), outputs(fused, x)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# ---- the models of the experiments fuse wholly


@pytest.mark.parametrize("images", [1, 12])
@pytest.mark.parametrize(
    "name, layers, after",
    [
        ("vgg8", 8, ["norm relu"] * 6 + ["relu", ""]),
        (
            "resnet18",
            21,
            ["norm relu"]
            + ["norm relu", "norm residual relu"] * 2
            + (["norm relu", "norm ", "norm residual relu", "norm relu", "norm residual relu"]) * 3
            + [""],
        ),
    ],
)
def test_the_models_fuse_wholly(name, layers, after, images):
    torch.manual_seed(0)
    net = trained(nft.models.build(name, 10, 3, 0.125))
    fused = nft.fuse(net)
    assert not left(fused, nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.Identity)
    assert folded(fused) == after and len(left(fused, FusedLayer)) == layers
    assert not any(
        node.op in ("call_function", "call_method") and "check_images" not in str(node.target)
        for node in fused.graph.nodes
    )
    assert_same(net, fused, torch.randn(images, 3, 32, 32))
    assert left(net, nn.modules.batchnorm._BatchNorm) and not left(net, FusedLayer)  # the model itself is as it was


def test_the_input_is_checked_as_before():
    fused = nft.fuse(trained(nft.models.vgg8(width=0.125)))
    with pytest.raises(ValueError, match="vgg8 input: must have shape"):
        fused(torch.randn(1, 1, 28, 28))


# ---- chains


CHAINS = {
    "conv, norm, relu": (lambda m, x: m.relu(m.norm(m.conv(x))), ["norm relu"]),
    "conv, norm": (lambda m, x: m.norm(m.conv(x)).tanh(), ["norm "]),
    "conv, relu": (lambda m, x: F.relu(m.conv(x)), ["relu"]),
    "relu as a method, in place": (lambda m, x: m.norm(m.conv(x)).relu_(), ["norm relu"]),
    "residual after": (lambda m, x: m.relu(m.norm(m.conv(x)) + x), ["norm residual relu"]),
    "residual before": (lambda m, x: torch.relu(torch.add(x, m.norm(m.conv(x)))), ["norm residual relu"]),
    "residual in place": (lambda m, x: added_in_place(m.norm(m.conv(x)), x), ["norm residual relu"]),
    "residual without norm": (lambda m, x: m.conv(x) + x, ["residual "]),
    "identity between": (lambda m, x: m.relu(m.identity(m.norm(m.identity(m.conv(x))))), ["norm relu"]),
    "residual computed later": (lambda m, x: residual_later(m, x), ["norm residual relu"]),
    # Left as they are, wholly or from some point on:
    "result used twice": (lambda m, x: (lambda y: m.norm(y) + y.mean())(m.conv(x)), [""]),
    "norm used twice": (lambda m, x: (lambda y: m.relu(y) * y.mean())(m.norm(m.conv(x))), ["norm "]),
    "added to itself": (lambda m, x: (lambda y: y + y)(m.conv(x)), [""]),
    "scaled residual": (lambda m, x: torch.add(m.conv(x), x, alpha=2), [""]),
    "a number is added": (lambda m, x: m.relu(m.conv(x) + 1), [""]),
    "into the residual in place": (lambda m, x: x.clone().add_(m.conv(x)), [""]),
    "relu before norm": (lambda m, x: m.norm(m.relu(m.conv(x))), ["relu"]),
    "norm after the residual": (lambda m, x: m.norm(m.conv(x) + x), ["residual "]),
    "two norms": (lambda m, x: m.norm2(m.norm(m.conv(x))), ["norm "]),
    "norm called twice": (lambda m, x: m.norm(m.norm(m.conv(x))), [""]),
    "two residuals": (lambda m, x: m.conv(x) + x + x.exp(), ["residual "]),
    "norm in training is no part": (lambda m, x: m.relu(m.batch(m.conv(x))), [""]),
    "other activations": (lambda m, x: F.relu6(m.norm(m.conv(x))), ["norm "]),
    "written in between": (lambda m, x: written_between(m, x), ["norm "]),
    "the residual is written in between": (lambda m, x: residual_written(m, x), ["norm "]),
    "called twice": (lambda m, x: m.relu(m.norm(m.conv(m.relu(m.conv(x))))), []),
}


def added_in_place(y, x):
    y += x
    return y.relu()


def residual_later(m, x):
    y = m.norm(m.conv(x))
    return m.relu(y + x.exp())


def written_between(m, x):
    x = x.clone()
    y = m.norm(m.conv(x))
    x.mul_(2)
    return m.relu(y + x.sin())


def residual_written(m, x):
    other = x.exp()
    y = m.norm(m.conv(x))
    other.add_(1)
    return m.relu(y + other)


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name):
    torch.manual_seed(0)
    forward, after = CHAINS[name]
    net = trained(
        Net(
            forward,
            conv=conv(),
            norm=nn.BatchNorm2d(4),
            norm2=nn.BatchNorm2d(4),
            relu=nn.ReLU(inplace=True),
            identity=nn.Identity(),
            batch=nn.BatchNorm2d(4, track_running_stats=False),
        )
    )
    fused = nft.fuse(net)
    assert folded(fused) == after
    with torch.no_grad():  # one chip: the norm with batch statistics takes no more
        with nft.chips(net, seed=3):
            expected = net(X)
        with nft.chips(fused, seed=3):
            torch.testing.assert_close(fused(X), expected, rtol=1e-5, atol=1e-5)


LINEARS = {
    "linear, relu": (lambda m, x: m.relu(m.linear(x)), (3, 6), ["relu"]),
    "linear, norm, relu": (lambda m, x: m.relu(m.norm(m.linear(x))), (3, 6), ["norm relu"]),
    "linear, norm, residual, relu": (lambda m, x: m.relu(m.norm(m.linear(x)) + x), (3, 6), ["norm residual relu"]),
    "rows of sequences": (lambda m, x: m.relu(m.linear(x) + x), (3, 5, 6), ["residual relu"]),
    "norm over a middle dimension": (lambda m, x: m.relu(m.norm(m.linear(x)) + x), (3, 6, 6), ["norm residual relu"]),
}


@pytest.mark.parametrize("name", LINEARS)
def test_linear_chains(name):
    torch.manual_seed(0)
    forward, shape, after = LINEARS[name]
    net = trained(Net(forward, linear=nn.Linear(6, 6), norm=nn.BatchNorm1d(6), relu=nn.ReLU()))
    fused = nft.fuse(net)
    assert folded(fused) == after
    assert_same(net, fused, torch.randn(shape))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "options", [dict(bias=True), dict(bias=False, groups=2), dict(bias=True, stride=2, dilation=2)], ids=str
)
def test_convolutions(options, affine):
    torch.manual_seed(0)
    net = trained(
        nn.Sequential(
            conv(6, **options),
            nn.BatchNorm2d(6, affine=affine),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect"),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, (2, 4), padding="same"),
            nn.ReLU(),
        )
    )
    fused = nft.fuse(net)
    assert folded(fused) == ["norm relu", "norm relu", "relu"]
    for x in (X, X.contiguous(memory_format=torch.channels_last), torch.randn(1, 4, 9, 7)):
        assert_same(net, fused, x)


def test_two_products_added_to_each_other():
    """The later takes the other's result; neither is computed twice."""
    torch.manual_seed(0)
    net = trained(
        Net(
            lambda m, x: F.relu(m.n1(m.c1(x)) + m.n2(m.c2(x))),
            c1=conv(),
            c2=conv(),
            n1=nn.BatchNorm2d(4),
            n2=nn.BatchNorm2d(4),
        )
    )
    fused = nft.fuse(net)
    assert folded(fused) == ["norm ", "norm residual relu"] and set(operands(fused)) == {"c1", "c2"}
    assert_same(net, fused, X)


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (4, 1, 1), (1, 4, 8, 8)])
def test_a_residual_of_another_shape_broadcasts_as_before(shape):
    torch.manual_seed(0)
    net = trained(
        Net(
            lambda m, x: F.relu(m.norm(m.conv(x)) + m.other),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
            other=nn.Parameter(torch.randn(shape)),
        )
    )
    fused = nft.fuse(net)
    assert folded(fused) == ["norm residual relu"]
    with torch.no_grad(), nft.chips(net), nft.chips(fused):
        for _ in range(2):
            torch.testing.assert_close(fused(X), net(X), rtol=1e-5, atol=1e-5)


def test_a_residual_of_another_type_promotes_as_before():
    net = trained(Net(lambda m, x: F.relu(m.conv(x.bfloat16()) + x), conv=conv()))
    assert_same(net, nft.fuse(net), X)


def test_one_image_without_a_batch():
    net = trained(Net(lambda m, x: F.relu(m.conv(x) + x), conv=conv()))
    fused = nft.fuse(net)
    results = [m(X[0]) for m in (net, fused) for _ in [torch.manual_seed(0)]]
    assert torch.equal(*results) and results[0].shape == (4, 8, 8)


# ---- chips and contexts


@pytest.fixture
def pair():
    torch.manual_seed(0)
    net = trained(
        nn.Sequential(
            conv(8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 40),
            nn.ReLU(),
            nn.Linear(40, 5),
        )
    )
    return net, nft.fuse(net)


def test_names_streams_and_chips_stay(pair):
    net, fused = pair
    layers, mine = nft.noisy_layers(net), nft.noisy_layers(fused)
    assert list(layers) == list(mine)
    for name, layer in layers.items():
        other = mine[name]
        assert (other.name, other.stream, other.nvm) == (layer.name, layer.stream, layer.nvm) and other is not layer
        with torch.no_grad(), nft.chips(net, seed=4, draws=[2]), nft.chips(fused, seed=4, draws=[2]):
            chips = [torch.ops.nft_ext.program(*m.crossbar(), torch.float32) for m in (layer, other)]
        assert torch.equal(*chips)


def test_a_product_without_anything_after_it_has_the_same_bits(pair):
    net, fused = pair
    x = torch.randn(3, 40)
    with torch.no_grad(), nft.chips(net, seed=1, draws=[5]), nft.chips(fused, seed=1, draws=[5]):
        assert torch.equal(nft.noisy_layers(fused)["7"](x), nft.noisy_layers(net)["7"](x))


def test_contexts_take_the_fused_model(pair):
    net, fused = pair
    for enabled, sigma in ((False, None), (None, 0.3), (True, 0.0)):
        with nft.noise(net, enabled=enabled, sigma=sigma), nft.noise(fused, enabled=enabled, sigma=sigma):
            assert_same(net, fused, X)
    results = [m(X) for m in (net, fused) for _ in [torch.manual_seed(7)]]  # fresh chips, from torch's generator
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_several_chips_are_the_chips_one_by_one(pair):
    _, fused = pair
    together = outputs(fused, X, range(3))
    alone = torch.cat([outputs(fused, X, [draw]) for draw in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_monte_carlo_reports_the_same(pair):
    net, fused = pair
    x = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        data = (x, net(x).argmax(1))
    reports = [nft.monte_carlo(m, data, runs=6, seed=1, progress=False) for m in (net, fused)]
    assert reports[0].accuracy.mean > 0.3
    assert abs(reports[0].accuracy.per_run - reports[1].accuracy.per_run).max() <= 1 / 40
    assert abs(reports[0].ekl.per_run - reports[1].ekl.per_run).max() < 1e-2


def test_autocast(pair):
    net, fused = pair
    with torch.autocast("cpu", torch.bfloat16):
        expected, y = outputs(net, X), outputs(fused, X)
        assert y.dtype == expected.dtype == torch.bfloat16
        assert (y - expected).abs().max() <= 0.05 * expected.abs().max()
        assert torch.equal(outputs(fused, X), y)


# ---- weights, types, copies


def test_statistics_are_folded_when_fused_in_float64():
    net = trained(nn.Sequential(conv(), nn.BatchNorm2d(4, eps=1e-3)))
    norm = net[1]
    layer = nft.noisy_layers(nft.fuse(net))["0"]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    torch.testing.assert_close(layer.scale, scale.float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        layer.shift, (norm.bias.double() - norm.running_mean.double() * scale).float(), rtol=1e-7, atol=1e-9
    )


def test_scale_and_shift_stay_float32_whatever_the_model_becomes(pair):
    fused = pair[1]
    before = outputs(fused, X)
    for model in (copy.deepcopy(fused).bfloat16(), copy.deepcopy(fused).half(), copy.deepcopy(fused).double()):
        layer = nft.noisy_layers(model)["0"]
        assert layer.scale.dtype == layer.shift.dtype == torch.float32
        assert torch.equal(layer.scale, nft.noisy_layers(fused)["0"].scale)
    assert torch.equal(outputs(copy.deepcopy(fused), X), before)


def test_the_state_of_a_fused_model_goes_into_another(pair):
    net, fused = pair
    other = nft.fuse(trained(copy.deepcopy(nft.restore(net)), seed=5))
    assert not torch.allclose(outputs(other, X), outputs(fused, X))
    assert {"0.weight", "0.scale", "0.shift"} <= set(fused.state_dict())
    other.load_state_dict(fused.state_dict())
    assert torch.equal(outputs(other, X), outputs(fused, X))


def test_checks_once_passed_do_not_hide_what_comes_later(pair):
    fused = pair[1]
    layer = nft.noisy_layers(fused)["0"]
    outputs(fused, X)
    for bad, error, message in (
        (torch.randn(2, 3, 8, 8), ValueError, r"x: must have the shape \[B, 4, H, W\]"),
        (X.cfloat(), TypeError, "x: must be float32, bfloat16, float16 or float64"),
        (X[0], ValueError, r"x: must have the shape \[B, 4, H, W\]; got \[4, 8, 8\]"),
        (X[..., :1, :1].expand(2, 4, 0, 0), ValueError, "padded height must be at least"),
        (X.to_sparse(), TypeError, "x: must be a dense tensor"),
        (X.numpy(), TypeError, "x: must be a torch.Tensor; got ndarray"),
    ):
        with torch.no_grad(), pytest.raises(error, match=message):
            layer(bad)
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        layer(X.clone().requires_grad_())


def test_it_is_for_inference(pair):
    net, fused = pair
    assert not any(p.requires_grad for p in fused.parameters()) and all(p.requires_grad for p in net.parameters())
    assert not fused(X).requires_grad  # no torch.no_grad() needed
    fused.train()
    with pytest.raises(
        RuntimeError, match="0: must be in eval mode, because it was fused for inference.*; got training mode"
    ):
        fused(X)
    fused.eval()
    fused(X)


@pytest.mark.parametrize("back", [nft.restore, nft.program])
def test_there_is_no_way_back(pair, back):
    with pytest.raises(ValueError, match="model: must not be fused.*; got a FusedConv2d 0"):
        back(pair[1])


def test_converting_again_gives_another_device(pair):
    net, fused = pair
    nvm = NVM.replace(sigma=0.2)
    assert_same(nft.convert(net, nvm), nft.convert(fused, nvm), X)


def test_a_single_layer_and_a_fused_model_pass():
    layer = nft.convert(nn.Linear(6, 3), NVM)
    fused = nft.fuse(nft.fuse(layer))
    with torch.no_grad(), nft.chips(layer), nft.chips(fused):
        assert torch.equal(fused(torch.ones(2, 6)), layer(torch.ones(2, 6)))


# ---- what cannot be fused


def test_a_forward_that_cannot_be_traced_is_an_error_that_says_why():
    net = trained(Net(lambda m, x: m.conv(x) if x.sum() > 0 else x, conv=conv()))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match="model: must have a forward that torch.fx can trace.*got TraceError: symbolically traced"
    ):
        nft.fuse(net)
    assert type(net.conv) is nft.NoisyConv2d and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_hooks_that_would_be_lost_are_refused_and_others_are_kept():
    net = trained(nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(4)), nn.ReLU()))
    seen = []
    handle = net[0].register_forward_hook(lambda m, args, y: seen.append(y))
    with pytest.raises(ValueError, match="must have no hooks on traced modules.*; got hooks on 0"):
        nft.fuse(net)
    handle.remove()
    with nft.chips(net, draws=range(2)), pytest.raises(ValueError, match="contexts of nft_ext are hooks too"):
        nft.fuse(net)
    net[0][0].register_forward_hook(lambda m, args, y: seen.append(y))
    fused = nft.fuse(net)
    assert folded(fused) == []
    fused(X)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "model, error, message",
    [
        (nn.Linear(3, 2), ValueError, "model: must hold noisy layers; make them with nft_ext.convert"),
        ("net", TypeError, "model: must be a torch.nn.Module; got str"),
    ],
)
def test_bad_models_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        nft.fuse(model)


# ---- torch.compile


@pytest.mark.parametrize("images", [2, 520])
def test_one_compiled_graph_serves_all_keys_and_sigmas(pair, images):
    """Also with so many images that the graph holds torch's own convolution and operations (functional._MANY)."""
    torch._dynamo.reset()
    fused = pair[1]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, fullgraph=True, backend=counter)
    x = torch.randn(images, 4, 8, 8)
    with torch.no_grad():
        for draw, sigma in enumerate((0.1, 0.2, 0.0)):
            with nft.noise(fused, sigma=sigma), nft.chips(fused, seed=draw):
                torch.testing.assert_close(compiled(x), fused(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()
