"""A journal that an earlier version of the package began goes on where the noise is still the same."""

import json

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo.configuration import network_hash


def network():
    torch.manual_seed(2)
    return nft.convert(nn.Linear(9, 4), nft.NVMDevice(sigma=0.3))


@pytest.fixture
def evaluate():
    """Evaluates one small network on more chips each time, or as told, into `resume`."""
    generator = torch.Generator().manual_seed(4)
    data = torch.randn(30, 9, generator=generator), torch.randint(4, (30,), generator=generator)
    model = network()
    return lambda runs, resume=None: nft.monte_carlo(model, data, runs=runs, seed=3, progress=False, resume=resume)


def as_of(version, path):
    """Rewrites the file's header as that version wrote it: with the version in place of the noise's definition, a hash
    in place of the network's identity, and without a checksum."""
    first, rest = path.read_text().split("\n", 1)
    header = json.loads(first) | {"format": "nft_ext.journal/1"}
    del header["fixed"]["noise"], header["noted"]["nft_ext"], header["crc"]
    header["fixed"] |= {"nft_ext": version, "network": network_hash(network())}
    path.write_text(json.dumps(header) + "\n" + rest)


def test_a_journal_of_the_same_noise_goes_on(evaluate, tmp_path):
    path = tmp_path / "j"
    evaluate(2, path)
    as_of("0.2.0", path)
    began = path.read_text()
    with pytest.warns(UserWarning, match="attributes, callables and buffers of the network could not be checked"):
        report = evaluate(5, path).to_dict()
    whole = evaluate(5).to_dict()
    assert path.read_text().startswith(began)
    for name in whole.keys() - {"seconds", "notes"}:
        assert report[name] == whole[name], name
    notes = report["notes"]
    assert f"j was begun with nft_ext 0.2.0, now {nft.__version__}: chips of the two may differ by rounding" in notes
    assert any("could not be checked" in note for note in notes)


def test_a_journal_of_other_noise_is_refused(evaluate, tmp_path):
    path = tmp_path / "j"
    evaluate(2, path)
    as_of("0.1.0", path)
    with pytest.raises(ValueError, match="which differs in noise: 0.1 in the file, 0.2 now$"):
        evaluate(5, path)
