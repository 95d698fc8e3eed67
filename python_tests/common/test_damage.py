"""A changed or cut file gives what it held, or one line that names it. It never gives anything else.

One bit is flipped at many places of every kind of file that the package writes and reads, and it is cut at many more.
Files that others write have their tests in python_tests/data and python_tests/device.
"""

import json
import random

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import MonteCarloReport
from nft_ext.montecarlo.distributed.journal import Journal
from nft_ext.montecarlo.distributed.rows import Row
from nft_ext.reproduce.grid import cells
from nft_ext.reproduce.panels import PRESETS
from nft_ext.reproduce.store import Store
from nft_ext.training import load
from nft_ext.training.container import read_tensors
from nft_ext.training.state import EXPECTED, FORMAT
from support.training_runs import run

PLACES = 60  # of flips, and of cuts, per file
HEADER = {"fixed": {"network": {"": {"class": "Net"}}, "seed": 3}, "noted": {"threads": 1}, "recorded": {}}


def write_journal(path):
    with Journal(path, HEADER, lambda: {"slice_images": 5}) as journal:
        journal.add([Row(draw, {"correct": 0.1 * draw, "bins": [1.0, 0.3]}, 0.25) for draw in range(3)])


def read_journal(path):
    with Journal(path, HEADER, lambda: {"slice_images": 5}) as journal:
        assert not journal.notes
        return {row.draw: row.line() for row in journal.rows.values()} | {"settled": journal.settled}


def write_report(path, **options):
    torch.manual_seed(0)
    model = nft.convert(nn.Linear(4, 3), nft.NVMDevice(sigma=0.2))
    data = torch.randn(10, 4), torch.randint(3, (10,))
    nft.monte_carlo(model, data, runs=3, progress=False, **options).to_json(path)


KINDS = {
    "journal": (write_journal, read_journal),
    "report": (write_report, lambda path: json.dumps(MonteCarloReport.from_json(path).to_dict())),
    "report of slices": (
        lambda path: write_report(path, protocol="stratified", slice_images=5),
        lambda path: json.dumps(MonteCarloReport.from_json(path).to_dict()),
    ),
    "checkpoint": (
        lambda path: nft.training.save(path, nn.Linear(2, 2), {"epoch": 3}),
        lambda path: repr(load(path)),
    ),
    "training state": (
        lambda path: run(epochs=1, state=path),
        lambda path: repr(read_tensors("state", path, FORMAT, EXPECTED)),
    ),
}


def damaged(content):
    """(what was done, the content after it) at random places, the same in every run."""
    chance = random.Random(0)
    for place in sorted(chance.sample(range(len(content)), min(PLACES, len(content)))):
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        yield f"a flip at {place}", bytes(changed)
        yield f"a cut at {place}", content[:place]


REFUSED = object()


def outcome(path, content, read):
    """What `read` finds in a file of that content, or REFUSED after an error of one line that names the file."""
    path.write_bytes(content)
    try:
        return read(path)
    except ValueError as error:
        message = str(error)
    assert str(path) in message and "\n" not in message
    return REFUSED


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_what_it_held_or_an_error_of_one_line(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    content, whole = path.read_bytes(), read(path)
    found = {what: outcome(path, changed, read) for what, changed in damaged(content)}
    kept = {what: content for what, content in found.items() if content is not REFUSED}
    if kind == "journal":  # a cut drops chips, which run again
        assert [what for what, content in kept.items() if not content.items() <= whole.items()] == []
    else:
        assert [what for what, content in kept.items() if content != whole] == []
    assert len(found) - len(kept) > PLACES // 2


def test_a_damaged_result_of_a_reproduction_is_never_another_result(tmp_path):
    cell, other, *_ = cells("figure3", "vgg8-digits", PRESETS["quick"], (0.1, 0.2), ("noise",), 1, control=False)
    store = Store(tmp_path)
    points = [{"sigma": sigma, "accuracy": [0.5, 0.25], "ekl": None} for sigma in cell.sigmas]
    store.write(cell, {"config": cell.config(), "points": points})
    path, whole = store.cells / f"{cell.key}.json", store.read(cell)
    found = [outcome(path, changed, lambda _: store.read(cell)) for _, changed in damaged(path.read_bytes())]
    figures = [(each["config"], each["points"]) for each in found if each is not REFUSED]
    assert all(each == (whole["config"], whole["points"]) for each in figures)
    assert len(figures) < PLACES
    store.write(cell, {"config": cell.config(), "points": points})
    path.rename(store.cells / f"{other.key}.json")
    with pytest.raises(ValueError, match="must be an undamaged result"):
        store.read(other)
