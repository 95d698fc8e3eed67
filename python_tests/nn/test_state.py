"""The state of noisy layers is no part of what torch moves between models and processes: parameters and buffers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


def net():
    return nft.convert(plain_net(), NVM)


def on_chip(model, draw=0, **options):
    with torch.no_grad(), nft.chips(model, seed=5, draws=[draw], **options):
        return model(X)


def test_a_noisy_model_has_the_buffers_and_parameters_of_the_plain_one():
    plain, noisy = plain_net(), net()
    with nft.chips(noisy), nft.noise(noisy, sigma=0.3):
        assert [name for name, _ in noisy.named_buffers()] == [name for name, _ in plain.named_buffers()]
        assert list(noisy.state_dict()) == list(plain.state_dict())


def test_writing_to_every_buffer_changes_no_chip():
    """As in-place code over buffers does: averages, broadcasts, conversions to another type."""
    model, other = net(), net()
    model[1], other[1] = nn.Identity(), nn.Identity()
    expected = on_chip(other)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
    assert torch.equal(on_chip(model), expected)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_models_keeps_its_device_model(use_buffers):
    model = net()
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=use_buffers)
    with nft.chips(model, draws=[7]), nft.noise(model, sigma=0.4):
        average.update_parameters(model)
        average.update_parameters(model)
    torch.testing.assert_close(on_chip(average.module), on_chip(model))  # averaging equal weights rounds them


def test_models_share_no_table():
    """Even where one model's table is overwritten by hand."""
    first, second = net(), net()
    expected = on_chip(second)
    tables = [layer.noise_state()[0] for model in (first, second) for layer in nft.noisy_layers(model).values()]
    assert len({table.data_ptr() for table in tables}) == len(tables)
    with nft.noise(first, sigma=0.1):
        for layer in nft.noisy_layers(first).values():
            layer.noise_state()[0].zero_()
    tables[0].zero_()
    assert torch.equal(on_chip(second), expected)
    assert torch.equal(on_chip(net()), expected)


def test_a_copy_made_inside_contexts_has_its_own_state():
    model = net()
    with nft.chips(model, seed=5, draws=[2]):
        twin = copy.deepcopy(model)
        restored = pickle.loads(pickle.dumps(model))
    for other in (twin, restored):
        with torch.no_grad():
            assert torch.equal(other(X), on_chip(model, 2)), "it stays on the chip of the context"
        nft.noisy_layers(other)["0"].noise_state()[0].zero_()
    assert torch.equal(on_chip(model), on_chip(net()))


def test_moves_keep_the_table_in_float32():
    model = net()
    expected = on_chip(model)
    back = net().to(torch.bfloat16)
    assert {layer.noise_state()[0].dtype for layer in nft.noisy_layers(back).values()} == {torch.float32}
    back.float().load_state_dict(model.state_dict())
    assert torch.equal(on_chip(back), expected)


def test_functional_call_computes_with_the_given_weights():
    model, other = net(), net()
    with torch.no_grad():
        nft.noisy_layers(other)["0"].weight.mul_(0.5)
        with nft.chips(model, seed=5, draws=[0]):
            found = torch.func.functional_call(model, dict(other.named_parameters()), (X,))
    assert torch.equal(found, on_chip(other)) and not torch.equal(found, on_chip(model))


@pytest.mark.parametrize("gradients", [False, True])
def test_stacked_models_compute_as_each_by_itself(gradients):
    models = [net(), net()]
    nft.noisy_layers(models[1])["0"].weight.data.mul_(0.5)
    parameters, buffers = torch.func.stack_module_state(models)

    def call(*state):
        return torch.func.functional_call(models[0], state, (X,))

    with torch.set_grad_enabled(gradients), nft.chips(models[0], seed=5, draws=[0]):
        found = torch.func.vmap(call)(parameters, buffers)
    for one, model in zip(found, models, strict=True):
        assert torch.equal(one, on_chip(model))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_model_reads_its_weights_in_every_call():
    model = net()
    with torch.no_grad(), nft.chips(model, seed=5, draws=[0]):
        traced = torch.jit.trace(model, X)
    with torch.no_grad():
        for write in (lambda w: w.mul_(2.0), lambda w: w.data.mul_(0.25), lambda w: w.numpy().fill(0.5)):
            write(nft.noisy_layers(model)["0"].weight.detach())
            assert torch.equal(traced(X), on_chip(model)), "on the chip of the trace"
    with pytest.raises(ValueError, match="model: must hold noisy layers"), nft.chips(traced):
        pass


@pytest.mark.parametrize("call", [on_chip, lambda model: on_chip(model, programmed=True)])
def test_a_weight_whose_memory_was_taken_back_is_refused(call):
    """As FSDP does between forwards."""
    model = net()
    nft.noisy_layers(model)["3"].weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="weight: must be in memory"):
        call(model)
