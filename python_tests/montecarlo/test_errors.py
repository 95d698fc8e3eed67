"""`monte_carlo` refuses bad input before any work, naming the argument, the rule and the value."""

import math

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import monte_carlo

INPUTS, LABELS = torch.ones(6, 9), torch.arange(6)


@pytest.fixture
def plain():
    return nn.Sequential(nn.Linear(9, 6))


@pytest.fixture
def model(plain):
    return nft.convert(plain, nft.NVMDevice())


def evaluate(model, data=(INPUTS, LABELS), **options):
    return monte_carlo(model, data, **({"runs": 2, "progress": False} | options))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(runs=1), "runs: must be an integer .*; got 1"),
        (dict(runs=2.5), "runs: .*; got 2.5"),
        (dict(seed=-1.5), "seed: "),
        (dict(sigma=-0.1), "sigma: .*; got -0.1"),
        (dict(sigma=math.nan), "sigma: .*; got nan"),
        (dict(protocol="half"), "protocol: must be one of full, stratified; got half"),
        (dict(protocol="full", slice_images=3), "slice_images: must be 'auto' under protocol 'full'.*; got 3"),
        (dict(protocol="stratified", slice_images=0), "slice_images: must be an integer >= 1; got 0"),
        (dict(protocol="stratified", slice_images=7), "slice_images: must be at most the 6 images of data; got 7"),
        (dict(protocol="stratified", slice_images="all"), "slice_images: must be an integer >= 1; got all"),
        (dict(target_ci=0.0), "target_ci: must be a half-width .* > 0 .*; got 0.0"),
        (dict(target_ci=-0.01), "target_ci: .*; got -0.01"),
        (dict(target_ci=1), "target_ci: .* < 1; got 1.0"),
        (dict(target_ci=math.nan), "target_ci: .*; got nan"),
        (dict(target_ci=0.01, max_runs=63), "max_runs: must be an integer in 64.*; got 63"),
        (dict(target_ci=0.01, min_runs=10), "min_runs: must be an integer in 64.*; got 10"),
        (dict(target_ci=0.01, min_runs=200, max_runs=100), "min_runs: must be an integer in 64..100; got 200"),
        (dict(metrics=("accuracy", "speed")), "metrics: must be among accuracy, ekl, nll.*; got speed"),
        (dict(metrics=()), "metrics: must hold at least one of accuracy.*; got none"),
        (dict(metrics=("nll", "nll")), "metrics: must hold each name once; got nll"),
        (dict(metrics=("mse",), target_ci=0.0), "target_ci: .* > 0, in the unit of the first metric; got 0.0"),
        (dict(chips_per_pass=0), "chips_per_pass: .*; got 0"),
        (dict(batch_size=0), "batch_size: .*; got 0"),
        (dict(precision="float8"), "precision: must be one of float32, bfloat16.*; got float8"),
        (dict(device="nowhere"), "device: must be an available torch device; got 'nowhere'"),
    ],
)
def test_bad_arguments_are_named_before_any_work(model, options, words, monkeypatch):
    monkeypatch.setattr(nn.Sequential, "forward", lambda *a: pytest.fail("work began"))
    with pytest.raises(ValueError, match=f"^{words}"):
        evaluate(model, **options)


def test_a_model_that_cannot_be_evaluated_is_refused(plain, model):
    with pytest.raises(ValueError, match="^model: must hold noisy layers; make them with nft_ext.convert"):
        evaluate(plain)
    with pytest.raises(TypeError, match="^model: must be a torch.nn.Module"):
        evaluate(lambda x: x)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="^model: .*finite; got NaN or inf in '0.weight'"):
        evaluate(model)


def test_a_model_of_one_output_is_refused():
    one = nft.convert(nn.Linear(9, 1), nft.NVMDevice())  # every image would count as correct
    with pytest.raises(ValueError, match=r"^model: must return logits of at least two classes; got shape \[6, 1\]"):
        evaluate(one, (INPUTS, torch.zeros(6, dtype=torch.int64)))


def test_labels_beyond_the_model_s_classes_are_refused(model):
    with pytest.raises(ValueError, match="^data: labels must lie in 0 .. 5, .* 6 classes; got 6"):
        evaluate(model, (INPUTS, LABELS + 1))
