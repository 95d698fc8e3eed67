"""The figures of bench/gpu_check.py: floors, comparisons, targets and the table that shows them."""

import pytest
import torch

from bench.gpu import floors, one_pass, one_pass_times, report, targets, timing, training
from bench.gpu.child import Task, Wrong
from bench.gpu.stages import FAILED, LATE, NOT_RUN, PASSED, Outcome
from bench.harness import measure
from bench.harness.case import Ready, Variant, Work
from support.stages import stage

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
    found = floors.floor(
        floors.Ceilings.of({"copy_bytes_per_second": 1e12, "flops_per_second": {}}), bytes_=1e9, instructions=1e30
    )
    assert found.instructions == 0.0 and found.bound_by == "bytes"


def test_one_normal_a_device_costs_more_instructions_than_one_a_weight():
    assert floors.sampling_instructions(100, 100) == 6000 and floors.sampling_instructions(100, 400) == 22500


# ---- comparisons, targets, tables


CEILINGS = floors.Ceilings(1e12, {"bf16": 1e14, "fp32": 1e13}, None)


def row(family, draws, seconds, failure=None, precision="bf16", mode="eager", cached=True):
    variant = Variant(
        family,
        draws,
        lambda: Ready(lambda: None, lambda: None),
        Work(flops=1e9, normals=0, bytes=1e9),
        precision,
        mode,
        cached,
    )
    return measure.Row(variant, failure, None if failure else measure.Timing([seconds] * 3, 1, 0.0))


ROWS = [
    row("nft", "one", 2e-3),
    row("nft", "one", 1e-3, mode="graph"),
    row("torch", "one", 3e-3, mode="compile"),
    row("torch", "one", 4e-3),
    row("torch", "device", 0, "std 2.0"),
    row("torch", "none", 9.5e-4, mode="graph"),
    row("torch", "one", 1e-9, precision="fp32"),
]


def case(name="resnet18-128-bf16", rows=ROWS, **facts):
    return {
        "name": f"{name}: a shape",
        "case": name,
        "rows": [timing.row_record(r, CEILINGS) for r in rows],
        "compared": timing.compared(rows, CEILINGS),
        "failures": [r.failure for r in rows if r.failure],
        "unmeasured": [],
    } | facts


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
    assert (
        record["right"] is False
        and record["failure"] == "std 2.0"
        and "median_s" not in record
        and "floor_s" not in record
    )


def test_targets_are_judged_by_the_worst_and_only_where_something_was_measured():
    layers = {
        "cases": [
            case("a", rows_a_chip=16),
            case("b", [row("nft", "one", 1.0), row("torch", "one", 1.1)], rows_a_chip=256),
            case("c", [row("nft", "one", 9.0), row("torch", "one", 1.0)], rows_a_chip=1024),
        ]
    }
    found = targets.judged(
        {
            "network": Outcome(PASSED, found={"cases": [case()]}),
            "layers": Outcome(LATE, found=layers),
            "training": Outcome(FAILED),
        }
    )
    by_rule = {t["rule"]: t for t in found}
    assert len(by_rule) == len(found) == 7
    (network,) = [t for r, t in by_rule.items() if r.startswith("ResNet-18") and "one normal" in r]
    assert network["reached"] is True and network["value"] == pytest.approx(3.0)
    (quiet,) = [t for r, t in by_rule.items() if "without noise" in r]
    assert quiet["reached"] is True and quiet["value"] == pytest.approx(0.95)
    (few,) = [t for r, t in by_rule.items() if r.startswith("layers") and "1.3x" in r]
    assert few["value"] == pytest.approx(1.1) and few["reached"] is False and few["what"].startswith("b, ")
    for rule, t in by_rule.items():
        if rule.startswith(("OVF", "sampler")) or "per device" in rule:
            assert t["value"] is None and t["reached"] is None, rule


def test_the_sampler_and_the_memory_are_judged_from_above():
    sampler = case("sampler", [row("nft", "one", 1.2e-3, mode="graph"), row("nft", "one", 5e-3)])
    memory = {"memory": [{"precision": "bf16", "ours_bytes": 70, "against_bytes": 100}]}
    other = [row("nft", "one", 1.0), row("torch", "one", 9.0)]
    memory["cases"] = [case(training.CASES["fp32"], other), case(training.CASES["bf16"])]
    found = {
        t["rule"]: t
        for t in targets.judged(
            {"sampler": Outcome(PASSED, found={"cases": [sampler]}), "training": Outcome(PASSED, found=memory)}
        )
    }
    assert found["OVF step, bf16: >= 1.5x PyTorch with one normal per weight"]["value"] == pytest.approx(3.0)
    assert found["sampler, bf16: at most 1.3 times its floor"]["reached"] is True
    (share,) = [t for r, t in found.items() if "peak memory" in r]
    assert share["value"] == pytest.approx(0.7) and share["reached"] is False


def test_the_table():
    wanted = [
        stage("facts"),
        stage("memcheck"),
        stage("network", correctness=False),
        stage("training", correctness=False),
    ]
    outcomes = {
        "facts": Outcome(PASSED, 3.0, found={"summary": "a device"}),
        "memcheck": Outcome(NOT_RUN, why="no such tool"),
        "network": Outcome(PASSED, 60.0, found={"cases": [case(unmeasured=["x", "y"])]}),
    }
    lines = report.text(wanted, outcomes, targets.judged(outcomes)).splitlines()
    assert max(map(len, lines)) <= 160
    assert any("3.00" in line and "graph / compile" in line and "1.000 bytes" in line for line in lines)
    assert any("WRONG, no time shown: std 2.0" in line for line in lines)
    assert any("not measured, no time left: 2 variants" in line for line in lines)
    last = lines[lines.index("stages") + 1 :]
    assert [line.split()[0] for line in last] == ["facts", "memcheck", "network", "training"]
    assert "a device" in last[0] and "not run" in last[1] and "no such tool" in last[1] and "not run" in last[3]


def test_times_of_any_size_are_readable():
    assert [report.milliseconds(s) for s in (None, 2.34e-5, 4.567e-3, 0.123)] == ["-", "0.0234", "4.567", "123.0"]


def test_compiling_may_outlast_a_stage_and_costs_nothing_that_was_ready(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        timing, "interleaved", lambda runs, left, rounds: [measure.Timing([1.0] * rounds, 1, 0.0) for _ in runs]
    )
    wanted = [row("nft", "one", 0).variant, row("torch", "one", 0, mode="compile").variant]
    found, task = [], Task(tmp_path / "found.json", 60.0, {})
    whole = timing.measure_case("a", "b", wanted, CEILINGS, task, found.append)
    (early,) = found
    assert [r["variant"] for r in early["rows"]] == [wanted[0].name] and early["unmeasured"] == [wanted[1].name]
    assert [r["rounds"] for r in early["rows"] + whole["rows"]] == [timing.FEWEST_ROUNDS, timing.ROUNDS, timing.ROUNDS]
    assert whole["unmeasured"] == [] and len(whole["compared"]) == 1
    timing.measure_case("a", "b", wanted[:1], CEILINGS, task, found.append)
    assert len(found) == 1, "nothing is compiled"


# ---- one pass beside programmed first


def times(pairs, dtype="float32", shape=(8, 8, None, 1)):
    """Points of one layer: {columns: (one pass, programmed first)}."""
    return [
        {
            "direction": "forward",
            "dtype": dtype,
            "shape": list(shape),
            "columns": columns,
            "one_pass_s": a,
            "programmed_s": b,
        }
        for columns, (a, b) in pairs.items()
    ]


def test_the_bound_is_where_the_library_begins_to_win():
    assert one_pass.best_bound(times({c: (c, 200.0) for c in (16, 64, 128, 256, 512)})) == 128
    assert one_pass.best_bound(times({16: (2.0, 1.0), 64: (2.0, 1.0)})) == 0
    assert one_pass.best_bound(times({16: (1.0, 2.0), 64: (1.0, 2.0)})) == 64
    assert one_pass.best_bound(times({16: (1.0, 2.0), 32: (1.0, 1.0)})) == 16, "of equally good ones the smallest"


def test_several_layers_share_the_bound_that_costs_least_together():
    """One layer would have 32, the other 128; at 64 columns the first loses a fifth by one pass, the second gains a
    half.
    """
    first = times({32: (1.0, 1.1), 64: (1.2, 1.0), 128: (1.5, 1.0)})
    second = times({32: (1.0, 2.0), 64: (1.0, 1.5), 128: (1.0, 1.1)}, shape=(9, 9, 3, 4))
    assert one_pass.best_bound(first + second) == 64
    found = one_pass.bounds(first + second + times({16: (2.0, 1.0)}, "bfloat16"))
    assert found == {"forward": {"float32": 64, "bfloat16": 0}}
    assert one_pass.summary(found) == "forward: one pass wins to 64 columns in float32, 0 columns in bfloat16"


def test_points_are_paired_by_what_was_timed():
    def point(columns, seconds):
        return {
            "direction": "forward",
            "dtype": "float16",
            "shape": [8, 8, None, 1],
            "columns": columns,
            "seconds": seconds,
        }

    found = one_pass.paired([point(16, 1.0), point(32, 2.0)], [point(32, 3.0), point(64, 4.0)])
    assert found == times({32: (2.0, 3.0)}, "float16")


def test_each_way_is_timed_in_a_process_that_is_told_so(monkeypatch, tmp_path):
    """Every point fits its image, and a process that saves nothing is named."""
    seen = []

    def process(command, *, cwd, env):
        seen.append((command[3], env["NFT_EXT_ONE_PASS"]))
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(one_pass.subprocess, "run", process)
    with pytest.raises(Wrong, match="NFT_EXT_ONE_PASS=always: .* ended with status 1 and saved nothing"):
        one_pass.run(Task(tmp_path / "found.json", 60.0, {}))
    assert seen == [("one_pass_times", "always")]
    points = list(one_pass_times.points())
    assert len(points) == len(set(points)) and {p[:2] for p in points} == {
        (d, t) for d in ("forward", "input_gradient") for t in ("float32", "bfloat16", "float16")
    }
    assert all(columns % one_pass_times.SHAPES[n][3] ** 2 == 0 for _, _, n, columns in points)
