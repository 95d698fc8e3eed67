"""noise and chips: explicit control of the noise, undone at the exit."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return nft.convert(net, NVM).eval()


def run(model, sigma=None, enabled=None, draws=0):
    with nft.noise(model, sigma=sigma, enabled=enabled), nft.chips(model, seed=3, draws=draws):
        return model(X)


def in_force(model):
    return [layer.noise_state() for layer in nft.noisy_layers(model).values()]


def assert_in_force(model, states):
    for now, before in zip(in_force(model), states):
        assert all(a is b if isinstance(a, torch.Tensor) else a == b for a, b in zip(now, before))


def in_thread(function):
    """The result of `function` in another thread, or the exception it raised."""
    outcome = []

    def target():
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return outcome[0]


# ---- noise


def test_sigma_is_that_of_a_model_converted_with_it(model):
    stronger = nft.convert(model, NVM.replace(sigma=0.25))
    assert torch.equal(run(model, sigma=0.25), run(stronger))
    assert not torch.equal(run(model), run(stronger))


def test_sigma_scales_the_noise_of_the_same_chip(model):
    layer = model[4]
    deviations = []
    for sigma in (0.1, 0.2):
        with nft.noise(layer, sigma=sigma), nft.chips(layer):
            noisy = layer(torch.eye(64))
        with nft.noise(layer, enabled=False):
            deviations.append(noisy - layer(torch.eye(64)))
    torch.testing.assert_close(2 * deviations[0], deviations[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "device", [NVM, NVM.replace(sampling="per_device"), NVM.replace(mapping="differential")], ids=str
)
def test_sigma_zero_is_the_noise_switched_off(model, device):
    model = nft.convert(model, device)
    torch.testing.assert_close(run(model, sigma=0.0), run(model, enabled=False), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", [{}, {"sampling": "per_device"}, {"clip": (0, 1)}, {"stuck": (0.1, 0.1)}], ids=str)
def test_noise_off_means_quantized_weights_on_every_device(model, change):
    model = nft.convert(model, NVM.replace(**change))
    expected = nft.restore(model)
    with torch.no_grad():
        for index in (0, 4):
            expected[index].weight.copy_(nft.program_weights(model[index].weight, NVM, enabled=False)[0])
    torch.testing.assert_close(run(model, enabled=False), expected(X))


def test_inner_contexts_win_and_outer_ones_come_back(model):
    off, on, strong = run(model, enabled=False), run(model), run(model, sigma=0.3)
    with nft.chips(model, seed=3):
        with nft.noise(model, enabled=False):
            assert torch.equal(model(X), off)
            with nft.noise(model, enabled=True, sigma=0.3):
                assert torch.equal(model(X), strong)
                with nft.noise(model):
                    assert torch.equal(model(X), strong)
            with nft.noise(model, sigma=0.3):  # a sigma does not switch the noise on
                assert torch.equal(model(X), off)
            assert torch.equal(model(X), off)
        assert torch.equal(model(X), on)


def test_a_part_of_the_model_by_itself(model):
    with nft.noise(model[0], enabled=False):
        assert not model[0].noise_enabled and model[4].noise_enabled
    assert model[0].noise_enabled


@pytest.mark.parametrize(
    "context",
    [
        lambda m: nft.noise(m, enabled=False, sigma=0.3),
        lambda m: nft.chips(m, draws=range(4)),
    ],
    ids=["noise", "chips"],
)
def test_an_exception_leaves_everything_as_it_was(model, context):
    before = in_force(model)
    with pytest.raises(ZeroDivisionError):
        with context(model):
            1 / 0
    assert_in_force(model, before)
    assert not model._forward_pre_hooks
    assert model(X).shape == (5, 2)


def test_a_refused_entry_leaves_everything_as_it_was(model):
    before = in_force(model)
    for bad in (lambda: nft.noise(model, sigma=-1.0), lambda: nft.chips(model, draws=[])):
        with pytest.raises(ValueError):
            bad().__enter__()
    assert_in_force(model, before)
    assert isinstance(in_thread(lambda: run(model)), torch.Tensor)


# ---- chips


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_chips_in_one_pass_are_one_pass_a_chip(model, enabled, training):
    model.train(training)
    model[1].eval()
    together = run(model, enabled=enabled, draws=[2, 0, 7])
    apart = [run(model, enabled=enabled, draws=draw) for draw in (2, 0, 7)]
    assert together.shape == (15, 2)
    torch.testing.assert_close(together, torch.cat(apart))
    assert torch.equal(apart[0], apart[1]) == (not enabled)


def test_inputs_are_repeated_once_at_the_entry():
    class Entry(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
            self.seen = None

        def forward(self, x, scalar, flag, *, scale, names):
            self.seen = (x, scalar, flag, scale, names)
            return self.inner(x) * scale

    model = nft.convert(Entry(), NVM)
    x, scale = torch.randn(2, 3), torch.randn(2, 1)
    with nft.chips(model, draws=range(3)):
        y = model(x, torch.tensor(1.0), True, scale=scale, names=["a"])
    seen = model.seen
    assert y.shape == (6, 3)
    assert torch.equal(seen[0], torch.cat([x] * 3)) and torch.equal(seen[3], torch.cat([scale] * 3))
    assert seen[1].shape == () and seen[2] is True and seen[4] == ["a"]


def test_the_result_is_chip_major(model):
    with nft.chips(model, seed=3, draws=range(3)):
        y = model(X).unflatten(0, (3, 5))
    torch.testing.assert_close(y[1], run(model, draws=1))


def test_an_inner_chips_replaces_the_outer(model):
    with nft.chips(model, seed=9, draws=range(4)):
        for draws in ([6], [6, 7]):
            with nft.chips(model, seed=3, draws=draws):
                assert torch.equal(model(X), run(model, draws=draws))
        assert model(X).shape == (20, 2)
    with nft.chips(model, seed=9):
        with nft.chips(model, seed=3, draws=range(2)):
            assert torch.equal(model(X), run(model, draws=range(2)))


def test_a_key_may_be_given_itself(model):
    with nft.chips(model, key=nft.noise_key(3, range(2))):
        assert torch.equal(model(X), run(model, draws=range(2)))


def test_domains_are_disjoint(model):
    outputs = []
    for domain in ("training", "selection", "evaluation"):
        with nft.chips(model, seed=3, domain=domain):
            outputs.append(model(X))
    assert not any(torch.equal(a, b) for a, b in zip(outputs, outputs[1:] + outputs[:1]))


def test_a_layer_by_itself_needs_a_batch_and_whole_chips(model):
    with nft.chips(model[4], draws=range(3), repeat=False):
        with pytest.raises(
            ValueError, match=r"inputs: must be chip-major \[3 \* B, ...\] under chips\(repeat=False\); got \[4, 64\]"
        ):
            model[4](torch.randn(4, 64))
    for part, x in ((model[4], torch.randn(64)), (model[0], torch.randn(3, 6, 6))):
        with nft.chips(part, draws=range(3)), pytest.warns(UserWarning, match="one chip per pass.*must have"):
            y = part(x)
        with nft.chips(part, draws=1):
            assert torch.equal(y.chunk(3)[1], part(x))


# ---- batch normalisation


def test_batch_statistics_over_several_chips_are_refused(model):
    model.train()
    before = copy.deepcopy(model[1].state_dict())
    with nft.chips(model, draws=range(2)):
        with pytest.raises(
            ValueError, match="1: must use its running statistics for 2 chips in one pass.*; got training mode"
        ):
            model(X)
    assert all(torch.equal(v, before[k]) for k, v in model[1].state_dict().items())
    with nft.chips(model):
        assert model(X).shape == (5, 2)


def test_batchnorm_without_running_statistics_is_refused_in_eval_mode_too():
    model = nft.convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), NVM).eval()
    with (
        nft.chips(model, draws=range(2)),
        pytest.raises(ValueError, match="1: must use .*got track_running_stats=False"),
    ):
        model(torch.randn(4, 3))


# ---- threads


def test_two_threads_in_one_models_contexts_are_refused(model):
    with nft.noise(model, enabled=False):
        error = in_thread(lambda: run(model))
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("model: must not be in noise contexts of two threads at once")
        assert isinstance(in_thread(lambda: run(copy.deepcopy(model))), torch.Tensor)
    assert isinstance(in_thread(lambda: run(model)), torch.Tensor)


def test_a_backward_in_autograds_own_thread_replays_inside_the_context(model):
    with nft.chips(model, seed=3):
        loss = checkpoint(model, X, use_reentrant=False, context_fn=nft.checkpoint_contexts(model)).sum()
        assert in_thread(loss.backward) is None
    found = model[0].weight.grad.clone()
    model.zero_grad()
    run(model).sum().backward()
    assert torch.equal(found, model[0].weight.grad)


# ---- chips with inputs of their own


def test_chips_may_see_inputs_of_their_own(model):
    own = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    with nft.chips(model, seed=3, draws=[4, 7], repeat=False):
        together = model(own)
    for place, draw in enumerate([4, 7]):
        with nft.chips(model, seed=3, draws=draw):
            torch.testing.assert_close(together[5 * place : 5 * place + 5], model(own[5 * place : 5 * place + 5]))


def test_the_innermost_context_decides_whether_inputs_are_repeated(model):
    with nft.chips(model, draws=range(2)):
        with nft.chips(model, draws=range(5), repeat=False):
            assert len(model(X)) == 5
        assert len(model(X)) == 10
        with nft.chips(model, draws=range(3)):
            assert len(model(X)) == 15
    with nft.chips(model, draws=range(5), repeat=False), nft.chips(model, draws=range(2)):
        assert len(model(X)) == 10
    assert len(model(X)) == 5 and not [name for name in vars(model) if "inputs" in name]


def test_an_input_that_is_not_chip_major_is_refused(model):
    with nft.chips(model, draws=range(3), repeat=False):
        with pytest.raises(
            ValueError, match=r"^inputs: must be chip-major \[3 \* B, ...\] under chips\(repeat=False\); got \[5,"
        ):
            model(X)
