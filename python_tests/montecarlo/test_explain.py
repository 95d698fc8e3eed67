"""`explain`: which effect and which layer the accuracy goes to, with paired intervals on common chips."""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import nft_ext as nft
from nft_ext.cli import main
from nft_ext.montecarlo import monte_carlo
from nft_ext.montecarlo.execution import chip_evaluator
from nft_ext.training.checkpoint import save
from support.interrupts import interrupt_after
from support.tasks import encoder, sentences

RUNS = 12
GENERATOR = torch.Generator().manual_seed(4)
INPUTS = torch.randn(200, 9, generator=GENERATOR)


def network(*, outlier=0.0, seed=2):
    """Three layers. `outlier` becomes one weight of the second layer, which multiplies an input that is always 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        if outlier:
            model[0].weight[7], model[0].bias[7] = 0.0, -1.0
            model[2].weight[3, 7] = outlier
    return model.eval()


def data_of(model):
    """The images that the float network labels itself: it is right on all of them."""
    with torch.no_grad():
        return INPUTS, model(INPUTS).argmax(1)


def explained(model, data, **options):
    return nft.explain(model, data, **({"runs": RUNS, "seed": 3, "progress": False} | options))


def row(found, name):
    return next(row for row in found.rows if row.name == name)


@pytest.fixture(scope="module")
def outlier():
    """One weight of layer 2 raises its max|W|, and so its steps and its noise, a hundredfold."""
    plain = network(outlier=20.0)
    model, data = nft.convert(plain, nft.NVMDevice(sigma=0.02)), data_of(plain)
    return model, data, explained(model, data)


def test_the_destructive_layer_is_named_first(outlier):
    _, _, found = outlier
    assert found.ideal == (1.0, 0.0) and found.full[0] < 0.7
    most = found.most("layer")
    assert most[0].name == "2" and most[0].effect < -0.2
    others = [row(found, name) for name in ("0", "4")]
    assert all(abs(other.effect) < 0.2 * abs(most[0].effect) for other in others)
    assert re.search(r"the noise does most harm in 2 \(alone -\d", str(found).splitlines()[2])


def test_the_coarse_quantizer_of_that_layer_is_seen_alone(outlier):
    _, _, found = outlier
    quantizer = row(found, "quantizer")
    assert quantizer.alone.exact and quantizer.alone.ci95 == 0 and quantizer.alone.mean < -0.01
    assert quantizer.alone == found.quantizer
    assert found.quantized[0] - found.ideal[0] == pytest.approx(found.quantizer.mean, abs=1e-12)
    assert found.full[0] - found.quantized[0] == pytest.approx(found.noise.mean, abs=1e-12)


def test_every_variant_is_the_evaluation_of_that_network(outlier):
    """Layers off are layers in a noise context; effects off are other devices: `monte_carlo` gives the same chips."""
    model, data, found = outlier

    def per_chip(model):
        return monte_carlo(model, data, runs=RUNS, seed=3, progress=False).accuracy.per_run.tolist()

    assert found.per_chip["everything"] == per_chip(model)
    with nft.noise(model[2], enabled=False):
        assert found.per_chip["all but 2"] == per_chip(model)
    with nft.noise(model[0], enabled=False), nft.noise(model[4], enabled=False):
        assert found.per_chip["only 2"] == per_chip(model)
    with nft.noise(model, enabled=False):
        assert set(found.per_chip["no noise"]) == set(per_chip(model))
    assert found.per_chip["float weights"] == [1.0, 1.0]


def test_differences_are_paired_chip_by_chip(outlier):
    _, _, found = outlier
    full, rest, only = (np.array(found.per_chip[name]) for name in ("everything", "all but 2", "only 2"))
    expected = stats.ttest_rel(rest, full)
    without, alone = row(found, "2").without, row(found, "2").alone
    assert without.mean == pytest.approx((rest - full).mean(), abs=1e-12) and without.chips == RUNS
    assert without.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert without.ci95 == pytest.approx(np.ptp(expected.confidence_interval()) / 2, rel=1e-6)
    assert alone.mean == pytest.approx((only - found.quantized[0]).mean(), abs=1e-12)


def test_p_values_are_adjusted_within_their_table(outlier):
    _, _, found = outlier
    for rows in (found.effects, found.layers):
        changes = [change for row in rows for change in (row.without, row.alone)]
        expected = nft.metrics.holm([change.p for change in changes])
        assert [change.p_holm for change in changes] == pytest.approx(expected, nan_ok=True)
    assert "adjustment for 3 comparisons of effects and for 6 comparisons of layers" in " ".join(str(found).split())


def test_small_independent_noise_adds_up():
    """To second order the loss is additive over layers: at sigma 0.05 both sums are within 10 % of the whole change."""
    plain = network()
    with torch.no_grad():
        for parameter in plain[4].parameters():
            parameter *= 20  # sharp outputs: the labels are near the minimum of the loss, so noise raises it
    model = nft.convert(plain, nft.NVMDevice(sigma=0.05))
    found = explained(model, data_of(plain), runs=100, metric="nll", by="layer")
    whole = found.noise.mean
    assert whole > 3 * found.noise.ci95
    for view, sign in (("alone", 1), ("without", -1)):
        total = sum(sign * getattr(row, view).mean for row in found.layers)
        assert total == pytest.approx(whole, rel=0.1)
    assert found.rows == found.layers and found.metric == "nll"


def test_what_is_equal_by_construction_changes_nothing():
    """One noisy layer: alone it is everything. Truncation acts on the noise: alone it is nothing."""
    plain = network()
    model = nft.convert(plain, nft.NVMDevice(sigma=0.1, truncate=1.0), include=["2"])
    found = explained(model, data_of(plain))
    only, truncation = row(found, "2"), row(found, "truncation")
    assert "only 2" not in found.per_chip, "the same weights are evaluated once"
    assert only.alone.mean == pytest.approx(found.noise.mean) and only.without.mean == pytest.approx(-found.noise.mean)
    assert truncation.alone.same and truncation.alone.mean == truncation.alone.ci95 == 0
    assert math.isnan(truncation.alone.p) and not truncation.alone.significant
    assert not truncation.without.same
    line = next(line for line in str(found).splitlines() if line.strip().startswith("truncation"))
    assert line.split()[-2:] == ["0.00", "same"]


def test_a_change_that_no_chip_shows_has_no_interval_of_width_zero():
    """A layer whose outputs are multiplied by 0: its noise changes weights, and no result."""
    plain = network()
    with torch.no_grad():
        plain[4].weight[:] = 0
        plain[4].bias[:] = torch.arange(4.0)
    model = nft.convert(plain, nft.NVMDevice(sigma=0.1), exclude=["4"])
    found = explained(model, (INPUTS, torch.full((200,), 3)))
    for change in (row(found, "2").without, row(found, "2").alone):
        assert change.mean == 0 and math.isnan(change.ci95) and not change.same and not change.significant
        assert change.others_at_most == pytest.approx(1 - 0.05 ** (1 / RUNS))  # P(no chip of 12 | this share) = 5 %
    text = " ".join(str(found).split())
    assert "no chip changes. At most 22 % of all chips do (95 % confidence)" in text
    assert "no layer by itself changes it significantly, of 2 compared" in text


def test_each_effect_of_a_device_has_a_row():
    plain = network()
    device = nft.NVMDevice(
        sigma=1.0,
        level_mean=(0.1, 1.0, 2.0, 2.9),
        level_std=(0.1, 0.2, 0.1, 0.2),
        clip=(0, 1),
        stuck=(0.01, 0.02),
        mapping="differential",
    )
    model = nft.convert(plain, device)
    found = explained(model, data_of(plain), by=["effect"])
    assert [row.name for row in found.rows] == [
        *("quantizer", "programming noise", "level dependence", "mean shift", "clipping", "stuck devices"),
        "idle array",
    ]
    shift = copy.deepcopy(model)
    for layer in nft.noisy_layers(shift).values():
        layer.attach(device.replace(level_mean=(0, 1, 2, 3)), layer.name, layer.stream)
    expected = monte_carlo(shift, data_of(plain), runs=RUNS, seed=3, progress=False).accuracy.per_run
    assert found.per_chip["all but mean shift"] == expected.tolist()
    assert row(found, "mean shift").without.mean == pytest.approx((expected - found.full[0]).mean(), abs=1e-12)


def test_sigma_is_that_of_the_call(outlier):
    plain = network()
    model, data = nft.convert(plain, nft.NVMDevice(sigma=0.02)), data_of(plain)
    found = explained(model, data, sigma=0.3, by="layer")
    expected = monte_carlo(model, data, runs=RUNS, seed=3, sigma=0.3, progress=False)
    assert found.per_chip["everything"] == expected.accuracy.per_run.tolist()
    assert found.conditions == expected.conditions() and {model[0].nvm.sigma, model[2].nvm.sigma} == {0.02}


def test_a_layer_whose_noise_is_off_stays_quiet(outlier):
    model, data, _ = outlier
    with nft.noise(model[2], enabled=False):
        found = explained(model, data, by="layer")
    assert [row.name for row in found.rows] == ["0", "4"] and found.full[0] > 0.9


def test_groups_are_switched_together(outlier):
    model, data, whole = outlier
    found = explained(model, data, by="layer", layers={"ends": ["0", "4"], "middle": "2"})
    assert [(row.name, row.text) for row in found.rows] == [("ends", "2 layers"), ("middle", "1 layer")]
    assert found.per_chip["only ends"] == whole.per_chip["all but 2"]
    assert row(found, "middle").without.mean == row(whole, "2").without.mean
    some = explained(model, data, by="layer", layers=["[04]"])
    assert [row.name for row in some.rows] == ["0", "4"]


def test_a_first_look_on_other_chips_keeps_the_layers_that_do_most(outlier):
    model, data, whole = outlier
    found = explained(model, data, by="layer", most_layers=2)
    assert [(row.name, row.text) for row in found.rows] == [("2", "Linear"), ("the other 2", "2 layers")]
    assert found.screened == ["0", "4"]
    kept, alone = row(found, "2"), row(whole, "2")
    assert kept.without.mean == alone.without.mean and kept.without.ci95 == alone.without.ci95
    assert explained(model, data, by="layer", most_layers=3).screened == []


def test_slices_are_common_to_all_variants(outlier):
    model, data, whole = outlier
    found = explained(model, data, runs=60, protocol="stratified", slice_images=40)
    assert found.images_per_chip == 40 and found.images == 200
    assert found.inferences == len(found.per_chip) * 60 * 40
    assert all(len(values) == 60 for values in found.per_chip.values())
    for name in ("0", "2", "4"):
        one, other = row(found, name).without, row(whole, name).without
        assert abs(one.mean - other.mean) < 2 * (one.ci95 + other.ci95)


def test_the_model_is_left_as_it_was_also_after_an_error(outlier, monkeypatch):
    model, data, _ = outlier
    model.train()
    devices, states = [], []

    def snapshot():
        layers = nft.noisy_layers(model).values()
        return [layer.nvm for layer in layers], [(layer.noise_state()[3:], sorted(layer.__dict__)) for layer in layers]

    devices, states = snapshot()
    tensors = copy.deepcopy(model.state_dict())
    explained(model, data, runs=2)
    assert snapshot() == (devices, states) and model.training
    calls = []

    def fail(self, draws, done):
        calls.append(draws)
        if len(calls) == 6:
            raise ZeroDivisionError
        return original(self, draws, done)

    original = chip_evaluator.ChipEvaluator.tallies
    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "tallies", fail)
    with pytest.raises(ZeroDivisionError):
        explained(model, data, runs=2)
    assert snapshot() == (devices, states) and model.training
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in tensors.items())
    model.eval()


def test_an_interrupt_reports_the_finished_variants_and_the_folder_continues(outlier, tmp_path, monkeypatch):
    model, data, whole = outlier
    with monkeypatch.context() as patch:
        interrupt_after(patch, RUNS + 2 + 2 + RUNS + RUNS + 5)  # the sixth variant holds five chips
        part = explained(model, data, chips_per_pass=1, resume=tmp_path / "folder")
    assert part.interrupted and len(part.per_chip) == 5
    assert row(part, "quantizer").without.mean == row(whole, "quantizer").without.mean
    assert row(part, "2").without is None and row(part, "2").alone is None
    assert "interrupted after 5 of" in str(part) and "?" in str(part)
    evaluated = []
    original = chip_evaluator.ChipEvaluator.tallies
    with monkeypatch.context() as patch:
        patch.setattr(
            chip_evaluator.ChipEvaluator,
            "tallies",
            lambda self, draws, done: evaluated.append(draws) or original(self, draws, done),
        )
        again = explained(model, data, chips_per_pass=1, resume=tmp_path / "folder")
    assert len(evaluated) == len(whole.per_chip) * RUNS - 2 * (RUNS - 2) - (RUNS + 2 + 2 + 2 * RUNS + 5)
    assert not again.interrupted and again.per_chip == whole.per_chip


def test_an_interrupt_before_the_first_three_variants_is_passed_on(outlier, monkeypatch):
    model, data, _ = outlier
    interrupt_after(monkeypatch, RUNS + 1)
    with pytest.raises(KeyboardInterrupt):
        explained(model, data, chips_per_pass=1)


def test_the_work_is_shown_before_it_begins(outlier, capsys):
    model, data, found = outlier
    explained(model, data, progress=True)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        f"explain: {len(found.per_chip)} variants, 12 chips each (2 without noise), {found.inferences // 200} chips in "
        f"all x 200 images: {found.inferences:,} inferences"
    )


def test_json_and_plot(outlier, tmp_path):
    _, _, found = outlier
    found.to_json(tmp_path / "e.json")
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["format"] == "nft_ext.explanation/1" and content["per_chip"] == found.per_chip
    assert [one["name"] for one in content["rows"]] == ["quantizer", "programming noise", "0", "2", "4"]
    assert content["rows"][3]["without"]["mean"] == row(found, "2").without.mean
    assert content["rows"][0]["alone"]["p"] is None
    found.plot(tmp_path / "e.png")
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (dict(runs=1), ValueError, "runs: must be an integer >= 2"),
        (dict(by="layers"), ValueError, r"by: must be one of layer, effect \(did you mean 'layer'"),
        (dict(by=[]), ValueError, "by: must name layer or effect"),
        (dict(by=3), TypeError, "by: must be a list of names"),
        (dict(layers=["9"]), ValueError, "layers: must match a noisy layer of the model"),
        (dict(layers=[]), ValueError, "layers: must name at least one"),
        (dict(layers={"a": "0", "b": ["0", "2"]}), ValueError, "layers: must hold each layer in one group; got 0 in a"),
        (dict(layers=[3]), TypeError, "layers: must be a string"),
        (dict(most_layers=1), ValueError, "most_layers: must be an integer >= 2"),
        (dict(sigma=-1), ValueError, "sigma: "),
        (dict(sigma=0), ValueError, "model: must have noise in at least one layer"),
        (dict(metric="acuracy"), ValueError, "metrics: must be among"),
        (dict(metric=3), TypeError, "metric: must be the name of one metric"),
        (dict(metric={}), ValueError, "metric: must be one metric"),
        (dict(target_ci=0.1), ValueError, "target_ci: must be left out"),
        (dict(metrics=("accuracy",)), ValueError, "metrics: must be left out"),
        (dict(protocol="some"), ValueError, "protocol: "),
        (dict(progress=1), ValueError, "progress: "),
        (dict(device="nowhere"), ValueError, "device: "),
        (dict(model=network()), ValueError, "model: must hold noisy layers"),
        (dict(seed=-1), ValueError, "seed: "),
    ],
)
def test_bad_input_is_refused_before_any_work(outlier, change, kind, words, monkeypatch):
    model, data, _ = outlier
    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "tallies", lambda *_: pytest.fail("work began"))
    change = dict(change)
    with pytest.raises(kind, match=f"^{words}"):
        explained(change.pop("model", model), data, **change)


def test_a_sigma_of_a_context_and_a_network_without_noise_are_refused(outlier, tmp_path):
    model, data, _ = outlier
    with nft.noise(model, sigma=0.3), pytest.raises(ValueError, match="^sigma: must be given"):
        explained(model, data)
    with nft.noise(model, enabled=False), pytest.raises(ValueError, match="^model: must have noise"):
        explained(model, data)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^resume: must be a folder"):
        explained(model, data, resume=tmp_path / "file")


def digits_network():
    """A small convolutional network, trained on digits for some seconds."""
    train, test = nft.data.load("digits")
    images, labels = nft.montecarlo.execution.data_reader.read_data(train)
    torch.manual_seed(0)
    model = nft.models.build("vgg8", num_classes=10, in_channels=1, width=0.0625)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval(), test


@pytest.mark.slow
def test_real_digits_by_function_and_by_command(tmp_path, capsys):
    """A vgg8 on digits with one outlier weight in its first classifier layer, which then costs most."""
    model, _ = digits_network()
    with torch.no_grad():
        model.fc1.weight[0, 0] = 30 * model.fc1.weight.abs().max()
    meta = {"model": {"name": "vgg8", "num_classes": 10, "in_channels": 1, "width": 0.0625}, "dataset": "digits"}
    meta["device"] = nft.NVMDevice(sigma=0.1).describe()
    save(tmp_path / "net.safetensors", model, meta)
    command = f"explain {tmp_path}/net.safetensors --runs 4 --limit 50 --out {tmp_path}/out --resume {tmp_path}/chips"
    assert main(command.split()) == 0
    said = capsys.readouterr()
    assert "the noise does most harm in fc1 (alone -" in said.out and "wrote" in said.out
    content = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert content["runs"] == 4 and content["images"] == 50
    assert (tmp_path / "out" / "explanation.png").exists() and len(list((tmp_path / "chips").iterdir())) > 10
    assert main([*command.split(), "--by", "layer", "--layers", "no"]) == 1
    assert "layers: must match a noisy layer" in capsys.readouterr().err


def test_any_task_is_explained_by_its_metric_and_its_forward():
    """Texts as dicts. Each variant has the figures that monte_carlo gives for the same forward and function."""
    model, data = encoder(), sentences()

    def forward(model, batch):
        return model(batch["input_ids"], batch["attention_mask"]).logits

    def margin(logits, batch):
        own = logits.gather(1, batch["labels"][:, None])[:, 0]
        return own - logits.mean(1), torch.ones_like(own)

    options = {"seed": 3, "progress": False, "forward": forward}
    found = nft.explain(model, data, runs=4, by="layer", metric={"margin": margin}, **options)
    expected = monte_carlo(model, data, runs=4, metrics={"margin": margin}, **options)
    assert found.metric == "margin" and found.per_chip["everything"] == expected.metrics["margin"].per_run.tolist()
    assert "Where the margin goes" in str(found) and f"x {len(data['labels'])} examples" in str(found)
    by_default = nft.explain(model, data, runs=4, by="layer", metric="nll", seed=3, progress=False)
    assert by_default.per_chip["everything"] == pytest.approx(
        monte_carlo(model, data, runs=4, seed=3, metrics="nll", progress=False).metrics["nll"].per_run.tolist()
    )
