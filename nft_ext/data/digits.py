"""Digits: the 1,797 handwritten digits (8x8, 17 grey levels) in scikit-learn, the test part of UCI optdigits.

The first 1,437 images train, the last 360 test. The images seem to be ordered by writer, so most test writers do not
occur in training. A shuffled split would mix the writers and make the task easier: three nearest neighbours reach
96.7 % here, but 98.1 to 99.4 % on five shuffled splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nft_ext._common.checks import fail
from nft_ext.data.image_set import ImageSet
from nft_ext.data.pixels import IMAGE_SIZE, write_inputs

CLASSES = 10
FULL_SCALE = 16.0
TEST_IMAGES = 360
MEAN, STD = (0.3054,), (0.3228,)  # of the training images at 32x32


def load() -> tuple[ImageSet, ImageSet]:
    """Digits as (train, test): 1,437 and 360 images, resized from 8x8 to 32x32.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        fail("digits", "needs scikit-learn: pip install scikit-learn", "no such package", ImportError)
    bundle: Any = load_digits()
    pixels = bundle.images.astype(np.uint8)  # stored as floats, but integers in 0..16
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    images = torch.empty(len(pixels), 1, IMAGE_SIZE, IMAGE_SIZE)
    write_inputs(images, pixels[:, None], FULL_SCALE, MEAN, STD)
    border = len(pixels) - TEST_IMAGES
    return (
        ImageSet("digits/train", images[:border], labels[:border], CLASSES, MEAN, STD),
        ImageSet("digits/test", images[border:], labels[border:], CLASSES, MEAN, STD),
    )
