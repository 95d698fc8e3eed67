"""How an account of weights is shown and written."""

import json

import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.2)


class Own(nn.Module):
    """A matrix in a class of its own."""

    def __init__(self, n=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, n))

    def forward(self, x):
        return x @ self.weight


def model(blocks=12):
    block = [nn.Sequential(nn.Linear(6, 6), Own(), nn.LayerNorm([2, 6])) for _ in range(blocks)]
    return nn.Sequential(nn.ModuleDict({"blocks": nn.Sequential(*block)})["blocks"], nn.Linear(6, 2))


def test_the_table_puts_repeated_layers_together():
    assert str(nft.coverage(model(), torch.randn(3, 2, 6))).split("\n") == [
        "Coverage of this plain model, once nft_ext.convert has run:",
        "  50.7 % of matrix weights on crossbars, 50.7 % of multiply-accumulates",
        "  on crossbars      444 weights in 13 matrices, 50.7 %",
        "  digital           432 weights in 12 matrices, 49.3 %",
        "  not counted       288 weights in 24 parameters",
        "",
        "digital matrices",
        "  name                 class  shape  weights   share    MACs  reason",
        "  0.*.1.weight (12 x)  Own    6 x 6      432  49.3 %  49.3 %  unknown class",
        "",
        "on crossbars",
        "  name                 class   shape  weights   share    MACs",
        "  0.*.0.weight (12 x)  Linear  6 x 6      432  49.3 %  49.3 %",
        "  1.weight             Linear  2 x 6       12   1.4 %   1.4 %",
        "",
        "not counted: they multiply no activations as a matrix",
        "  name                 class      shape  weights  reason",
        "  0.*.2.weight (12 x)  LayerNorm  2 x 6      144  norm",
        "  0.*.2.bias (12 x)    LayerNorm  2 x 6      144  norm",
    ]


def test_a_long_table_ends_with_what_it_leaves_out():
    text = str(nft.coverage(nn.Sequential(*(Own(n) for n in range(2, 32)))))
    assert text.count(" Own ") == 20 and "  and 10 more with 505 weights; .rows has all" in text.split("\n")


def test_long_names_keep_their_end():
    deep = nn.Linear(2, 2)
    for name in ("projection", "attention", "intermediate_layer", "cross_attention_block", "transformer_encoder"):
        deep = nn.ModuleDict({name: deep})
    text = str(nft.coverage(deep))
    assert "  transformer_encoder...attention.projection.weight  Linear" in text


def test_the_line_is_that_of_the_warning():
    found = nft.coverage(model())
    assert found.line() == "50.7 % of matrix weights on crossbars; digital: 0.*.1.weight (12 x Own, 432: unknown class)"


def test_json_holds_every_row(tmp_path):
    found = nft.coverage(model(2), torch.randn(3, 2, 6))
    text = found.to_json(tmp_path / "coverage.json")
    written = json.loads((tmp_path / "coverage.json").read_text())
    assert written == json.loads(text) == json.loads(json.dumps(found.to_dict()))
    assert written["share"] == found.share and written["mac_share"] == found.mac_share
    assert [row["name"] for row in written["rows"]] == [row.name for row in found.rows]
    assert written["rows"][1] == {
        "name": "0.0.1.weight",
        "module": "Own",
        "shape": [6, 6],
        "cells": 36,
        "place": "digital",
        "counted": True,
        "reason": "unknown class",
        "judged": "forward",
        "crossbars": None,
        "crossbar": None,
        "arrays": None,
        "array_use": None,
        "ran": False,
        "macs": 216,
        "noisy_macs": 0,
        "weight_share": 36 / 156,
        "mac_share": 36 / 156,
    }
