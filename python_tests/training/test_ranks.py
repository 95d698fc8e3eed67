"""Two ranks under torchrun train one model on common chips, as one process would."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from nft_ext.training.ranks import Ranks
from support.paths import TESTS, importing
from support.training_runs import run

ONE = Ranks(0, 1, torch.device("cpu"))
SGD = {"optimizer": "sgd", "lr": 0.05, "batch_norm": False}
METHODS = ["vanilla", "noise", "ovf", "irs"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What torchrun_runs.py found on rank 0 and on rank 1, and the folder it worked in."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(TESTS / "support" / "torchrun_runs.py"),
        str(folder),
    ]
    done = subprocess.run(command, env=importing(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return *(json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)), folder


def test_shares_are_equal_and_disjoint():
    indices = torch.arange(11)
    assert [Ranks(rank, 3, torch.device("cpu")).share(indices).tolist() for rank in range(3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]
    assert torch.equal(ONE.share(indices), indices)


def test_one_process_sums_nothing():
    layer, loss = nn.Linear(2, 1), torch.tensor(3.0)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad
    ONE.add_gradients(layer, loss)
    ONE.agree_with_first("fit", {"seed": 0})
    assert layer.weight.grad is before and loss == 3.0 and ONE.add(loss) is loss


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "chip_per_rank", "accumulate", "batch norm", "continued"])
def test_ranks_end_with_the_same_bits(ranks, name):
    assert ranks[0][name]["bits"] == ranks[1][name]["bits"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS + ["accumulate"])
def test_ranks_use_the_same_chips(ranks, name):
    assert ranks[0][name]["keys"] == ranks[1][name]["keys"]
    forwards = {"vanilla": 0, "accumulate": 2}.get(name, 1)  # micro-batches per step
    assert len(ranks[0][name]["keys"]) == 18 * forwards
    assert len({str(key) for key in ranks[0][name]["keys"]}) == 18 * forwards  # each draws a chip of its own


@pytest.mark.slow
def test_a_chip_each_on_request(ranks):
    one, other = ([str(key) for key in rank["chip_per_rank"]["keys"]] for rank in ranks[:2])
    assert len(one) == len(other) == 18 and not set(one) & set(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_train_as_one_process_does(ranks, name):
    """Same global batch, same chips, no BatchNorm: only the order of the sums differs.

    A weight near the middle between two codes may round the other way, which moves an output by one step of a weight;
    hence the tolerance of the noisy methods.
    """
    one = run(name, **SGD)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name == "vanilla" else {"rtol": 1e-2, "atol": 2e-3}
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(torch.tensor(ranks[0][name]["weights"][key]), value, **tolerance)
    for row, expected in zip(ranks[0][name]["rows"], one.rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-2)
        assert row["val_clean"] == pytest.approx(expected["val_clean"], abs=1.5 / 48)


@pytest.mark.slow
def test_ranks_share_batches_of_any_structure(ranks):
    for rank in (0, 1):
        one, other = ranks[rank]["task"], ranks[rank]["noise"]
        assert (one["weights"], one["keys"]) == (other["weights"], other["keys"])
        figures = [[(row["train_loss"], row["val_accuracy"]) for row in found["rows"]] for found in (one, other)]
        assert figures[0] == figures[1]
        assert ranks[rank]["loader"].startswith("train: must be a map-style data set under several ranks")


@pytest.mark.slow
def test_a_run_on_two_ranks_continues_bit_for_bit(ranks):
    assert ranks[0]["continued"]["bits"] == ranks[0]["batch norm"]["bits"]


@pytest.mark.slow
def test_only_the_first_rank_writes(ranks):
    folder = ranks[2]
    assert sorted(path.name for path in (folder / "files0").iterdir()) == ["best", "log.csv"]
    assert list((folder / "files1").iterdir()) == []


@pytest.mark.slow
def test_ranks_refuse_what_cannot_be_shared(ranks):
    for rank in (0, 1):
        size, seed, images = ranks[rank]["refused"]
        assert (
            size
            == "batch_size: must be a multiple of the number of ranks, 2, with at least two images per rank; got 15"
        )
        here = ("others on rank 1", "here seed: 0 there, 1 here (there: rank 0)")[rank]
        assert seed == f"fit: must be the same on every rank; got {here}"
        assert images.startswith("train: must hold at least two images per rank, 4; got 3")


@pytest.mark.slow
def test_a_nan_on_one_rank_stops_all(ranks):
    for rank in (0, 1):
        assert ranks[rank]["nan"].startswith("the loss became NaN or infinite in epoch 1")
