"""Philox4x32-10 gives the published words, on every instruction set and in the plain definition."""

import numpy as np
import pytest
import torch

import nft_ext as nft
from nft_ext import _core, reference
from support.paths import ROOT

ISAS = nft.info()["instruction_sets"]
ANSWERS = ROOT / "csrc" / "tests" / "philox_known_answers.txt"


def known_answers():
    """(counter [4], key [2], words [4]) per line, uint32; the file is shared with the native tests."""
    lines = [line.split() for line in ANSWERS.read_text().splitlines() if not line.startswith("#")]
    rows = [np.array([int(word, 16) for word in line], dtype=np.uint32) for line in lines]
    return [(row[:4], row[4:6], row[6:]) for row in rows]


def test_the_three_published_vectors_are_there():
    answers = known_answers()
    assert len(answers) == 3 and all(len(words) == 4 for _, _, words in answers)
    assert [f"{words[0]:08x}" for _, _, words in answers] == ["6627e8d5", "408f276d", "d16cfe09"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("copies", [1, 5, 16, 33])
def test_known_answers_in_the_kernels(isa, copies):
    for counter, key, words in known_answers():
        got = _core.philox(np.tile(counter, (copies, 1)), key, isa=isa)
        assert got.dtype == np.uint32 and (got == words).all()


def test_known_answers_in_the_reference():
    for counter, key, words in known_answers():
        got = reference.philox(torch.from_numpy(counter.astype(np.int64))[None], tuple(int(k) for k in key))
        assert got[0].tolist() == words.tolist()


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_equal_the_reference_on_random_counters(isa):
    rng = np.random.default_rng(1)
    counters = rng.integers(0, 2**32, (1001, 4), dtype=np.uint32)
    for key in rng.integers(0, 2**32, (5, 2), dtype=np.uint32):
        want = reference.philox(torch.from_numpy(counters.astype(np.int64)), (int(key[0]), int(key[1])))
        assert (_core.philox(counters, key, isa=isa) == want.numpy()).all()


def bits_set(words):
    """Set bits of each row of uint32 [n, 4]."""
    return np.unpackbits(words.view(np.uint8), axis=1).sum(axis=1)


def test_one_changed_bit_changes_about_half_the_words_bits():
    """Ten rounds mix: no counter or key bit has a weak effect. 64 of 128 bits on average."""
    rng = np.random.default_rng(2)
    counters = rng.integers(0, 2**32, (200, 4), dtype=np.uint32)
    key = np.array([1, 2], dtype=np.uint32)
    plain = _core.philox(counters, key)
    for bit in range(192):
        moved, moved_key = counters.copy(), key.copy()
        target = moved[:, bit // 32] if bit < 128 else moved_key[(bit - 128) // 32 : (bit - 128) // 32 + 1]
        target ^= np.uint32(1 << bit % 32)
        changed = bits_set(plain ^ _core.philox(moved, moved_key))
        # sd 5.66 a counter, 0.4 for the mean of 200: 5 sd, i.e. 6e-7 a bit.
        assert abs(changed.mean() - 64) < 2.0 and changed.min() > 20


@pytest.mark.parametrize(
    "counters, key, named",
    [
        (np.zeros(4, np.uint32), np.zeros(2, np.uint32), "counters"),
        (np.zeros((3, 3), np.uint32), np.zeros(2, np.uint32), "counters"),
        (np.zeros((3, 4), np.uint32), np.zeros(3, np.uint32), "key"),
    ],
)
def test_wrong_shapes_are_named(counters, key, named):
    with pytest.raises(ValueError, match=f"^{named}: must be uint32"):
        _core.philox(counters, key)
