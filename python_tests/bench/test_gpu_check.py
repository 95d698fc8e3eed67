"""bench/gpu_check.py where there is no GPU: it says so and what to do; and its time boxes, and the runner that keeps
what it had, behave on a machine without one. Its figures: test_gpu_check_figures.py; what it reads of other tools:
test_gpu_check_tools.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.gpu import child, marked, network, stages, training
from bench.gpu.child import NotHere, Task, Wrong
from bench.gpu.stages import FAILED, LATE, NOT_RUN, PASSED, SKIPPED, Outcome
from bench.harness import checks
from support.paths import ROOT
from support.stages import stage

without_cuda = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has CUDA: the check would run, and take minutes"
)


class Clock:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


# ---- the command


@without_cuda
def test_without_cuda_it_ends_with_2_and_one_sentence(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    sentence = done.stderr.strip()
    assert "\n" not in sentence and sentence.startswith("gpu_check: there is no CUDA machine here, because ")
    assert "NVIDIA GPU" in sentence and "nothing was measured" in sentence
    assert not (tmp_path / "out").exists()


def test_why_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "has no CUDA support" in gpu_check.why_no_cuda()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA device" in gpu_check.why_no_cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_check.why_no_cuda() is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "x", "--skip", "bulid"], "--skip: must name stages among build, facts, .*; got bulid"),
        (["--out", "x", "--minutes", "0"], "--minutes: must be > 0; got 0"),
        (["--out", "x", "--minutes", "nan"], "--minutes: must be > 0; got nan"),
        ([], "--out"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.options(arguments)
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_every_stage_but_the_build_is_a_module_and_all_fit_in_eight_minutes():
    for s in gpu_check.STAGES:
        assert s.name == "build" or (ROOT / "bench" / "gpu" / f"{s.name}.py").exists()
    assert sum(s.least for s in gpu_check.STAGES) <= 8 * 60 and gpu_check.STAGES[0].least >= 150
    assert all(s.least <= s.most for s in gpu_check.STAGES)
    assert [s.name for s in gpu_check.STAGES if not s.correctness] == [
        "ceilings",
        "one_pass",
        "sampler",
        "layers",
        "gradients",
        "network",
        "training",
    ]


def test_the_commit_is_the_checkouts_or_what_a_copy_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("NFT_EXT_COMMIT", "abc")
    assert gpu_check.revision() != "abc" or not (ROOT / ".git").exists()
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.revision() == "abc"
    monkeypatch.delenv("NFT_EXT_COMMIT")
    assert gpu_check.revision() is None


def whole_run(monkeypatch, tmp_path, behaviour, *arguments):
    """(exit status, gpu_check.json) of a run whose stages do behaviour[name](seconds)."""
    monkeypatch.setattr(gpu_check, "why_no_cuda", lambda: None)

    class Fake:
        def __init__(self, out, outcomes):
            pass

        def __call__(self, stage, seconds):
            return behaviour.get(stage.name, lambda _: Outcome(PASSED))(seconds)

    monkeypatch.setattr(gpu_check, "Runner", Fake)
    status = gpu_check.main(["--out", str(tmp_path), *arguments])
    return status, json.loads((tmp_path / "gpu_check.json").read_text())


def test_a_run_in_which_all_is_well(monkeypatch, tmp_path, capsys):
    status, found = whole_run(monkeypatch, tmp_path, {})
    assert status == 0 and found["complete"] and found["unproven"] == []
    assert set(found["stages"]) == {s.name for s in gpu_check.STAGES}
    assert capsys.readouterr().out.endswith("no correctness stage failed\n")


def test_a_failing_stage_is_recorded_and_costs_the_others_nothing(monkeypatch, tmp_path, capsys):
    def broken(seconds):
        raise ValueError("no such kernel")

    status, found = whole_run(monkeypatch, tmp_path, {"identity": broken})
    assert status == 1 and found["unproven"] == ["identity"]
    assert found["stages"]["identity"]["state"] == FAILED and "no such kernel" in found["stages"]["identity"]["why"]
    assert all(s["state"] == PASSED for name, s in found["stages"].items() if name != "identity")
    assert "not proved: identity" in capsys.readouterr().out


def test_a_failed_measurement_is_no_failed_proof(monkeypatch, tmp_path):
    status, found = whole_run(monkeypatch, tmp_path, {"network": lambda _: Outcome(FAILED, why="out of memory")})
    assert status == 0 and found["stages"]["network"]["why"] == "out of memory"


def test_after_a_failed_build_nothing_runs(monkeypatch, tmp_path):
    status, found = whole_run(monkeypatch, tmp_path, {"build": lambda _: Outcome(FAILED, why="nvcc")})
    assert status == 1
    assert {s["state"] for name, s in found["stages"].items() if name != "build"} == {NOT_RUN}


def test_skipped_stages_are_said_to_be_skipped(monkeypatch, tmp_path):
    status, found = whole_run(monkeypatch, tmp_path, {}, "--skip", "build,memcheck")
    assert status == 0
    assert [name for name, s in found["stages"].items() if s["state"] == SKIPPED] == ["build", "memcheck"]


def test_the_variants_of_networks_and_steps():
    assert network.CASES[0] == (128, "bf16"), "what the targets are about comes first"
    for count, precision in network.CASES:
        found = network.variants(count, precision)
        assert len({v.name for v in found}) == len(found)
        assert [v.mode for v in found if "fused" in v.note] == ["graph", "programmed graph"] * 2
        layout = "channels last" if precision == "bf16" else ""
        assert {v.note for v in found if v.family == "nft"} == {layout, "channels last, fused"}
        modes = [v.mode for v in found]
        assert ("eager" in modes) == (count in (1, 128)) and "compiled graph" in modes
    for precision in training.CASES:
        found = training.variants(precision, {})
        assert {v.precision for v in found} == {precision} and len({v.name for v in found}) == len(found)
        compiled = ["compile" in v.mode for v in found]
        assert compiled == sorted(compiled), "what may outlast the stage comes last"


def test_float32_convolutions_of_a_library_may_lose_digits():
    one = torch.ones(1)
    assert checks.close("y", one * (1 + 1.2e-4), one, "fp32") is not None
    assert checks.close("y", one * (1 + 1.2e-4), one, "fp32", checks.WINOGRAD["fp32"]) is None
    assert "allowed 2e-04" in checks.close("y", one * (1 + 3e-4), one, "fp32", checks.WINOGRAD["fp32"])
    assert checks.alike("g", one * 1.2, one, 0.25) is None
    assert checks.alike("g", one * 1.3, one, 0.25) == "g is off by 0.3 of its norm (allowed 0.25)"
    assert checks.alike("g", one * float("nan"), one, 0.25) is not None
    assert {v for k, v in (checks.WINOGRAD | checks.WINOGRAD_DEEP).items() if k != "fp32"} == {1.0}


def test_no_number_is_shown_that_was_not_measured(monkeypatch, tmp_path, capsys):
    """Of a run without measurements, every target says so, and the only numbers are the targets' own."""
    _, found = whole_run(monkeypatch, tmp_path, {})
    assert all(t["value"] is None and t["reached"] is None for t in found["targets"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "x PyTorch" in line or "times its floor" in line]
    assert len(shown) >= 4 and all("not measured" in line for line in shown)


# ---- time boxes


def test_a_box_leaves_the_later_stages_what_they_need():
    later = [stage("b", least=30), stage("c", least=20)]
    assert stages.box(stage("a", least=10, most=60), later, 500) == 60
    assert stages.box(stage("a", least=10, most=60), later, 90) == 40
    assert stages.box(stage("a", least=10, most=60), later, 55) == 10, "its own least comes first"
    assert stages.box(stage("a", least=10, most=60), later, 8) == 8
    assert stages.box(stage("a", least=10, most=60), later, 4) == 0
    assert stages.box(stage("a", least=10, most=60), [], -3) == 0


def test_when_the_time_is_up_stages_are_late_and_not_started():
    clock, started, wanted = (
        Clock(),
        [],
        [stage("a", 10, 60), stage("b", 10, 60), stage("c", 10, 60, correctness=False)],
    )

    def run(s, seconds):
        started.append((s.name, seconds))
        clock.now += 100.0
        return Outcome(PASSED)

    outcomes = stages.run_stages(wanted, set(), 1.0, run, lambda so_far: None, clock=clock)
    assert started == [("a", 40.0)] and outcomes["a"].seconds == 100.0
    assert [outcomes[n].state for n in "bc"] == [LATE, LATE] and "1 minutes" in outcomes["b"].why
    assert stages.unproven(wanted, outcomes) == ["b"], "what was not shown is not proved"


def test_skipped_stages_leave_their_time_to_the_others():
    given = {}

    def run(s, seconds):
        given[s.name] = seconds
        return Outcome(PASSED)

    wanted = [stage("a", 10, 60), stage("b", 50, 60)]
    stages.run_stages(wanted, {"b"}, 1.0, run, lambda so_far: None, clock=Clock())
    assert given == {"a": 60.0}


def test_an_interrupted_run_keeps_what_it_had(tmp_path):
    path = tmp_path / "found.json"

    def run(s, seconds):
        if s.name == "b":
            raise KeyboardInterrupt
        return Outcome(PASSED, found={"n": 1})

    with pytest.raises(KeyboardInterrupt):
        stages.run_stages(
            [stage("a"), stage("b")],
            set(),
            1.0,
            run,
            lambda so_far: stages.write_json(path, {n: o.record() for n, o in so_far.items()}),
        )
    assert json.loads(path.read_text())["a"]["found"] == {"n": 1}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "found.json"
    stages.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        stages.write_json(path, {"a": object()})
    assert stages.read_json(path) == {"a": 1} and stages.read_json(tmp_path / "none.json") is None
    stages.write_json(path, {"a": 2})
    assert os.listdir(tmp_path) == ["found.json"] and stages.read_json(path) == {"a": 2}


# ---- a stage's process


def python(code, seconds, tmp_path):
    return stages.run_process([sys.executable, "-c", code], seconds, tmp_path / "log", tmp_path, os.environ)


def test_a_process_tells_its_status_and_its_output(tmp_path):
    assert python("print('so'); raise SystemExit(7)", 30, tmp_path) == (7, "so\n")
    assert (tmp_path / "log").read_text() == "so\n"


def test_a_late_process_is_ended_with_all_it_started(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True)\ntime.sleep(60)"
    )
    status, output = python(code, 1.5, tmp_path)
    assert status is None
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # the ended grandchild is reaped by somebody else
            os.kill(int(output), 0)
            if Path(f"/proc/{int(output)}/stat").read_text().split()[2] == "Z":
                raise ProcessLookupError


def test_what_a_stages_end_means():
    assert gpu_check.ended(0, "", 9, {"x": 1}) == Outcome(PASSED, found={"x": 1})
    late = gpu_check.ended(None, "", 9, {"x": 1})
    assert late.state == LATE and late.found == {"x": 1} and "kept" in late.why
    assert gpu_check.ended(child.NOT_HERE_STATUS, "noise\nno tool\n", 9, None) == Outcome(NOT_RUN, why="no tool")
    assert gpu_check.ended(1, "trace\nRuntimeError: bad\n\n", 9, None).why == "RuntimeError: bad"
    assert "status -11" in gpu_check.ended(-11, "", 9, None).why, "a crash that says nothing"


@pytest.mark.parametrize(
    "raised, status", [(None, 0), (Wrong("differs"), 1), (ValueError("oops"), 1), (NotHere("no tool"), 3)]
)
def test_a_child_ends_as_its_stage_does(raised, status, monkeypatch, tmp_path, capsys):
    def run(task):
        task.save({"left": task.left() > 0, "known": task.known})
        if raised is not None:
            raise raised

    monkeypatch.setattr(marked, "run", run)
    known = tmp_path / "known.json"
    stages.write_json(known, {"facts": {"device": "some"}})
    assert child.main(["marked", "--out", str(tmp_path / "out"), "--seconds", "9", "--known", str(known)]) == status
    assert stages.read_json(tmp_path / "out") == {"left": True, "known": {"facts": {"device": "some"}}}
    assert raised is None or str(raised) in "".join(capsys.readouterr())


def test_a_stage_that_needs_another_ones_findings_says_so(tmp_path):
    with pytest.raises(NotHere, match="needs the results of the stage ceilings"):
        Task(tmp_path / "out", 1.0, {"ceilings": None}).found_by("ceilings")
