"""A small training run, in this process or in one of its own."""

import json

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import nft_ext as nft
from nft_ext import methods


def blobs(n, seed):
    """Images [n, 1, 8, 8] of three classes, each a bright block at its own place, under noise; and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = 0.5 * torch.randn(n, 1, 8, 8, generator=generator)
    for label in range(3):
        images[labels == label, :, 2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 1.0
    return images, labels


def small_net(batch_norm=True):
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(8)] if batch_norm else []
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3)
    )


def method_named(name, batch_norm=True):
    options = {
        "vanilla": {},
        "noise": {"sigma": 0.1},
        "ovf": {"sigma": 0.1, "beta": 1e-2, "feedbacks": 2},
        "irs": {
            "sigma": 0.1,
            "beta": 1e-2,
            "input_shape": (1, 8, 8),
            "points": ["2", ("3", 2)] if batch_norm else ["1", ("2", 2)],
        },
    }
    return methods.build(name, **options[name])


def jitter(x):
    return x + 0.1 * torch.randn_like(x)


class Stop(Exception):
    """A failure at a chosen step, which the run knows nothing about."""


HOOKS = []  # what `at_each_step` registered


def at_each_step(action):
    """Calls action(step), counted from 1, before the gradients of each later step are applied. A run does not see it:
    a state records the code of its augmentation, so a test cannot count there."""
    count = [0]

    def counted(*_):
        count[0] += 1
        action(count[0])

    HOOKS.append(register_optimizer_step_pre_hook(counted))


def forget_hooks():
    while HOOKS:
        HOOKS.pop().remove()


def stopping_at(step, error=Stop):
    """jitter, for a run that fails in a step."""

    def fail(count):
        if count == step:
            forget_hooks()
            raise error

    at_each_step(fail)
    return jitter


TRAIN, VALIDATION = blobs(96, 1), blobs(48, 2)


def run(name="noise", batch_norm=True, train=TRAIN, **options):
    """Three epochs of six steps."""
    defaults = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "progress": False, "validation_chips": 2}
    net, method = small_net(batch_norm), method_named(name, batch_norm)
    return nft.fit(net, method, train, VALIDATION, **defaults | options)


def timeless(rows):
    """Rows without what a clock said."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def outcome(history):
    """Weights and rows of a run, as bytes that are equal where all bits are."""
    weights = {key: value.numpy().tobytes().hex() for key, value in history.model.state_dict().items()}
    return json.dumps([weights, timeless(history.rows), history.best_epoch])


def child(folder, name, step, options):
    """The run in a process of its own: raises the semaphore at each step, leaves outcome.json."""
    torch.set_num_threads(1)
    at_each_step(lambda _: step.release())
    paths = {"state": folder / "state", "checkpoint": folder / "best.safetensors", "log": folder / "log.csv"}
    history = run(name, augment=jitter, **paths, **options)
    (folder / "outcome.json").write_text(outcome(history))
