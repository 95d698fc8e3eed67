"""Epilogues on CUDA: what follows a product, against the definition and against torch's own operations."""

import pytest
import torch

import nft_ext as nft
from nft_ext import reference
from support import epilogues
from support.on_cuda import ALWAYS_ONE_PASS, CHIPS, DTYPES, NVM, random, rounding

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("poisoned_memory_and_exact_float32")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize(
    "name, layout",
    [*epilogues.CASES, ("one pass, past the bound", "contiguous"), ("one pass, past the bound", "channels last")],
)
def test_epilogues(name, layout, chips, shared, dtype):
    """Inside the one-pass kernel, or by one more pass over the library's product: as NFT_EXT_ONE_PASS says."""
    run, definition, x = epilogues.case(name, dtype, layout, chips, shared, device="cuda")
    plain = run()
    e = epilogues.parts_for(plain, layout)
    y, on_host = run(**e), [value.cpu() if isinstance(value, torch.Tensor) else value for value in e.values()]
    own, truth = definition(x, *on_host), definition(x.double(), *on_host)
    assert y.dtype == dtype and y.shape == truth.shape and y.stride() == plain.stride()
    by_cudnn = not ALWAYS_ONE_PASS and not name.startswith("linear")
    allowed = 3 * (own.double() - truth).abs().max() + rounding(dtype, by_cudnn) * truth.abs().max()
    assert (y.cpu().double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("subset", epilogues.SUBSETS, ids="+".join)
@pytest.mark.parametrize(
    "name", ["one pass, panels", "library", "one pass, past the bound", "linear one pass", "linear library"]
)
def test_any_part_of_an_epilogue_may_be_left_out(name, subset):
    """Bit for bit torch's operations on the plain operator's result."""
    run, _, _ = epilogues.case(name, device="cuda")
    plain = run()
    e = {part: value for part, value in epilogues.parts_for(plain).items() if part in subset}
    whole = {**dict.fromkeys(epilogues.PARTS[:3]), "relu": False, **e}
    assert torch.equal(run(**e), reference.epilogue(plain, *whole.values()))


@pytest.mark.parametrize("part", ["scale", "shift", "residual"])
def test_an_epilogue_on_another_device_is_refused_by_name(part):
    run, _, _ = epilogues.case("library", device="cuda")
    value = epilogues.parts_for(run())[part].cpu()
    with pytest.raises(ValueError, match=f"{part}: must be on the weight's torch device cuda:0; got cpu"):
        run(**{part: value})


def test_a_fused_model_is_the_cpus():
    model = nft.convert(nft.models.resnet18(width=0.25).eval(), NVM)
    fused, x = nft.fuse(model), random(2, 3, 32, 32)
    with torch.no_grad(), nft.chips(model, seed=2, draws=range(2)):
        expected = model(x)
    fused.cuda()
    with torch.no_grad(), nft.chips(fused, seed=2, draws=range(2)):
        torch.testing.assert_close(fused(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
