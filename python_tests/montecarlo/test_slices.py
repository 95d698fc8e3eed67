"""The slices of the stratified protocol: tilings of a permuted set, the same for everybody."""

import numpy as np
import pytest

import nft_ext as nft
from nft_ext import reference
from nft_ext.montecarlo.statistics.slices import Slices, permutation


def images_of(slices, draw):
    numbers, counted = slices.of([draw])
    return numbers[0][counted[0]].tolist()


@pytest.mark.parametrize("images, most", [(12, 3), (12, 5), (13, 5), (7, 7), (7, 1), (360, 100), (10, 6)])
def test_a_tiling_holds_every_image_once_in_slices_that_differ_by_at_most_one(images, most):
    slices = Slices(5, images, most)
    assert slices.count == -(-images // most) and slices.size <= most
    for tiling in range(4):
        parts = [images_of(slices, tiling * slices.count + j) for j in range(slices.count)]
        assert sorted(sum(parts, [])) == list(range(images))
        assert {len(part) for part in parts} <= {slices.size, slices.size - 1}


def test_two_tilings_share_their_slices_and_the_next_two_have_others():
    slices = Slices(5, 100, 10)
    first, second, third, fourth = ([images_of(slices, 10 * t + j) for j in range(10)] for t in range(4))
    assert first == second and third == fourth and first != third


def test_a_slice_depends_on_the_draw_alone_not_on_its_neighbours():
    slices = Slices(5, 103, 10)
    together = slices.of(list(range(40)))
    for draw in (0, 7, 39):
        alone = slices.of([draw])
        assert all((a[0] == b[draw]).all() for a, b in zip(alone, together))
    assert images_of(Slices(6, 103, 10), 0) != images_of(slices, 0), "another seed, other slices"


def test_a_permutation_sorts_64_philox_bits_an_image():
    seed = 2**63 + 12345
    key = nft.noise_key(seed, draws=[3], domain="permutation")[0]
    words = reference.words(key, stream=0, slice_=0, n=2 * 11).numpy().astype(object)
    expected = sorted(range(11), key=lambda i: (words[2 * i] + (words[2 * i + 1] << 32), i))
    assert permutation(seed, 3, 11).tolist() == expected


def test_permutations_are_uniform():
    # Where image 0 goes, over 2,000 permutations of 5: chi-square(4) above 23.5 has probability 1e-4.
    places = np.array([int(np.flatnonzero(permutation(9, b, 5) == 0)[0]) for b in range(2000)])
    counts = np.bincount(places, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 23.5
