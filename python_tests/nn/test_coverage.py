"""nft.coverage without an example: which parameters count, which are on crossbars, and why the others are not."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.2)
pytestmark = pytest.mark.filterwarnings("ignore:convert.*:UserWarning")


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it: a matrix of its own, stored [in, out]."""

    def __init__(self, out, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Gpt(nn.Module):
    """The shape of GPT-2: all matrices but the head's are in a class of its own; the head shares the embedding."""

    def __init__(self, width=64, words=3, blocks=3):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(8, width)
        self.h = nn.ModuleList(
            nn.ModuleDict({"ln": nn.LayerNorm(width), "fc": Conv1D(4 * width, width), "proj": Conv1D(width, 4 * width)})
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = x + block["proj"](block["fc"](block["ln"](x)).relu())
        return self.head(x)


class Vit(nn.Module):
    """A class token, a position table, a per-channel scale, a relative position bias and a norm."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.gamma, self.relative_position_bias_table = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.zeros(9, 2))
        self.norm, self.head = nn.LayerNorm([5, 8]), nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2) * self.gamma
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.mT], 1) + self.pos_embed
        return self.head(self.norm(x)[:, 0])


def rows(model, example=None):
    return {row.name: row for row in nft.coverage(model, example).rows}


def test_a_network_whose_matrices_are_in_a_class_of_its_own_has_nearly_none_on_crossbars():
    noisy = nft.convert(Gpt(), NVM)
    found = nft.coverage(noisy)
    assert found.share == 3 * 64 / (3 * 64 + 3 * 2 * 4 * 64 * 64) and round(100 * found.share, 1) == 0.2
    assert {(row.name, row.reason) for row in found.digital} == {
        (f"h.{block}.{name}.weight", "unknown class") for block in range(3) for name in ("fc", "proj")
    }
    assert [(group.name, group.count, group.cells) for group in found.exceptions] == [
        ("h.*.fc.weight", 3, 3 * 4 * 64 * 64),
        ("h.*.proj.weight", 3, 3 * 4 * 64 * 64),
    ]


def test_a_tied_embedding_is_one_row_of_the_layer_that_multiplies():
    found = rows(nft.convert(Gpt(), NVM))
    assert (found["head.weight"].place, found["head.weight"].reason) == ("crossbar", "also read by wte (Embedding)")
    assert "wte.weight" not in found


def test_a_matrix_that_a_plain_layer_also_multiplies_by_is_digital():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    found = nft.coverage(nft.convert(model, NVM, exclude="1"))
    assert found.digital[0].reason == "shared with 1 (Linear), which has no noise" and found.share == 18 / 54
    assert nft.coverage(nft.convert(model, NVM)).share == nft.coverage(model).share == 1


def test_tables_tokens_scales_biases_and_norms_are_listed_only():
    found = nft.coverage(Vit())
    assert {row.name: row.reason for row in found.rows if not row.counted} == {
        "cls_token": "position table or token",
        "pos_embed": "position table or token",
        "gamma": "per-channel scale or token",
        "relative_position_bias_table": "bias",
        "norm.weight": "norm",
        "norm.bias": "norm",
    }
    assert found.share == 1 and found.cells() == 8 * 3 * 16 + 4 * 8


def test_parameters_of_one_dimension_have_no_row():
    assert list(rows(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))) == ["0.weight"]


def test_experts_are_one_row_per_parameter():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up_proj = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 10, 6))
            self.up_proj_bias = nn.Parameter(torch.zeros(4, 10))

    found = nft.coverage(nft.convert(Experts(), NVM))
    assert [(row.name, row.cells, row.reason) for row in found.digital] == [("up_proj", 240, "unknown class")]
    assert found.share == 24 / 264


@pytest.mark.parametrize(
    "layer, matrices",
    [
        (nn.LSTM(4, 5, bidirectional=True), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.GRUCell(4, 5), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (nn.Conv1d(4, 5, 3), ["weight"]),
        (nn.Bilinear(4, 5, 3), ["weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_matrix_of_a_layer_of_torch_is_on_a_crossbar(layer, matrices):
    found = nft.coverage(nft.convert(nn.Sequential(nn.Linear(2, 2), layer), NVM))
    names = {row.name.removeprefix("1.").removesuffix("_reverse") for row in found.rows if row.place == "crossbar"}
    assert names == {"0.weight", *matrices}
    assert not found.digital and found.share == 1


def test_what_the_user_excluded_is_digital_and_counts():
    found = nft.coverage(nft.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), NVM, exclude="0"))
    assert found.share == 8 / 24 and [(row.name, row.reason) for row in found.digital] == [("0.weight", "excluded")]


def test_a_plain_model_has_the_rows_that_convert_would_give():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 3), Conv1D(3, 3))
    plain, noisy = nft.coverage(model), nft.coverage(nft.convert(model, NVM))
    assert (plain.planned, noisy.planned) == (True, False) and plain.share == noisy.share == (144 + 24) / (144 + 24 + 9)
    for a, b in zip(plain.rows, noisy.rows, strict=True):
        assert (a.name, a.place, a.counted, a.reason, a.crossbar) == (b.name, b.place, b.counted, b.reason, b.crossbar)
    assert "plain model" in str(plain) and "plain model" not in str(noisy)


def test_the_size_of_a_crossbar_follows_from_the_layer():
    first, second = nft.coverage(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Linear(8, 3))).rows
    assert (first.crossbars, first.crossbar) == (2, (18, 4)) and (second.crossbars, second.crossbar) == (1, (8, 3))
    assert (first.arrays, second.arrays) == (None, None)


def subclass(layer):
    return type("Scaled", (nn.Linear,), {})(6, 6)


def replaced(layer):
    layer.forward = lambda x: x
    return layer


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


EXAMPLES = pytest.mark.parametrize("example", [None, torch.ones(2, 6)], ids=["rules", "example"])


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    "change, reason",
    [
        (replaced, "its forward was replaced on the instance"),
        (lambda layer: torch.jit.trace(layer, torch.ones(2, 6)), "scripted"),
    ],
    ids=["replaced", "traced"],
)
@EXAMPLES
def test_layers_that_convert_leaves_or_refuses_say_why(change, reason, example):
    found = nft.coverage(nn.Sequential(change(nn.Linear(6, 6)), nn.Linear(6, 2)), example)
    assert [(row.name, row.reason) for row in found.digital] == [("0.weight", reason)]
    assert found.share == 12 / 48


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    "change, name",
    [
        (subclass, "0.weight"),
        (pruned, "0.weight_orig"),
        (nn.utils.spectral_norm, "0.weight_orig"),
        (nn.utils.weight_norm, "0.weight_v"),
        (parametrizations.orthogonal, "0.parametrizations.weight.original"),
        (parametrizations.weight_norm, "0.parametrizations.weight.original1"),
    ],
    ids=["subclass", "pruned", "spectral", "norm", "orthogonal", "parametrized norm"],
)
@EXAMPLES
def test_weights_that_torch_makes_sit_on_crossbars(change, name, example):
    """The row is the parameter from which the weight is made."""
    model = nn.Sequential(change(nn.Linear(6, 6)), nn.Linear(6, 2))
    for found in (nft.coverage(model, example), nft.coverage(nft.convert(model, NVM), example)):
        assert name in {row.name for row in found.rows if row.counted}
        assert not found.digital and found.share == 1


def test_a_noisy_layer_that_was_parametrized_later_is_on_a_crossbar():
    noisy = nft.convert(nn.Sequential(nn.Linear(6, 6)), NVM)
    parametrize.register_parametrization(noisy[0], "weight", nn.Tanh())
    for example in (None, torch.ones(2, 6)):
        assert nft.coverage(noisy, example).share == 1


def test_modules_in_plain_lists_count_as_digital():
    model = nn.Sequential(nn.Linear(6, 6))
    model[0].hidden = [nn.Linear(6, 3), nn.Linear(3, 6)]
    found = nft.coverage(nft.convert(model, NVM))
    assert {row.name: row.reason for row in found.digital} == {
        "0.hidden.0.weight": "in a plain list, tuple or dict",
        "0.hidden.1.weight": "in a plain list, tuple or dict",
    }
    assert found.share == 0.5


def test_names_leave_out_wrappers():
    assert list(rows(nn.DataParallel(nn.Sequential(nn.Linear(3, 2))))) == ["0.weight"]


def test_a_fused_model_has_the_account_of_the_model():
    noisy = nft.convert(nft.models.vgg8(width=0.0625), NVM).eval()
    images = torch.randn(2, 1, 32, 32)
    for example in (None, images):
        plain, fused = nft.coverage(noisy, example), nft.coverage(nft.fuse(noisy), example)
        assert fused.share == 1 and fused.mac_share in (None, 1)
        assert sorted((r.name, r.macs) for r in fused.rows) == sorted((r.name, r.macs) for r in plain.rows)


def test_a_model_without_matrices_has_no_share():
    found = nft.coverage(nn.ReLU(), torch.ones(2))
    assert (
        found.share != found.share
        and "no matrix weights" in str(found)
        and json.loads(found.to_json())["share"] is None
    )


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="model: must be a torch.nn.Module"):
        nft.coverage(3)
    with pytest.raises(TypeError, match="example: must be a tensor"):
        nft.coverage(nn.Linear(2, 2), [1])
    with pytest.raises(ValueError, match="0: must have its shape: run the model once"):
        nft.coverage(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(ValueError, match="place: must be None, 'crossbar' or 'digital'"):
        nft.coverage(nn.Linear(2, 2)).cells("analog")


def test_arrays_are_counted_per_group_and_tile():
    nvm = NVM.replace(array_rows=5, array_columns=2)
    found = nft.coverage(nft.convert(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Linear(8, 3)), nvm))
    assert [row.arrays for row in found.rows] == [2 * 4 * 2, 1 * 2 * 2]
    # Two groups of 18 x 4 weights, and 8 x 3: in arrays of 5 x 2 cells.
    assert [row.array_use for row in found.rows] == [2 * 18 * 4 / (16 * 10), 8 * 3 / (4 * 10)]
    assert "arrays" in str(found) and "used" in str(found) and "90.0 %" in str(found) and "60.0 %" in str(found)


def test_an_array_without_a_limit_in_one_direction_is_as_long_as_the_crossbar():
    tall = nft.coverage(nft.convert(nn.Linear(8, 3), NVM.replace(array_columns=2))).rows[0]
    wide = nft.coverage(nft.convert(nn.Linear(8, 3), NVM.replace(array_rows=5))).rows[0]
    assert (tall.arrays, tall.array_use) == (2, 3 / 4) and (wide.arrays, wide.array_use) == (2, 8 / 10)
