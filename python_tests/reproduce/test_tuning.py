"""Controls that decide: the tuned temperature and its search, equal compute, and the turned sign of beta."""

import pytest

from nft_ext import methods
from nft_ext.reproduce import run as grid_run
from nft_ext.reproduce import work as at_work
from nft_ext.reproduce.as_published import in_setting
from nft_ext.reproduce.estimate import seconds
from nft_ext.reproduce.grid import cells, searches
from nft_ext.reproduce.panels import Scale
from nft_ext.reproduce.store import Store
from nft_ext.reproduce.summary import rows
from nft_ext.reproduce.tuning import SEARCH_SEEDS, Tuning, chosen, described, trial
from support.cells import cell, report

TINY = in_setting(
    Scale(width=0.0625, epochs=1, batch_size=32, lr=1e-3, train_images=60, test_images=20, runs=2), "published"
)


def grid(*names, seeds=1, sigmas=(0.1,)):
    return cells("figure3", "vgg8-digits", TINY, sigmas, names, seeds, control=False)


def test_a_tuned_method_has_one_search_per_sigma_for_all_its_seeds():
    found = searches(grid("noise", "tuned", seeds=3, sigmas=(0.1, 0.3)))
    assert [(c.sigma, c.method["logit_scale"]) for c in found] == [
        (sigma, 1 / temperature) for sigma in (0.1, 0.3) for temperature in (1, 4, 16, 64, 256)
    ]
    assert searches(grid("noise", "compute")) == []


def test_a_search_sees_no_test_image_and_no_training_seed_of_a_report():
    found = searches(grid("tuned", "ovf-tuned", "irs-tuned"))
    assert {c.seed for c in found} == set(SEARCH_SEEDS) and min(SEARCH_SEEDS) >= 1000
    for one in found:
        assert one.sigmas == () and (one.scale.selection, one.scale.validation) == ("validation", 0.1)
        assert (one.scale.init, one.scale.normalisation) == ("published", "published")  # else as its report
    assert {c.method["beta"] for c in found if c.method["name"] != "noise"} == {1e-1, 1e-2, 1e-3, 1e-4}


def finished(*accuracies, loss=0.5, diverged=None):
    return [{"training": {"best": {"val_accuracy": a, "val_loss": loss}, "diverged": diverged}} for a in accuracies]


def test_the_choice_is_the_best_mean_validation_accuracy_then_the_lowest_loss_then_the_first():
    tuning = Tuning("logit_scale", (1.0, 0.25, 0.0625))
    means = [trial(1.0, finished(0.2, 0.6)), trial(0.25, finished(0.5, 0.5)), trial(0.0625, finished(0.3, 0.3))]
    assert chosen(tuning, means)["value"] == 0.25
    by_loss = [trial(1.0, finished(0.5)), trial(0.25, finished(0.5, loss=0.4)), trial(0.0625, finished(0.5, loss=0.4))]
    assert chosen(tuning, by_loss)["value"] == 0.25
    assert described(chosen(tuning, by_loss)) == "temperature 4"
    assert described(chosen(Tuning("beta", (0.1,)), [trial(0.1, finished(0.5))])) == "beta 0.1"


def test_a_value_with_a_diverged_training_is_not_chosen():
    tuning = Tuning("beta", (0.1, 0.01))
    lost = trial(0.1, finished(0.9) + finished(0.9, diverged="the loss became NaN"))
    assert lost is None and chosen(tuning, [lost, trial(0.01, finished(0.3))])["value"] == 0.01
    with pytest.raises(ValueError, match="beta: must have a value whose trainings do not diverge"):
        chosen(tuning, [None, None])


def test_the_tuned_network_trains_with_the_choice_and_the_search_is_trained_once(tmp_path, monkeypatch):
    trained, real = [], at_work.fit

    def fit(model, method, *arguments, **options):
        trained.append((options["seed"], method.logit_scale))
        history = real(model, method, *arguments, **options)
        history.rows[0]["val_accuracy"] = 0.9 if method.logit_scale == 1 / 64 else 0.5
        return history

    monkeypatch.setattr(at_work, "fit", fit)
    store, tuned = Store(tmp_path), grid("tuned", seeds=2)
    grid_run.run([*searches(tuned), *tuned], store, None)
    scales = [1, 1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert trained == [(1000, scale) for scale in scales] + [(0, 1 / 64), (1, 1 / 64)]
    for one in tuned:
        found = store.read(one)
        assert found["tuned"]["value"] == 1 / 64 and found["tuned"]["seeds"] == [1000]
        assert found["config"]["method"]["logit_scale"] is None  # so the seeds of a line have one configuration
    assert all(store.read(one)["points"] == [] and store.read(one)["clean"] is None for one in searches(tuned))
    assert store.others([*tuned, *searches(tuned)]) == 0


def test_a_tuned_network_alone_trains_its_search_first(tmp_path):
    store, (tuned,) = Store(tmp_path), grid("tuned")
    assert grid_run.run([tuned], store, None).computed == 1
    assert all(store.read(one) is not None for one in searches([tuned]))


def test_the_search_counts_in_an_estimate():
    tuned = grid("tuned")
    assert seconds([*searches(tuned), *tuned], None).keys() == {c.key for c in [*searches(tuned), *tuned]}


def test_equal_compute_is_noise_injection_with_as_many_forwards_as_ovf():
    noise, compute, ovf = grid("noise", "compute", "ovf")
    assert compute.method == noise.method and compute.variant == "noise compute"
    assert compute.epochs == (ovf.method["feedbacks"] + 1) * ovf.epochs == 4 * noise.epochs
    assert compute.key != noise.key


def test_positive_feedback_is_the_same_method_with_the_other_sign_of_beta():
    ovf, irs, against, other = grid("ovf", "irs", "ovf-positive", "irs-positive")
    assert [c.variant for c in (against, other)] == ["ovf positive", "irs positive"]
    for usual, turned in ((ovf, against), (irs, other)):
        assert turned.method == usual.method | {"beta": -usual.method["beta"]}
        assert methods.build(**turned.method).beta < 0


def test_networks_with_different_choices_are_not_one_line():
    """Two machines that share a grid without a common folder could choose differently."""
    choice = {"option": "logit_scale", "seeds": [1000], "trials": []}
    cells = [cell("noise tuned", seed=n) | {"tuned": choice | {"value": value}} for n, value in enumerate((1.0, 0.25))]
    with pytest.raises(ValueError, match="differ only in the seed within a row"):
        rows(cells)


def test_a_report_says_what_was_chosen_and_on_which_seed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    tuned = cell("noise tuned") | {"tuned": {"option": "logit_scale", "value": 1 / 64, "seeds": [1000], "trials": []}}
    text = " ".join(report([tuned, cell("noise")], tmp_path).split())
    assert (
        "noise tuned, sigma 0.3: temperature 64, chosen on validation images with training seed 1000, which no line "
        "here uses" in text
    )
