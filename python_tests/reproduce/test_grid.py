"""Which cells an experiment consists of, what identifies one, and what is refused before any work."""

import dataclasses
import json

import pytest

from nft_ext import methods
from nft_ext.reproduce.grid import Cell, cells
from nft_ext.reproduce.panels import PANELS, PRESETS, SIGMAS
from support.paths import ROOT

QUICK = PRESETS["quick"]


def of(found, variant, sigma=None, seed=0):
    return [c for c in found if c.variant == variant and c.sigma == sigma and c.seed == seed]


def test_a_noisy_method_is_one_network_a_sigma_and_vanilla_one_in_all():
    found = cells("figure3", "vgg8-mnist", QUICK, sigmas=(0.2, 0.35), seeds=2)
    assert len(found) == 2 * (1 + 2 * 4)
    for seed in (0, 1):
        (vanilla,) = of(found, "vanilla", None, seed)
        assert vanilla.sigmas == (0.2, 0.35)
        for name in ("noise", "control", "ovf", "irs"):
            for sigma in (0.2, 0.35):
                (cell,) = of(found, name, sigma, seed)
                assert cell.sigmas == (sigma,) and cell.method["sigma"] == sigma and cell.epochs == QUICK.epochs


def test_seed_by_seed_so_that_an_early_stop_leaves_a_whole_figure():
    seeds = [cell.seed for cell in cells("figure3", None, QUICK)]
    assert seeds == sorted(seeds) and set(seeds) == set(range(5))


def test_how_fast_it_is_trained_is_part_of_a_network_and_the_usual_networks_keep_their_names():
    (usual,) = cells("figure3", "vgg8-mnist", QUICK, sigmas=(0.2,), names=("control",), seeds=1)
    assert usual.key == "vgg8-mnist-control-sigma0.2-seed0-65faba89f6"  # of a finished cell
    (faster,) = cells(
        "figure3", "vgg8-mnist", QUICK.replace(precision="bfloat16", channels_last=True), (0.2,), ("control",), 1
    )
    recipe = faster.scale.recipe(faster.panel)
    assert (recipe.precision, recipe.channels_last) == ("bfloat16", True) and faster.key != usual.key
    assert {k for k, v in faster.config().items() if v != usual.config()[k]} == {"precision", "channels_last"}
    with pytest.raises(ValueError, match="^precision: "):
        QUICK.replace(precision="int4")


def test_the_two_figures_share_their_cells():
    assert [c.key for c in cells("figure3", None, QUICK)] == [c.key for c in cells("figure4", None, QUICK)]


@pytest.mark.parametrize(
    "panel, names", [("vgg8-mnist", {"control": 3}), ("resnet18-cifar10", {"control-ovf": 3, "control-irs": 4})]
)
def test_the_control_is_there_unasked_one_for_each_factor(panel, names):
    found = cells("figure3", panel, QUICK, sigmas=(0.3,), names=("ovf", "irs"), seeds=1)
    controls = {c.variant: c.method["feedbacks"] for c in found if c.method["name"] == "control"}
    assert controls == names
    assert {c.epochs for c in found} == {QUICK.epochs}
    assert not [
        c for c in cells("figure3", panel, QUICK, names=("ovf",), control=False) if c.method["name"] == "control"
    ]


def test_no_control_where_no_method_has_feedback():
    assert {c.variant for c in cells("figure3", None, QUICK, names=("vanilla", "noise"))} == {"vanilla", "noise"}


def test_beta_is_the_papers_of_the_panel():
    found = cells("figure3", "vgg8-cifar10", QUICK, sigmas=(0.3,), seeds=1)
    assert of(found, "ovf", 0.3)[0].method["beta"] == 1e-3 and of(found, "irs", 0.3)[0].method["beta"] == 1e-1
    digits = cells("figure3", "vgg8-digits", QUICK, sigmas=(0.3,), seeds=1)  # not in the paper: MNIST's
    assert of(digits, "irs", 0.3)[0].method["beta"] == 1e-2


def test_convergence_is_ten_seeds_at_sigma_035():
    found = cells("convergence", None, QUICK)
    assert {c.seed for c in found} == set(range(10)) and {c.sigma for c in found} == {0.35}
    assert {c.variant for c in found} == {"noise", "control", "ovf", "irs"} and {c.panel.name for c in found} == {
        "vgg8-mnist"
    }


def test_the_ablations_hold_every_published_variant_with_the_control_of_each_number_of_feedbacks():
    found = {c.variant: c for c in cells("ablations", None, PRESETS["paper"], seeds=1)}
    for n in range(1, 6):
        for name in ("ovf", "irs", "control"):
            assert found[f"{name} n={n}"].method["feedbacks"] == n
    assert found["ovf reversed decay"].method["reversed_decay"] and found["irs reversed decay"].method["reversed_decay"]
    assert found["ovf reversed delta"].method["delta"] == -0.05
    assert found["irs noise-free classifiers"].method["noisy_classifiers"] is False
    assert found["ovf published"].method["published_variant"]
    for name in ("ovf", "irs", "control-ovf"):
        epochs = [found[f"{name} pretrained, {n}/200 epochs"].epochs for n in (50, 100, 200)]
        assert epochs == [50, 100, 200]
    begins = found["ovf pretrained, 50/200 epochs"].start()
    assert begins.key == found["vanilla"].key and begins.epochs == 200
    assert {c.sigma for c in found.values()} == {None, 0.3} and found["ovf"].panel.name == "resnet18-cifar10"


def test_the_protocol_study_changes_one_setting_at_a_time():
    found = {c.variant: c for c in cells("protocol", None, QUICK, seeds=1)}
    assert {c.panel.name for c in found.values()} == {"vgg8-mnist"} and {c.sigma for c in found.values()} == {0.35}
    base = {name: found[name].config() for name in ("noise", "control", "ovf", "irs")}
    expected = {
        "lr x4": {"lr": 0.008},
        "lr /4": {"lr": 0.0005},
        "epochs x3": {"epochs": 15},
        "last epoch": {"selection": "last"},
        "test selection": {"selection": "published"},
    }
    for setting, change in expected.items():
        for name, config in base.items():
            variant = f"{name} {setting}"
            assert found.pop(variant).config() == config | change | {"variant": variant}
    statistics = found.pop("ovf feedback statistics").config()
    assert statistics["method"] == base["ovf"]["method"] | {"feedback_updates_statistics": True}
    assert set(found) == set(base)  # and nothing else


def test_the_protocol_study_shares_the_figures_cells_and_takes_the_papers_rate_where_none_is_given():
    figure = {c.key for c in cells("figure3", None, QUICK, sigmas=(0.35,), seeds=1)}
    study = cells("protocol", None, QUICK, seeds=1)
    assert {c.key for c in study if " " not in c.variant} <= figure
    (faster,) = of(cells("protocol", "resnet18-mnist", PRESETS["paper"], sigmas=(0.3,), seeds=1), "irs lr x4", 0.3)
    assert faster.config()["lr"] == 4e-2
    assert not [c for c in cells("protocol", None, QUICK, control=False) if c.method["name"] == "control"]


def test_every_cell_of_every_experiment_builds_its_method():
    for experiment in ("figure3", "convergence", "ablations", "protocol"):
        for panel in PANELS:
            for cell in cells(experiment, panel, PRESETS["smoke"], sigmas=(0.1,), seeds=1):
                assert methods.build(**cell.method).config() == cell.method


def test_the_key_is_of_the_whole_configuration_but_not_of_the_lines_name():
    cell = cells("figure3", None, QUICK, sigmas=(0.3,), seeds=1)[-1]
    assert isinstance(cell, Cell)
    changed = [
        dataclasses.replace(cell, seed=1),
        dataclasses.replace(cell, sigmas=(0.2,)),
        dataclasses.replace(cell, epochs=9),
        dataclasses.replace(cell, pretrained=3),
        dataclasses.replace(cell, method=cell.method | {"beta": 0.5}),
        *(
            dataclasses.replace(cell, scale=cell.scale.replace(**{name: value}))
            for name, value in (
                ("width", 0.5),
                ("batch_size", 7),
                ("lr", 0.5),
                ("train_images", 99),
                ("test_images", 99),
                ("runs", 9),
                ("validation", 0.2),
                ("validation_chips", 9),
                ("selection", "last"),
                ("selection", "published"),
                ("init", "published"),
                ("normalisation", "published"),
                ("schedule", "cosine-epochs"),
            )
        ),
    ]
    keys = {c.key for c in changed}
    assert len(keys) == len(changed) and cell.key not in keys
    assert dataclasses.replace(cell, variant="another name").key == cell.key


def test_the_networks_of_the_committed_report_are_still_those_of_its_command():
    """A key that changed would make `nft-ext reproduce` train finished networks again."""
    report = ROOT / "docs" / "results" / "reproduce-vgg8-mnist" / "figure3.json"
    kept = json.loads(report.read_text())["networks"]
    assert kept.keys() == {c.key for c in cells("figure3", "vgg8-mnist", QUICK)}


def test_the_paper_preset_is_the_papers_protocol():
    paper = PRESETS["paper"]
    assert (paper.width, paper.epochs, paper.runs, paper.validation, paper.sigmas) == (1.0, 200, 200, 0.1, SIGMAS)
    assert paper.train_images is None and paper.test_images is None and paper.batch_size == 128
    assert paper.recipe(PANELS["vgg8-mnist"]).lr == 1e-3 and paper.recipe(PANELS["resnet18-cifar10"]).lr == 1e-2
    tiny = paper.recipe(PANELS["resnet18-tinyimagenet"])
    assert (tiny.optimizer, tiny.momentum, tiny.weight_decay) == ("sgd", 0.9, 5e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("figure5", None, QUICK), "experiment.*figure3.*figure5"),
        (("figure3", "vgg8-minst", QUICK), "panel.*did you mean 'vgg8-mnist'"),
        (("figure3", None, QUICK, (0.1,), ("ofv",)), "method.*did you mean 'ovf'"),
        (("figure3", None, QUICK, (-0.1,)), "sigma.*>= 0.*-0.1"),
        (("figure3", None, QUICK, None, None, 0), "seeds.*>= 1.*0"),
        (("figure3", None, QUICK, None, None, 1001), "seeds.*<= 1000, because seeds from there choose settings.*1001"),
        (("ablations", None, QUICK, None, ("ovf",)), "--methods.*must be left out"),
    ],
)
def test_bad_input_names_the_argument_and_the_near_ones(arguments, words):
    with pytest.raises(ValueError, match=words):
        cells(*arguments)


@pytest.mark.parametrize(
    "name, value",
    [
        ("width", 0.0),
        ("epochs", 0),
        ("runs", 1),
        ("train_images", 5),
        ("batch_size", 0),
        ("selection", "test"),
        ("validation", 0.0),
    ],
)
def test_a_scale_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        QUICK.replace(**{name: value})
