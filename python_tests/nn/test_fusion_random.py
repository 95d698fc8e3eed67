"""nft.fuse on random models with in-place operations, aliases and modules that cannot be traced: the fused model gives
what the model gives, on the same chips.

NFT_EXT_FUZZ=20000 python -m pytest python_tests/nn/test_fusion_random.py compares that many models.
"""

import os

import nft_ext as nft
from nft_ext.nn.cascade import Cascade
from nft_ext.nn.fused import FusedLayer
from support.random_models import X, difference, random_model, results, takes_two_chips

MODELS = int(os.environ.get("NFT_EXT_FUZZ", "30"))


def test_fused_models_equal_the_models():
    folds, cascades, refused = 0, 0, 0
    for seed in range(MODELS):
        net = random_model(seed)
        try:
            fused = nft.fuse(net)
        except ValueError:
            refused += 1
            continue
        layers = [m for m in fused.modules() if isinstance(m, FusedLayer)]
        folds += sum(m.scale is not None or m.ends_in_relu for m in layers)
        cascades += sum(isinstance(m, Cascade) for m in fused.modules())
        # Without BatchNorm the arithmetic is the same. With one, an epilogue rounds other intermediate results.
        rounded = 1e-2 if any(step[0] == "in another type" for step in net.program) else 1e-4  # to bfloat16
        allowed = rounded if any(m.scale is not None for m in layers) else 0.0
        found, expected = (results(m, X, seed, takes_two_chips(net)) for m in (fused, net))
        assert difference(found, expected) <= allowed, (seed, net.program, net.returned)
    assert folds >= MODELS // 2 and cascades >= MODELS // 20 and refused <= MODELS // 20
