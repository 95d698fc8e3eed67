"""The published setting: what it changes, what it leaves to older results, and what a report says about each."""

import pytest
import torch

from nft_ext import data, methods, models
from nft_ext.reproduce import work as at_work
from nft_ext.reproduce.as_published import in_setting, unlike_published
from nft_ext.reproduce.grid import cells
from nft_ext.reproduce.panels import PRESETS, Scale
from nft_ext.reproduce.store import Store
from support.cells import cell

QUICK = PRESETS["quick"]
PUBLISHED = in_setting(QUICK, "published")


def of(found, variant):
    return next(c for c in found if c.variant == variant)


def test_the_published_setting_changes_the_start_the_pixels_the_selection_the_schedule_and_ovfs_statistics():
    ours, published = (cells("figure3", "vgg8-mnist", scale, (0.2,), seeds=1) for scale in (QUICK, PUBLISHED))
    usual, other = of(ours, "noise").config(), of(published, "noise").config()
    assert {k: v for k, v in other.items() if usual.get(k) != v} == {
        "init": "published",
        "normalisation": "published",
        "selection": "published",
        "validation": 0.0,
        "schedule": "cosine-epochs",
    }
    assert of(published, "ovf").method == of(ours, "ovf").method | {"feedback_updates_statistics": True}
    assert of(published, "irs").method == of(ours, "irs").method
    assert not {c.key for c in ours} & {c.key for c in published}


def test_our_setting_is_the_presets_own_and_another_is_refused():
    assert in_setting(QUICK, "ours") == QUICK
    with pytest.raises(ValueError, match="setting: must be one of published, ours.*; got publish"):
        in_setting(QUICK, "publish")


def test_the_published_ovf_of_resnet18_skips_the_residual_blocks():
    found = cells("figure3", "resnet18-cifar10", PUBLISHED, (0.3,), ("ovf",), 1)
    assert of(found, "ovf").method["published_variant"]
    assert not of(cells("figure3", "vgg8-cifar10", PUBLISHED, (0.3,), ("ovf",), 1), "ovf").method["published_variant"]


def test_the_protocol_study_of_the_published_setting_takes_back_one_difference_at_a_time():
    found = {c.variant: c.config() for c in cells("protocol", "vgg8-mnist", PUBLISHED, seeds=1)}
    base = found["noise"]
    changes = {
        "our start": {"init"},
        "our pixels": {"normalisation"},
        "our selection": {"selection", "validation"},
        "our schedule": {"schedule"},
    }
    for setting, names in changes.items():
        config = found[f"noise {setting}"]
        assert {k for k in base if base[k] != config.get(k)} == names | {"variant"}
    assert "ovf our statistics" in found and "noise our statistics" not in found
    assert not any("test selection" in variant or "feedback statistics" in variant for variant in found)


TINY = in_setting(
    Scale(width=0.0625, epochs=1, batch_size=32, lr=1e-3, train_images=60, test_images=20, runs=2), "published"
)


def test_a_network_of_the_published_setting_is_trained_on_all_published_images_from_the_published_start(
    tmp_path, monkeypatch
):
    (one,) = cells("figure3", "vgg8-digits", TINY, (0.1,), ("noise",), 1)
    seen, real = [], at_work.fit

    def fit(model, method, train, judged, **options):
        seen.append((model, train, judged, options))
        return real(model, method, train, judged, **options)

    monkeypatch.setattr(at_work, "fit", fit)
    store = Store(tmp_path)
    found = at_work.work(one, store, None, None, False, keep_checkpoint=True)
    ((model, train, judged, options),) = seen
    torch.manual_seed(0)
    start = models.build("vgg8", 10, 1, 0.0625, "published")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters()))
    assert (len(train), train.mean, len(judged), judged.name) == (60, (0.5,), 20, "digits/test")
    assert options["keep"] == "published" and options["recipe"].schedule == "cosine-epochs"
    assert found["points"][0]["at_temperature"] is None  # no image is left to fit a temperature on
    assert options["meta"] == {"dataset": "digits", "normalisation": "published"}


def test_the_images_of_one_setting_are_never_those_of_the_other(tmp_path):
    (ours,) = cells("figure3", "vgg8-digits", TINY.replace(normalisation="default"), (0.1,), ("noise",), 1)
    (published,) = cells("figure3", "vgg8-digits", TINY, (0.1,), ("noise",), 1)
    for one, mean in ((ours, data.load("digits")[0].mean), (published, (0.5,)), (ours, data.load("digits")[0].mean)):
        assert at_work.sets(one.panel, one.scale, None)[0].mean == mean


def config_of(variant="ovf", **changes):
    """A finished cell in the published setting, with changes."""
    published = {
        "init": "published",
        "normalisation": "published",
        "selection": "published",
        "validation": 0.0,
        "schedule": "cosine-epochs",
        "method": methods.OVF(sigma=0.3, beta=1e-3, feedback_updates_statistics=True).config(),
    }
    return cell(variant, **(published | changes))


def test_a_report_names_each_difference_from_the_published_code_that_its_networks_have():
    assert unlike_published([config_of()]) == []
    for change, words in (
        ({"init": "default"}, "weights start as torch's constructors draw them; the published code"),
        ({"normalisation": "default"}, "mean and std; the published code uses 0.5 on MNIST"),
        ({"selection": "validation"}, "on separate chips; the published code chooses it on the test set"),
        ({"validation": 0.1}, "kept for validation; in the published code all of them train"),
        ({"schedule": "cosine"}, "with every step; in the published code with every epoch"),
        ({"method": methods.OVF(sigma=0.3, beta=1e-3).config()}, "BatchNorm's running statistics; in the published"),
        ({"model": "resnet18"}, "reaches every layer; in the published ResNet-18 it skips"),
    ):
        (text,) = unlike_published([config_of(**change)])
        assert words in text


def test_a_report_names_the_lines_that_alone_differ():
    (text,) = unlike_published([config_of(), config_of("ovf our start", init="default")])
    assert "draw them (only in 'our start'); the published" in text
    usual, other = cell(), cell("ovf test selection", selection="published")
    found = next(text for text in unlike_published([usual, other]) if "separate chips" in text)
    assert "(except for 'test selection'); the published" in found
