"""Networks under nft.int8 and monte_carlo(precision="int8"): the layers' products are the operators', everything else is as ever, and on
real digits the mean over chips lies within float32's interval."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import nft_ext as nft
from nft_ext import data
from nft_ext.methods.injected import injecting, with_injection

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Strides, groups, dilation, all kinds of padding, a residual, a linear layer on [B, 4, in]."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.c = nn.Conv2d(8, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.d = nn.Linear(16, 5, bias=False)
        self.e = nn.Linear(20, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.b(x) + x[..., ::2, ::2])
        return self.e(self.d(self.c(x).flatten(2)).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(64, 3, 8, 8))  # moves the batch statistics off their start
    return nft.convert(net, NVM).eval().requires_grad_(False)


def run(model, x=X, draws=range(3), **options):
    with nft.chips(model, seed=3, draws=draws, **options):
        return model(x)


def under_int8(model, *arguments, **options):
    with nft.int8(model):
        return run(model, *arguments, **options)


def test_a_layer_computes_what_the_operator_does():
    conv = nft.NoisyConv2d(3, 8, 3, padding=1, stride=2, nvm=NVM).requires_grad_(False)
    linear = nft.NoisyLinear(8, 4, nvm=NVM).requires_grad_(False)
    key, rows = nft.noise_key(3, range(3)), torch.randn(5, 8)
    for layer, x, operator, how in ((conv, X, nft.noisy_conv2d, (2, 1)), (linear, rows, nft.noisy_linear, ())):
        nft.noisy_layers(layer)
        found = under_int8(layer, x)
        assert torch.equal(found, operator(x, layer.weight, layer.bias, *how, nvm=NVM, key=key, stream=layer.stream, int8=True))
        assert not torch.equal(found, run(layer, x))


def test_it_holds_inside_only_and_may_be_switched_off_inside(model):
    plain, rounded = run(model), under_int8(model)
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(rounded, plain, rtol=0, atol=0.05 * float(plain.abs().max()))
    with nft.int8(model):
        with nft.int8(model, enabled=False):
            assert torch.equal(run(model), plain)
        assert torch.equal(run(model), rounded)
        twin = copy.deepcopy(model)  # a copy keeps what is in force
    assert torch.equal(run(model), plain) and torch.equal(run(twin), rounded)
    with pytest.raises(ValueError, match="enabled: must be True or False; got 1"), nft.int8(model, 1):
        pass
    with pytest.raises(ValueError, match="model: must hold noisy layers"), nft.int8(nn.Linear(2, 2)):
        pass


def test_a_whole_model_pickled_before_there_was_int8_is_one_without(model):
    expected = run(model)
    for layer in nft.noisy_layers(model).values():
        del layer.__dict__["int8"]
    assert torch.equal(run(model), expected)


def test_neither_the_batch_nor_the_number_of_chips_changes_a_bit(model):
    together = under_int8(model).unflatten(0, (3, 5))
    assert torch.equal(together[1, 2:4], under_int8(model, X[2:4], draws=[1]))


def test_noise_off_and_another_sigma_hold_under_int8(model):
    for options in (dict(enabled=False), dict(sigma=0.3)):
        with nft.noise(model, **options):
            inside = under_int8(model)
            torch.testing.assert_close(inside, run(model), rtol=0, atol=0.05 * float(inside.abs().max()))
        assert not torch.equal(inside, under_int8(model))


def test_weights_programmed_at_the_entry_play_no_part(model):
    expected = under_int8(model)
    assert torch.equal(under_int8(model, programmed=True), expected)
    with nft.chips(model, seed=3, draws=range(3), programmed=True), nft.int8(model):
        assert torch.equal(model(X), expected)


def test_a_fused_model_does_what_follows_in_the_products(model):
    fused = nft.fuse(model)
    expected = under_int8(model)
    for _ in range(2):  # the second time by what the first one has checked
        torch.testing.assert_close(under_int8(fused), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
        torch.testing.assert_close(run(fused), run(model), rtol=1e-4, atol=1e-4)
    layer, x = fused.a, X
    y = under_int8(layer, x)
    plain = nft.noisy_conv2d(x, layer.weight, layer.bias, padding="same", nvm=NVM, key=nft.noise_key(3, range(3)), stream=layer.stream,
                             int8=True, scale=layer.scale, shift=layer.shift, relu=True)
    assert torch.equal(y, plain)


def test_a_compiled_model_gives_the_same_bits_with_one_graph_for_all_keys_and_sigmas(model):
    """One more outside of int8; going in and out makes no others."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for graphs, on in ((1, False), (2, True), (2, False), (2, True)):
            for seed, sigma in ((3, None), (4, None), (5, 0.2)):
                with nft.int8(model, on), nft.noise(model, sigma=sigma), nft.chips(model, seed=seed, draws=[1]):
                    y = compiled(X)
                    assert torch.equal(y, model(X)) if on else torch.allclose(y, model(X), rtol=1e-4, atol=1e-4)
            assert backend.frame_count == graphs


def test_autocast_casts_x_and_the_result(model):
    with torch.autocast("cpu", torch.bfloat16):
        assert under_int8(model.a).dtype == torch.bfloat16
        assert torch.equal(under_int8(model.a), under_int8(model.a, X.bfloat16()))


def test_training_is_refused():
    model = nft.convert(Net(), NVM).eval()
    with nft.int8(model):
        with pytest.raises(RuntimeError, match="must not require a gradient, the int8 operators have none"):
            model(X)
        with torch.no_grad():
            assert model(X).shape == (5, 3)


def test_a_method_that_injects_noise_of_its_own_is_refused():
    model = with_injection(nft.convert(Net(), NVM), lambda z: 0.1 * z)
    with nft.int8(model), injecting(model), pytest.raises(RuntimeError, match="int8: must be off where a method injects noise of its own"):
        model(X)


def test_a_plain_copy_keeps_nothing_of_it(model):
    with nft.int8(model):
        plain = nft.restore(model)
    assert not hasattr(plain.a, "int8")


# ---- Monte Carlo


@pytest.fixture(scope="module")
def trained():
    """(a small network trained on real digits with noise, its test images)"""
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    train, test = data.load("digits")
    torch.manual_seed(0)
    layers = []
    for channels, out in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    history = nft.fit(net, nft.methods.NoiseInjection(sigma=0.2), train, test, epochs=4, batch_size=32, lr=3e-3, validation_chips=1,
                      progress=False)
    return history.model, test


def evaluate(trained, sigma=0.2, runs=64, **options):
    model, test = trained
    return nft.monte_carlo(nft.convert(model, nft.NVMDevice(sigma=sigma)), test, runs=runs, seed=3, progress=False, **options)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.3])
def test_the_mean_lies_within_float32s_interval_on_the_same_chips(trained, sigma):
    """For accuracy and EKL; the chips are the same, so that their spread drops out of the difference."""
    exact, rounded = (evaluate(trained, sigma, precision=precision) for precision in ("float32", "int8"))
    assert rounded.precision == "int8" and "int8 on" in str(rounded) and rounded.nvm == exact.nvm
    assert exact.accuracy.mean > 0.75
    for metric in ("accuracy", "ekl"):
        difference = getattr(rounded, metric).per_run - getattr(exact, metric).per_run
        assert difference.any(), "the products differ"
        assert abs(difference.mean()) <= getattr(exact, metric).ci95


def test_no_chip_depends_on_how_it_was_batched(trained):
    whole, parts = (evaluate(trained, runs=6, precision="int8", metrics=("accuracy", "ekl", "nll"), **how)
                    for how in (dict(chips_per_pass=1, batch_size=360), dict(chips_per_pass=4, batch_size=37)))
    assert whole.chips_per_pass == 1 and parts.chips_per_pass == 4
    assert whole.accuracy.per_run.tolist() == parts.accuracy.per_run.tolist()
    assert whole.nll.per_run == pytest.approx(parts.nll.per_run, rel=1e-12)


def test_it_serves_slices_and_fused_networks_too(trained):
    stratified = evaluate(trained, runs=64, precision="int8", protocol="stratified", slice_images=36)
    exact = evaluate(trained, runs=32)
    assert abs(stratified.accuracy.mean - exact.accuracy.mean) <= 2 * stratified.accuracy.ci95
    model, test = trained
    fused = nft.fuse(nft.convert(model, nft.NVMDevice(sigma=0.2)))
    found = nft.monte_carlo(fused, test, runs=32, seed=3, progress=False, precision="int8")
    assert abs(found.accuracy.mean - exact.accuracy.mean) <= exact.accuracy.ci95


def test_the_model_is_afterwards_as_it_was(trained):
    model = nft.convert(trained[0], NVM)
    nft.monte_carlo(model, trained[1], runs=2, precision="int8", progress=False)
    assert not any(layer.int8 for layer in nft.noisy_layers(model).values())


def test_a_report_must_be_able_to_name_the_precision(trained):
    model = nft.convert(trained[0], NVM)
    with nft.int8(model), pytest.raises(ValueError, match="precision: must be given as an argument, not by nft.int8 around the call"):
        nft.monte_carlo(model, trained[1], runs=2, progress=False)
