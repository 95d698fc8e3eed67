"""Real processes share an evaluation: forked with the variables that torchrun sets, or started by torchrun; killed,
restarted.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from support.paths import importing

# Ranks are forked from one process that has imported everything: imports would take most of the time.
SCRIPT = """
import json, os, signal, sys, time, traceback
import torch, nft_ext as nft
from nft_ext.montecarlo.execution.chip_evaluator import ChipEvaluator
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
EXITS = """
import json, os, sys, time
import torch
from nft_ext.montecarlo.distributed.ranks import Team

statuses = []
for _ in range(5):
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
    """Python aborts if it ends with a thread inside the store. Every second process did before threads were joined."""
    done = subprocess.run(
        [sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=120, env=importing(OMP_NUM_THREADS="1")
    )
    assert json.loads(done.stdout) == [0] * 5, done.stderr


def launch(folder, size, slow=0.0, options=None, second=False, gloo=False):
    """A process that forks the ranks and prints their process ids, then their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if size > 1 else {}
    arguments = json.dumps([str(folder), size, slow, {"runs": 20} | (options or {}), second, gloo])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=importing(OMP_NUM_THREADS="1", NFT_EXT_RANK_TIMEOUT="3", **address),
    )


def ended(process, folder, killed=()):
    statuses = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    for number, status in enumerate(statuses):
        assert (status != 0) == (number in killed), (folder / f"errors-{number}").read_text()


def reports(folder, name="report"):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]


def figures(report):
    return {**report, "seconds": None, "crc": None}


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
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "--max-restarts",
            "1",
            tmp_path / "evaluate.py",
            arguments,
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env=importing(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "began-1").exists()
    found = reports(tmp_path)
    assert len(found) == 2 and found[0] == found[1] and figures(found[0]) == one_process[0]
    draws = [json.loads(line)["draw"] for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    assert sorted(draws) == list(range(20))
