"""Qualified names: known wrappers are no part of them, so a wrapped network has the chips of the bare one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import nft_ext as nft
from nft_ext.nn.names import named, select
from nft_ext.nn.noise_free import noise_free_layers
from nft_ext.ops.keys import stream_of

NVM = nft.NVMDevice(sigma=0.2)
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "checkpoint_wrapper": checkpoint_wrapper,
    "two": lambda model: nn.DataParallel(AveragedModel(model)),
    "temperature": lambda model: nft.metrics.tempered(model, 2.0),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 4))).eval()


def streams(model):
    return {name: layer.stream for name, layer in nft.noisy_layers(model).items()}


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_has_the_chips_of_the_bare_one(wrap):
    bare = nft.convert(network(), NVM)
    with nft.chips(bare, draws=[3]):
        y = bare(X)
    for noisy in (nft.convert(wrap(network()), NVM), wrap(nft.convert(network(), NVM))):
        assert streams(noisy) == {"0": stream_of("0"), "1.1": stream_of("1.1")}
        with nft.chips(noisy, draws=[3]):
            assert torch.allclose(noisy.eval()(X), y / 2 if wrap is WRAPPERS["temperature"] else y)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_layers_built_by_hand_have_the_same_names_under_a_wrapper(wrap):
    model = nn.Sequential(nft.NoisyLinear(6, 6, nvm=NVM), nft.NoisyLinear(6, 4, nvm=NVM))
    before = streams(model)
    assert streams(wrap(model)) == before == {"0": stream_of("0"), "1": stream_of("1")}


def test_networks_in_distributed_wrappers_have_the_same_chips(one_process):
    expected = streams(nft.convert(network(), NVM))
    assert streams(nft.convert(DistributedDataParallel(network()), NVM)) == expected
    assert streams(DistributedDataParallel(nft.convert(network(), NVM))) == expected
    sharded = FullyShardedDataParallel(nft.convert(network(), NVM), device_id=torch.device("cpu"))
    assert streams(sharded) == expected


def test_a_users_own_attribute_called_module_is_part_of_the_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

        def forward(self, x):
            return self.module(x)

    assert list(nft.noisy_layers(nft.convert(Own(), NVM))) == ["module.0", "module.1.1"]
    assert list(nft.noisy_layers(nft.convert(nn.DataParallel(Own()), NVM))) == ["module.0", "module.1.1"]


def test_names_are_torchs_names_where_nothing_is_wrapped():
    model = nn.ModuleDict({"a": network(), "b": nn.Identity()})
    model["again"] = model["a"]
    assert [(path, module) for _, path, module in named(model)] == list(model.named_modules())
    assert all(name == path for name, path, _ in named(model))


def test_layers_that_stay_noise_free_have_the_same_names():
    model = nn.Sequential(nn.LSTM(6, 6), nn.Linear(6, 4))
    assert list(noise_free_layers(nn.DataParallel(model))) == ["0", "1"]


def test_two_layers_of_one_name_get_two():
    class Odd(nn.DataParallel):
        def __init__(self, module):
            super().__init__(module)
            self.add_module("0", nn.Linear(6, 6))

    found = select(Odd(network()), lambda module: isinstance(module, nn.Linear))
    assert {name: path for name, (path, _) in found.items()} == {"0": "module.0", "1.1": "module.1.1", "0'": "0"}


def test_patterns_match_names_with_and_without_wrappers():
    model = nn.DataParallel(network())
    for pattern in ("1", "module.1", "1.1", "module.1.*"):
        assert list(nft.noisy_layers(nft.convert(model, NVM, include=pattern))) == ["1.1"]


def test_restore_and_program_keep_the_wrapper():
    compiled = nft.convert(torch.compile(network(), backend="eager"), NVM)
    assert torch.equal(nft.restore(compiled)(X), network()(X))
    chip = nft.program(compiled, draw=2)
    assert type(chip) is type(compiled)
    assert torch.equal(chip(X), nft.program(nft.convert(network(), NVM), draw=2)(X))


def test_a_compiled_layer_is_noisy():
    noisy = nft.convert(torch.compile(nn.Linear(6, 4), backend="eager"), NVM)
    assert not torch.equal(noisy(X), noisy(X))
    plain = nft.restore(noisy)
    assert torch.equal(plain(X), plain(X))


def test_a_copy_of_a_compiled_layer_reads_its_own_weights():
    layer = nft.NoisyLinear(6, 4, bias=False, nvm=NVM)
    layer.compile(backend="eager")
    layer(X)
    copy = nft.convert(layer, NVM)
    with torch.no_grad():
        copy.weight.zero_()
    assert not copy(X).any() and layer(X).any()
