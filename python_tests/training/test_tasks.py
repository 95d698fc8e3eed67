"""`fit` on batches of any structure: the same bits as for images, resume, selection, and what is refused."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

import nft_ext as nft
from nft_ext import methods
from nft_ext.training.task_batches import TaskBatches
from support.task_models import regression, regressor, sequences, tag_loss, tagger
from support.training_runs import (
    TRAIN,
    VALIDATION,
    Stop,
    forget_hooks,
    jitter,
    outcome,
    run,
    stopping_at,
    timeless,
)

NOISE = methods.NoiseInjection(0.1)
ITEMS, OTHERS = sequences(24), sequences(12, seed=2)
TAGGED = sequences(24, pooled=False)
X, Y = regression(48)
UNIT = methods.OVF(0.1, 1e-2, feedbacks=2, a_b="unit")


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    forget_hooks()


def fit(model=None, method=NOISE, train=ITEMS, validation=OTHERS, **options):
    defaults = {"epochs": 3, "lr": 1e-2, "progress": False, "validation_chips": 2}
    sizes = {} if "recipe" in options or isinstance(train, DataLoader) else {"batch_size": 8}
    return nft.fit(tagger(True) if model is None else model, method, train, validation, **defaults | sizes | options)


def fit_regression(method=UNIT, **options):
    defaults = {"criterion": nn.MSELoss(), "train": (X, Y), "validation": (X[:16], Y[:16])}
    return fit(regressor(), method, **defaults | options)


def named(items):
    """The items without what only lists hold."""
    return [{key: value for key, value in item.items() if key != "name"} for item in items]


@pytest.mark.parametrize("name", ["vanilla", "noise", "ovf"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"channels_last": True}], ids=str)
def test_pairs_give_the_bits_of_an_image_training(name, options):
    """forward= alone sends images along the way of all tasks. Weights, loss and accuracy of every epoch stay."""
    mine = run(name, augment=jitter, forward=lambda model, batch: model(batch[0]), **options)
    theirs = run(name, augment=jitter, **options)
    pairs = zip(mine.model.state_dict().values(), theirs.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and mine.best_epoch == theirs.best_epoch
    for one, other in zip(mine.rows, theirs.rows, strict=True):
        assert (one["val_accuracy"], one["train_loss"]) == (other["val_accuracy"], other["train_loss"])
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-6)


@pytest.mark.parametrize(
    "train", [ITEMS, DataLoader(named(ITEMS), batch_size=8, shuffle=True)], ids=["items", "loader"]
)
@pytest.mark.parametrize("name", ["noise", "ovf", "irs"])
@pytest.mark.parametrize("step", [2, 5])
def test_a_training_on_dicts_continues_bit_for_bit(tmp_path, train, name, step):
    method = {"noise": NOISE, "ovf": methods.OVF(0.1, 1e-2), "irs": methods.IRS(0.1, 1e-2, points=["body"])}[name]
    options = {"method": method, "train": train, "state": tmp_path / "state", "save_every": 0}
    stopping_at(step)
    with pytest.raises(Stop):
        fit(**options)
    torch.manual_seed(step)  # whatever runs between
    assert outcome(fit(**options)) == outcome(fit(method=method, train=train))


def test_a_loader_draws_its_order_from_seed_and_epoch():
    loader = DataLoader(TensorDataset(torch.arange(12)), batch_size=3, shuffle=True)

    def order(seed, epoch, first=0):
        data = TaskBatches("train", loader)
        data.begin(seed, epoch)
        torch.manual_seed(first)
        return [data.take(torch.tensor([n]))[0].tolist() for n in range(first, 4)]

    whole = order(0, 1)
    assert sorted(sum(whole, [])) == list(range(12))
    assert order(0, 1, first=2) == whole[2:] and order(0, 2) != whole and order(1, 1) != whole


@pytest.mark.parametrize(
    "collate, train",
    [
        (None, [{**item, "input_ids": item["input_ids"].tolist()} for item in ITEMS]),
        (default_collate, named(ITEMS)),
    ],
    ids=["lists", "collate"],
)
def test_items_of_other_forms_give_the_same_training(collate, train):
    assert outcome(fit(train=train, collate=collate)) == outcome(fit())


def test_a_dict_training_learns_and_its_rows_are_those_of_images():
    history = fit(method=methods.Vanilla(), epochs=40, lr=3e-2)
    assert list(history.rows[0]) == ["epoch", "lr", "train_loss", "val_accuracy", "val_loss", "val_clean", "seconds"]
    with torch.no_grad():
        batch = default_collate(named(OTHERS))
        right = (
            history.model(batch["input_ids"], batch["attention_mask"]).logits.argmax(1) == batch["labels"]
        ).double()
    assert history.best["val_accuracy"] == float(right.mean()) == history.best["val_clean"]
    assert max(row["val_accuracy"] for row in history.rows) == history.best["val_accuracy"] > 0.4


def test_a_regression_is_judged_by_its_loss(tmp_path):
    history = fit_regression(epochs=12, log=tmp_path / "log.csv")
    assert history.best["val_loss"] == min(row["val_loss"] for row in history.rows) < 0.5 * history.rows[0]["val_loss"]
    assert history.best["val_clean"] < 0.5
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header == "epoch,lr,train_loss,val_loss,val_clean,seconds" and "val accuracy" not in str(history)
    with torch.no_grad():  # the network itself fits the target, not a multiple of it
        ratio = (history.model(X) * Y).sum() / (Y * Y).sum()
    assert 0.6 < float(ratio) < 1.2


def test_validation_is_the_mean_over_chips_and_examples():
    """By hand: the criterion on each chip of the "selection" domain; the metric's sums over all batches."""

    def metric(output, batch):
        return (output - batch[1]).abs().sum(dim=1), torch.full((len(output),), 2.0)

    history = fit_regression(NOISE, epochs=1, batch_size=10, metric=metric, higher_is_better=False, seed=4)
    model = nft.convert(history.model, nft.NVMDevice(sigma=0.1))
    losses, errors = [], []
    with torch.no_grad():
        for draw in range(2):
            with nft.chips(model, seed=4, draws=draw, domain="selection"):
                output = model(X[:16])
            losses.append(nn.functional.mse_loss(output, Y[:16]))
            errors.append((output - Y[:16]).abs().mean())
        with nft.noise(model, enabled=False):
            clean = (model(X[:16]) - Y[:16]).abs().mean()
    row = history.rows[0]
    for name, expected in (("val_loss", sum(losses) / 2), ("val_metric", sum(errors) / 2), ("val_clean", clean)):
        assert row[name] == pytest.approx(float(expected), rel=1e-6), name


@pytest.mark.parametrize("higher, best", [(True, 3), (False, 1)])
def test_the_metric_chooses_the_epoch(higher, best):
    count = []

    def metric(output, batch):  # rises from epoch to epoch: 2 chips and the noise-free pass, one batch
        count.append(1)
        return torch.full((len(output),), float((len(count) - 1) // 3)), torch.ones(len(output))

    history = fit_regression(NOISE, batch_size=16, metric=metric, higher_is_better=higher)
    assert history.best_epoch == best


def test_tags_train_with_ignored_positions():
    def per_token(output, batch):
        counted = batch["labels"] != -100
        right = (output.logits.argmax(-1) == batch["labels"]) & counted
        return right.sum(1).double(), counted.sum(1).double()

    history = fit(
        tagger(),
        methods.OVF(0.1, 1e-2, a_b=0.25),
        TAGGED,
        TAGGED,
        criterion=tag_loss,
        metric=per_token,
        epochs=30,
        lr=3e-2,
    )
    assert history.best["val_metric"] > 0.9


def test_search_beta_takes_a_task():
    found = nft.training.search_beta(
        regressor(), UNIT, (X, Y), (X, Y), betas=(0.1, 0.01), criterion=nn.MSELoss(), epochs=1, progress=False
    )
    losses = {beta: history.best["val_loss"] for beta, history in found.histories.items()}
    assert found.beta == min(losses, key=losses.get) and "chosen" in str(found)


def other_mse(output, batch):
    return (output - batch[1]).square().mean()


def scaled_mse(output, batch):
    return 2.0 * (output - batch[1]).square().mean()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"criterion": scaled_mse}, "task.criterion: function other_mse .* there, function scaled_mse"),
        ({"forward": lambda model, batch: model(batch[0])}, "task.forward: None there"),
        ({"metric": lambda output, batch: (output[:, 0], output[:, 0])}, "task.metric: None there"),
        ({"validation": (X[:15], Y[:15])}, "data.validation"),
    ],
)
def test_a_state_of_another_task_is_refused(tmp_path, change, words):
    options = {"criterion": other_mse, "state": tmp_path / "state", "epochs": 1}
    fit_regression(**options)
    with pytest.raises(ValueError, match="state: must have the same configuration.*" + words):
        fit_regression(**options | change)


def test_an_image_state_is_no_task_state(tmp_path):
    run(state=tmp_path / "state", epochs=1)
    with pytest.raises(ValueError, match="must have the same configuration.*task"):
        run(state=tmp_path / "state", epochs=1, forward=lambda model, batch: model(batch[0]))


class Counter(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class UserMethod(methods.Method):
    name, sigma = "of the user", None

    def loss(self, model, x, target):
        return nn.functional.cross_entropy(model(x), target)


class Margin(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, output, batch):
        return (self.weight * (output - batch[1])).square().mean()


def loader(**options):
    return DataLoader(TensorDataset(X, Y), **{"batch_size": 8} | options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": methods.OVF(0.1, 1e-2)}, "a_b: must keep the output's scale"),
        (
            {"method": UserMethod()},
            r"method: must have a loss\(model, batch, criterion=, forward=, output=\).*UserMethod",
        ),
        ({"criterion": Margin()}, "criterion: must have no parameters to train.*got Margin"),
        ({"criterion": lambda output, batch: output}, "criterion: must return the mean loss"),
        ({"higher_is_better": True}, "higher_is_better: must be given with the metric"),
        ({"metric": 3}, "metric: must be a function"),
        ({"metric": lambda o, b: o.mean()}, "metric: must return two tensors, numerator .B. and denominator"),
        ({"metric": lambda o, b: (o, o)}, r"metric: must return one numerator.*\[3, 2\] and torch.float32 \[3, 2\]"),
        ({"metric": lambda o, b: (o[:2, 0], o[:2, 0])}, "metric: must give one pair per example, 3 here; got 2"),
        ({"metric": lambda o, b: (o[:, 0] / 0, o[:, 0])}, "metric: must be finite"),
        ({"keep": "published"}, "keep: must be 'best' or 'last' with a criterion"),
        ({"collate": default_collate}, "collate: must be left out, because neither data set has items"),
        ({"channels_last": True}, "channels_last: must be False for batches that are no tuple"),
        (
            {"train": loader(), "batch_size": 8},
            "batch_size: must be left out, because a loader makes the batches of train",
        ),
        ({"train": loader(), "accumulate": 2}, "accumulate: must be 1 with a loader"),
        (
            {"train": loader(shuffle=True, generator=torch.Generator())},
            "train: must shuffle by torch's own generator.*DataLoader with generator=",
        ),
        ({"train": loader(batch_size=64, drop_last=True)}, "train: must hold at least one example"),
        ({"train": iter([(X, Y)])}, "train: must be a map-style Dataset, a tuple of tensors, or a DataLoader"),
        ({"train": {"x": X, "labels": Y}}, "train: must be a map-style Dataset, a tuple of tensors, or a DataLoader"),
        ({"train": Counter()}, "train: must be in a DataLoader"),
        ({"train": DataLoader(Counter())}, "train: must have a length, the number of batches per epoch"),
        ({"train": {"x": X, "y": Y}}, "train: must be a map-style Dataset"),
        ({"train": (X, Y[:3])}, r"train: must hold tensors of one length; got \[48, 3\]"),
        ({"train": [{"x": X[0]}, {"x": X[0, :3]}]}, "train: must have items that can be stacked: give collate="),
    ],
)
def test_bad_input_is_refused_before_any_training(tmp_path, options, words):
    sizes = {} if isinstance(options.get("train"), DataLoader) else {"batch_size": 8}
    with pytest.raises((TypeError, ValueError), match=words):
        nft.fit(
            regressor(),
            **{"method": NOISE, "train": (X, Y), "validation": (X, Y), "criterion": nn.MSELoss(), "epochs": 1}
            | {"progress": False, "state": tmp_path / "state"}
            | sizes
            | options,
        )
    assert not (tmp_path / "state").exists()


def test_a_metric_of_no_example_is_refused():
    with pytest.raises(ValueError, match="metric: must have a denominator above 0 over the validation examples"):
        fit_regression(NOISE, metric=lambda output, batch: (output[:, 0], 0 * output[:, 0]))


def test_augmentation_is_for_tuples():
    with pytest.raises(ValueError, match=r"augment: must be left out for batches that are no tuple \(images"):
        fit(augment=jitter)


def test_a_loader_that_ends_early_is_named():
    class Short:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([(X[:8], Y[:8])])

    with pytest.raises(
        ValueError, match="train: must give as many batches as its length says, 3, in every epoch; got 1"
    ):
        nft.fit(regressor(), NOISE, Short(), (X, Y), criterion=nn.MSELoss(), epochs=1, progress=False)


def test_images_without_a_task_write_the_states_of_before(tmp_path):
    """No field of a task: states of 0.2 and 0.3 continue."""
    run(state=tmp_path / "state", epochs=1)
    content = (tmp_path / "state").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    meta = json.loads(header["__metadata__"]["meta"])
    assert "task" not in meta["configuration"] and set(meta["facts"]["best"]) == {"accuracy", "loss", "clean"}


@pytest.mark.slow
def test_a_compiled_task_trains_alike(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, real=nn.Module.compile: real(self, backend="aot_eager"))
    options = {"epochs": 1, "optimizer": "sgd"}
    for make in (lambda flag: fit(compile=flag, **options), lambda flag: fit_regression(compile=flag, **options)):
        plain, compiled = make(False), make(True)
        for one, other in zip(plain.model.state_dict().values(), compiled.model.state_dict().values(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
        assert timeless(plain.rows)[0]["train_loss"] == pytest.approx(compiled.rows[0]["train_loss"], rel=1e-4)


def test_a_loader_may_validate_images_in_memory():
    history = nft.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        NOISE,
        TRAIN,
        DataLoader(TensorDataset(*VALIDATION), batch_size=16),
        epochs=1,
        batch_size=16,
        progress=False,
    )
    assert 0.0 <= history.best["val_accuracy"] <= 1.0
