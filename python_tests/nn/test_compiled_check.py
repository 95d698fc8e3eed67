"""Compiled models on several chips: checked at the graph's first call, refused if they mix chips."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

import nft_ext as nft
from support.chips import DRAWS, Calling, noisy, rand


def test_a_compiled_model_with_parts_outside_of_its_graphs():
    outside = torch._dynamo.disable(lambda layer, x: layer(x))
    model, x = noisy(Calling(lambda net, x: outside(net[2], net[0](x).tanh()))), rand(4, 8)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS):
        assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()


class Running(nn.Module):
    """Sums along dim 0, as a recurrent network does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, scale=None, *, double=False, kind="sum"):  # [T, B, 8]
        x = self.last(self.first(x).cumsum(0)) * (2 if double else 1)
        return x if scale is None else x * scale


@pytest.mark.parametrize("repeat, extra", [(True, ()), (False, (torch.ones(6, 1, 1),))])
def test_a_compiled_model_is_checked_at_its_first_call(repeat, extra):
    torch._dynamo.reset()
    sound, mixing = noisy(Calling(lambda net, x, *_, **__: net(x))), noisy(Running())
    options = {} if extra else {"scale": None, "double": True, "kind": "sum"}
    extra = [t if repeat else t.repeat(3, 1, 1) for t in extra]
    x = rand(6, 4, 8) if repeat else rand(18, 4, 8)
    with torch.no_grad():
        compiled = torch.compile(mixing, fullgraph=True, backend="eager")
        for _ in range(2):
            with nft.chips(mixing, draws=DRAWS, repeat=repeat):
                with pytest.raises(RuntimeError, match="^model: must give the same on several chips.*two chips in one"):
                    compiled(x, *extra, **options)
        with nft.chips(mixing, draws=1):
            assert torch.equal(compiled(x, *extra, **options), mixing(x, *extra, **options))
        compiled = torch.compile(sound, fullgraph=True, backend="eager")
        for _ in range(2):
            with nft.chips(sound, seed=3, draws=DRAWS, repeat=repeat):
                assert torch.equal(compiled(x, *extra, **options), sound(x, *extra, **options))
                with torch.compiler.set_stance("fail_on_recompile"):
                    compiled(x, *extra, **options)
    torch._dynamo.reset()


def test_the_operator_of_compiled_models():
    x = rand(4, 8).requires_grad_()
    given = (x, [rand(4, 1)], ["", "scale"], "0", 1)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(torch.ops.nft_ext.checked_inputs.default, given, test_utils=tests)
    torch.ops.nft_ext.checked_inputs(*given).square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())
