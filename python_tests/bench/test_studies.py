"""The studies of memory, contexts and passes run, and their figures are those of what they measure."""

import json

import pytest
import torch
from torch import nn

import nft_ext as nft
from bench.studies import entering, memory, networks, passes


def test_the_networks_have_their_names_shapes():
    encoder = networks.Encoder()
    assert sum(isinstance(m, nn.Linear) for m in encoder.modules()) == 37
    assert memory.sizes(12, 1024)["parameters"] == pytest.approx(2.2e8, rel=0.1)
    assert memory.sizes(**memory.LARGE)["parameters"] == pytest.approx(1e9, rel=0.1)
    small = memory.network(2, 128)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small(torch.arange(5)[None]).shape == (1, 5, 32000)


@pytest.mark.slow
def test_a_conversion_in_place_needs_little_more_than_the_plain_network(tmp_path):
    out = tmp_path / "memory.json"
    assert memory.main(["--layers", "8", "--width", "640", "--words", "4000", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    plain, here, copied = (found["peaks"][way] for way in memory.WAYS)
    bytes_of_weights = 2 * found["network"]["parameters"]
    assert plain["made"] == pytest.approx(bytes_of_weights, rel=0.1)
    assert here["ran"] <= 1.3 * plain["ran"]
    assert copied["converted"] >= 1.8 * plain["made"], "the measure sees a second copy"


def test_the_cost_of_a_context_is_measured_beside_forwards():
    found = entering.study(tokens=4, rounds=2)
    assert found["of_plain"] == found["context"] / found["plain"] > 0
    assert found["of_noisy"] == found["context"] / found["noisy"] > 0


def test_the_choice_of_auto_is_among_the_numbers_timed():
    model = nft.convert(passes._mlp(8, 4).eval(), nft.NVMDevice(sigma=0.1))
    found = passes.timed(model, torch.randn(3, 8), rounds=1)
    assert found["auto"] == 64 and list(found["seconds"]) == ["1", "2", "4", "8", "16", "32", "64"]
    best = min(found["seconds"].values())
    assert found["loss"] == found["seconds"]["64"] / best >= 1
