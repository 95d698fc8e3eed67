"""Methods on other tasks than (image, label): any batch, any criterion, any output that can be summed."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import default_collate

import nft_ext as nft
from nft_ext import methods, reference
from nft_ext.nn import step_key
from nft_ext.nn.batch import inputs_of
from nft_ext.ops.functional import own_table
from support.task_models import CLASSES, TwoHeads, regression, regressor, sequences, tag_loss, tagger

NVM = nft.NVMDevice()
EVERY = {
    "vanilla": methods.Vanilla(),
    "noise": methods.NoiseInjection(0.1),
    "control": methods.ScaledLogits(0.1, a_b="unit"),
    "ovf": methods.OVF(0.1, 1e-2, a_b="unit"),
    "irs": methods.IRS(0.1, 1e-2, points=["body"], a_b=0.5),
    "censored": methods.Censored(0.1),
    "correctnet": methods.CorrectNet(methods.OVF(0.1, 1e-2, a_b="unit")),
}
BATCH = default_collate([{k: v for k, v in item.items() if k != "name"} for item in sequences(8)])
TAGS = default_collate([{k: v for k, v in item.items() if k != "name"} for item in sequences(8, pooled=False)])


def prepared(method, model, batch=None):
    """The prepared model, with an example where the method asks for one."""
    return method.prepare(model, NVM, example=batch) if method.name == "irs" else method.prepare(model, NVM)


def loss(method, model, *batch, seed=3, **options):
    """One loss, and the gradients of all parameters, from one state of torch's generator."""
    torch.manual_seed(seed)
    found = method.loss(model, *batch, **options)
    gradients = torch.autograd.grad(found, list(model.parameters()), allow_unused=True)
    return found, gradients


def same(one, other):
    return torch.equal(one[0], other[0]) and all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True)
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_form_of_a_batch_gives_the_same_bits(name):
    """(x, target), a tuple, a dict, torch's own loss and a criterion of the user are one loss."""
    method, model = EVERY[name], prepared(EVERY[name], tagger(pooled=True), BATCH)
    ids, labels = BATCH["input_ids"], BATCH["labels"]
    expected = loss(method, model, ids, labels)
    assert same(loss(method, model, (ids, labels)), expected)
    assert same(loss(method, model, {"input_ids": ids, "labels": labels, "extra": "ignored"}), expected)
    assert same(loss(method, model, ids, labels, criterion=nn.CrossEntropyLoss()), expected)
    assert same(
        loss(method, model, ids, labels, criterion=lambda logits, target: cross_entropy(logits, target)), expected
    )
    by_hand = {"criterion": lambda logits, batch: cross_entropy(logits, batch[1]), "forward": lambda m, b: m(b[0])}
    assert same(loss(method, model, (ids, labels), **by_hand), expected)
    assert same(loss(method, model, (ids, labels), output="logits"), expected)
    assert same(loss(method, model, (ids, labels), output=lambda found: found.logits), expected)


def test_a_dict_gives_the_model_the_keys_that_its_forward_names():
    model, method = tagger(pooled=True), methods.Vanilla()
    masked = cross_entropy(model(BATCH["input_ids"], BATCH["attention_mask"]).logits, BATCH["labels"])
    assert torch.equal(method.loss(model, BATCH), masked)
    without = {key: value for key, value in BATCH.items() if key != "attention_mask"}
    assert not torch.equal(method.loss(model, without), masked)


@pytest.mark.parametrize("a_b, total", [("unit", 1.0), (1.0 + 0.3 * 1.11 / 4, 1.0)])
def test_ovf_on_a_regression_has_the_gradients_of_plain_float64(a_b, total):
    """The whole step by nft_ext.reference: four chips, straight through, the weighted sum, the squared error."""
    method = methods.OVF(sigma=0.1, beta=0.3, a_b=a_b)
    model = method.prepare(regressor(), NVM)
    x, y = regression(16)
    found, gradients = loss(method, model, x, y, criterion=nn.MSELoss())

    torch.manual_seed(3)
    layers = nft.noisy_layers(model)
    key = step_key.fresh_key(next(iter(layers.values())).weight)
    weights = {name: layer.weight.detach().double().requires_grad_() for name, layer in layers.items()}
    biases = {name: layer.bias.detach().double().requires_grad_() for name, layer in layers.items()}
    outputs = []
    for n in range(4):
        nvm = NVM.replace(sigma=0.1 + 0.05 * n)
        hidden = x.double()
        for name, layer in layers.items():
            row = key + torch.tensor([[0, n]])
            chip = reference.program(layer.weight, own_table(nvm, x.device), row, layer.stream, nvm.operator_spec(True))
            weight = reference.straight_through(weights[name], chip[0], torch.float64)
            hidden = hidden @ weight.T + biases[name]
            hidden = hidden.relu() if name == "0" else hidden
        outputs.append(hidden)
    share = 1.0 + 0.3 * 1.11 / 4
    summed = share * outputs[0] - 0.3 / 4 * sum(g * out for g, out in zip((0.01, 0.1, 1.0), outputs[1:]))
    expected = (summed - y.double()).square().mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    leaves = [leaf for name in layers for leaf in (weights[name], biases[name])]
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)
    assert share - 0.3 * 1.11 / 4 == pytest.approx(total)


def test_tags_train_with_a_criterion_and_ignored_positions_have_no_gradient():
    method = methods.OVF(0.1, 1e-2, a_b=0.25)
    model = method.prepare(tagger(), NVM)
    kept = []

    def criterion(logits, batch):
        logits.retain_grad()
        kept.append(logits)
        return tag_loss(logits, batch)

    method.loss(model, TAGS, criterion=criterion).backward()
    ignored = TAGS["labels"] == -100
    assert kept[0].shape == (*TAGS["labels"].shape, CLASSES) and ignored.any()
    assert not kept[0].grad[ignored].any() and kept[0].grad[~ignored].abs().sum(dim=1).all()


def test_a_loop_of_its_own_trains_on_dicts_and_ends_plain():
    """As in compute_loss of a Trainer or training_step of Lightning: the loss of a batch, and the outputs apart."""
    method = methods.OVF(0.1, 1e-2)
    model = method.prepare(tagger(True), NVM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        found = method.loss(model, BATCH)
        found.backward()
        optimizer.step()
        losses.append(float(found))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    plain = method.finish(model)
    assert not nft.noisy_layers(plain) and list(plain.state_dict()) == list(tagger(True).state_dict())
    assert torch.equal(plain.head.weight, model.head.weight)


def test_irs_taps_sequences():
    """[B, T, C] has a classifier per position, and [B, C] one on the mean over positions."""
    for pooled, batch in ((False, TAGS), (True, BATCH)):
        method = methods.IRS(0.1, 1e-2, points=["embedding", "body"], a_b=1 / 3)
        model = method.prepare(tagger(pooled), NVM, example=batch)
        with torch.no_grad():
            output, feedbacks = model(batch["input_ids"], batch["attention_mask"], feedback=True)
        assert [feedback.shape for feedback in feedbacks] == [output.logits.shape] * 2
        criterion = None if pooled else tag_loss
        total = method.loss(model, batch, criterion=criterion)
        total.backward()
        assert all(p.grad is not None for p in model.snapshots.parameters())
        assert list(method.finish(model).state_dict()) == list(tagger(pooled).state_dict())


def test_the_feedback_acts_on_every_tensor_of_a_container():
    method = methods.OVF(0.1, beta=0.5, feedbacks=1, a_b=0.5)
    model, x = method.prepare(TwoHeads(), NVM), regression(6)[0]
    seen, outputs = [], []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))

    def criterion(output, batch):
        seen.append(output)
        return output["mean"].square().mean() + output["spread"].square().mean()

    method.loss(model, (x, None), criterion=criterion)
    for name in ("mean", "spread"):
        expected = 0.5 * outputs[0][name] - 0.5 * 0.5 * outputs[1][name]
        torch.testing.assert_close(seen[0][name], expected)


def test_output_selects_what_the_feedback_acts_on():
    method = methods.OVF(0.1, beta=0.5, feedbacks=1, a_b="unit")
    model, (x, y) = method.prepare(TwoHeads(), NVM), regression(6)
    one = loss(method, model, x, y[:, :1], criterion=mse_loss, output="mean")
    other = loss(method, model, x, y[:, :1], criterion=mse_loss, output=lambda found: found["mean"])
    assert same(one, other) and one[1][4] is None  # spread.weight


@pytest.mark.parametrize("name", ["control", "ovf"])
def test_unit_keeps_the_scale_of_an_output_that_all_forwards_share(name):
    """Without noise every forward gives the same output, so the total is that output."""
    method = {"control": methods.ScaledLogits(0.0, a_b="unit"), "ovf": methods.OVF(0.0, 0.7, delta=0.0, a_b="unit")}[
        name
    ]
    model, (x, y) = method.prepare(regressor(), NVM), regression(6)
    torch.testing.assert_close(method.loss(model, x, y, criterion=mse_loss), mse_loss(model(x), y))
    assert methods.build(**method.config()) == method


def test_the_control_of_unit_is_unit():
    assert methods.control_of(methods.OVF(0.1, 1e-2, a_b="unit")) == methods.ScaledLogits(0.1, 3, "unit")


REGRESSION = regression(6)


@pytest.mark.parametrize(
    "method, model, batch, options, words",
    [
        (
            methods.OVF(0.1, 1e-2),
            regressor,
            REGRESSION,
            {"criterion": nn.MSELoss()},
            "a_b: must keep the output's scale",
        ),
        (
            methods.OVF(0.1, 1e-2),
            regressor,
            REGRESSION,
            {"criterion": partial(nn.functional.huber_loss, delta=2.0)},
            "a_b: must keep the output's scale .*got None, the sum 0.247",
        ),
        (
            methods.ScaledLogits(0.1),
            regressor,
            REGRESSION,
            {"criterion": mse_loss},
            "a_b: must keep the output's scale",
        ),
        (
            methods.NoiseInjection(0.1, 0.5),
            regressor,
            REGRESSION,
            {"criterion": mse_loss},
            "logit_scale: must keep the out",
        ),
        (
            methods.OVF(0.1, 1e-2),
            regressor,
            REGRESSION,
            {"criterion": lambda output, target: (output - target).square().mean()},
            "a_b: must be given with a criterion of your own: 'unit'",
        ),
        (methods.ScaledLogits(0.1), regressor, REGRESSION, {"criterion": lambda o, t: o.mean()}, "a_b: must be given"),
        (
            methods.IRS(0.1, 1e-2, points=["0"], input_shape=(1, 1, 5)),
            regressor,
            REGRESSION,
            {"criterion": nn.L1Loss()},
            "criterion: must be of a classification for irs.*got L1Loss",
        ),
        (
            methods.Vanilla(),
            regressor,
            REGRESSION,
            {"criterion": "mse"},
            r"criterion: must be a function \(output, batch\)",
        ),
        (methods.Vanilla(), regressor, REGRESSION, {"forward": 3}, "forward: must be a function"),
        (
            methods.Vanilla(),
            regressor,
            REGRESSION,
            {"output": 3},
            "output: must be a function of the model's output, a name",
        ),
        (
            methods.Vanilla(),
            regressor,
            REGRESSION,
            {"criterion": nn.MSELoss(reduction="none")},
            r"criterion: must return the mean loss of a batch.*got torch.float32 \[6, 2\]",
        ),
        (
            methods.Vanilla(),
            regressor,
            REGRESSION,
            {"criterion": lambda o, t: 1.0},
            "criterion: must return .*got float",
        ),
        (
            methods.Vanilla(),
            regressor,
            (REGRESSION[0], REGRESSION[1][:, :1]),
            {"criterion": nn.MSELoss()},
            r"target: must have the shape of the output, \[6, 2\], or torch repeats one of them; got \[6, 1\]",
        ),
        (
            methods.OVF(0.1, 1e-2, a_b="unit"),
            TwoHeads,
            (REGRESSION[0], None),
            {"criterion": lambda o, b: o["loss"], "forward": lambda m, b: {"loss": m(b[0])["mean"].mean()}},
            r"output\['loss'\]: must be a floating-point tensor with one row per example .*got torch.float32 \[\]",
        ),
        (
            methods.OVF(0.1, 1e-2, a_b="unit"),
            TwoHeads,
            (REGRESSION[0], None),
            {"criterion": lambda o, b: o[0].mean(), "forward": lambda m, b: (m(b[0])["mean"], object())},
            r"output\[1\]: must hold only tensors.*got object",
        ),
        (methods.Vanilla(), TwoHeads, REGRESSION, {"criterion": nn.MSELoss()}, "output: must select one tensor"),
        (
            methods.Vanilla(),
            TwoHeads,
            REGRESSION,
            {"output": "median"},
            "output: must name a part of the model's output",
        ),
        (
            methods.Vanilla(),
            lambda: tagger(True),
            {"ids": BATCH["input_ids"], "labels": BATCH["labels"]},
            {},
            "batch: must have the keys that the model's forward names.*got keys ids, labels; lacks input_ids",
        ),
        (
            methods.Vanilla(),
            lambda: tagger(True),
            {"input_ids": BATCH["input_ids"], "y": BATCH["labels"]},
            {},
            "batch: must have one of the keys labels, label, targets, target",
        ),
        (
            methods.Vanilla(),
            lambda: tagger(True),
            {"input_ids": BATCH["input_ids"], "label": BATCH["labels"], "target": BATCH["labels"]},
            {},
            "batch: must have one of the keys.*got label, target",
        ),
        (methods.Vanilla(), tagger, TAGS, {}, "target: must fit logits"),
        (methods.Vanilla(), regressor, REGRESSION[0], {}, "batch: must be a tuple or a mapping with a target"),
        (methods.Vanilla(), regressor, {1, 2}, {}, "batch: must be a tensor, a tuple or a mapping; give forward="),
    ],
)
def test_what_a_method_cannot_train_is_refused_by_name(method, model, batch, options, words):
    model = method.prepare(model(), NVM, example=batch) if method.name == "irs" else method.prepare(model(), NVM)
    with pytest.raises((TypeError, ValueError), match=words):
        method.loss(model, batch, **options)


def test_irs_refuses_features_without_a_classifier():
    irs = partial(methods.IRS, 0.1, 1e-2)
    square = {**BATCH, "input_ids": BATCH["input_ids"][:6], "attention_mask": BATCH["attention_mask"][:6]}
    for points, model, batch, words in [
        (["head"], tagger(True), BATCH, "must name modules before the one that gives the model's output; got head"),
        (["body"], tagger(True), square, "must show by an example whether their output is"),
        (["0"], nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Flatten(), nn.Linear(5, 2)), REGRESSION, None),
    ]:
        if words is None:  # [B, 1, 5]: a sequence of one position
            assert irs(points=points).prepare(model, NVM, example=batch).snapshots[0].fc1.in_features == 5
            continue
        with pytest.raises(ValueError, match=words):
            irs(points=points).prepare(model, NVM, example=batch)
    method = irs(points=["body"])
    model = method.prepare(tagger(True), NVM, example=BATCH)
    with pytest.raises(ValueError, match="forward: must call the model once for irs.*got 2 calls"):
        method.loss(model, BATCH, forward=lambda m, b: (m(b["input_ids"]), m(b["input_ids"]))[0])
    with pytest.raises(ValueError, match="example: must be given with forward and output"):
        method.prepare(tagger(True), NVM, forward=lambda m, b: m(b))


def test_an_ignored_index_of_torchs_own_loss_counts_as_there():
    labels = BATCH["labels"].clone()
    labels[:2] = 255
    model, method = tagger(True), methods.Vanilla()
    for criterion in (nn.CrossEntropyLoss(ignore_index=255), partial(cross_entropy, ignore_index=255)):
        found = method.loss(model, BATCH["input_ids"], labels, criterion=criterion)
        assert torch.equal(found, cross_entropy(model(BATCH["input_ids"]).logits, labels, ignore_index=255))
    with pytest.raises(ValueError, match="target: must lie in 0..2"):
        method.loss(model, BATCH["input_ids"], labels, criterion=nn.CrossEntropyLoss())


def test_fit_and_monte_carlo_give_a_model_the_same_inputs_of_a_batch():
    """One function chooses and casts the inputs, for a method's loss and for the evaluation."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, features, scale=1.0):
            return self.head(features) * scale

    batch = {"features": torch.rand(6, 5).double(), "label": torch.arange(6) % 3, "id": torch.arange(6)}
    model = Scaled()
    args, kwargs = inputs_of(model, batch)
    assert not args and list(kwargs) == ["features"] and kwargs["features"].dtype == torch.float32
    expected = nn.functional.cross_entropy(model(batch["features"].float()), batch["label"])
    assert torch.equal(methods.Vanilla().loss(model, batch), expected)
    noisy = nft.convert(model, nft.NVMDevice(sigma=0.0)).eval()
    report = nft.monte_carlo(noisy, batch, runs=2, metrics="nll", progress=False)
    expected = nn.functional.cross_entropy(noisy(batch["features"].float()), batch["label"])
    assert report.nll.mean == pytest.approx(float(expected), rel=1e-5)
