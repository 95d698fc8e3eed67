"""torch.compile(fullgraph=True): the compiled model equals the eager one, and keys and sigmas cost no new graph."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.Tanh(),
        nn.Linear(8, 5),
    ).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def compiled_net():
    """(eager model, the same model compiled, the count of graphs)."""
    net = nft.convert(plain_net(), NVM)
    counter = CompileCounterWithBackend("aot_eager")
    return net, torch.compile(net, fullgraph=True, backend=counter), counter


LAYERS = {
    "linear": lambda: (nft.NoisyLinear(6, 3, nvm=NVM), torch.randn(4, 5, 6)),
    "linear without bias": lambda: (nft.NoisyLinear(6, 3, bias=False, nvm=NVM), torch.randn(6)),
    "linear per device": lambda: (nft.NoisyLinear(6, 3, nvm=NVM.replace(sampling="per_device")), torch.randn(4, 6)),
    "conv": lambda: (
        nft.NoisyConv2d(4, 6, 3, stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2, nvm=NVM),
        torch.randn(2, 4, 7, 8),
    ),
    "conv same": lambda: (nft.NoisyConv2d(4, 6, (2, 3), padding="same", nvm=NVM), torch.randn(2, 4, 7, 8)),
    "conv reflect": lambda: (
        nft.NoisyConv2d(4, 6, 3, padding=1, padding_mode="reflect", nvm=NVM),
        torch.randn(2, 4, 7, 8),
    ),
    "conv unbatched": lambda: (nft.NoisyConv2d(4, 6, 3, nvm=NVM), torch.randn(4, 7, 8)),
    "conv channels_last": lambda: (
        nft.NoisyConv2d(4, 6, 3, nvm=NVM),
        torch.randn(2, 4, 7, 8).contiguous(memory_format=torch.channels_last),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_equals_the_eager_one(name):
    """Under the same torch seed they draw the same noise; outputs and gradients are equal."""
    layer, x = LAYERS[name]()
    results = []
    for run in (layer, torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, *[p.grad for p in run.parameters()]])
        assert results[-1][0].stride() == results[0][0].stride()
    for eager, compiled in zip(*results):
        assert torch.equal(eager, compiled)


@pytest.mark.slow
def test_inductor_equals_eager():
    """A net of few operations: compiling them takes most of the time."""
    torch.manual_seed(0)
    net = nft.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), NVM)
    compiled, grads = torch.compile(net, fullgraph=True), []
    for run in (net, compiled):
        torch.manual_seed(3)
        net.zero_grad()
        run(X).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for eager, fast in zip(*grads):
        torch.testing.assert_close(eager, fast)


def test_seed_reproduces_the_same_noise_eager_and_compiled():
    """draw_key: both read torch's generator in the same order and leave it in the same state."""
    net, compiled, counter = compiled_net()
    seen = []
    for seed in range(3):
        states = []
        for run in (net, compiled):
            torch.manual_seed(seed)
            seen.append(run(X))
            states.append(torch.get_rng_state())
        assert torch.equal(seen[-2], seen[-1])
        assert torch.equal(*states)
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(compiled(X), compiled(X))
    assert counter.frame_count == 1


def test_keys_and_sigmas_need_no_new_graph():
    net, compiled, counter = compiled_net()
    outputs = []
    for draw, sigma in enumerate((0.1, 0.2, 0.0, 0.35)):
        with nft.noise(net, sigma=sigma), nft.chips(net, seed=draw, draws=range(3 * draw, 3 * draw + 3)):
            outputs.append(compiled(X))
            assert torch.equal(outputs[-1], net(X))
    assert outputs[0].shape == (6, 5)
    assert counter.frame_count == 1


def test_many_images_are_convolved_by_torch_inside_the_graph():
    """Without gradients, beyond functional._MANY elements of x: the graph then holds aten's convolution on the
    programmed weight, with the noise that eager mode draws; keys still need no new graph, and several chips keep the
    operator.
    """
    torch.manual_seed(0)
    layer = nft.NoisyConv2d(8, 6, 3, stride=2, padding=1, nvm=NVM).eval()
    x, seen = torch.randn(20, 8, 32, 32), []

    def backend(graph, _):
        seen.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        for seed in (3, 4):
            results = []
            for run in (layer, compiled):
                torch.manual_seed(seed)
                results.append(run(x))
            torch.testing.assert_close(*results)
        assert len(seen) == 1 and any("program" in name for name in seen[0])
        assert not any("noisy_conv2d" in name for name in seen[0]) and any("conv2d" in name for name in seen[0])
        with nft.chips(layer, draws=range(2)):
            torch.testing.assert_close(compiled(x), layer(x))
        assert any("noisy_conv2d" in name for name in seen[-1])


def test_training_steps_over_sigmas_need_no_new_graph():
    """As OVF trains: forwards at several sigmas, one backward."""
    net, compiled, counter = compiled_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        total = compiled(X)
        for sigma in (0.15, 0.2):
            with nft.noise(net, sigma=sigma):
                total = total + compiled(X)
        total.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count == 1


def test_switching_the_noise_and_the_chips_needs_one_graph_each():
    net, compiled, counter = compiled_net()
    with torch.no_grad():
        for _ in range(2):
            torch.manual_seed(0)
            noisy = compiled(X)
            with nft.noise(net, enabled=False):
                quantized = compiled(X)
                assert torch.equal(quantized, net(X))
            with nft.chips(net, draws=range(3)):
                chips = compiled(X)
                assert torch.equal(chips, net(X))
            torch.manual_seed(0)
            assert torch.equal(noisy, net(X))
            assert not torch.equal(noisy, quantized)
            assert chips.shape == (6, 5)
    assert counter.frame_count == 3


def test_the_innermost_context_decides_in_compiled_models_too():
    net, compiled, _ = compiled_net()
    with torch.no_grad(), nft.chips(net, seed=9, draws=range(2)):
        for draws in (range(3), [4]):
            with nft.chips(net, seed=4, draws=draws):
                assert torch.equal(compiled(X), net(X))
        assert torch.equal(compiled(X), net(X))


def test_contexts_take_the_compiled_model_itself():
    net, compiled, _ = compiled_net()
    with nft.chips(compiled, seed=4, draws=range(2)):
        found = compiled(X)
    with nft.chips(net, seed=4, draws=range(2)):
        assert torch.equal(found, net(X))


def test_one_graph_serves_all_batch_sizes():
    net = nft.convert(plain_net(), NVM)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad(), nft.chips(net, draws=range(3)):
        compiled(torch.randn(4, 3, 8, 8))
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch in (7, 12):
                x = torch.randn(batch, 3, 8, 8)
                assert torch.equal(compiled(x), net(x))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_the_functions_compile():
    weight, key = torch.randn(4, 6), nft.noise_key(0, range(2))

    def function(x, weight, key):
        return nft.noisy_linear(x, weight, nvm=NVM, key=key) + nft.program_weights(weight, NVM, key=key).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 6)
    assert torch.equal(compiled(x, weight, key), function(x, weight, key))


def test_export_keeps_the_noisy_operators():
    layer = nft.NoisyLinear(6, 3, nvm=NVM)
    program = torch.export.export(layer, (torch.randn(2, 6),))
    names = {str(node.target) for node in program.graph.nodes}
    assert {"nft_ext.draw_key.default", "nft_ext.noisy_linear.default"} <= names
