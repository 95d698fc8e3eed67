"""A state continues only the training that wrote it: same network, method, recipe, data and augmentation."""

import dataclasses
import random
from typing import ClassVar

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import methods
from nft_ext.methods.base import Method
from nft_ext.training import Recipe
from nft_ext.training import state as module
from support.training_runs import TRAIN, VALIDATION


def net(activation=None, p=0.1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation or nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3))


def frozen():
    found = net()
    found[1].weight.requires_grad_(False)
    return found


def tied():
    found = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64, bias=False) for _ in range(2)), nn.Linear(64, 3))
    found[2].weight = found[1].weight
    return found


def untied():
    return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64, bias=False) for _ in range(2)), nn.Linear(64, 3))


@dataclasses.dataclass(frozen=True)
class Squared(Method):
    """The squared distance to the labels, by `criterion`."""

    name: ClassVar[str] = "mine"
    sigma: float | None = None
    criterion: object = nn.functional.mse_loss

    def loss(self, model, x, target):
        return self.criterion(model(x), nn.functional.one_hot(target, 3).float())


class Doubled(Squared):
    def loss(self, model, x, target):
        return 2 * super().loss(model, x, target)


class Warm(Recipe):
    def learning_rate(self, step, steps):
        return self.lr * min(1.0, (step + 1) / 10)


class Momentum(Recipe):
    def build_optimizer(self, parameters):
        return torch.optim.RMSprop(parameters, lr=self.lr)


class Items:
    """A map-style data set."""

    def __init__(self, order=None, gain=1.0, noise=None):
        self.order, self.gain, self.noise = order or list(range(48)), gain, noise

    def __len__(self):
        return 48

    def __getitem__(self, index):
        image = self.gain * TRAIN[0][self.order[index]]
        return image + (0 if self.noise is None else self.noise()), int(TRAIN[1][self.order[index]])


def brighter(by):
    def augment(x):
        return x + by

    return augment


class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by


def train(path, model=None, method=None, data=TRAIN, **options):
    options = {"epochs": 1, "batch_size": 32, "progress": False, "validation_chips": 1} | options
    return nft.fit(model or net(), method or methods.Vanilla(), data, VALIDATION, state=path, **options)


SWAPPED = [1, 0, *range(2, 48)]
OTHERS = {
    "another layer": ({}, {"model": net(nn.GELU())}, "layer 2: ReLU there, GELU here"),
    "another dropout": ({}, {"model": net(p=0.2)}, "layer 3: p: 0.1 there, 0.2 here"),
    "a frozen weight": ({}, {"model": frozen()}, r"frozen: \[\] there, \['1.weight'\] here"),
    "tied weights": ({"model": untied()}, {"model": tied()}, r"tied: \[\] there"),
    "another loss": ({"method": Squared()}, {"method": Doubled()}, "classes.method: .*Squared.* there, .*Doubled"),
    "another criterion": (
        {"method": Squared()},
        {"method": Squared(criterion=nn.functional.l1_loss)},
        "method.criterion: torch.nn.functional.mse_loss there, torch.nn.functional.l1_loss here",
    ),
    "another schedule": ({}, {"recipe": Warm()}, "classes.recipe: .*Recipe there, class Warm"),
    "another optimizer": ({}, {"recipe": Momentum()}, "classes.recipe: .*Recipe there, class Momentum"),
    "another augmentation": ({"augment": brighter(1)}, {"augment": brighter(2)}, "augment_code: function brighter"),
    "another option of it": ({"augment": Shift(1)}, {"augment": Shift(2)}, "augment_code.by: 1 there, 2 here"),
    "another order": ({"data": Items()}, {"data": Items(SWAPPED)}, "items.train.attributes"),
    "another gain": ({"data": Items()}, {"data": Items(gain=2.0)}, "items.train.attributes.gain: 1.0 there, 2.0 here"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_training_is_refused_and_the_difference_named(tmp_path, case):
    first, other, words = OTHERS[case]
    train(tmp_path / "state", **first)
    before = (tmp_path / "state").read_bytes()
    train(tmp_path / "state", **first)
    with pytest.raises(ValueError, match="state: must have the same configuration.*" + words):
        train(tmp_path / "state", **first | other)
    assert (tmp_path / "state").read_bytes() == before


def test_items_count_by_their_content_where_their_code_cannot_tell(tmp_path, monkeypatch):
    """Files behind a data set can change while its attributes stay."""
    train(tmp_path / "state", data=Items())
    monkeypatch.setitem(Items.__getitem__.__globals__, "TRAIN", (TRAIN[0].clone().mul_(2), TRAIN[1]))
    with pytest.raises(ValueError, match="items.train"):
        train(tmp_path / "state", data=Items())


def test_items_that_draw_random_numbers_continue(tmp_path):
    for _ in range(2):
        train(tmp_path / "state", data=Items(noise=random.random))


def test_a_state_of_an_earlier_version_says_what_could_not_be_checked(tmp_path):
    train(tmp_path / "state")
    tensors, meta = module.read_tensors("state", tmp_path / "state", module.FORMAT, module.EXPECTED)
    for name in ("network", "frozen", "tied", "classes", "augment_code", "items"):
        del meta["configuration"][name]
    module.write_tensors(tmp_path / "state", tensors, meta, module.FORMAT)
    with pytest.warns(UserWarning, match="does not record network, frozen, tied, .*could not be checked"):
        train(tmp_path / "state", net(nn.GELU()))
