"""bench/gpu_check.py where there is no GPU: it says so and what to do; and the parts that need none, its time boxes, the runner
that keeps what it had, floors, targets and tables, behave on a machine without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import checks, gpu_check, measure  # noqa: E402
from bench.case import Ready, Variant, Work  # noqa: E402
from bench.gpu import child, floors, int8, layers, marked, network, report, sanitize, small, stages  # noqa: E402
from bench.gpu import targets, timing, training, tune  # noqa: E402
from bench.gpu.child import NotHere, Task, Wrong  # noqa: E402
from bench.gpu.stages import FAILED, LATE, NOT_RUN, PASSED, SKIPPED, Outcome, Stage  # noqa: E402
from nft_ext import choice  # noqa: E402

without_cuda = pytest.mark.skipif(torch.cuda.is_available(),
                                  reason="this machine has CUDA: the check would run, and take minutes")


class Clock:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def stage(name, least=10.0, most=60.0, correctness=True):
    return Stage(name, f"what {name} does", least, most, correctness)


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


@pytest.mark.parametrize("arguments, message", [
    (["--out", "x", "--skip", "bulid"], "--skip: must name stages among build, facts, .*; got bulid"),
    (["--out", "x", "--minutes", "0"], "--minutes: must be > 0; got 0"),
    (["--out", "x", "--minutes", "nan"], "--minutes: must be > 0; got nan"),
    ([], "--out"),
])
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
    assert [s.name for s in gpu_check.STAGES if not s.correctness] == ["ceilings", "tune", "sampler", "layers", "int8", "gradients",
                                                                         "network", "training"]


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


def test_int8_stands_beside_bfloat16_where_both_are_right():
    rows = [{"precision": p, "right": True, "variant": f"nft {p}", "median_s": s, "floor_s": 1e-6, "bound_by": "bytes"}
            for p, s in (("int8", 2e-6), ("bf16", 3e-6))]
    (found,) = int8.beside(rows)
    assert found["ratio"] == pytest.approx(1.5) and found["ours"] == "nft int8"
    assert "1.50" in "\n".join(report.case_lines({"name": "a layer", "rows": rows, "compared": [found]}))
    assert int8.beside([rows[0], {"precision": "bf16", "right": False, "variant": "nft bf16", "failure": "wrong"}]) == []
    assert int8.beside([{**rows[0], "right": False}, {**rows[0], "variant": "nft int8, channels_last"}, rows[1]])[0]["ours"].endswith("last")


def test_int8_is_timed_in_both_memory_formats():
    for point in layers.points():
        notes = [(v.precision, v.note) for v in int8.variants(point)]
        assert notes == [("int8", ""), *([] if point.shape.is_linear else [("int8", "channels_last")]), ("bf16", "")]
        assert len({v.name for v in int8.variants(point)}) == len(notes)


def test_direct_calls_of_operators_have_the_measured_bounds_or_the_defaults(monkeypatch):
    monkeypatch.setattr(choice, "apply", lambda index: None)
    assert choice.check(tune.in_force()) == choice.DEFAULT
    monkeypatch.setattr(choice, "apply", lambda index: {"measured": index})
    assert tune.in_force() == {"measured": 0}


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


def test_compiling_may_outlast_a_stage_and_costs_nothing_that_was_ready(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing, "interleaved",
                        lambda runs, left, rounds: [measure.Timing([1.0] * rounds, 1, 0.0) for _ in runs])
    wanted = [row("nft", "one", 0).variant, row("torch", "one", 0, mode="compile").variant]
    found, task = [], Task(tmp_path / "found.json", 60.0, {})
    whole = timing.measure_case("a", "b", wanted, CEILINGS, task, found.append)
    (early,) = found
    assert [r["variant"] for r in early["rows"]] == [wanted[0].name] and early["unmeasured"] == [wanted[1].name]
    assert [r["rounds"] for r in early["rows"] + whole["rows"]] == [timing.FEWEST_ROUNDS, timing.ROUNDS, timing.ROUNDS]
    assert whole["unmeasured"] == [] and len(whole["compared"]) == 1
    timing.measure_case("a", "b", wanted[:1], CEILINGS, task, found.append)
    assert len(found) == 1, "nothing is compiled"


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
    clock, started, wanted = Clock(), [], [stage("a", 10, 60), stage("b", 10, 60), stage("c", 10, 60, correctness=False)]

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
        stages.run_stages([stage("a"), stage("b")], set(), 1.0, run,
                          lambda so_far: stages.write_json(path, {n: o.record() for n, o in so_far.items()}))
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
    code = ("import subprocess, sys, time\n"
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(p.pid, flush=True)\ntime.sleep(60)")
    status, output = python(code, 1.5, tmp_path)
    assert status is None
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # the ended grandchild is reaped by somebody else
            os.kill(int(output), 0)
            if Path(f"/proc/{int(output)}/stat").read_text().split()[2] == "Z":
                raise ProcessLookupError


def test_what_a_stages_end_means():
    s = stage("a")
    assert gpu_check.ended(s, 0, "", 9, {"x": 1}) == Outcome(PASSED, found={"x": 1})
    late = gpu_check.ended(s, None, "", 9, {"x": 1})
    assert late.state == LATE and late.found == {"x": 1} and "kept" in late.why
    assert gpu_check.ended(s, child.NOT_HERE_STATUS, "noise\nno tool\n", 9, None) == Outcome(NOT_RUN, why="no tool")
    assert gpu_check.ended(s, 1, "trace\nRuntimeError: bad\n\n", 9, None).why == "RuntimeError: bad"
    assert "status -11" in gpu_check.ended(s, -11, "", 9, None).why, "a crash that says nothing"


@pytest.mark.parametrize("raised, status", [(None, 0), (Wrong("differs"), 1), (ValueError("oops"), 1), (NotHere("no tool"), 3)])
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
    with pytest.raises(NotHere, match="needs what the stage ceilings finds"):
        Task(tmp_path / "out", 1.0, {"ceilings": None}).found_by("ceilings")


# ---- floors


def test_the_floor_is_the_largest_of_bytes_operations_and_instructions():
    ceilings = floors.Ceilings(1e12, {"bf16": 1e14, "fp32": 1e13}, 1e13)
    found = floors.floor(ceilings, bytes_=2e9, flops=1e11, precision="bf16", instructions=4e9)
    assert (found.bytes, found.operations, found.instructions) == pytest.approx((2e-3, 1e-3, 4e-4))
    assert found.seconds == pytest.approx(2e-3) and found.bound_by == "bytes"
    assert floors.floor(ceilings, bytes_=2e9, flops=1e11, precision="fp32").bound_by == "operations"
    assert floors.floor(ceilings, bytes_=1.0, instructions=4e9).bound_by == "instructions"


def test_an_unknown_clock_leaves_the_instructions_out():
    assert floors.issue_rate(132, None) is None and floors.issue_rate(132, 1.98e9) == 132 * 128 * 1.98e9
    found = floors.floor(floors.Ceilings.of({"copy_bytes_per_second": 1e12, "flops_per_second": {}}), bytes_=1e9,
                         instructions=1e30)
    assert found.instructions == 0.0 and found.bound_by == "bytes"


def test_one_normal_a_device_costs_more_instructions_than_one_a_weight():
    assert floors.sampling_instructions(100, 100) == 6000 and floors.sampling_instructions(100, 400) == 22500


# ---- comparisons, targets, tables


CEILINGS = floors.Ceilings(1e12, {"bf16": 1e14, "fp32": 1e13}, None)


def row(family, draws, seconds, failure=None, precision="bf16", mode="eager", cached=True):
    variant = Variant(family, draws, lambda: Ready(lambda: None, lambda: None), Work(flops=1e9, normals=0, bytes=1e9), precision,
                      mode, cached)
    return measure.Row(variant, failure, None if failure else measure.Timing([seconds] * 3, 1, 0.0))


ROWS = [row("nft", "one", 2e-3), row("nft", "one", 1e-3, mode="graph"), row("torch", "one", 3e-3, mode="compile"),
        row("torch", "one", 4e-3), row("torch", "device", 0, "std 2.0"), row("torch", "none", 9.5e-4, mode="graph"),
        row("torch", "one", 1e-9, precision="fp32")]


def case(name="resnet18-128-bf16", rows=ROWS, **facts):
    return {"name": f"{name}: a shape", "case": name, "rows": [timing.row_record(r, CEILINGS) for r in rows],
            "compared": timing.compared(rows, CEILINGS), "failures": [r.failure for r in rows if r.failure],
            "unmeasured": []} | facts


def test_our_fastest_is_compared_with_the_fastest_right_pytorch_of_its_precision():
    found = {c["what"]: c for c in timing.compared(ROWS, CEILINGS)}
    assert set(found) == {"bf16 one normal against one normal", "bf16 one normal against noise-free"}
    best = found["bf16 one normal against one normal"]
    assert best["ratio"] == pytest.approx(3.0) and (best["ours"], best["against"]) == ("graph", "compile")
    assert best["floor_s"] == pytest.approx(1e-3) and best["bound_by"] == "bytes"


def test_what_computes_anew_is_not_compared_with_what_keeps():
    rows = [row("nft", "one", 1.0, cached=False), row("torch", "one", 2.0), row("torch", "one", 5.0, cached=False)]
    (found,) = timing.compared(rows, CEILINGS)
    assert found["ratio"] == 5.0 and found["what"].endswith(", anew")


def test_a_wrong_variant_has_no_time():
    record = timing.row_record(row("torch", "one", 0, "std 2.0"), CEILINGS)
    assert record["right"] is False and record["failure"] == "std 2.0" and "median_s" not in record and "floor_s" not in record


def test_targets_are_judged_by_the_worst_and_only_where_something_was_measured():
    layers = {"cases": [case("a", rows_a_chip=16), case("b", [row("nft", "one", 1.0), row("torch", "one", 1.1)], rows_a_chip=256),
                        case("c", [row("nft", "one", 9.0), row("torch", "one", 1.0)], rows_a_chip=1024)]}
    found = targets.judged({"network": Outcome(PASSED, found={"cases": [case()]}), "layers": Outcome(LATE, found=layers),
                            "training": Outcome(FAILED)})
    by_rule = {t["rule"]: t for t in found}
    assert len(by_rule) == len(found) == 7
    network, = [t for r, t in by_rule.items() if r.startswith("ResNet-18") and "one normal" in r]
    assert network["reached"] is True and network["value"] == pytest.approx(3.0)
    quiet, = [t for r, t in by_rule.items() if "without noise" in r]
    assert quiet["reached"] is True and quiet["value"] == pytest.approx(0.95)
    few, = [t for r, t in by_rule.items() if r.startswith("layers") and "1.3x" in r]
    assert few["value"] == pytest.approx(1.1) and few["reached"] is False and few["what"].startswith("b, ")
    for rule, t in by_rule.items():
        if rule.startswith(("OVF", "sampler")) or "a device" in rule:
            assert t["value"] is None and t["reached"] is None, rule


def test_the_sampler_and_the_memory_are_judged_from_above():
    sampler = case("sampler", [row("nft", "one", 1.2e-3, mode="graph"), row("nft", "one", 5e-3)])
    memory = {"memory": [{"precision": "bf16", "ours_bytes": 70, "against_bytes": 100}]}
    other = [row("nft", "one", 1.0), row("torch", "one", 9.0)]
    memory["cases"] = [case(training.CASES["fp32"], other), case(training.CASES["bf16"])]
    found = {t["rule"]: t for t in targets.judged({"sampler": Outcome(PASSED, found={"cases": [sampler]}),
                                                   "training": Outcome(PASSED, found=memory)})}
    assert found["OVF step, bf16: >= 1.5x PyTorch with one normal a weight"]["value"] == pytest.approx(3.0)
    assert found["sampler, bf16: at most 1.3 times its floor"]["reached"] is True
    share, = [t for r, t in found.items() if "peak memory" in r]
    assert share["value"] == pytest.approx(0.7) and share["reached"] is False


def test_the_table():
    wanted = [stage("facts"), stage("memcheck"), stage("network", correctness=False), stage("training", correctness=False)]
    outcomes = {"facts": Outcome(PASSED, 3.0, found={"summary": "a device"}), "memcheck": Outcome(NOT_RUN, why="no such tool"),
                "network": Outcome(PASSED, 60.0, found={"cases": [case(unmeasured=["x", "y"])]})}
    lines = report.text(wanted, outcomes, targets.judged(outcomes)).splitlines()
    assert max(map(len, lines)) <= 160
    assert any("3.00" in line and "graph / compile" in line and "1.000 bytes" in line for line in lines)
    assert any("WRONG, no time shown: std 2.0" in line for line in lines)
    assert any("not measured, no time left: 2 variants" in line for line in lines)
    last = lines[lines.index("stages") + 1:]
    assert [line.split()[0] for line in last] == ["facts", "memcheck", "network", "training"]
    assert "a device" in last[0] and "not run" in last[1] and "no such tool" in last[1] and "not run" in last[3]


def test_times_of_any_size_are_readable():
    assert [report.milliseconds(s) for s in (None, 2.34e-5, 4.567e-3, 0.123)] == ["-", "0.0234", "4.567", "123.0"]


# ---- what other tools say


JUNIT = """<testsuites><testsuite><testcase classname="t.a" name="one"/><testcase classname="t.a" name="two">
<failure message="assert 1 == 2&#10;more">long</failure></testcase><testcase classname="t.b" name="three">
<skipped message="needs two CUDA devices"/></testcase></testsuite></testsuites>"""


def test_a_pytest_report(tmp_path):
    (tmp_path / "r.xml").write_text(JUNIT)
    found = marked.results(tmp_path / "r.xml")
    assert found["tests"] == 3 and found["failed"] == {"t.a::two": "assert 1 == 2"}
    assert found["skipped"] == {"t.b::three": "needs two CUDA devices"} and found["summary"] == "1 passed, 1 failed, 1 skipped"


SUITE = "<testsuites><testsuite>{}</testsuite></testsuites>"
FINE_CASE = '<testcase classname="a" name="b"/>'
BAD_CASE = '<testcase classname="a" name="c"><failure message="wrong"/></testcase>'


@pytest.mark.parametrize("quick, slow, summary", [
    (3 * FINE_CASE, 2 * FINE_CASE, "5 passed, 0 failed, 0 skipped"),
    (3 * FINE_CASE, None, "3 passed, 0 failed, 0 skipped; no time was left for the slow ones"),
])
def test_quick_tests_come_before_slow_ones(quick, slow, summary, monkeypatch, tmp_path):
    def run(marks, report, seconds=None):
        cases = quick if marks == "cuda and not slow" else slow
        if cases is None:
            return None
        report.write_text(SUITE.format(cases))
        return 0

    monkeypatch.setattr(marked, "pytest", run)
    task = Task(tmp_path / "found.json", 60.0, {})
    marked.run(task)
    assert stages.read_json(task.out)["summary"] == summary


def test_a_failed_quick_test_ends_the_stage(monkeypatch, tmp_path):
    def run(marks, report, seconds=None):
        report.write_text(SUITE.format(FINE_CASE + BAD_CASE))
        return 1

    monkeypatch.setattr(marked, "pytest", run)
    with pytest.raises(Wrong, match="1 passed, 1 failed, 0 skipped: a::c: wrong"):
        marked.run(Task(tmp_path / "found.json", 60.0, {}))


def test_files_with_marked_tests_are_found():
    names = {p.name for p in marked.files(ROOT / "python_tests")}
    assert {"test_cuda_operators.py", "test_cuda_products.py", "test_cuda_compile.py", "test_cuda_graphs.py"} <= names and "test_philox.py" not in names


FINE = {"memcheck": "========= ERROR SUMMARY: 0 errors\n",
        "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"}
FOUND = {"memcheck": "========= Invalid __global__ read of size 4 bytes\n=========     at nft::kernel+0x10\n"
                     "========= ERROR SUMMARY: 2 errors\n",
         "racecheck": "========= Error: Race reported between Write access at a and Read access at b [9 hazards]\n"
                      "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"}
RAN = f"40 of 50 {sanitize.LAST_LINE}\n"


@pytest.mark.parametrize("kind", ["memcheck", "racecheck"])
def test_what_a_sanitizer_says(kind):
    found = sanitize.verdict(kind, RAN + FINE[kind], 0)
    assert found["findings"] == 0 and found["summary"].endswith("; 40 of 50 small shapes ran")
    with pytest.raises(Wrong, match=f"{kind} reports .*(Invalid __global__ read|Race reported)"):
        sanitize.verdict(kind, RAN + FOUND[kind], 0)
    with pytest.raises(Wrong, match=f"compute-sanitizer itself failed: {sanitize.BROKEN}: a reason"):
        sanitize.verdict(kind, f"========= {sanitize.BROKEN}: a reason\n" + FOUND[kind], 1)
    with pytest.raises(Wrong, match="did not come to its end"):
        sanitize.verdict(kind, "Traceback: boom\n" + FINE[kind], 1)
    with pytest.raises(Wrong, match="did not come to its end"):
        sanitize.verdict(kind, RAN, 0)
    with pytest.raises(NotHere, match="does not serve this machine: Device not supported"):
        sanitize.verdict(kind, "========= Error: Device not supported\n", 1)


@pytest.mark.parametrize("help_text, options", [
    ("  --kernel-name arg\n  --kernel-name-exclude arg\n", ["--kernel-name", "kns=nft"]),
    ("  --kernel-regex arg\n", ["--kernel-regex", "kns=nft"]), ("  --tool arg\n", [])])
def test_a_sanitizer_is_kept_to_our_kernels_as_its_version_says_it(help_text, options):
    assert sanitize.only_ours(help_text) == options


def test_sanitized_cases_come_in_turns():
    order, kinds = [], [[lambda name=name: order.append(name) for name in kind] for kind in ("abcd", "1", "xy")]
    for case in small.in_turns(kinds):
        case()
    assert sorted(order) == sorted("abcd1xy") and "1" in order[:3] and set("xy") <= set(order[:5])


def test_the_librarys_gradients_are_left_out_under_racecheck_only(monkeypatch, tmp_path, capsys):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=RAN + "".join(FINE.values()))

    monkeypatch.setattr(sanitize, "tool", lambda: "compute-sanitizer")
    monkeypatch.setattr(sanitize.subprocess, "run", run)
    for kind in FINE:
        sanitize.run_tool(kind, Task(tmp_path / "found.json", 60.0, {}))
    assert [c[-1] == small.ONLY_OURS for c in commands] == [False, False, False, True]
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(small, "cases", lambda only_ours: asked.append(only_ours) or [])
    small.main(1.0, only_ours=True)
    assert asked == [True] and small.LAST_LINE in capsys.readouterr().out


def test_a_missing_sanitizer_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(NotHere, match="compute-sanitizer was not found"):
        sanitize.tool()
