"""`nft.calibrate`: ranges as percentiles of what data makes, clipping rates, and what converters alone cost."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nft_ext as nft
from nft_ext import reference
from nft_ext.nn.magnitudes import Magnitudes

NVM = nft.NVMDevice(sigma=0.1, scale="output", array_rows=10, input_bits=6, output_bits=7)
X = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))


def model(nvm=NVM):
    torch.manual_seed(0)
    return nft.convert(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)), nvm)


def ideal_sums(layer, x, key=None):
    """|u| of every tile, float64; without noise if there is no key."""
    nvm = layer.nvm
    table, spec = torch.from_numpy(nvm.operator_table()), nvm.operator_spec(key is not None)
    key = nft.noise_key() if key is None else key
    in_steps = reference.program_in_steps(layer.weight, table, key, layer.stream, spec)[0].double()
    tiles = range(0, x.shape[1], nvm.array_rows)
    return torch.stack([x[:, t : t + 10].double() @ in_steps[:, t : t + 10].T for t in tiles]).abs().numpy()


# ---- magnitudes


@pytest.mark.parametrize("percentile", [50, 99, 99.9])
def test_a_range_is_the_percentile_of_the_magnitudes_above_zero_rounded_up_by_a_thousandth_at_most(percentile):
    values = torch.randn(40_000).relu() * torch.randn(40_000).exp()
    found = Magnitudes(torch.device("cpu"))
    for part in values.split(777):
        found.add(part)
    exact = np.percentile(values[values > 0].numpy(), percentile, method="inverted_cdf")
    assert exact <= found.range(percentile) < exact * 1.001
    assert found.share_above(found.range(percentile)) == float((values > found.range(percentile)).double().mean())


def test_all_magnitudes_lie_within_the_range_of_100_percent():
    values = torch.tensor([0.0, -3.7, 1e-30, 2.5])
    found = Magnitudes(torch.device("cpu"))
    found.add(values)
    assert found.range(100) == float(torch.tensor(3.7)) and found.share_above(found.range(100)) == 0
    assert found.negative and found.count == 4


# ---- calibrate


@pytest.mark.parametrize("percentile", [99.0, 100])
def test_ranges_cover_the_inputs_and_sums_of_the_ideal_network(percentile):
    net = model()
    same, report = nft.calibrate(net, X, percentile)
    assert same is net and not net[0].dac_range.isnan().any()
    with nft.noise(net, enabled=False):
        hidden = net[0].ideal(X).relu()
    for layer, x, low in ((net[0], X, -1), (net[2], hidden, 0)):
        high = np.percentile(x[x != 0].abs().detach().numpy(), percentile, method="inverted_cdf")
        assert layer.dac_range.tolist() == pytest.approx([low * high, high], rel=1.001e-3)
        sums = ideal_sums(layer, x.detach())
        limit = np.percentile(sums[sums > 0], percentile, method="inverted_cdf")
        assert float(layer.adc_range) == pytest.approx(limit, rel=1.001e-3)
    first, second = report.rows
    assert (first.signed, second.signed) == (True, False)
    assert first.input_range == tuple(map(pytest.approx, net[0].dac_range.tolist()))
    assert first.input_clipping == float((X.abs() > net[0].dac_range[1]).double().mean())
    assert second.output_clipping == pytest.approx((sums > 1.000001 * float(net[2].adc_range)).mean(), abs=1e-4)
    assert all(row.complete and row.input_clipping <= 1 - percentile / 100 for row in report.rows)


def test_noisy_chips_are_those_of_the_selection_domain():
    net = model()
    nft.calibrate(net, [X], 100, noise=True)
    expected = ideal_sums(net[0], X, nft.noise_key(0, 0, domain="selection")).max()
    assert float(net[0].adc_range) == pytest.approx(expected, rel=1e-4)
    assert expected > 1.01 * ideal_sums(net[0], X).max(), "noise widens the range"


def test_every_form_of_data_gives_the_same_ranges():
    pair = X, torch.zeros(300)
    forms = [X, pair, TensorDataset(*pair), DataLoader(TensorDataset(*pair), batch_size=32, shuffle=True), [(X, None)]]
    forms.append(part for part in X.split(100))
    found = [nft.calibrate(model(), data, 99.5)[0].state_dict() for data in forms]
    for state in found[1:]:
        # Products of another batch size may round otherwise.
        torch.testing.assert_close(state, found[0], rtol=2e-3, atol=0)
    by_name = nft.calibrate(model(), [{"x": X}], 99.5, forward=lambda m, batch: m(batch["x"]))[0]
    assert by_name.state_dict()["0.adc_range"].equal(found[0]["0.adc_range"])


def test_the_report_says_what_the_converters_alone_cost():
    net, report = nft.calibrate(model(), X[:50])
    with nft.noise(net, enabled=False), torch.no_grad():
        found = net(X[:50])
        first = net[0](X[:50])
        ideal_first = net[0].ideal(X[:50])
        ideal = net[2].ideal(ideal_first.relu())
    assert report.error == pytest.approx(float((found - ideal).norm() / ideal.norm()), rel=1e-5)
    assert report.rows[0].error == pytest.approx(float((first - ideal_first).norm() / ideal_first.norm()), rel=1e-5)
    assert 0.001 < report.rows[0].error < report.error < 0.3


def test_the_report_as_text_and_as_json(tmp_path):
    _, report = nft.calibrate(model(), X)
    text = str(report)
    assert "6 bits" in text and "7 bits" in text and f"{100 * report.error:.3g} % of the result" in text
    stored = json.loads(report.to_json(tmp_path / "ranges.json"))
    assert stored == json.loads((tmp_path / "ranges.json").read_text())
    assert stored["rows"][1]["signed"] is False and stored["rows"][0]["name"] == "0"


def test_nothing_but_the_ranges_changes():
    net = model().train()
    net.insert(1, nn.BatchNorm1d(24))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    nft.calibrate(net, X, noise=True)
    assert generator.equal(torch.get_rng_state()) and net.training and net[1].training
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == {f"{layer}.{name}" for layer in (0, 3) for name in ("dac_range", "adc_range")}


def test_dynamic_inputs_and_single_converters_have_only_their_own_ranges():
    dynamic, report = nft.calibrate(model(NVM.replace(input_range="dynamic")), X)
    assert {name.split(".")[1] for name in dynamic.state_dict()} == {"weight", "bias", "adc_range"}
    assert report.rows[0].input_range is None and report.rows[0].complete and "dynamic" in str(report)
    _, dac_only = nft.calibrate(model(NVM.replace(output_bits=None)), X)
    assert dac_only.rows[0].output_range is None and dac_only.rows[0].error > 0


def test_a_layer_that_did_not_run_stays_without_a_range_and_is_named():
    net = model()
    net.spare = nft.NoisyLinear(2, 2, nvm=NVM)
    with pytest.warns(UserWarning, match=r"calibrate: These layers did not run, or got zeros only.*: spare"):
        _, report = nft.calibrate(net, X, forward=lambda m, x: m[2](m[1](m[0](x))))
    assert net.spare.dac_range.isnan().all() and not report.rows[2].complete


def test_a_layer_of_zeros_gets_a_range_of_zero_and_gives_zeros():
    net = model()
    nn.init.zeros_(net[0].weight)
    nn.init.ones_(net[0].bias)
    nft.calibrate(net, X)
    assert net[0].adc_range == 0 and (net[0](X) == 1).all()


def test_bad_arguments_are_refused_and_change_nothing():
    net = model()
    for data, error, match in (
        ([], ValueError, "data: must hold at least one batch"),
        (3, TypeError, "data: must be batches"),
        ((X, X[:5]), ValueError, "data: must have tensors of one length"),
        (X.clone().fill_(torch.nan), ValueError, "data: must give finite inputs of every layer.*'0'"),
    ):
        with pytest.raises(error, match=match):
            nft.calibrate(net, data)
    for options, match in (
        ({"percentile": 0}, "percentile: must be above 0"),
        ({"percentile": 101}, "percentile: must be a finite number"),
        ({"noise": 1}, "noise: must be True or False"),
    ):
        with pytest.raises(ValueError, match=match):
            nft.calibrate(net, X, **options)
    with pytest.raises(ValueError, match="model: must have layers with input_bits or output_bits"):
        nft.calibrate(model(nft.NVMDevice()), X)
    assert all(value.isnan().all() for name, value in net.state_dict().items() if name.endswith("_range"))
