"""Temperature scaling: the fit is the minimum, and a tempered model runs on the same chips."""

import math

import pytest
import torch

import nft_ext as nft
from nft_ext.metrics import fit_temperature, tempered
from nft_ext.montecarlo import calibrate
from nft_ext.montecarlo import fit_temperature as fit_model_temperature


def drawn(scale, n=4000, classes=6):
    """Logits [n, C], and labels drawn from softmax(logits / scale)."""
    generator = torch.Generator().manual_seed(int(scale * 100))
    logits = 3 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial((logits / scale).softmax(1), 1, generator=generator)[:, 0]


def nll(logits, labels, temperature):
    return torch.nn.functional.cross_entropy(logits.double() / temperature, labels).item()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5, 20.0])
def test_the_fit_finds_the_temperature_labels_were_drawn_at(scale):
    logits, labels = drawn(scale)
    found = fit_temperature(logits, labels)
    assert found.value == pytest.approx(scale, rel=0.15) and not found.at_limit
    assert found.nll == pytest.approx(nll(logits, labels, found.value), rel=1e-9)
    assert found.nll_before == pytest.approx(nll(logits, labels, 1.0), rel=1e-9)
    for nearby in (0.999, 1.001):  # a strict minimum
        assert found.nll < nll(logits, labels, found.value * nearby)


def test_the_fit_is_exact_where_the_answer_is_known():
    """Two classes, logits (a, 0), a share p right: the optimum has sigmoid(a / T) = p."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert fit_temperature(logits, labels).value == pytest.approx(3 / math.log(8 / 2), rel=1e-8)


def test_scaled_logits_scale_the_temperature_and_chips_are_pooled():
    logits, labels = drawn(2.5, n=500)
    value = fit_temperature(logits, labels).value
    assert fit_temperature(40 * logits, labels).value == pytest.approx(40 * value, rel=1e-7)
    assert fit_temperature(torch.stack([logits, logits]), labels).value == pytest.approx(value, rel=1e-9)
    other = drawn(0.3, n=500)[0]
    both = fit_temperature(torch.stack([logits, other]), labels).value
    assert both == pytest.approx(fit_temperature(torch.cat([logits, other]), labels.repeat(2)).value, rel=1e-9)


def test_no_minimum_inside_ends_at_a_limit():
    logits, _ = drawn(1.0, n=50)
    perfect = fit_temperature(logits, logits.argmax(1))  # everything right: T -> 0
    assert perfect.at_limit and perfect.value == 1e-4 and perfect.nll == pytest.approx(0, abs=1e-12)
    hopeless = fit_temperature(logits, logits.argmin(1))  # nothing learnt: T -> infinity
    assert hopeless.at_limit and hopeless.nll == pytest.approx(math.log(6), abs=1e-3)
    assert "limit" in str(hopeless)


@pytest.mark.parametrize(
    "logits, labels, kind, words",
    [
        ([[1.0]], torch.zeros(1), TypeError, "logits: must be a tensor"),
        (torch.zeros(3), torch.zeros(3).long(), ValueError, r"logits: must be .*of shape \[n, C\]"),
        (torch.zeros(3, 1), torch.zeros(3).long(), ValueError, "logits: must be .* C >= 2 classes"),
        (torch.zeros(3, 2), torch.zeros(3).bool(), ValueError, "labels: must be one integer per image"),
        (torch.zeros(3, 2), torch.zeros(2).long(), ValueError, "labels: must be one integer per image, shape \\[3\\]"),
        (
            torch.zeros(3, 2),
            torch.tensor([0, 1, 2]),
            ValueError,
            "labels: must lie in 0..1, one logit per class; got 2",
        ),
        (torch.full((3, 2), math.nan), torch.zeros(3).long(), ValueError, "logits: must be finite"),
    ],
)
def test_bad_logits_are_refused(logits, labels, kind, words):
    with pytest.raises(kind, match=words):
        fit_temperature(logits, labels)


@pytest.fixture(scope="module")
def noisy():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return nft.convert(model, nft.NVMDevice(sigma=0.3))


DATA = (torch.randn(64, 12, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4)


def test_a_tempered_model_keeps_its_chips_and_its_accuracy(noisy):
    options = dict(runs=6, seed=3, metrics=("accuracy", "ekl", "nll"), progress=False)
    plain, cooled = nft.monte_carlo(noisy, DATA, **options), nft.monte_carlo(tempered(noisy, 2.5), DATA, **options)
    assert cooled.accuracy.per_run.tolist() == plain.accuracy.per_run.tolist()
    for run in range(6):  # EKL and NLL of the chip's own logits, divided
        with torch.no_grad():
            log_p = (nft.program(noisy, seed=3, draw=run)(DATA[0]).double() / 2.5).log_softmax(1)
        loss = -log_p[torch.arange(64), DATA[1]]
        right = log_p.argmax(1) == DATA[1]
        assert cooled.ekl.per_run[run] == pytest.approx(loss[right].mean().item(), rel=1e-5)
        assert cooled.nll.per_run[run] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert any("logits divided by the temperature 2.5" in note for note in cooled.notes)
    assert not any("temperature" in note for note in plain.notes)


def test_a_models_temperature_is_fitted_on_selection_chips(noisy):
    found = fit_model_temperature(noisy, DATA, runs=3, seed=5, sigma=0.2, batch_size=17)
    logits = []
    for draw in range(3):
        with nft.noise(noisy, sigma=0.2), nft.chips(noisy, seed=5, draws=[draw], domain="selection"), torch.no_grad():
            logits.append(noisy(DATA[0]))
    expected = fit_temperature(torch.stack(logits), DATA[1])
    assert found.value == pytest.approx(expected.value, rel=1e-4)
    again = fit_model_temperature(tempered(noisy, found), DATA, runs=3, seed=5, sigma=0.2)
    assert again.value == pytest.approx(1.0, rel=1e-4)


def test_the_old_name_warns_and_does_the_same(noisy):
    with pytest.warns(DeprecationWarning, match="calibrate is now fit_temperature") as caught:
        found = calibrate(noisy, DATA, runs=2, seed=5, sigma=0.2)
    assert [warning.filename for warning in caught] == [__file__]  # it points at the caller
    assert found == fit_model_temperature(noisy, DATA, runs=2, seed=5, sigma=0.2)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, "hot"])
def test_a_temperature_is_a_positive_number(noisy, temperature):
    with pytest.raises(ValueError, match="temperature: must be"):
        tempered(noisy, temperature)
