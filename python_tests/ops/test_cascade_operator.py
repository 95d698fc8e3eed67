"""The operators noisy_cascade and draw_keys as torch sees them, and what they refuse; python_tests/nn/test_cascade.py
has the results.
"""

import pytest
import torch
from torch.library import opcheck

import nft_ext as nft

ops = torch.ops.nft_ext
NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def arguments(**changed):
    """Two layers; the second takes the first's result and the input as residual."""
    weights = [torch.randn(4, 4, 3, 3), torch.randn(4, 4, 1, 1)]
    given = dict(
        inputs=[X],
        weights=weights,
        biases=[None, torch.randn(4)],
        tables=[torch.from_numpy(NVM.operator_table())] * 2,
        keys=[nft.noise_key(1), nft.noise_key(2)],
        streams=[1, 2],
        specs=NVM.operator_spec() * 2,
        scales=[torch.randn(4), None],
        shifts=[None, None],
        wiring=[0, -1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1],
        kept=[1, 2],
    )
    return tuple({**given, **changed}.values())


def test_opcheck():
    opcheck(ops.noisy_cascade.default, arguments())
    opcheck(ops.noisy_cascade.default, arguments(inputs=[X.contiguous(memory_format=torch.channels_last)], kept=[2]))
    opcheck(ops.draw_keys.default, (X, 3))


def test_the_fake_kernel_gives_linear_layers_and_chips():
    weight = torch.randn(3, 5)
    key = nft.noise_key(1, range(2))
    opcheck(
        ops.noisy_cascade.default,
        (
            [torch.randn(4, 5)],
            [weight],
            [None],
            [torch.from_numpy(NVM.operator_table())],
            [key],
            [1],
            NVM.operator_spec(),
            [None],
            [None],
            [0, -1, 0, 1, 1, 0, 0, 1, 1, 1],
            [1],
        ),
    )


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(wiring=[0] * 19), "wiring: must hold ten numbers per weight; got 19"),
        (dict(keys=[nft.noise_key(1)]), "keys: must hold one entry per weight; got 1"),
        (dict(specs=NVM.operator_spec()), "specs: must hold eight numbers per weight; got 8"),
        (dict(wiring=[1, *arguments()[9][1:]]), "wiring: must take x from the inputs or an earlier layer; got 1"),
        (dict(wiring=[-1, *arguments()[9][1:]]), "wiring: must take x from the inputs or an earlier layer; got -1"),
        (
            dict(wiring=[0, 1, *arguments()[9][2:]]),
            "wiring: must take a residual from the inputs or an earlier layer, or be -1; got 1",
        ),
        (dict(kept=[0]), "kept: must number layers' results in ascending order; got 0"),
        (dict(kept=[2, 1]), "kept: must number layers' results in ascending order; got 1"),
        (dict(kept=[3]), "kept: must number layers' results in ascending order; got 3"),
        (
            dict(wiring=[*arguments()[9][:5], 0, 0, *arguments()[9][7:]]),
            r"residual: must have the result's shape \[2, 4, 6, 6\]; got \[2, 4, 8, 8\]",
        ),
        (dict(inputs=[X[:, :3]]), r"x: must be \[rows, C, H, W\] with the weight's C"),
        (dict(inputs=[X.double()]), "x: must be float32 or bfloat16"),
    ],
)
def test_bad_arguments_of_the_operator(changed, message):
    with pytest.raises(RuntimeError, match="nft_ext::noisy_cascade: " + message):
        ops.noisy_cascade(*arguments(**changed))


def test_a_gradient_is_refused():
    with pytest.raises(RuntimeError, match="nft_ext::noisy_cascade: arguments must not require a gradient"):
        ops.noisy_cascade(*arguments(inputs=[X.clone().requires_grad_()]))
