"""What the tests of the operators on CUDA share: arguments on the device, the comparison with the definition.

Tolerances and shapes are those of products.py. The definitions run on the CPU; conftest.py fills memory with NaN, so an
element that no kernel wrote shows.
"""

import torch

import nft_ext as nft
from nft_ext.ops import build_info
from support import products as on_cpu

ops = torch.ops.nft_ext
STREAM, NVM = on_cpu.STREAM, on_cpu.NVM
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CHIPS = on_cpu.CHIPS
random = on_cpu.random
# cuDNN takes float32 products of small kernels apart into sums and differences (Winograd), which costs it digits:
# 1.2e-4 of the largest element seen with 2304 terms on an H100. Ours and cuBLAS's are not so.
WINOGRAD = 2.0**-12
# All products are ours under this rule. test_one_pass.py runs these tests with it, in a process of its own.
ALWAYS_ONE_PASS = build_info.one_pass() == "always"


def rounding(dtype, by_cudnn):
    """What a result may be off by for its rounding, relative to its largest element."""
    return WINOGRAD if by_cudnn and dtype == torch.float32 else 4 * torch.finfo(dtype).eps


def there(value):
    return None if value is None else value.detach().cuda()


def bits(t):
    return t.cpu().contiguous().view({4: torch.int32, 2: torch.int16}[t.element_size()])


def bar(weight, chips, nvm=NVM, cached=False):
    """Operator arguments from codes to device, on CUDA."""
    step = ops.weight_step(weight.detach(), nvm.weight_bits)
    codes = ops.quantize(weight.detach(), step, nvm.weight_bits) if cached else None
    table = torch.from_numpy(nvm.operator_table()).cuda()
    return codes, step, table, nft.noise_key(0, range(chips), device="cuda"), 5, nvm.operator_spec()


def assert_as_good_as_reference(operator, definition, x, weight, bias):
    """|CUDA - exact| <= 3 |reference in x's dtype - exact| + four units in the last place of the largest element; for
    what cuDNN computes, in float32 WINOGRAD times the largest element.
    """
    exact = on_cpu.with_gradients(definition, x.double(), weight, bias)
    own = on_cpu.with_gradients(definition, x, weight, bias)
    leaves = [None if t is None else there(t).requires_grad_() for t in (x, weight, bias)]
    y = operator(*leaves)
    y.backward(random(*y.shape, seed=9, dtype=y.dtype).cuda())
    found = [y.detach(), *[leaf.grad for leaf in leaves if leaf is not None]]
    for leaf in leaves:
        assert leaf is None or (leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape)
    for name, got, low, truth in zip(("y", "dL/dx", "dL/dW", "dL/db"), found, own, exact):
        assert got.shape == truth.shape, name
        by_cudnn = weight.dim() == 4 and (name == "dL/dW" or (name != "dL/db" and not ALWAYS_ONE_PASS))
        allowed = 3 * (low - truth).abs().max() + rounding(x.dtype, by_cudnn) * truth.abs().max()
        error = (got.cpu().double() - truth).abs().max()
        assert error <= allowed, f"{name} is off by {float(error / truth.abs().max()):.1e} of its largest element"
