"""The search for beta: the same training but for beta, judged on the validation split, interruptible."""

import json

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import methods
from nft_ext.cli import main
from nft_ext.training import NonFiniteLoss, beta_search, load, search_beta
from nft_ext.training.beta_search import BetaSearch, with_beta
from nft_ext.training.history import History


def blobs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = 0.5 * torch.randn(n, 1, 8, 8, generator=generator)
    for label in range(3):
        images[labels == label, :, 2 * label : 2 * label + 3] += 0.7
    return images, labels


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


TRAIN, VALIDATION = blobs(48, 1), blobs(24, 2)
METHOD = methods.OVF(sigma=0.1, beta=7.0, feedbacks=1)
RECIPE = {"epochs": 2, "batch_size": 16, "seed": 3, "progress": False, "validation_chips": 2}


def figures(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]


def test_each_run_is_fit_with_that_beta_and_nothing_else_changed():
    found = search_beta(small_net(), METHOD, TRAIN, VALIDATION, betas=(0.5, 0.0), **RECIPE)
    assert list(found.histories) == [0.5, 0.0]
    for beta, history in found.histories.items():
        expected = nft.fit(small_net(), with_beta(METHOD, beta), TRAIN, VALIDATION, **RECIPE)
        assert figures(history) == figures(expected)


def history(accuracy, loss):
    return History(nn.Identity(), [{"epoch": 1, "val_accuracy": accuracy, "val_loss": loss}], 1)


@pytest.mark.parametrize(
    "runs, chosen",
    [
        ({0.1: history(0.5, 1.0), 0.01: history(0.6, 2.0)}, 0.01),
        ({0.1: history(0.6, 1.0), 0.01: history(0.6, 0.9)}, 0.01),
        ({0.1: history(0.6, 1.0), 0.01: history(0.6, 1.0)}, 0.1),
        ({}, None),
    ],
)
def test_the_best_validation_accuracy_is_chosen_then_the_lowest_loss(runs, chosen):
    found = BetaSearch(runs)
    assert found.beta == chosen
    assert found.best is (None if chosen is None else runs[chosen])


def test_the_four_steps_of_the_paper_are_searched_by_default(monkeypatch):
    asked = []

    def train(model, method, *data, **options):
        asked.append(method.beta)
        return history(0.5, 1.0)

    monkeypatch.setattr(beta_search, "fit", train)
    search_beta(small_net(), METHOD, TRAIN, VALIDATION)
    assert asked == [1e-1, 1e-2, 1e-3, 1e-4]


def test_checkpoint_and_logs_of_every_run_and_of_the_best(tmp_path):
    out = tmp_path / "out.safetensors"
    files = {"checkpoint": out, "log": tmp_path / "log.csv"}
    found = search_beta(small_net(), METHOD, TRAIN, VALIDATION, betas=(0.5, 0.0), **files, **RECIPE)
    assert {p.name for p in tmp_path.iterdir()} == {
        "out.safetensors",
        "out-beta0.5.safetensors",
        "out-beta0.safetensors",
        "log-beta0.5.csv",
        "log-beta0.csv",
    }
    state, meta = load(out)
    assert meta["method"]["beta"] == found.beta
    assert all(torch.equal(state[key], value) for key, value in found.best.model.state_dict().items())


def test_an_interrupt_keeps_what_was_finished(tmp_path):
    calls = []

    def impatient(x):  # an augmentation that presses Ctrl-C in the second run
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return x

    out = tmp_path / "out.safetensors"
    found = search_beta(small_net(), METHOD, TRAIN, VALIDATION, checkpoint=out, augment=impatient, **RECIPE)
    assert found.interrupted and list(found.histories) == [0.1] and found.beta == 0.1
    assert load(out)[1]["method"]["beta"] == 0.1


def test_a_run_that_diverges_is_reported_and_the_others_count(monkeypatch):
    real = beta_search.fit

    def sometimes(model, method, *data, **options):
        if method.beta >= 1.0:
            raise NonFiniteLoss("the loss became NaN", history(0.9, 0.1))
        return real(model, method, *data, **options)

    monkeypatch.setattr(beta_search, "fit", sometimes)
    found = search_beta(small_net(), METHOD, TRAIN, VALIDATION, betas=(1.0, 0.1), **RECIPE)
    assert found.beta == 0.1 and found.diverged == {1.0: "the loss became NaN"}
    assert "1        diverged" in str(found)
    with pytest.raises(NonFiniteLoss):
        search_beta(small_net(), METHOD, TRAIN, VALIDATION, betas=(1.0,), **RECIPE)


def test_beta_of_a_wrapped_method():
    wrapped = methods.CorrectNet(methods.IRS(0.1, 0.5), strength=1e-3)
    assert with_beta(wrapped, 0.2) == methods.CorrectNet(methods.IRS(0.1, 0.2), strength=1e-3)


@pytest.mark.parametrize(
    "method, betas, words",
    [
        (methods.NoiseInjection(0.1), (0.1,), r"method: must have a beta to search \(ovf, irs\); got noise"),
        (methods.CorrectNet(), (0.1,), r"method: must have a beta to search \(ovf, irs\); got vanilla"),
        (METHOD, (), "betas: must hold at least one value"),
        (METHOD, (0.1, 0.1), "betas: must hold at least one value, each once"),
        (METHOD, (0.1, -1), r"betas\[1\]: must be a finite number >= 0"),
    ],
)
def test_bad_input_is_refused_before_any_training(monkeypatch, method, betas, words):
    monkeypatch.setattr(beta_search, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=words):
        search_beta(small_net(), method, TRAIN, VALIDATION, betas=betas)


# ---- nft-ext train -------------------------------------------------------------------------------------------------

TINY = ["--epochs", "1", "--width", "0.01", "--batch-size", "512"]


def trained(out, *arguments):
    assert main(["train", str(out), *TINY, *arguments]) == 0
    return load(out)[1]["method"]


@pytest.mark.usefixtures("few_digits")
def test_the_command_searches_and_writes_the_outcome(tmp_path, capsys):
    out = tmp_path / "ovf.safetensors"
    method = trained(out, "--method", "ovf", "--feedbacks", "1", "--beta", "search")
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "ovf.search.json").read_text())
    assert list(record["runs"]) == ["0.1", "0.01", "0.001", "0.0001"]
    assert record["beta"] == method["beta"] and "<- chosen" in text
    assert len(list(tmp_path.glob("ovf-beta*.safetensors"))) == 4


@pytest.mark.usefixtures("few_digits")
def test_the_command_passes_options_of_the_method_on(tmp_path):
    out = tmp_path / "out.safetensors"
    method = trained(
        out,
        "--method",
        "correctnet",
        "--base",
        "ovf",
        "--feedbacks",
        "2",
        "-o",
        "delta=-0.05",
        "-o",
        "reversed_decay=true",
        "-o",
        "strength=0.001",
    )
    assert method["strength"] == 1e-3
    base = method["base"]
    assert (base["name"], base["feedbacks"], base["delta"], base["reversed_decay"]) == ("ovf", 2, -0.05, True)


@pytest.mark.parametrize(
    "arguments, beta",
    [
        ([], 1e-3),
        (["--dataset", "mnist"], 1e-2),
        (["--dataset", "mnist", "--beta", "paper"], 1e-2),
        (["--beta", "0.5"], 0.5),
    ],
)
def test_the_papers_beta_is_the_default_where_there_is_one(arguments, beta):
    import argparse

    from nft_ext.cli.train import add_parser, method_of

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    method = method_of(parser.parse_args(["train", "x", "--method", "irs", *arguments]))
    assert (method.beta, method.feedbacks) == (beta, None)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--method", "irs", "--beta", "paper"], "panel: must be one of"),
        (["--method", "noise", "--base", "ovf"], "--base: needs --method correctnet"),
        (["--method", "ovf", "-o", "detla=0.1"], "did you mean 'delta'"),
        (["--method", "noise", "--beta", "search"], "--beta: must be left out with --method noise"),
    ],
)
def test_the_command_refuses_options_that_do_not_fit(tmp_path, capsys, arguments, words):
    assert main(["train", str(tmp_path / "x.safetensors"), *TINY, *arguments]) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
