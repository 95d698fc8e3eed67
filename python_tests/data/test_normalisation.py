"""The published normalisation: the same pixels under other means and deviations, which the sets record."""

import pytest
import torch

from nft_ext import data
from nft_ext.data.normalisation import PUBLISHED, as_published


def pixels(images):
    """The pixels in units of full scale."""
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (images.mean, images.std))
    return images.images * std + mean


def test_the_published_normalisation_changes_the_scale_and_no_pixel():
    for usual, published in zip(data.load("digits"), data.load("digits", normalisation="published")):
        assert (published.mean, published.std) == ((0.5,), (0.5,)) != (usual.mean, usual.std)
        torch.testing.assert_close(pixels(published), pixels(usual), atol=1e-6, rtol=0)
        assert float(published.images.min()) == pytest.approx(-1, abs=1e-6)  # black
        assert float(published.images.max()) == pytest.approx(1, abs=1e-6)  # white
        assert torch.equal(published.labels, usual.labels) and published.name == usual.name


def test_every_data_set_has_its_own_numbers_for_every_channel():
    assert set(PUBLISHED) == set(data.NAMES)
    colour = data.ImageSet("cifar10/test", torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), 10)
    found = as_published(colour)
    expected = [-mean / std for mean, std in zip(*PUBLISHED["cifar10"])]
    assert found.images[0, :, 0, 0].tolist() == pytest.approx(expected)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalisation: must be one of default, published.*; got imagenet"):
        data.load("digits", normalisation="imagenet")
