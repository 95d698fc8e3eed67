"""The recipe: the paper's defaults, precision, micro-batches, memory layout; and TensorBoard's log."""

import sys

import pytest
import torch
from torch._prims_common import suggest_memory_format

import nft_ext as nft
from nft_ext import models
from nft_ext.nn import step_key
from nft_ext.training import Recipe
from nft_ext.training.batches import micro_batches
from nft_ext.training.randomness import own_randomness, seed_at
from support.training_runs import VALIDATION, outcome, run

SGD = {"optimizer": "sgd", "lr": 0.05, "batch_norm": False}


def closeness(one, other):
    """The largest difference between two runs' weights."""
    left, right = one.model.state_dict(), other.model.state_dict()
    return max(float((left[key] - right[key]).abs().max()) for key in left)


def test_the_papers_recipes():
    vgg8, resnet18 = Recipe.paper("vgg8", "mnist"), Recipe.paper(models.resnet18(width=0.0625), "cifar10")
    assert vgg8 == Recipe(200, 128, "adam", 1e-3, schedule="cosine")
    assert resnet18 == vgg8.replace(lr=1e-2)
    tiny = Recipe.paper("vgg8", "tinyimagenet", epochs=3)
    assert (tiny.epochs, tiny.optimizer, tiny.lr, tiny.momentum, tiny.weight_decay) == (3, "sgd", 1e-2, 0.9, 5e-4)


def test_the_cosine_by_epochs_is_that_of_torchs_scheduler():
    recipe = Recipe(epochs=5, lr=0.1, schedule="cosine-epochs")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for epoch in range(5):
        for step in range(7):
            assert recipe.learning_rate(7 * epoch + step, 35) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (
            lambda: Recipe.paper("lenet", "mnist"),
            ValueError,
            "model: must be a network of the paper, vgg8 or resnet18; got",
        ),
        (
            lambda: Recipe.paper("vgg8", "imagenet"),
            ValueError,
            "dataset: must be one of .* .did you mean 'tinyimagenet'.*; got imagenet",
        ),
        (
            lambda: Recipe(precision="float16"),
            ValueError,
            "precision: must be one of float32, bfloat16 .did you mean 'bfloat16'.*; got float16",
        ),
        (lambda: Recipe(accumulate=0), ValueError, "accumulate: must be an integer >= 1; got 0"),
        (lambda: Recipe(channels_last=1), TypeError, "channels_last: must be True or False; got 1"),
        (lambda: run(learning_rate=1.0), TypeError, "recipe: has the attributes epochs, .*; got learning_rate"),
        (lambda: run(batchsize=8), TypeError, r"\(did you mean 'batch_size'\?\); got batchsize"),
        (lambda: run(recipe={"lr": 1.0}), TypeError, "recipe: must be a nft_ext.training.Recipe; got dict"),
    ],
)
def test_bad_recipes_are_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_a_recipe_and_its_changes_say_the_same():
    recipe = Recipe(epochs=2, batch_size=16, lr=1e-2)
    assert outcome(run(recipe=Recipe(), epochs=2, batch_size=16, lr=1e-2)) == outcome(run(recipe=recipe, epochs=2))


@pytest.mark.parametrize("count", [2, 3, 16])
def test_micro_batches_make_the_step_of_the_whole_batch(count):
    whole, parts = run("vanilla", **SGD), run("vanilla", accumulate=count, **SGD)
    assert 0 < closeness(whole, parts) < 1e-6
    assert parts.rows[-1]["train_loss"] == pytest.approx(whole.rows[-1]["train_loss"], rel=1e-5)


def test_each_micro_batch_has_a_chip_of_its_own(monkeypatch):
    keys = []

    def recorded(like, original=step_key.fresh_key):
        key = original(like)
        if torch.is_grad_enabled():
            keys.append(str(key.tolist()))
        return key

    monkeypatch.setattr(step_key, "fresh_key", recorded)
    run("noise", epochs=1, accumulate=4)
    assert len(keys) == len(set(keys)) == 6 * 4  # steps, micro-batches


def test_no_micro_batch_has_less_than_two_images():
    assert [len(part) for part in micro_batches(torch.arange(17), 4)] == [5, 4, 4, 4]
    assert [len(part) for part in micro_batches(torch.arange(5), 4)] == [3, 2]
    assert [len(part) for part in micro_batches(torch.arange(1), 4)] == [1]


@pytest.mark.parametrize("name", ["vanilla", "noise", "ovf", "irs"])
def test_bfloat16_trains_float32_weights(name):
    full, half = run(name, epochs=4), run(name, epochs=4, precision="bfloat16")
    assert all(t.dtype in (torch.float32, torch.int64) for t in half.model.state_dict().values())
    assert half.best["val_accuracy"] > 0.8
    assert closeness(full, half) > 1e-5
    assert half.rows[0]["train_loss"] == pytest.approx(full.rows[0]["train_loss"], rel=0.05)


def test_validation_stays_float32_under_bfloat16():
    """The figures that select are those a float32 evaluation of the same weights gives."""
    row = run("vanilla", epochs=1, precision="bfloat16")
    images, labels = VALIDATION
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(row.model(images), labels)
    assert row.rows[0]["val_loss"] == pytest.approx(float(loss), rel=1e-6)


def test_channels_last_changes_the_layout_and_not_the_training():
    plain, last = (run("vanilla", channels_last=flag, **SGD) for flag in (False, True))
    assert closeness(plain, last) < 1e-6
    assert all(t.is_contiguous() for t in last.model.state_dict().values())


def test_channels_last_reaches_images_and_weights():
    class Spy(torch.nn.Conv2d):
        def forward(self, x):
            if self.training:
                seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.weight)])
            return super().forward(x)

    seen = []
    net = torch.nn.Sequential(Spy(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    data = torch.randn(8, 2, 8, 8), torch.arange(8) % 3
    for flag in (False, True):
        nft.fit(net, nft.methods.Vanilla(), data, data, epochs=1, progress=False, channels_last=flag)
    assert seen == [[False, False], [True, True]]


def test_channels_last_of_grey_images_in_training_and_validation():
    """One channel is the same memory in both layouts; strides tell, and results follow. Noisy weights stay as their
    noise is counted.
    """

    class Spy(nft.NoisyConv2d):
        def forward(self, x):
            y = super().forward(x)
            seen.add((self.training, suggest_memory_format(x), suggest_memory_format(y), self.weight.is_contiguous()))
            return y

    seen, last = set(), torch.channels_last
    nvm = nft.NVMDevice(sigma=0.1)
    net = torch.nn.Sequential(Spy(1, 4, 3, nvm=nvm), torch.nn.Flatten(), nft.NoisyLinear(4 * 36, 3, nvm=nvm))
    data = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    nft.fit(
        net, nft.methods.NoiseInjection(sigma=0.1), data, data, nvm=nvm, epochs=1, progress=False, channels_last=True
    )
    assert seen >= {(True, last, last, True), (False, last, last, True)}


def test_a_noisy_weight_stays_row_major_whoever_moves_the_model():
    """Its noise is counted so; the values, the parameter and other layers' layout are as asked for."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), nft.NoisyConv2d(4, 4, 3, nvm=nft.NVMDevice(sigma=0.1)))
    weight, before = net[1].weight, net[1].weight.detach().clone()
    net.to(memory_format=torch.channels_last)
    assert net[1].weight is weight and weight.is_contiguous() and torch.equal(weight, before)
    assert not net[0].weight.is_contiguous()


def test_seeds_differ_by_purpose_and_place():
    seeds = [
        seed_at(0, "data", 1, 2),
        seed_at(0, "chip", 1, 2),
        seed_at(1, "data", 1, 2),
        seed_at(0, "data", 12),
        seed_at(0, "data", 2, 1),
    ]
    assert len(set(seeds)) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_at(0, "data", 1, 2) == seeds[0]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with own_randomness(1, torch.device("cpu")):
        inside = torch.rand(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(1)))


def test_tensorboard_gets_every_figure_of_every_epoch_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run(tensorboard=tmp_path / "events", state=tmp_path / "state")
    run(tensorboard=tmp_path / "events", state=tmp_path / "state")  # over already: adds nothing
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"lr", "train/loss", "val/accuracy", "val/loss", "val/clean", "seconds"}
    found = events.Scalars("train/loss")
    assert [event.step for event in found] == [1, 2, 3]
    assert [event.value for event in found] == pytest.approx([row["train_loss"] for row in history.rows])


def test_a_missing_tensorboard_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="tensorboard: needs a package .* run: pip install tensorboard"):
        run(tensorboard=tmp_path)


def test_recipe_reaches_the_checkpoint(tmp_path):
    run(epochs=1, accumulate=2, checkpoint=tmp_path / "best.safetensors")
    _, meta = nft.training.load(tmp_path / "best.safetensors")
    assert meta["recipe"]["accumulate"] == 2 and meta["recipe"]["precision"] == "float32"
