"""Contexts left in any order restore the right state, and no thread sees the chips of another's contexts."""

import itertools
import threading

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.nn.contexts import shared_codes

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nft.convert(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), NVM).eval()


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


def facts(model):
    """What a forward would compute with."""
    states = [layer.noise_state() for layer in nft.noisy_layers(model).values()]
    return [
        (table.tolist(), None if key is None else key.tolist(), enabled, list(spec))
        for table, key, _, enabled, spec, _ in states
    ]


# ---- orders

CONTEXTS = {
    "sigma": lambda m: nft.noise(m, sigma=0.3),
    "off": lambda m: nft.noise(m, enabled=False),
    "chip": lambda m: nft.chips(m, seed=3, draws=5, programmed=True),
    "chips": lambda m: nft.chips(m, seed=4, draws=range(2)),
    "part": lambda m: nft.noise(m[0], sigma=0.2),
    "chip of a part": lambda m: nft.chips(m[2], seed=6),
    "codes": shared_codes,
}


def entered(model, names):
    contexts = [CONTEXTS[name](model) for name in names]
    for context in contexts:
        context.__enter__()
    return contexts


@pytest.mark.parametrize("leaving", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("names", list(itertools.permutations(CONTEXTS, 3))[::11], ids="-".join)
def test_contexts_may_be_left_in_any_order(model, names, leaving):
    before, hooks = facts(model), (dict(model._forward_pre_hooks), dict(model._forward_hooks))
    contexts = entered(model, names)
    for count, place in enumerate(leaving):
        contexts[place].__exit__(None, None, None)
        rest = [name for i, name in enumerate(names) if i not in leaving[: count + 1]]
        found = facts(model)
        with torch.no_grad():
            result = model(X) if {"chip", "chips"} & set(rest) else None
        expected = entered(twin := nft.convert(nft.restore(model), NVM).eval(), rest)
        assert found == facts(twin)
        if result is not None:
            with torch.no_grad():
                torch.testing.assert_close(result, twin(X))
        for context in reversed(expected):
            context.__exit__(None, None, None)
    assert facts(model) == before
    assert (dict(model._forward_pre_hooks), dict(model._forward_hooks)) == hooks
    assert isinstance(in_thread(lambda: model(X)), torch.Tensor), "nobody is inside"


def test_a_generator_that_is_left_later(model):
    def inside():
        with nft.chips(model, seed=3, draws=range(2)):
            while True:
                yield model(X)

    with torch.no_grad():
        running = inside()
        with nft.chips(model, seed=5):
            expected = model(X)
            next(running)
            assert len(model(X)) == 8, "the generator's context is the innermost"
        assert len(next(running)) == 8
        with nft.chips(model, seed=5):
            running.close()
            assert torch.equal(model(X), expected)
    assert facts(model) == facts(nft.convert(nft.restore(model), NVM))


def test_weights_held_for_another_sigma_are_not_used(model):
    with torch.no_grad():
        with nft.chips(model, seed=3):
            expected = model(X)
        outer, inner = entered(model, ["sigma", "chip"])
        outer.__exit__(None, None, None)
        with nft.chips(model, seed=3, draws=5):
            expected = model(X)
        torch.testing.assert_close(model(X), expected)
        inner.__exit__(None, None, None)


def test_a_model_moved_inside_stays_whole(model):
    with nft.chips(model, seed=3), nft.noise(model, sigma=0.3):
        model.to("meta")
    model = model.to_empty(device="cpu")
    assert {layer.noise_state()[0].device.type for layer in nft.noisy_layers(model).values()} == {"cpu"}


# ---- threads


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_forward_in_another_thread_is_refused(model, name):
    with torch.no_grad():
        with CONTEXTS[name](model):
            error = in_thread(lambda: model(X))
            assert isinstance(error, RuntimeError)
            assert "must not run in one thread while another is in its noise contexts" in str(error)
            assert model(X).shape[1] == 3
        assert isinstance(in_thread(lambda: model(X)), torch.Tensor)


def test_a_fused_model_in_another_thread_is_refused(model):
    fused = nft.fuse(model)
    with torch.no_grad():
        fused(X), fused(X)  # the second call skips checks of shapes
        with nft.noise(fused, sigma=0.3):
            error = in_thread(lambda: fused(X))
    assert isinstance(error, RuntimeError) and "must not run in one thread" in str(error)


def test_a_compiled_model_on_several_chips_in_another_thread_is_refused(model):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), nft.chips(model, draws=range(2)):
        expected = compiled(X)
        error = in_thread(lambda: compiled(X))
        assert isinstance(error, RuntimeError) and "must not run in one thread" in str(error)
        assert torch.equal(compiled(X), expected)
    torch._dynamo.reset()


def test_contexts_of_a_part_in_another_thread_are_refused(model):
    def enter(part):
        with nft.noise(part, enabled=False):
            return part

    with nft.chips(model):
        assert str(in_thread(lambda: enter(model[0]))).startswith("model: must not be in noise contexts of two threads")
    with nft.chips(model[0]):
        assert isinstance(in_thread(lambda: enter(model)), RuntimeError)
        assert in_thread(lambda: enter(model[2])) is model[2]


def test_replicas_of_data_parallel_keep_the_chips_in_their_threads(model):
    layer, x = model[0], X
    with torch.no_grad(), nft.chips(model, seed=3):
        replica = layer._replicate_for_data_parallel()
        replica.weight, replica.bias = layer.weight, layer.bias
        assert torch.equal(in_thread(lambda: replica(x)), layer(x))


def test_a_replica_of_the_model_itself_is_refused_on_several_chips(model):
    """It would see a part of the batch, and the results of the torch devices would follow one another."""
    with nft.chips(model, draws=range(2)):
        replica = model._replicate_for_data_parallel()
        error = in_thread(lambda: replica(X))
    assert isinstance(error, ValueError) and "must be the DataParallel itself for 2 chips" in str(error)
