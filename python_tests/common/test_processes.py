"""Which of several processes this is, without starting any."""

import pytest
import torch

from nft_ext._common import processes
from nft_ext.training import ranks


@pytest.fixture
def environment(monkeypatch):
    for name in (*processes.ADDRESS, "LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_by_itself_is_the_main_one(environment):
    assert (processes.rank(), processes.size(), processes.is_main()) == (0, 1, True)


def test_torchruns_variables(environment):
    environment.setenv("RANK", "3")
    environment.setenv("WORLD_SIZE", "4")
    assert (processes.rank(), processes.size(), processes.is_main()) == (3, 4, False)


def test_a_process_group_is_believed_more_than_the_environment(environment):
    environment.setenv("RANK", "3")
    environment.setattr(processes, "grouped", lambda: True)
    environment.setattr(processes.dist, "get_rank", lambda: 0)
    environment.setattr(processes.dist, "get_world_size", lambda: 2)
    assert (processes.rank(), processes.size(), processes.is_main()) == (0, 2, True)


@pytest.mark.parametrize(
    "variables, gpu",
    [
        ({}, 1),
        ({"LOCAL_RANK": "2"}, 2),
        ({"SLURM_LOCALID": "3"}, 3),
        ({"LOCAL_RANK": "0", "SLURM_LOCALID": "3"}, 0),
        ({"LOCAL_RANK": "6"}, 2),
    ],
)
def test_each_process_of_a_machine_has_a_gpu(environment, variables, gpu):
    environment.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in variables.items():
        environment.setenv(name, value)
    assert processes.own_gpu(5) == torch.device("cuda", gpu)


def test_training_and_evaluation_choose_the_same_gpu(environment):
    environment.setattr(torch.cuda, "device_count", lambda: 4)
    environment.setattr(torch.cuda, "current_device", lambda: 1)
    assert ranks.place(torch.device("cuda")) == torch.device("cuda", 1)
    assert ranks.place(torch.device("cpu")) == torch.device("cpu") and ranks.place(torch.device("cuda", 3)).index == 3
    environment.setenv("WORLD_SIZE", "8")
    environment.setenv("RANK", "6")
    environment.setenv("SLURM_LOCALID", "2")
    assert ranks.place(torch.device("cuda")) == torch.device("cuda", 2)


def test_training_refuses_an_address_that_is_not_whole(environment):
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match="^WORLD_SIZE: needs RANK, .* or be unset to train .*; got no RANK, MASTER_ADDR, MASTER_PORT"
    ):
        ranks.joined(torch.device("cpu"))
