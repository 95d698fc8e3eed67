"""`fit`: what is trained, which epoch is kept, how a run ends."""

import csv
import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import nft_ext as nft
from nft_ext import methods
from nft_ext.training.batches import Batches, permuted
from nft_ext.training.history import History
from nft_ext.training.recipe import Recipe
from nft_ext.training.selection import Validation
from support.training_runs import TRAIN, VALIDATION, small_net

METHODS = [
    methods.Vanilla(),
    methods.NoiseInjection(sigma=0.1),
    methods.ScaledLogits(sigma=0.1),
    methods.OVF(sigma=0.1, beta=1e-2, feedbacks=2),
    methods.IRS(sigma=0.1, beta=1e-2, points=["2", ("3", 2)], input_shape=(1, 8, 8)),
]


@pytest.fixture
def net():
    return small_net()


def run(net, method=METHODS[1], train=TRAIN, validation=VALIDATION, **options):
    defaults = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "progress": False, "validation_chips": 3}
    return nft.fit(net, method, train, validation, **defaults | options)


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_learns_and_leaves_a_plain_model(net, method):
    history = run(net, method, epochs=6)
    assert history.best["val_accuracy"] > 0.8
    assert list(history.model.state_dict()) == list(net.state_dict())
    assert not nft.noisy_layers(history.model)
    assert not history.model.training
    assert not history.interrupted
    assert history.seconds > 0


def test_the_users_model_and_generator_are_left_alone(net):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(net, METHODS[3], epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_seed_gives_the_same_weights_bit_for_bit(net, method):
    augment = lambda x: x + 0.1 * torch.randn_like(x)
    first = run(net, method, seed=3, augment=augment)
    torch.manual_seed(99)  # whatever ran before
    second = run(net, method, seed=3, augment=augment)
    assert same_weights(first.model, second.model)
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in h.rows] for h in (first, second)]
    assert timeless[0] == timeless[1]
    assert not same_weights(first.model, run(net, method, seed=4, augment=augment).model)


def test_rows_say_what_happened(net):
    history = run(net, epochs=3)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    for row in history.rows:
        assert 0 <= row["val_accuracy"] <= 1 and 0 <= row["val_clean"] <= 1
        assert math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])
    assert history.rows[0]["train_loss"] > history.rows[-1]["train_loss"]


def test_a_history_prints_a_line_an_epoch_and_marks_the_one_kept():
    row = {"lr": 1e-3, "train_loss": 1.25, "val_loss": 0.5, "val_clean": 0.75, "seconds": 2.0}
    rows = [row | {"epoch": 1, "val_accuracy": 0.625}, row | {"epoch": 2, "val_accuracy": 0.5}]
    head, first, second, end = str(History(nn.Identity(), rows, 1, interrupted=True, seconds=4.0)).splitlines()
    assert (
        first.split() == ["*", "1", "1.00e-03", "1.2500", "62.50", "0.5000", "75.00", "2.0"]
        and second.split()[0] == "2"
    )
    assert len(head) == len(first) == len(second) and end == "interrupted after 4 s; * epoch 1 is kept"
    assert str(History(nn.Identity())).endswith("no epoch ended") and "Identity" not in repr(History(nn.Identity()))


def test_the_best_epoch_is_kept_not_the_last(net):
    def spoil_from_third_epoch(x, steps=[0]):
        steps[0] += 1
        return x if steps[0] <= 12 else 20 * torch.randn_like(x)

    history = run(net, methods.Vanilla(), epochs=4, lr=3e-2, schedule="constant", augment=spoil_from_third_epoch)
    accuracies = [row["val_accuracy"] for row in history.rows]
    assert history.best_epoch in (1, 2)
    assert history.best["val_accuracy"] == max(accuracies) > accuracies[-1]
    images, labels = VALIDATION
    with torch.no_grad():
        found = (history.model(images).argmax(1) == labels).double().mean()
    assert float(found) == history.best["val_accuracy"]


def test_the_last_epoch_is_kept_where_asked_for_and_the_training_is_the_same(net):
    def spoil_from_third_epoch(x, steps=[0]):
        steps[0] += 1
        return x if steps[0] % 24 in range(1, 13) else 20 * torch.randn_like(x)

    options = {"epochs": 4, "lr": 3e-2, "schedule": "constant", "augment": spoil_from_third_epoch}
    best, last = (run(net, methods.Vanilla(), keep=keep, **options) for keep in ("best", "last"))
    assert best.best_epoch in (1, 2) and last.best_epoch == 4
    assert [row["val_accuracy"] for row in best.rows] == [row["val_accuracy"] for row in last.rows]
    images, labels = VALIDATION
    with torch.no_grad():
        found = (last.model(images).argmax(1) == labels).double().mean()
    assert float(found) == last.rows[-1]["val_accuracy"] < best.best["val_accuracy"]


def test_the_published_selection_takes_a_new_chip_for_every_128_images_of_every_epoch(net):
    """300 images are three batches: epoch n sees the chips 3 (n - 1) .. 3 n - 1 of the seed."""
    images, labels = (torch.cat([part] * 13)[:300] for part in VALIDATION)
    method = methods.NoiseInjection(sigma=0.3)
    history = run(net, method, validation=(images, labels), keep="published", epochs=2, seed=5, batch_size=16)
    noisy = nft.convert(history.model, nft.NVMDevice(sigma=0.3)).eval()
    first, right = 3 * (history.best_epoch - 1), 0
    for batch in range(3):
        part = slice(128 * batch, 128 * batch + 128)
        with torch.no_grad(), nft.chips(noisy, seed=5, draws=first + batch, domain="selection"):
            right += int((noisy(images[part]).argmax(1) == labels[part]).sum())
    assert history.best["val_accuracy"] == right / 300


def test_the_published_selection_keeps_the_earliest_of_the_most_accurate_epochs(net):
    """All images are soon right, and the loss goes on falling."""
    published, best = (run(net, methods.Vanilla(), keep=keep, epochs=8) for keep in ("published", "best"))
    accuracies = [row["val_accuracy"] for row in published.rows]
    assert accuracies == [row["val_accuracy"] for row in best.rows] and accuracies.count(max(accuracies)) > 1
    assert published.best_epoch == 1 + accuracies.index(max(accuracies)) < best.best_epoch


def test_selection_prefers_accuracy_then_loss_then_the_earlier_epoch():
    best = Validation(accuracy=0.9, loss=0.5, clean=1.0)
    assert best.better_than(None)
    assert Validation(0.91, 9.0, 0.0).better_than(best)
    assert Validation(0.9, 0.4, 0.0).better_than(best)
    assert not Validation(0.9, 0.5, 1.0).better_than(best)
    assert not Validation(0.89, 0.0, 1.0).better_than(best)


def test_validation_is_under_noise_at_the_methods_sigma_on_selection_chips(net):
    history = run(net, methods.NoiseInjection(sigma=0.3), epochs=1, validation_chips=3, seed=5)
    images, labels = VALIDATION
    noisy = nft.convert(history.model, nft.NVMDevice(sigma=0.3)).eval()
    with torch.no_grad(), nft.chips(noisy, seed=5, draws=range(3), domain="selection"):
        accuracy = (noisy(images).argmax(1) == labels.repeat(3)).double().mean()
    with torch.no_grad(), nft.noise(noisy, enabled=False):
        clean = (noisy(images).argmax(1) == labels).double().mean()
    assert history.rows[0]["val_accuracy"] == pytest.approx(float(accuracy), abs=0.5 / 144)
    assert history.rows[0]["val_clean"] == pytest.approx(float(clean), abs=0.5 / 48)


def test_vanilla_is_selected_clean(net):
    row = run(net, methods.Vanilla(), epochs=1).rows[0]
    assert row["val_accuracy"] == row["val_clean"]


def test_ctrl_c_returns_what_was_done(net, tmp_path):
    def interrupt_in_second_epoch(x, steps=[0]):
        steps[0] += 1
        if steps[0] == 9:
            raise KeyboardInterrupt
        return x

    history = run(net, epochs=5, augment=interrupt_in_second_epoch, log=tmp_path / "log.csv")
    assert history.interrupted
    assert history.best_epoch == 1 and len(history.rows) == 1
    assert len(list(csv.DictReader(open(tmp_path / "log.csv")))) == 1
    assert not nft.noisy_layers(history.model)


def test_ctrl_c_in_the_first_epoch_returns_the_weights_reached(net):
    def interrupt(x, steps=[0]):
        steps[0] += 1
        if steps[0] == 4:
            raise KeyboardInterrupt
        return x

    history = run(net, augment=interrupt)
    assert history.interrupted and history.best_epoch is None and history.best is None
    assert not same_weights(history.model, net)


def test_a_nan_loss_stops_and_keeps_the_best_epoch(net, tmp_path):
    def nan_in_second_epoch(x, steps=[0]):
        steps[0] += 1
        return x if steps[0] < 9 else x * math.nan

    path = tmp_path / "best.safetensors"
    message = "the loss became NaN .* in epoch 2 .*weights of epoch 1 are kept"
    with pytest.raises(nft.training.NonFiniteLoss, match=message) as error:
        run(net, augment=nan_in_second_epoch, checkpoint=path)
    kept = error.value.history
    assert kept.best_epoch == 1
    assert all(bool(value.isfinite().all()) for value in kept.model.state_dict().values())
    state, _ = nft.training.load(path)
    assert all(torch.equal(value, state[key]) for key, value in kept.model.state_dict().items())


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda m: m.name)
def test_weights_that_blow_up_stop_the_run(net, method):
    with pytest.raises(nft.training.NonFiniteLoss, match="epoch 1 .*the initial weights are kept") as error:
        run(net, method, optimizer="sgd", lr=1e38)
    assert same_weights(error.value.history.model, net)


def test_the_log_and_to_csv_hold_the_rows(net, tmp_path):
    history = run(net, log=tmp_path / "log.csv")
    history.to_csv(tmp_path / "again.csv")
    text = (tmp_path / "log.csv").read_text()
    assert text == (tmp_path / "again.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [float(row["val_accuracy"]) for row in rows] == [row["val_accuracy"] for row in history.rows]


def test_progress_is_shown_on_request(net, capsys):
    run(net, epochs=1, progress=True)
    assert "train noise" in capsys.readouterr().err
    run(net, epochs=1, progress=False)
    assert capsys.readouterr().err == ""


class ItemByItem(Dataset):
    def __init__(self, images, labels):
        self.pairs = images, labels

    def __len__(self):
        return len(self.pairs[1])

    def __getitem__(self, index):
        return self.pairs[0][index], int(self.pairs[1][index])


def test_any_map_style_data_set_gives_the_same_training(net):
    expected = run(net).model
    assert same_weights(run(net, train=TensorDataset(*TRAIN), validation=TensorDataset(*VALIDATION)).model, expected)
    assert same_weights(run(net, train=ItemByItem(*TRAIN), validation=ItemByItem(*VALIDATION)).model, expected)


def test_batches_permute_every_image_once_and_leave_no_single_image():
    batches = permuted(33, 16, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [16, 17]
    assert sorted(torch.cat(batches).tolist()) == list(range(33))
    assert [len(batch) for batch in permuted(1, 16, torch.Generator())] == [1]


def test_labels_are_checked_as_they_are_read_where_data_is_not_in_memory():
    data = Batches("train", ItemByItem(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])))
    data.check_classes(3)
    data.take(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="train: labels must lie in 0..2, the model's classes; got 3"):
        data.take(torch.tensor([3]))


def test_cosine_falls_from_lr_to_zero_step_by_step():
    recipe = Recipe(2, 16, "adam", 1e-2, 0.9, 0.0, "cosine")
    assert [recipe.learning_rate(step, 4) for step in range(5)] == pytest.approx(
        [1e-2, 1e-2 * (2 + math.sqrt(2)) / 4, 5e-3, 1e-2 * (2 - math.sqrt(2)) / 4, 0.0]
    )
    assert Recipe(2, 16, "sgd", 0.1, 0.9, 0.0, "constant").learning_rate(3, 4) == 0.1


@pytest.mark.parametrize("method", [METHODS[0], METHODS[1], METHODS[3], METHODS[4]], ids=lambda m: m.name)
def test_a_compiled_model_trains_alike(net, method, monkeypatch):
    """Without inductor, which takes most of the time: it compiles in nn/test_compile.py."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, real=nn.Module.compile: real(self, backend="aot_eager"))
    # SGD: Adam would blow up the rounding of gradients that are zero (a bias before BatchNorm)
    plain, compiled = (run(net, method, epochs=2, optimizer="sgd", compile=flag) for flag in (False, True))
    assert not nft.noisy_layers(compiled.model)
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"epochs": 0}, "epochs: must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size: must be an integer >= 1"),
        ({"lr": 0.0}, "lr: must be > 0"),
        ({"lr": math.nan}, "lr: must be a finite number"),
        ({"momentum": 1.0}, "momentum: must be < 1"),
        ({"weight_decay": -1.0}, "weight_decay: must be a finite number >= 0"),
        ({"optimizer": "lion"}, "optimizer: must be one of adam, sgd"),
        ({"schedule": "step"}, "schedule: must be one of cosine, cosine-epochs, constant"),
        ({"seed": -1}, "seed: must be an integer >= 0"),
        ({"validation_chips": 0}, "validation_chips: must be an integer >= 1"),
        ({"keep": "first"}, "keep: must be one of best, last, published; got first"),
        ({"log": "/nowhere/at/all/log.csv"}, "log: must lie in an existing folder"),
        ({"checkpoint": "/nowhere/at/all/best.safetensors"}, "checkpoint: must lie in an existing folder"),
        ({"method": "ovf"}, "method: must be an object of nft_ext.methods; got 'ovf'"),
        ({"train": (TRAIN[0][:0], TRAIN[1][:0])}, "train: must hold at least one image"),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, "train: labels must lie in 0..2, the model's classes; got 3"),
        ({"validation": (TRAIN[0], TRAIN[1] - 1)}, "validation: labels must be >= 0; got -1"),
        ({"validation": (TRAIN[0], TRAIN[1].float())}, "validation: labels must be integers"),
        ({"train": (TRAIN[0], TRAIN[1][:9])}, "train: must hold one label per image"),
        ({"train": (TRAIN[0] * math.inf, TRAIN[1])}, "train: must hold finite images"),
        (
            {"train": (TRAIN[0].repeat(1, 2, 1, 1), TRAIN[1])},
            r"train: must hold images that the model accepts .*got shape \[2, 8, 8\]",
        ),
        ({"train": iter(())}, "train: must be a map-style Dataset"),
    ],
)
def test_bad_input_is_refused_before_any_training(net, options, words):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=words):
        run(net, **options)
