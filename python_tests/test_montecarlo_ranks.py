"""Ranks share an evaluation through a store: dealt as they ask, dealt again where one dies, the same report on all."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from nft_ext.montecarlo import ranks
from nft_ext.montecarlo.dealing import deal, share
from nft_ext.montecarlo.node_data import NodeData
from nft_ext.montecarlo.ranks import Team
from nft_ext.montecarlo.rows import Row

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
        def work(team):
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
    assert "rank 0 is gone (silent for 1 s)" in str(found[1])


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
    monkeypatch.setattr(ranks, "JOIN", 1)

    def work(team):
        if team.rank == 1:
            team.wait("compared")
        return team.check_same({"runs": 100 + team.rank})

    with pytest.warns(UserWarning, match="rank 1 does not take part"):
        found = together(2, work)
    assert found[0] is None and "runs: 100 on rank 0, 101 on rank 1" in str(found[1])


def test_values_longer_than_a_store_takes_at_once_arrive_whole():
    text = "".join(map(str, range(400_000)))
    assert len(text) > 2 * ranks.CHUNK
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
        return found.inputs.clone(), found.labels.clone()

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
    for name in ranks.ADDRESS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_by_itself_has_no_team(alone):
    assert ranks.team_of(None) is None and ranks.team_of(False) is None and ranks.is_main()
    alone.setenv("RANK", "3")
    assert not ranks.is_main()


@pytest.mark.parametrize("environment, asked, words", [
    ({}, True, "ranks: needs RANK, WORLD_SIZE.*got no RANK, WORLD_SIZE"),
    ({"WORLD_SIZE": "2", "RANK": "1"}, None, "ranks: needs .* or ranks=False .*; got no MASTER_ADDR, MASTER_PORT"),
    ({}, "all", "ranks: must be None, True or False; got all"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1", "NFT_EXT_RANK_TIMEOUT": "0"}, None,
     "NFT_EXT_RANK_TIMEOUT: must be a number of seconds >= 1; got 0"),
])
def test_a_half_given_address_is_refused(alone, environment, asked, words):
    for name, value in environment.items():
        alone.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{words}"):
        ranks.team_of(asked)


# ---- processes

# Ranks are forked from one process that has imported everything: imports would take most of the time.
SCRIPT = """
import json, os, signal, sys, time, traceback
import torch, nft_ext as nft
from nft_ext.montecarlo.chip_evaluator import ChipEvaluator
from torch import nn

out, size, slow, options, second, gloo = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(2)
model = nft.convert(nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 4)), nft.NVMDevice(sigma=0.3))
data = torch.utils.data.TensorDataset(torch.randn(30, 9), torch.randint(4, (30,)))

def slow_tallies(self, draws, done, original=ChipEvaluator.tallies):
    open(f"{out}/began-{os.environ['RANK']}", "w").close()
    time.sleep(slow)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, draws, done)

def rank():
    if gloo:
        torch.distributed.init_process_group("gloo")
    if slow:
        ChipEvaluator.tallies = slow_tallies
    name = os.environ.get("RANK", "0")
    nft.monte_carlo(model, data, seed=3, chips_per_pass=3, **options).to_json(f"{out}/report-{name}.json")
    if second:
        report = nft.monte_carlo(model, data, seed=3, chips_per_pass=16, target_ci=0.012)
        report.to_json(f"{out}/second-{name}.json")

def child(number):
    os.environ["RANK"] = str(number)
    sys.stderr = open(f"{out}/errors-{number}", "w")
    try:
        rank()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

if size is None:
    rank()
    sys.exit()
children = []
for number in range(size):
    children.append(os.fork())
    if children[-1] == 0:
        child(number)
print(json.dumps(children), flush=True)
print(json.dumps([os.waitpid(process, 0)[1] for process in children]))
"""
REPOSITORY = Path(__file__).parents[1]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


EXITS = """
import json, os, sys, time
import torch
from nft_ext.montecarlo.ranks import Team

statuses = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        Team(torch.distributed.TCPStore("127.0.0.1", 0, 1, True), 0, 1, timeout=5e-4)  # a beat every 0.1 ms
        time.sleep(0.02)
        sys.exit()
    statuses.append(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""


@pytest.mark.slow
def test_a_rank_may_end_while_its_beat_is_under_way():
    """An interpreter aborts that ends with a thread inside the store; every second one did before threads were joined."""
    done = subprocess.run([sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=120, env=environment())
    assert json.loads(done.stdout) == [0] * 10, done.stderr


def launch(folder, size, slow=0.0, options=None, second=False, gloo=False):
    """A process that forks the ranks and prints their process ids, then their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if size > 1 else {}
    arguments = json.dumps([str(folder), size, slow, {"runs": 20} | (options or {}), second, gloo])
    return subprocess.Popen([sys.executable, "-c", SCRIPT, arguments], stdout=subprocess.PIPE, text=True,
                            env=environment(NFT_EXT_RANK_TIMEOUT="3", **address))


def ended(process, folder, killed=()):
    statuses = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    for number, status in enumerate(statuses):
        assert (status != 0) == (number in killed), (folder / f"errors-{number}").read_text()


def reports(folder, name="report"):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]


def figures(report):
    return {**report, "seconds": None}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ended(launch(folder, 1, second=True), folder)
    return figures(reports(folder)[0]), figures(reports(folder, "second")[0])


@pytest.mark.slow
@pytest.mark.parametrize("size, gloo", [(2, True), (4, False)])
def test_the_report_of_several_processes_is_one_process_s_bit_for_bit(one_process, tmp_path, size, gloo):
    """Twice in one go, the second with a target: its looks see the same prefixes on every rank."""
    ended(launch(tmp_path, size, second=True, gloo=gloo), tmp_path)
    for name, expected in zip(("report", "second"), one_process):
        found = reports(tmp_path, name)
        assert found == [found[0]] * size and figures(found[0]) == expected
    shown = [(tmp_path / f"errors-{number}").read_text() for number in range(size)]
    assert "monte carlo" in shown[0] and not any(shown[1:]), "rank 0 alone shows progress"


@pytest.mark.slow
def test_a_killed_rank_costs_its_unfinished_pass_only(one_process, tmp_path):
    process = launch(tmp_path, 3, slow=0.3, options={"resume": str(tmp_path / "journal")})
    children = json.loads(process.stdout.readline())
    deadline = time.monotonic() + 60
    while not (tmp_path / "began-2").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(children[2], signal.SIGKILL)
    ended(process, tmp_path, killed=(2,))
    found = reports(tmp_path)
    assert found == [found[0]] * 2 and figures(found[0]) == one_process[0]
    draws = [json.loads(line)["draw"] for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    assert sorted(draws) == list(range(20))


@pytest.mark.slow
def test_torchrun_restarts_all_ranks_where_one_dies_and_the_journal_goes_on(one_process, tmp_path):
    """Rank 1 kills itself in its first pass; torchrun ends the others too and starts all again, with the same store."""
    (tmp_path / "evaluate.py").write_text(SCRIPT)
    arguments = json.dumps([str(tmp_path), None, 0.2, {"runs": 20, "resume": str(tmp_path / "journal")}, False, False])
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           "--max-restarts", "1", tmp_path / "evaluate.py", arguments],
                          capture_output=True, text=True, timeout=200, env=environment())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "began-1").exists()
    found = reports(tmp_path)
    assert len(found) == 2 and found[0] == found[1] and figures(found[0]) == one_process[0]
    draws = [json.loads(line)["draw"] for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    assert sorted(draws) == list(range(20))
