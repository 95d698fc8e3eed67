"""Keys: which chip's noise. Ranges, domains that never meet, and a counter of its own for every random number."""

import itertools

import pytest
import torch

import nft_ext as nft
from nft_ext import reference
from nft_ext.ops.keys import DOMAINS, fresh_key, stream_of

SLICES = [
    *range(16),
    *range(32, 48),
    *range(64, 80),
    *range(96, 112),
    255,
]  # active, idle, faults, idle faults, whole weight
STREAMS = {"": 1188227382, "fc": 681409183, "conv1": 3696644659, "features.0": 2794546619, "layer1.0.conv1": 2854247633}


# ---- noise_key


def test_a_key_has_a_row_of_seed_and_draw_for_each_chip():
    key = nft.noise_key(seed=7, draws=range(3))
    assert key.dtype == torch.int64 and key.tolist() == [[7, 0], [7, 1], [7, 2]]
    assert nft.noise_key(7, 5).tolist() == [[7, 5]]
    assert nft.noise_key(7, [9, 2]).tolist() == [[7, 9], [7, 2]]


def test_the_whole_range_of_seeds_and_draws():
    assert nft.noise_key(2**64 - 1, 2**32 - 1).tolist() == [[-1, 2**32 - 1]]
    assert nft.noise_key(2**63, 0).tolist() == [[-(2**63), 0]]
    assert nft.noise_key(2**63 - 1, 0).tolist() == [[2**63 - 1, 0]]


def test_domains_sit_above_the_draw():
    assert DOMAINS == {"evaluation": 0, "training": 1, "selection": 2, "permutation": 3}
    for name, number in DOMAINS.items():
        assert nft.noise_key(1, [0, 2**32 - 1], domain=name)[:, 1].tolist() == [
            number << 32,
            (number << 32) + 2**32 - 1,
        ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(seed=-1), "seed: must be an integer in 0..18446744073709551615; got -1"),
        (dict(seed=2**64), "seed: must be an integer in 0..18446744073709551615; got 18446744073709551616"),
        (dict(seed=1.5), "seed: must be an integer in 0..18446744073709551615; got 1.5"),
        (dict(seed=True), "seed: must be an integer in 0..18446744073709551615; got True"),
        (dict(draws=-1), "draws: must be an integer in 0..4294967295; got -1"),
        (dict(draws=[0, 2**32]), "draws: must be an integer in 0..4294967295; got 4294967296"),
        (dict(draws=["a"]), "draws: must be an integer in 0..4294967295; got a"),
        (dict(draws=[]), "draws: must name at least one chip; got []"),
        (dict(domain="test"), "domain: must be one of evaluation, training, selection, permutation; got test"),
    ],
)
def test_bad_keys_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        nft.noise_key(**arguments)
    assert str(error.value) == message


# ---- the counter layout, as csrc/core/philox.h and docs/reference/noise.md write it


def layout(seed, domain, stream, draw, slice_, block):
    """(k0, k1, c0, c1, c2, c3) of one Philox call."""
    return (seed % 2**32, seed >> 32, block % 2**32, block >> 32 | slice_ << 16 | domain << 24, stream, draw)


def test_every_input_bit_has_its_own_place():
    """A layout in which no two input bits share a place is injective: no two random numbers share a counter."""
    widths = dict(seed=64, domain=8, stream=32, draw=32, slice_=8, block=48)
    zero = dict.fromkeys(widths, 0)
    places = set()
    for name, width in widths.items():
        for bit in range(width):
            words = layout(**zero | {name: 1 << bit})
            (place,) = [(i, word) for i, word in enumerate(words) if word]
            assert place[1].bit_count() == 1
            places.add(place)
    assert len(places) == sum(widths.values()) == 192


def test_the_noise_uses_this_layout(monkeypatch):
    """What reaches Philox for many (domain, seed, stream, draw, slice): as written, and never twice."""
    seen = []

    def philox(counter, key):
        seen.extend((*key, *row) for row in counter.tolist())
        return counter

    monkeypatch.setattr(reference, "philox", philox)
    expected = []
    choices = itertools.product(
        DOMAINS, [0, 1, 2**32, 2**64 - 1], [0, 1, 2**32 - 1], [0, 1, 2**32 - 1], [0, 1, 32, 64, 255]
    )
    for domain, seed, stream, draw, slice_ in choices:
        reference.words(nft.noise_key(seed, draw, domain=domain)[0], stream, slice_, 9)
        expected += [layout(seed, DOMAINS[domain], stream, draw, slice_, block) for block in range(3)]
    assert seen == expected
    assert len(set(seen)) == len(seen) == 4 * 4 * 3 * 3 * 5 * 3


def test_slices_of_different_purposes_are_distinct():
    assert len(set(SLICES)) == 4 * 16 + 1 and max(SLICES) < 256
    assert (reference.SLICE_IDLE, reference.SLICE_FAULT, reference.SLICE_IDLE_FAULT, reference.SLICE_WEIGHT) == (
        32,
        64,
        96,
        255,
    )


def test_the_same_seed_and_draw_give_another_chip_in_another_domain():
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    chips = [nft.program_weights(weight, nft.NVMDevice(), key=nft.noise_key(3, 4, domain=domain)) for domain in DOMAINS]
    for a, b in itertools.combinations(chips, 2):
        assert (a != b).all()


# ---- fresh keys, as layers draw them outside `chips`


def test_fresh_keys_follow_torchs_generator():
    like = torch.zeros(1)
    torch.manual_seed(5)
    first, second = fresh_key(like), fresh_key(like)
    torch.manual_seed(5)
    assert torch.equal(fresh_key(like), first) and torch.equal(fresh_key(like), second)
    assert not torch.equal(first, second)


def test_fresh_keys_are_chips_of_the_training_domain():
    key = fresh_key(torch.zeros(1))
    assert key.dtype == torch.int64 and key.shape == (1, 2)
    assert key[0, 1] == DOMAINS["training"] << 32 and key[0, 0] >= 0


@pytest.mark.parametrize("inference", [False, True])
def test_fresh_seeds_are_torchs_random_integers(inference):
    """One 64-bit draw of the generator each: the numbers and the generator's state afterwards are those of randint."""
    like = torch.zeros(3, 2, requires_grad=True)
    torch.manual_seed(6)
    wanted = [torch.randint(2**63 - 1, ()).item() for _ in range(100)]
    state = torch.get_rng_state()
    torch.manual_seed(6)
    with torch.inference_mode(inference):
        keys = [fresh_key(like) for _ in range(100)]
    assert [key[0, 0].item() for key in keys] == wanted and torch.equal(torch.get_rng_state(), state)
    assert not any(key.requires_grad for key in keys)


# ---- streams, as layers take them from their names


def test_streams_are_stable():
    """Fixed for ever: another hash would change every published chip."""
    for name, stream in STREAMS.items():
        assert stream_of(name) == stream and 0 <= stream < 2**32


def test_a_taken_stream_hashes_on():
    taken = {stream_of("conv1")}
    assert stream_of("conv1", taken) == stream_of("conv1'") not in taken
    taken.add(stream_of("conv1'"))
    assert stream_of("conv1", iter(taken)) == stream_of("conv1''")
    assert stream_of("conv2", taken) == stream_of("conv2")
