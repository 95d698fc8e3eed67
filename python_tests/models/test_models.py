"""The built-in networks: sizes as published, taps where IRS wants them, stable names, clear refusals."""

import copy

import pytest
import torch
from torch import nn

from nft_ext import models
from nft_ext.models import resnet18, vgg8
from nft_ext.models.common import scaled

BUILDERS = {"vgg8": vgg8, "resnet18": resnet18}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def tapped(model, x):
    """({module name: its outputs during one forward pass}, logits) of the snapshot modules."""
    outputs = {name: [] for name, _ in model.snapshot_points}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        for name, seen in outputs.items()
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    return outputs, logits


# ---- sizes at width 1 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, channels", [(10, 1), (10, 3), (100, 3)])
def test_vgg8_has_the_published_layers(classes, channels):
    model = vgg8(classes, channels)
    convs = [(m.in_channels, m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [(channels, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    linears = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linears == [(8192, 1024), (1024, classes)]
    weights = sum(9 * i * o for i, o in convs) + sum(i * o for i, o in linears)
    assert parameters(model) == weights + 1024 + classes + 2 * (64 + 128 + 256 + 256 + 512 + 512)


def test_vgg8_parameter_count():
    assert parameters(vgg8()) == 4_497_984 + 8_398_848 + 1_034 + 3_456  # convolutions, linear, their biases, batch-norm


@pytest.mark.parametrize("classes, count", [(10, 11_173_962), (100, 11_220_132)])
def test_resnet18_has_the_well_known_number_of_parameters(classes, count):
    assert parameters(resnet18(classes)) == count


def test_resnet18_has_a_3x3_stem_without_max_pool_and_three_strided_layers():
    model = resnet18()
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    assert [layer[0].conv1.stride for layer in (model.layer1, model.layer2, model.layer3, model.layer4)] == [
        (1, 1),
        (2, 2),
        (2, 2),
        (2, 2),
    ]
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 17 + 3


def test_every_weight_layer_but_the_linear_ones_leaves_its_bias_to_batch_norm():
    for build in BUILDERS.values():
        for module in build(width=0.125).modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is None
            if isinstance(module, nn.Linear):
                assert module.bias is not None


# ---- snapshot points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vgg8", [("block1", 6, 2304), ("block2", 4, 2048), ("block4", 3, 2304)]),
        ("resnet18", [("relu1", 6, 2304), ("layer1", 6, 2304), ("layer2", 4, 2048), ("layer3", 3, 2304)]),
    ],
)
def test_snapshots_feed_classifiers_of_the_designed_input_sizes(name, expected):
    model = models.build(name, 10, 3).eval()
    with torch.no_grad():
        outputs, _ = tapped(model, torch.randn(1, 3, 32, 32))
    found = []
    for point, side in model.snapshot_points:
        (output,) = outputs[point]  # each tapped module runs exactly once
        found.append((point, side, nn.AdaptiveAvgPool2d(side)(output).flatten(1).shape[1]))
    assert found == expected


@pytest.mark.parametrize("name", models.NAMES)
def test_tapped_outputs_are_after_the_relu_and_no_later_module_overwrites_them(name):
    model = models.build(name, 10, 3, width=0.125)
    seen = {}
    for point, _ in model.snapshot_points:
        model.get_submodule(point).register_forward_hook(
            lambda _, __, output, point=point: seen.__setitem__(point, (output, output.detach().clone()))
        )
    model(torch.randn(2, 3, 32, 32))
    for output, at_the_tap in seen.values():
        assert (output >= 0).all() and (output > 0).any()
        torch.testing.assert_close(output, at_the_tap, rtol=0, atol=0)


def test_vgg8_taps_follow_the_pool_where_there_is_one():
    outputs, _ = tapped(vgg8(width=0.125), torch.randn(2, 1, 32, 32))
    assert [outputs[name][0].shape[-1] for name in ("block1", "block2", "block4")] == [32, 16, 8]


@pytest.mark.parametrize("name", models.NAMES)
def test_a_loss_on_the_taps_trains_everything_before_them(name):
    model = models.build(name, 10, 1, width=0.125)
    outputs, _ = tapped(model, torch.randn(2, 1, 32, 32))
    outputs[model.snapshot_points[0][0]][0].square().sum().backward()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert first.weight.grad.abs().sum() > 0 and last.weight.grad is None


# ---- the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.NAMES)
def test_the_published_start_is_normal_with_variance_2_over_fan_out_and_biases_of_zero(name):
    torch.manual_seed(0)
    model = models.build(name, 10, 1, init="published")
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        fan_out = layer.weight.shape[0] * layer.weight[0][0].numel()
        expected = (2 / fan_out) ** 0.5
        error = expected / (2 * layer.weight.numel()) ** 0.5  # standard error of a standard deviation
        assert float(layer.weight.detach().std()) == pytest.approx(expected, abs=5 * error)
        assert layer.bias is None or not layer.bias.any()
    assert model.init == "published"


def test_the_usual_start_draws_as_before_and_an_unknown_one_is_refused():
    torch.manual_seed(0)
    plain = vgg8(width=0.125)
    torch.manual_seed(0)
    default = models.build("vgg8", 10, 1, 0.125, init="default")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), default.parameters()))
    assert plain.init == "default"
    with pytest.raises(
        ValueError, match="init: must be one of default, published.*did you mean 'published'.*; got publish"
    ):
        vgg8(init="publish")


# ---- the width factor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "channels, width, expected",
    [
        (64, 1.0, 64),
        (64, 0.25, 16),
        (64, 0.2, 16),
        (64, 0.125, 8),
        (64, 0.1, 6),
        (64, 0.01, 1),
        (64, 1e-9, 1),
        (512, 0.3, 152),
        (1024, 0.25, 256),
        (64, 2, 128),
    ],
)
def test_width_gives_multiples_of_8_or_small_integers(channels, width, expected):
    assert scaled(channels, width) == expected


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("width", [1e-6, 0.03, 0.125, 0.3])
def test_any_width_runs_with_the_same_state_dict_keys(name, width):
    model = models.build(name, 7, 1, width)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert list(model.state_dict()) == list(models.build(name, 7, 1, 0.25).state_dict())


def test_width_scales_the_hidden_layer_too():
    model = vgg8(width=0.25)
    assert (model.fc1.in_features, model.fc1.out_features) == (128 * 16, 256)


# ---- names --------------------------------------------------------------------------------------------------------


def test_vgg8_state_dict_keys_are_stable():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    blocks = [[f"block{k}.conv.weight"] + [f"block{k}.bn.{key}" for key in norm] for k in range(1, 7)]
    head = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert list(vgg8(width=0.125).state_dict()) == sum(blocks, []) + head


def test_resnet18_state_dict_keys_are_stable():
    keys = [key for key in resnet18(width=0.125).state_dict() if key.endswith("weight")]
    expected = ["conv1.weight", "bn1.weight"]
    for layer in range(1, 5):
        for block in range(2):
            stem = f"layer{layer}.{block}"
            expected += [f"{stem}.conv1.weight", f"{stem}.bn1.weight", f"{stem}.conv2.weight", f"{stem}.bn2.weight"]
            if layer > 1 and block == 0:
                expected += [f"{stem}.downsample.0.weight", f"{stem}.downsample.1.weight"]
    assert keys == expected + ["fc.weight"]


@pytest.mark.parametrize("name", models.NAMES)
def test_build_by_name_gives_the_same_network_as_the_function(name):
    torch.manual_seed(3)
    by_name = models.build(name, 5, 2, 0.125)
    torch.manual_seed(3)
    by_function = BUILDERS[name](num_classes=5, in_channels=2, width=0.125)
    for (key, a), b in zip(by_name.state_dict().items(), by_function.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert (by_name.num_classes, by_name.in_channels, by_name.width) == (5, 2, 0.125)


@pytest.mark.parametrize("name", models.NAMES)
def test_a_copy_and_a_pickled_model_compute_the_same(name, tmp_path):
    model = models.build(name, 4, 1, 0.125).eval()
    x = torch.randn(2, 1, 32, 32)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(x), model(x))


# ---- edge cases and refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.NAMES)
def test_one_class_one_image_and_an_empty_batch(name):
    model = models.build(name, 1, 1, 0.125).eval()
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 1)
    assert model(torch.randn(0, 1, 32, 32)).shape == (0, 1)


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28), (2, 1, 32, 16), (1, 32, 32), (2, 1, 64, 64)])
def test_other_inputs_are_refused_with_the_shape_that_is_wanted(name, shape):
    model = models.build(name, 10, 1, 0.125)
    with pytest.raises(ValueError, match=rf"{name} input: must have shape \[B, 1, 32, 32\]; got \[{shape[0]}, "):
        model(torch.zeros(shape))


@pytest.mark.parametrize("build", BUILDERS.values())
@pytest.mark.parametrize(
    "argument, value, message",
    [
        ("num_classes", 0, "num_classes: must be an integer >= 1; got 0"),
        ("num_classes", 2.5, "num_classes: must be an integer >= 1; got 2.5"),
        ("in_channels", -1, "in_channels: must be an integer >= 1; got -1"),
        ("width", 0.0, "width: must be a finite number > 0; got 0.0"),
        ("width", -0.5, "width: must be a finite number > 0; got -0.5"),
        ("width", float("nan"), "width: must be a finite number; got nan"),
    ],
)
def test_arguments_out_of_range_are_named(build, argument, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(**{argument: value})


def test_an_unknown_name_lists_the_known_ones():
    assert models.NAMES == ("vgg8", "resnet18")
    with pytest.raises(ValueError, match="model: must be one of vgg8, resnet18; got alexnet"):
        models.build("alexnet", 10, 1)
