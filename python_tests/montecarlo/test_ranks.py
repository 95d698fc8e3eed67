"""Ranks share an evaluation through a store: dealt as they ask, dealt again where one dies, the same report on all."""

import threading
import time

import pytest
import torch

from nft_ext._common import processes
from nft_ext.montecarlo.distributed import ranks
from nft_ext.montecarlo.distributed import team as team_module
from nft_ext.montecarlo.distributed.rows import Row
from nft_ext.montecarlo.distributed.team import Team
from nft_ext.montecarlo.distributed.work_queue import deal, share
from nft_ext.montecarlo.execution.node_data import NodeData

TIMEOUT = 1.0


def together(size, work, timeout=TIMEOUT):
    """work(team) on `size` ranks, each a thread; their results, or the exceptions they raised."""
    store = torch.distributed.HashStore()
    found = [None] * size

    def run(rank):
        team = Team(store, rank, size, timeout)
        team.begin()
        try:
            found[rank] = work(team)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank hangs"
    return found


def rows(start):
    return [Row(start + i, {"correct": start + i / 7}, 0.0) for i in range(2)]


def collect(team, compute, starts=range(0, 40, 2)):
    """What `Session.rows` does with the ranks: all rows on all of them."""
    arrived = {}
    interrupted = False
    try:
        for part in deal(team, "call", list(starts), compute):
            arrived |= {row.draw: row for row in part}
    except KeyboardInterrupt:
        interrupted = True
    return share(team, "call", [arrived[draw] for draw in sorted(arrived)], interrupted)


# ---- dealing


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_pass_is_run_once_and_all_ranks_have_all_rows(size):
    done = []
    found = together(size, lambda team: collect(team, lambda start: done.append(start) or rows(start)))
    assert sorted(done) == list(range(0, 40, 2))
    expected = [row for start in range(0, 40, 2) for row in rows(start)]
    assert found == [(expected, False)] * size


def test_a_slow_rank_gets_fewer_passes():
    done = {0: 0, 1: 0}

    def work(team):
        def compute(start):
            done[team.rank] += 1
            time.sleep(0.01 if team.rank == 0 else 0.2)
            return rows(start)

        return collect(team, compute)

    together(2, work)
    assert done[0] + done[1] == 20 and done[1] <= 6


def test_the_passes_of_a_rank_that_dies_are_dealt_again(monkeypatch):
    """Rank 1 sends one pass, takes another and falls silent."""
    silent = threading.Event()
    beat = Team._beat
    monkeypatch.setattr(Team, "_beat", lambda self: self.rank == 1 or beat(self))

    def work(team):
        if team.rank == 1:
            team._store.set("beat/1", "0")
        calls = []

        def compute(start):
            calls.append(start)
            if team.rank == 1 and len(calls) == 2:
                silent.set()
                raise SystemExit
            if team.rank != 1:  # on a busy machine they would be done before rank 1 takes its second pass
                silent.wait(10)
            return rows(start)

        return collect(team, compute)

    found = together(3, work)
    assert isinstance(found[1], SystemExit)
    expected = [row for start in range(0, 40, 2) for row in rows(start)]
    assert found[0] == found[2] == (expected, False)


def test_an_interrupt_of_any_rank_ends_all_with_what_is_finished():
    for which in (0, 1):

        def work(team, which=which):
            calls = []

            def compute(start):
                calls.append(start)
                if team.rank == which and len(calls) == 3:
                    raise KeyboardInterrupt
                time.sleep(0.02)
                return rows(start)

            return collect(team, compute)

        found = together(2, work)
        assert found[0] == found[1] and found[0][1] is True and 2 <= len(found[0][0]) < 40


def test_an_error_of_one_rank_ends_all_with_its_reason():
    def work(team):
        def compute(start):
            if team.rank == 1:
                team.stop("out of memory")
                raise ValueError("out of memory")
            time.sleep(0.02)
            return rows(start)

        return collect(team, compute)

    found = together(3, work)
    assert isinstance(found[1], ValueError)
    assert all(str(found[rank]) == "ranks: rank 1 stopped: out of memory" for rank in (0, 2))


def test_rank_0_being_gone_ends_the_others(monkeypatch):
    beat = Team._beat
    monkeypatch.setattr(Team, "_beat", lambda self: self.rank == 0 or beat(self))

    def work(team):
        if team.main:
            team._store.set("beat/0", "0")
            return None
        return team.wait("anything")

    found = together(2, work)
    assert "rank 0 died (silent for 1 s)" in str(found[1])


# ---- agreement


def test_rank_0_decides():
    assert together(3, lambda team: team.agree("size", {"n": team.rank + 7})) == [{"n": 7}] * 3


def test_ranks_with_different_arguments_all_stop_with_the_difference():
    found = together(3, lambda team: team.check_same({"runs": 100 if team.rank < 2 else 50, "device": {"sigma": 0.1}}))
    for error in found:
        assert isinstance(error, ValueError)
        assert str(error) == "ranks: must be called with the same arguments; got runs: 100 on rank 0, 50 on rank 2"
    assert together(2, lambda team: team.check_same({"runs": 100})) == [None, None]


def test_a_rank_that_does_not_arrive_is_gone_without_and_refused_later_if_it_differs(monkeypatch):
    monkeypatch.setattr(team_module, "JOIN", 1)

    def work(team):
        if team.rank == 1:
            team.wait("compared")
        return team.check_same({"runs": 100 + team.rank})

    with pytest.warns(UserWarning, match="rank 1 did not join in time"):
        found = together(2, work)
    assert found[0] is None and "runs: 100 on rank 0, 101 on rank 1" in str(found[1])


def test_values_longer_than_a_store_takes_at_once_arrive_whole():
    text = "".join(map(str, range(400_000)))
    assert len(text) > 2 * team_module.PART
    assert together(2, lambda team: team.agree("text", text if team.main else None)) == [text, text]


class Counted(torch.utils.data.Dataset):
    reads = 0

    def __len__(self):
        return 30

    def __getitem__(self, i):
        Counted.reads += 1
        return torch.full((2, 3), i / 8), i % 4


def test_a_data_set_is_read_once_a_machine_and_leaves_no_file(monkeypatch):
    Counted.reads = 0
    files = []

    def work(team):
        found = NodeData(team, Counted())
        files.append(found._file)
        team.check_same({})  # all have their data
        found.close()
        return tuple(tensor.clone() for tensor in found.examples.whole)

    found = together(3, work)
    assert Counted.reads == 30
    assert sum(file is not None for file in files) == 1 and not any(file and file.exists() for file in files)
    for inputs, labels in found:
        assert torch.equal(inputs, torch.stack([torch.full((2, 3), i / 8) for i in range(30)]))
        assert labels.tolist() == [i % 4 for i in range(30)]


# ---- which ranks


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(ranks, "_team", None)
    for name in processes.ADDRESS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_by_itself_has_no_team(alone):
    assert ranks.team_of(None) is None and ranks.team_of(False) is None


@pytest.mark.parametrize(
    "environment, asked, words",
    [
        ({}, True, "ranks: needs RANK, WORLD_SIZE.*got no RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, None, "ranks: needs .* or ranks=False .*; got no MASTER_ADDR, MASTER_PORT"),
        ({}, "all", "ranks: must be None, True or False; got 'all'"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1", "NFT_EXT_RANK_TIMEOUT": "0"},
            None,
            "NFT_EXT_RANK_TIMEOUT: must be a number of seconds >= 1; got 0",
        ),
    ],
)
def test_a_half_given_address_is_refused(alone, environment, asked, words):
    for name, value in environment.items():
        alone.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{words}"):
        ranks.team_of(asked)
