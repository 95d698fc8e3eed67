"""CorrectNet's regularizer against its formula, kernel by kernel; alone and around other methods."""

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import methods
from nft_ext.methods.correctnet import orthogonality


def by_definition(weight, diagonal):
    matrices = weight.reshape(-1, *weight.shape[-2:]) if weight.dim() == 4 else [weight]
    return sum((m.T @ m - diagonal * torch.eye(m.shape[1], dtype=m.dtype)).square().sum() for m in matrices)


@pytest.mark.parametrize(
    "shape", [(4, 3, 3, 3), (4, 1, 5, 5), (6, 2, 1, 1), (3, 2, 3, 5), (3, 2, 5, 3), (7, 4), (4, 7)], ids=str
)
@pytest.mark.parametrize("diagonal", [0.0, 1.0, 0.3])
def test_the_penalty_is_its_formula(shape, diagonal):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = by_definition(weight, diagonal)
    (gradient,) = torch.autograd.grad(expected, weight)
    found = orthogonality(weight, diagonal)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, weight)[0], gradient)


def test_orthogonal_kernels_cost_nothing():
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    assert float(orthogonality(rotation.expand(2, 4, 3, 3), 1.0)) == pytest.approx(0.0, abs=1e-9)


@pytest.fixture
def step():
    torch.manual_seed(0)
    return nft.models.vgg8(num_classes=3, width=0.125), torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    "base",
    [
        methods.Vanilla(),
        methods.NoiseInjection(0.1),
        methods.OVF(0.1, 0.1, feedbacks=1),
        methods.IRS(0.1, 0.1),
        methods.Censored(0.1),
    ],
    ids=lambda m: m.name,
)
def test_around_any_method_it_adds_the_penalty_of_the_plain_weights(step, base):
    plain, x, target = step
    method = methods.CorrectNet(base, strength=1e-3, diagonal=0.5)
    prepared = method.prepare(plain).eval()
    torch.manual_seed(1)
    without = base.loss(prepared, x, target)
    torch.manual_seed(1)
    loss = method.loss(prepared, x, target)
    weights = [m.weight for m in plain.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    torch.testing.assert_close(loss - without, 1e-3 * sum(by_definition(w, 0.5) for w in weights), rtol=1e-4, atol=1e-4)
    assert method.sigma == base.sigma


def test_irs_classifiers_are_not_regularized_through_a_wrapper_either(step):
    plain = step[0]

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    method = methods.CorrectNet(methods.IRS(0.1, 0.1))
    prepared = method.prepare(plain)
    assert torch.equal(method.penalty(Wrapper(prepared)), methods.CorrectNet().penalty(plain))


def test_a_base_by_name_by_config_and_as_an_object_are_one():
    noise = methods.NoiseInjection(0.1)
    assert methods.CorrectNet("vanilla") == methods.CorrectNet() == methods.build("correctnet")
    assert methods.CorrectNet(noise.config()) == methods.CorrectNet(noise)


def test_training_makes_the_rows_of_a_matrix_orthonormal():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    x, target = torch.randn(32, 1, 4, 4), torch.arange(32) % 8
    method = methods.CorrectNet(methods.NoiseInjection(0.1), strength=1.0)
    history = nft.fit(plain, method, (x, target), (x, target), epochs=60, batch_size=16, lr=1e-2, progress=False)
    weight = history.model[1].weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), rtol=0, atol=0.15)
    assert method.penalty(history.model).item() == pytest.approx(8.0, abs=0.5)  # W^T W has rank 8 of 16


def test_a_model_without_weights_to_regularize_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="model: must hold a Conv2d or Linear for correctnet"):
        methods.CorrectNet().loss(model, torch.randn(3, 4), torch.tensor([0, 1, 2]))
