"""Snapshot points: found in models of known structure, as many as asked for, shallowest first."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import methods
from nft_ext.methods.points import side_for
from support.resnet_lookalikes import TorchvisionResNet, TransformersResNet


def names(model, feedbacks=None):
    return [name for name, _ in methods.snapshot_points_of(model, feedbacks)]


def tapped(model, **options):
    """The modules that IRS taps, in its order."""
    prepared = methods.IRS(0.1, 0.1, **options).prepare(model)
    modules = {module: name for name, module in prepared.backbone.named_modules()}
    found = {hook: modules[m] for m in modules for hook in m._forward_hooks.values()}
    return [found[tap] for tap in prepared.taps]


@pytest.mark.parametrize("channels, side", [(64, 6), (128, 4), (256, 3), (512, 2), (2048, 1), (4096, 1), (1, 48)])
def test_a_classifier_reads_at_most_as_many_features_as_in_the_paper(channels, side):
    assert side_for(channels) == side


def test_our_models_keep_the_papers_points_by_default():
    assert methods.snapshot_points_of(nft.models.vgg8()) == (("block1", 6), ("block2", 4), ("block4", 3))
    assert names(nft.models.resnet18(width=0.125)) == ["relu1", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize(
    "feedbacks, vgg8, resnet18",
    [
        (1, ["block1"], ["relu1"]),
        (2, ["block1", "block2"], ["relu1", "layer1"]),
        (3, ["block1", "block2", "block4"], ["relu1", "layer1", "layer2"]),
        (4, ["block1", "block2", "block4", "block6"], ["relu1", "layer1", "layer2", "layer3"]),
        (5, ["block1", "block2", "block3", "block4", "block6"], ["relu1", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_our_models_offer_one_to_five_points(feedbacks, vgg8, resnet18):
    assert tapped(nft.models.vgg8(width=0.125), feedbacks=feedbacks) == vgg8
    assert tapped(nft.models.resnet18(width=0.125), feedbacks=feedbacks) == resnet18


def test_points_within_a_layer_come_before_its_end():
    points = tapped(nft.models.resnet18(width=0.125), feedbacks=9)
    assert points == ["relu1", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "layer4.0", "layer4"]


def test_further_points_are_pooled_to_the_papers_number_of_features():
    for build, count in ((nft.models.vgg8, 6), (nft.models.resnet18, 9)):
        prepared = methods.IRS(0.1, 0.1, feedbacks=count, noisy_classifiers=False).prepare(build())
        assert {head.fc1.in_features for head in prepared.snapshots} <= {2048, 2304}


@pytest.mark.parametrize(
    "model, stem, stages, blocks",
    [
        (TorchvisionResNet(), "maxpool", "layer{}", "layer{}.0"),
        (TransformersResNet(), "resnet.embedder", "resnet.encoder.stages.{}", "resnet.encoder.stages.{}.layers.0"),
    ],
    ids=["torchvision", "transformers"],
)
def test_points_of_resnets_are_found_by_structure(model, stem, stages, blocks):
    first = 1 if stem == "maxpool" else 0
    inner = [stages.format(first + n) for n in range(4)]
    assert names(model) == [stem, *inner[:3]]
    assert names(model, 5) == [stem, *inner]
    assert names(model, 9)[5:] == [blocks.format(first + n) for n in range(4)]
    assert tapped(model, feedbacks=6)[:3] == [stem, blocks.format(first), inner[0]]


def test_the_stem_ends_with_what_the_model_has():
    model = TorchvisionResNet()
    model.maxpool = nn.Identity()  # as one does for 32x32 images
    assert tapped(model)[0] == "maxpool"
    del model.maxpool
    assert names(model)[0] == "relu"
    del model.relu
    assert names(model)[0] == "bn1"


def test_wrappers_are_looked_through():
    assert names(nn.Sequential(nn.Identity(), TorchvisionResNet()))[:2] == ["1.maxpool", "1.layer1"]


@pytest.mark.parametrize("model", [TorchvisionResNet(), TransformersResNet()], ids=["torchvision", "transformers"])
@pytest.mark.parametrize(
    "method",
    [
        methods.Vanilla(),
        methods.NoiseInjection(0.1),
        methods.ScaledLogits(0.1),
        methods.OVF(0.1, 0.1, feedbacks=1),
        methods.IRS(0.1, 0.1),
        methods.Censored(0.1),
        methods.CorrectNet(),
    ],
    ids=lambda m: m.name,
)
def test_every_method_trains_models_that_return_containers(model, method):
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    history = nft.fit(model, method, (x, y), (x, y), epochs=1, batch_size=4, progress=False, validation_chips=2)
    assert list(history.model.state_dict()) == list(model.state_dict())
    report = nft.monte_carlo(nft.convert(history.model, nft.NVMDevice(sigma=0.1)), (x, y), runs=2, progress=False)
    assert report.runs == 2


@pytest.mark.parametrize("output", [(torch.zeros(2, 3),), {"scores": torch.zeros(2, 3)}, None], ids=str)
def test_what_holds_no_logits_is_refused(output):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return output

    x, y = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    for method in (methods.NoiseInjection(0.1), methods.IRS(0.1, 0.1, points=["conv"])):
        with pytest.raises(TypeError, match="^model: must return one tensor of logits"):
            nft.fit(Odd(), method, (x, y), (x, y), epochs=1, progress=False)


@pytest.mark.parametrize(
    "feedbacks, words",
    [
        (0, "feedbacks: must be an integer >= 1"),
        (10, "feedbacks: must be at most 9, the snapshot points of this model; got 10"),
    ],
)
def test_too_many_or_no_points_are_refused(feedbacks, words):
    with pytest.raises(ValueError, match=words):
        methods.IRS(0.1, 0.1, feedbacks=feedbacks).prepare(nft.models.resnet18(width=0.125))


def test_points_and_their_number_must_agree():
    with pytest.raises(ValueError, match="feedbacks: must be left out or be the number of points, 1; got 2"):
        methods.IRS(0.1, 0.1, points=["layer1"], feedbacks=2)


def test_a_model_of_unknown_structure_needs_points():
    with pytest.raises(ValueError, match="points: must be given for a model without snapshot_points"):
        methods.snapshot_points_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)))
