"""The rules of the benchmarks: what may be compared, and that nothing wrong is shown to be fast."""

import json

import pytest
import torch

from bench import run
from bench.harness import baselines, checks, measure, registry, table
from bench.harness.case import Case, Ready, Target, Variant, Work


def variant(family, failure=None, draws="one", **facts):
    def make():
        return Ready(lambda: None, lambda: failure)

    return Variant(family, draws, make, Work(flops=1.0, normals=1, bytes=1.0), **facts)


def row(of, seconds, failure=None):
    return measure.Row(of, failure, None if failure else measure.Timing(seconds, 1, 0.0))


TARGET = Target("case", "rule", {"family": "nft"}, {"family": "torch"}, 3.0)


def test_a_target_is_judged_by_the_medians_against_the_fastest_right_variant():
    rows = [
        row(variant("nft"), [1.0, 2.0, 9.0]),
        row(variant("torch"), [8.0, 8.0, 8.0]),
        row(variant("torch", precision="bf16"), [7.0, 7.0, 1.0]),
        row(variant("torch", mode="compile"), [], "wrong"),
    ]
    verdict = measure.judge(TARGET, measure.Measured(rows, 0.0))
    assert verdict.reached and verdict.ratio.of_medians == 3.5
    assert verdict.ratio.of_rounds == 3.5 and "bf16" in verdict.ratio.against


@pytest.mark.parametrize("family", ["nft", "torch"])
def test_no_ratio_where_a_result_is_wrong(family):
    rows = [row(variant(f), [1.0], "is wrong" if f == family else None) for f in ("nft", "torch")]
    verdict = measure.judge(TARGET, measure.Measured(rows, 0.0))
    assert verdict.reached is None and verdict.ratio is None
    assert "NOT SHOWN" in table.verdicts_text([verdict])
    assert measure.ratio(*rows) is None


def test_no_verdict_where_another_program_was_in_the_way():
    rows = [row(variant("nft"), [1.0]), row(variant("torch"), [9.0])]
    verdict = measure.judge(TARGET, measure.Measured(rows, 0.5))
    assert verdict.reached is None and "not comparable" in table.verdicts_text([verdict])


def test_a_wrong_or_broken_variant_is_named_and_gets_no_time():
    def broken():
        raise RuntimeError("no such thing")

    breaks = Variant("torch", "one", broken, Work(), mode="compile")
    case = Case("case", "shape", (variant("nft", "std 2.0"), variant("torch"), breaks))
    measured = measure.measure(case.variants, rounds=2)
    assert [r.timing is None for r in measured.rows] == [True, False, True]
    printed = table.text(case, measured.rows)
    assert "WRONG, no speed shown: std 2.0" in printed and "RuntimeError: no such thing" in printed
    record = json.loads(json.dumps(table.case_record(case, measured.rows)))
    assert [v["right"] for v in record["variants"]] == [False, True, False] and "median_s" not in record["variants"][0]


def test_only_variants_with_the_same_precision_are_compared():
    case = Case("case", "shape", ())
    rows = [
        row(variant("nft"), [1.0]),
        row(variant("torch"), [4.0]),
        row(variant("torch", precision="bf16"), [2.0]),
        row(variant("torch", mode="threads"), [3.0]),
    ]
    assert measure.best_torch(case, rows, rows[0], "one") is rows[1]


def test_the_statistical_check_sees_a_wrong_spread_and_a_shift():
    z = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    assert checks.standard_normal("z", z) is None
    assert "std" in checks.standard_normal("z", z * 1.05)
    assert "mean" in checks.standard_normal("z", z + 0.05)
    assert "mean" in checks.standard_normal("z", z * float("nan"))


@pytest.mark.parametrize("draws", ["one", "device"])
@pytest.mark.parametrize("way", ["fresh", "cached", "functional"])
def test_every_way_of_writing_the_baseline_follows_the_noise_model(draws, way):
    torch.manual_seed(0)
    weight = torch.randn(256, 256)
    step = baselines.step_of(weight)
    w_d = baselines.quantized(weight, step)
    chip = {
        "fresh": lambda: baselines.sample(weight, draws, baselines.Scratch()),
        "cached": lambda: baselines.sample_cached(w_d, float(step), draws, baselines.Scratch()),
        "functional": lambda: baselines.noisy(w_d, step, draws),
    }[way]()
    assert checks.standard_normal("weight", checks.weight_scores(chip, weight)) is None


def test_the_baseline_passes_gradients_straight_through():
    layer = baselines.by_hand(torch.nn.Linear(8, 4), "one")
    x = torch.randn(3, 8)
    layer(x).sum().backward()
    assert torch.allclose(layer.plain.weight.grad, x.sum(0).expand(4, 8))


def test_names_are_unique_and_targets_have_both_sides():
    cases = {case.name: case for case in registry.cases()}
    assert len(cases) == len(registry.cases())
    for case in cases.values():
        assert len({v.name for v in case.variants}) == len(case.variants)
    for target in registry.TARGETS:
        for wanted in (target.ours, target.against):
            assert any(v.matches(wanted) for v in cases[target.case].variants), target


def test_an_exact_name_selects_one_case_and_a_part_of_it_several():
    assert [c.name for c in registry.select("resnet18-1")[0]] == ["resnet18-1"]
    assert [c.name for c in registry.select("resnet18")[0]] == ["resnet18-1", "resnet18-8", "resnet18-128"]
    assert registry.select("limits") == ([], ["limits"])
    with pytest.raises(ValueError, match="--only: must match one of sampler, .*; got nonsense"):
        registry.select("nonsense")


def test_a_small_case_runs_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "results.json"
    assert run.main(["--only", "linear-8x8-forward", "--rounds", "1", "--no-compile", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert "linear-8x8-forward" in capsys.readouterr().out and found["machine"]["nft_ext_instruction_set"]
    assert all(v["right"] and v["median_s"] > 0 for v in found["cases"][0]["variants"])
