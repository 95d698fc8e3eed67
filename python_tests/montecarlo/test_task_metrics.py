"""Built-in metrics equal their definitions, chip by chip. A function is the ratio of its sums. Misfits are refused."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import MonteCarloReport, metric
from support.tasks import NVM, Output, chips_of, cut, encoder, sentences

RUNS = 5


def evaluate(model, data, metrics, **options):
    return nft.monte_carlo(model, data, metrics=metrics, **{"runs": RUNS, "progress": False} | options)


def per_chip(model, inputs, of):
    """of(output) for every chip, from whole networks with programmed weights."""
    found = []
    for chip in chips_of(model, RUNS):
        with torch.no_grad():
            output = chip(*inputs)
        found.append(float(of(output if torch.is_tensor(output) else output.logits)))
    return found


@pytest.fixture(scope="module")
def pictures():
    """Images [24, 2, 6, 6] and a class per pixel, some ignored."""
    generator = torch.Generator().manual_seed(2)
    masks = torch.randint(4, (24, 6, 6), generator=generator)
    return torch.randn(24, 2, 6, 6, generator=generator), masks.masked_fill(masks == 3, 255)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(3)
    return nft.convert(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)), NVM).eval()


@pytest.fixture(scope="module")
def regressor():
    torch.manual_seed(4)
    return nft.convert(nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2)), NVM).eval()


@pytest.fixture(scope="module")
def points():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(5))
    return x, torch.stack([x.sum(1), x[:, 0] * 3 + 1], dim=1)


def test_accuracy_of_a_tuple_of_image_and_label_is_that_of_the_top_1():
    torch.manual_seed(0)
    model = nft.convert(nn.Linear(6, 7), NVM)
    x, y = torch.randn(50, 6), torch.randint(7, (50,))
    report = evaluate(model, (x, y), ("accuracy", "top1", "top3"))
    assert report.metrics["top1"].per_run.tolist() == report.accuracy.per_run.tolist()
    expected = per_chip(model, (x,), lambda z: (z.topk(3).indices == y[:, None]).any(1).double().mean())
    assert report.metrics["top3"].per_run.tolist() == pytest.approx(expected, rel=1e-12)
    assert "top-3 accuracy, %" in str(report)


def test_mean_iou_is_that_of_sums_over_the_set(segmenter, pictures):
    images, masks = pictures

    def expected(logits):
        prediction, found = logits.argmax(1), []
        for c in range(3):
            seen = masks != 255
            both = ((prediction == c) & (masks == c) & seen).sum()
            found.append(both / (((prediction == c) | (masks == c)) & seen).sum())
        return torch.stack(found).mean()

    metrics = {"miou": metric("miou", ignore_index=255), "token_accuracy": metric("token_accuracy", ignore_index=255)}
    report = evaluate(segmenter, pictures, metrics, batch_size=7)
    assert report.metrics["miou"].per_run == pytest.approx(per_chip(segmenter, (images,), expected), rel=1e-6)
    right = per_chip(segmenter, (images,), lambda z: (z.argmax(1) == masks)[masks != 255].double().mean())
    assert report.metrics["token_accuracy"].per_run.tolist() == pytest.approx(right, rel=1e-12)
    assert report.first == "miou" and report.metrics["miou"].higher_is_better
    assert "mean IoU, %" in str(report) and "accuracy of a chip" not in str(report)


@pytest.mark.parametrize("name", ["mse", "mae", "r2"])
def test_regression_metrics_follow_their_definitions(regressor, points, name):
    x, y = points

    def of(z):
        if name == "mae":
            return (y - z).abs().double().mean()
        squared = (y - z).double().square()
        return squared.mean() if name == "mse" else 1 - squared.sum() / (y - y.mean(0)).double().square().sum()

    report = evaluate(regressor, points, name)
    assert report.metrics[name].per_run == pytest.approx(per_chip(regressor, (x,), of), rel=1e-5)
    assert report.metrics[name].higher_is_better == (name == "r2")
    with pytest.raises(
        AttributeError, match=f"^metrics: must include 'accuracy' in the call of monte_carlo; got {name}"
    ):
        report.accuracy
    with pytest.raises(KeyError, match=f"must be one of {name}, the metrics of this report; got 'ekl'"):
        report.metrics["ekl"]
    assert report.classes is None and math.isnan(report.ece)


def language(**options):
    """A causal language model's batch: the labels are the input, -100 where padded."""
    batch = sentences(**options)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch | {"labels": labels}


def test_perplexity_of_a_language_model_predicts_the_next_token():
    model, batch = encoder(classes=30, per_token=True), language()
    nll = per_chip(
        model,
        (batch["input_ids"], batch["attention_mask"]),
        lambda z: nn.functional.cross_entropy(z[:, :-1].flatten(0, 1).double(), batch["labels"][:, 1:].flatten()),
    )
    report = evaluate(model, batch, ("perplexity", "nll", "token_accuracy"))
    assert report.nll.per_run == pytest.approx(nll, rel=1e-5)
    assert report.metrics["perplexity"].per_run == pytest.approx(np.exp(nll), rel=1e-5)
    assert any(note.startswith("token t is compared with the output at token t - 1") for note in report.notes)


def test_labels_that_differ_from_the_input_are_compared_in_place():
    model, batch = encoder(classes=30, per_token=True), language()
    batch["labels"] = (batch["labels"] + 1) % 30
    right = per_chip(
        model,
        (batch["input_ids"], batch["attention_mask"]),
        lambda z: (z.argmax(-1) == batch["labels"]).double().mean(),
    )
    assert evaluate(model, batch, "token_accuracy").metrics["token_accuracy"].per_run.tolist() == pytest.approx(right)


def test_the_output_and_the_target_may_have_names(pictures):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, pixels):
            return Output(out=self.conv(pixels), extra=[pixels])

    torch.manual_seed(0)
    images, masks = pictures
    model = nft.convert(Named(), NVM)
    of = metric("token_accuracy", ignore_index=255, output="out", target="mask")
    report = evaluate(model, {"pixels": images, "mask": masks}, {"right": of})
    plain = evaluate(
        model,
        {"pixels": images, "labels": masks},
        {"right": metric("token_accuracy", ignore_index=255)},
        forward=lambda m, batch: m(batch["pixels"])["out"],
    )
    assert report.metrics["right"].per_run.tolist() == plain.metrics["right"].per_run.tolist()


# ---- functions of the user


def weighted(output, batch):
    """A weighted share of right examples."""
    right = (output.logits.argmax(1) == batch["labels"]).double()
    return right * batch["weight"], batch["weight"]


def test_a_function_is_the_ratio_of_its_sums_and_sees_one_chip():
    model = encoder()
    batch = sentences() | {"weight": torch.linspace(0.5, 2, 20).double()}
    expected = per_chip(
        model,
        (batch["input_ids"], batch["attention_mask"]),
        lambda z: ((z.argmax(1) == batch["labels"]) * batch["weight"]).sum() / batch["weight"].sum(),
    )
    for options in ({}, {"chips_per_pass": 3, "batch_size": 7}):
        report = evaluate(model, batch, {"weighted": weighted}, **options)
        assert report.metrics["weighted"].per_run == pytest.approx(expected, rel=1e-12)
    several = evaluate(model, batch, ("accuracy", ("weighted", weighted)), chips_per_pass=5)
    assert list(several.metrics) == ["accuracy", "weighted"]
    assert several.metrics["weighted"].per_run == pytest.approx(expected, rel=1e-12)


def test_the_worst_chip_of_a_function_needs_a_direction(tmp_path):
    model, batch = encoder(), sentences() | {"weight": torch.ones(20).double()}

    def error(output, batch):
        right, weight = weighted(output, batch)
        return weight - right, weight

    unknown = evaluate(model, batch, {"error": error})
    assert math.isnan(unknown.metrics["error"].worst) and "does not say whether higher is better" in str(unknown)
    error.higher_is_better = False
    report = evaluate(model, batch, {"error": error})
    assert report.metrics["error"].worst == report.metrics["error"].per_run.max()
    assert "of chips lie above" in str(report)
    for found in (unknown, report):
        found.to_json(tmp_path / "r.json")
        again = MonteCarloReport.from_json(tmp_path / "r.json")
        assert str(again) == str(found) and list(again.metrics) == ["error"]
        found.plot(tmp_path / "r.png")
        found.to_csv(tmp_path / "r.csv")
        assert (tmp_path / "r.csv").read_text().startswith("run,seed,sigma,error\n")


X, Y = torch.randn(10, 3), torch.arange(10) % 4


@pytest.mark.parametrize(
    "function, kind, words",
    [
        (lambda o, b: 0.0, TypeError, "must return two tensors.*; got float"),
        (lambda o, b: (o.sum(1), 1.0), TypeError, "two tensors.*; got tuple of Tensor, float"),
        (
            lambda o, b: (o.sum(1), o.sum(1)[:1]),
            ValueError,
            r"one numerator and one denominator.*\[10\].*\[1\]|\[8\].*\[1\]",
        ),
        (lambda o, b: (o, o), ValueError, r"\[B\] each; got"),
        (lambda o, b: (o.sum(), o.sum()), ValueError, r"\[B\] each; got"),
        (lambda o, b: (o.sum(1)[:2], o.sum(1)[:2]), ValueError, "one pair per example, 8 here; got 2"),
        (lambda o, b: (b[1], b[1]), TypeError, "floating-point tensors; use .float()"),
        (
            lambda o, b: (o.sum(1) / 0.0, o.sum(1)),
            ValueError,
            "must be finite for every example.*NaN or inf for 8 of 8",
        ),
        (lambda o, b: (b[0].mul_(1.0).sum(1), o.sum(1)), ValueError, "must not write to the batch"),
    ],
)
def test_a_function_that_gives_no_pair_per_example_is_named(function, kind, words):
    model = nft.convert(nn.Linear(3, 4), NVM)
    with pytest.raises(kind, match=rf"^metrics\['mine'\]: .*(?:{words})"):
        evaluate(model, (X, Y), {"mine": function})


@pytest.mark.parametrize(
    "metrics, words",
    [
        (lambda o, b: 0.0, "metrics: must be a list of names"),
        ((lambda o, b: 0.0,), "metrics: must be names, or pairs .name, function.; a function alone has no name"),
        ({"accuracy": lambda o, b: 0.0}, "metrics: must give a function another name"),
        ({"seed": lambda o, b: 0.0}, "metrics: must have names other than run, seed, sigma"),
        ({"mine": 3}, "metrics: must be a function .* for 'mine'; got 3"),
        ("top4", "top4: needs a number below the 4 classes of the output"),
        ("speed", "metrics: must be among accuracy"),
        ("mse", r"mse: needs an output of the target's shape; got output \[8, 4\] and target \[8\]"),
        ("miou", "miou: needs integer labels"),
    ],
)
def test_metrics_that_do_not_fit_are_refused_before_any_chip(metrics, words, monkeypatch):
    model = nft.convert(nn.Linear(3, 4), NVM)
    y = Y.double() if metrics == "miou" else Y
    with pytest.raises((ValueError, TypeError), match=f"^{words}"):
        evaluate(model, (X, y), metrics)


def test_a_column_is_never_broadcast_against_a_row():
    model = nft.convert(nn.Linear(3, 1), NVM)
    x, y = torch.randn(10, 3), torch.randn(10)
    one, column = evaluate(model, (x, y), "mse"), evaluate(model, (x, y[:, None]), "mse")
    assert one.metrics["mse"].per_run.tolist() == column.metrics["mse"].per_run.tolist()
    assert one.metrics["mse"].per_run == pytest.approx(
        per_chip(model, (x,), lambda z: (z[:, 0] - y).double().square().mean()), rel=1e-6
    )


def test_accuracy_of_numbers_or_of_pixels_says_what_to_use(segmenter, pictures, regressor, points):
    with pytest.raises(ValueError, match="^data: labels must be integers; use mse, mae or r2"):
        nft.monte_carlo(regressor, points, runs=2, progress=False)
    with pytest.raises(ValueError, match="^accuracy: needs logits .*; use token_accuracy, nll, perplexity or miou"):
        nft.monte_carlo(segmenter, pictures, runs=2, progress=False)
    with pytest.raises(ValueError, match="^data: labels must lie in 0 .. 2, .*ignore_index=.* got 255"):
        evaluate(segmenter, pictures, "miou")


def test_a_place_of_the_classes_that_is_open_is_refused():
    model = nft.convert(nn.Linear(3, 4), NVM)  # [B, T, 3] -> [B, T, 4], T = 4
    with pytest.raises(ValueError, match="^token_accuracy: needs logits whose classes are at one place only"):
        evaluate(model, (torch.randn(8, 4, 3), torch.zeros(8, 4, dtype=torch.long)), "token_accuracy")


# ---- forward


def test_a_forward_of_the_user_is_checked_for_several_chips():
    model, batch = encoder(), sentences()
    ours = evaluate(model, batch, "accuracy", chips_per_pass=3)

    def each(m, b):
        return m(b["input_ids"], attention_mask=b["attention_mask"])

    def with_loss(m, b):
        return m(**b)

    def mixing(m, b):
        logits = each(m, b).logits
        return logits - logits.mean(0)

    report = evaluate(model, batch, "accuracy", forward=each, chips_per_pass=3)
    assert report.chips_per_pass == 3 and report.accuracy.per_run.tolist() == ours.accuracy.per_run.tolist()
    for forward, reason in ((with_loss, "a number for the whole batch"), (mixing, "differ from two calls")):
        report = evaluate(model, batch, "nll", forward=forward, chips_per_pass=3)
        assert report.chips_per_pass == 1 and any(reason in note for note in report.notes)
    alone = evaluate(model, batch, "nll", forward=mixing, chips_per_pass=1)
    assert report.nll.per_run.tolist() == alone.nll.per_run.tolist()
    with pytest.raises(TypeError, match="^forward: must be a function"):
        evaluate(model, batch, "accuracy", forward="each")


# ---- what holds for accuracy


def test_a_target_is_about_the_first_metric(regressor, points):
    first = evaluate(regressor, points, "mse", runs=64)
    target = 0.6 * first.metrics["mse"].ci95
    for options in ({}, {"protocol": "stratified", "slice_images": 20}):
        report = evaluate(regressor, points, ("mse", "r2"), target_ci=target, **options)
        assert report.stopping["reached"] and report.metrics["mse"].ci95 <= target and report.runs > 64
        assert report.metrics["mse"].per_run[:64].tolist() == pytest.approx(
            evaluate(regressor, points, "mse", runs=64, **options).metrics["mse"].per_run.tolist(), rel=1e-6
        )


def test_auto_slices_take_the_first_metric(regressor, points):
    report = evaluate(regressor, points, "r2", protocol="stratified", runs=40)
    assert report.pilot["metric"] == "r2" and report.pilot["mean"] <= 1
    assert report.pilot["X2"] >= 0 and report.slice_images <= 40


def test_a_sweep_of_another_metric(regressor, points, tmp_path):
    found = nft.sweep(
        {"a": regressor, "b": regressor}, points, [0.1, 0.4], runs=8, metrics=("mae", "mse"), progress=False
    )
    assert "absolute error, mean over chips" in str(found) and found.paired("b", "a")[0.4].mean == 0
    assert found.paired("b", "a", "mse")[0.1].mean == 0
    assert "absolute error minus that of a" in found.differences_table()
    found.plot(tmp_path / "s.png")
    found.to_csv(tmp_path / "s.csv")
    found.to_json(tmp_path / "s.json")
    assert "mae_mean" in (tmp_path / "s.csv").read_text()
    assert json.loads((tmp_path / "s.json").read_text())["differences"][0]["metric"] == "mae"


def test_the_cost_of_another_task_is_estimated(regressor, points):
    estimate = nft.estimate_cost(regressor, points, metrics="mse", runs=10)
    assert (estimate.chips, estimate.images_a_chip) == (10, 40)


def test_a_mapping_of_ragged_batches_has_a_cost(tmp_path):
    batches = cut(sentences(), 6)
    batches[0] = {name: nn.functional.pad(t, (0, 1)) if t.dim() == 2 else t for name, t in batches[0].items()}
    assert nft.estimate_cost(encoder(), batches, runs=10).chips == 10


def test_a_loss_of_the_batch_is_that_of_a_chip_s_own_examples():
    """Under slices too: the example that fills a shorter slice up is not in its loss."""
    from nft_ext.montecarlo.statistics.slices import Slices

    model, batch = encoder(), sentences()

    def loss(output, batch):
        ones = torch.ones(len(batch["labels"]))
        return output["loss"] * ones, ones

    report = evaluate(
        model,
        batch,
        {"loss": loss},
        forward=lambda m, b: m(**b),
        protocol="stratified",
        slice_images=6,
        runs=5,
    )
    assert report.chips_per_pass == 1
    for draw, chip in enumerate(chips_of(model, 5)):
        numbers, counted = Slices(0, 20, 6).of([draw])
        with torch.no_grad():
            expected = chip(**{name: tensor[numbers[0][counted[0]]] for name, tensor in batch.items()})["loss"]
        assert report.metrics["loss"].per_run[draw] == pytest.approx(float(expected), rel=1e-5)


def test_an_output_that_keeps_its_results_in_an_object_is_refused_where_it_is_used():
    class Box:
        def __init__(self, x):
            self.x = x

    model, batch = encoder(), sentences()

    def forward(m, b):
        logits = m(b["input_ids"]).logits
        return Output(logits=logits, box=Box(logits))

    def of_box(output, batch):
        right = (output["box"].x.argmax(1) == batch["labels"]).float()
        return right, torch.ones_like(right)

    assert evaluate(model, batch, "accuracy", forward=forward, chips_per_pass=3).chips_per_pass == 3
    with pytest.raises(TypeError, match="^forward: must return tensors in containers; .*got Box"):
        evaluate(model, batch, {"box": of_box}, forward=forward, chips_per_pass=3)


@pytest.mark.parametrize("options", [{}, {"chips_per_pass": 1}, {"batch_size": 3}], ids=str)
def test_slices_of_unequal_sizes_hold_what_their_chip_saw(regressor, points, options):
    from nft_ext.montecarlo.statistics.slices import Slices

    x, y = points
    report = evaluate(regressor, points, ("mae", "mse"), runs=9, protocol="stratified", slice_images=7, **options)
    for draw, chip in enumerate(chips_of(regressor, 9)):
        numbers, counted = Slices(0, 40, 7).of([draw])
        mine = numbers[0][counted[0]]
        with torch.no_grad():
            expected = (y[mine] - chip(x[mine])).double().abs().mean()
        assert report.metrics["mae"].per_run[draw] == pytest.approx(float(expected), rel=1e-5)
    assert report.metrics["mae"].std > 0 and report.metrics["mae"].ci95 > 0
