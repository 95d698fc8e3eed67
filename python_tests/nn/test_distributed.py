"""Noisy models under torch's data parallelism, on two processes: every rank runs the chips that it asks for."""

import json
import subprocess
import sys

import pytest

from support.paths import TESTS, importing

pytestmark = pytest.mark.slow  # two processes import torch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What distributed_runs.py found on rank 0 and on rank 1."""
    folder = tmp_path_factory.mktemp("distributed")
    program = str(TESTS / "support" / "distributed_runs.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, folder]
    done = subprocess.run(command, env=importing(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["ddp", "ddp_training", "fsdp2", "fsdp2_method"])
def test_every_rank_computes_on_its_own_chips_as_a_single_process_does(ranks, case):
    assert [rank[case] for rank in ranks] == [True, True]


def test_fsdp2_weights_that_are_not_gathered_are_refused(ranks):
    for rank in ranks:
        for message in rank["fsdp2_outside_its_forward"]:
            assert message.startswith("0.weight: must be a whole tensor: gather it first")


@pytest.mark.parametrize(
    "original, message",
    [
        ("False", "weight: must be in memory (FSDP frees weights outside its forward)"),
        ("True", "0.weight: must have a matrix's shape: gather sharded weights first"),
    ],
)
def test_fsdp1_computes_in_its_forward_and_is_refused_outside(ranks, original, message):
    for rank in ranks:
        same, refused = rank["fsdp1"][original]
        assert same and message in refused
