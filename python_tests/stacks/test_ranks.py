"""A network of transformers under DDP and FSDP2, on two processes: OVF takes the steps of a single process."""

import json
import subprocess
import sys

import pytest

from support.paths import TESTS, importing

pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = [pytest.mark.stacks, pytest.mark.slow]  # two processes import transformers


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What stack_ranks.py found on rank 0 and on rank 1."""
    folder = tmp_path_factory.mktemp("ranks")
    program = str(TESTS / "support" / "stack_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, folder]
    done = subprocess.run(command, env=importing(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["ddp", "fsdp2"])
def test_ovf_takes_the_steps_of_a_single_process(ranks, case):
    assert [[what for what, holds in rank[case].items() if not holds] for rank in ranks] == [[], []]
