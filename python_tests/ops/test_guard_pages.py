"""No operator touches memory beyond its inputs, which border pages without access (support/guard_pages.py)."""

import signal
import subprocess
import sys

import pytest

import nft_ext as nft
from support.paths import TESTS, importing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command], env=importing(**environment), capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("isa", nft.info()["instruction_sets"])
def test_no_operator_touches_memory_beyond_its_inputs(isa):
    done = run(str(TESTS / "support" / "guard_pages.py"), NFT_EXT_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    count, used = done.stdout.split()
    assert used == isa and int(count) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("at_end, step", [(True, 1), (False, -1)])
def test_one_element_beyond_is_noticed(at_end, step):
    done = run(
        "-c",
        "import ctypes, torch; from support.guard_pages import guarded\n"
        f"x = guarded(torch.ones(1000), {at_end})\n"
        f"edge = x[-1:] if {at_end} else x[:1]\n"
        "assert edge.item() == 1\n"
        f"ctypes.c_float.from_address(edge.data_ptr() + 4 * {step}).value",
    )
    assert done.returncode == -signal.SIGSEGV
